"""`dgpt2-quant release`: makes, verifies and uploads a folder for the Hub."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from dgpt2_quant.core.errors import UsageError

from .options import JsonOption, OfflineOption, OverwriteOption, RevisionOption, ThreadsOption, TypesOption
from .output import note, print_json, print_report
from .progress import progress_bar

if TYPE_CHECKING:
    from dgpt2_quant.publish.release import Release
    from dgpt2_quant.publish.verify import Check


def release(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="storybook (bundled), a Hub name or a checkpoint folder. Default: distilgpt2."
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FOLDER", help="Folder of the release.")
    ] = None,
    type: TypesOption = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe", metavar="stock|lean", help="stock: llama-quantize's type mixes; lean: less error, in minutes."
        ),
    ] = "stock",
    calibrate: Annotated[
        str,
        typer.Option(
            "--calibrate",
            metavar="TEXTFILE",
            help="Text for the importance matrix: a file; calibration: bundled; sampled: the model generates it.",
        ),
    ] = "sampled",
    calibration_license: Annotated[
        str | None, typer.Option("--calibration-license", metavar="TEXT", help="License of that text, for the card.")
    ] = None,
    text: Annotated[
        str,
        typer.Option("--text", metavar="FILE|NAME", help="Text to score: a file, evaluation (bundled) or wikitext2."),
    ] = "evaluation",
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Rounds of the speed measurement.")] = 5,
    license: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="License of the model, such as mit. Default: that of its card."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option("--base-model", metavar="OWNER/NAME", help="The checkpoint on the Hub, if MODEL is a folder."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option("--push", metavar="OWNER/NAME", help="Upload to this repository on the Hub, after confirmation."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Upload without confirmation.")] = False,
    verify: Annotated[
        Path | None,
        typer.Option("--verify", metavar="FOLDER", help="Verify a release: checksums, card, and that each file runs."),
    ] = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Make a folder for the Hub: GGUF files, measurements, model card, checksums.

    Default types: f16 q8_0 q6_k q5_k_m q4_k_m q4_0. The card's figures are those of bench.json. After an interrupt,
    run the same command again: it continues. A finished release is not measured again.

    Example: dgpt2-quant release distilgpt2 --text wikitext2 -o distilgpt2-GGUF
    """
    if verify is not None:
        used = [p for p in context.command.params if p.name not in ("verify", "threads", "json")]
        sources = [context.get_parameter_source(str(p.name)) for p in used]
        if others := [p for p, source in zip(used, sources, strict=True) if source and source.name != "DEFAULT"]:
            name = "MODEL" if others[0].name == "model" else others[0].opts[0]
            raise UsageError(f"--verify cannot be combined with {name}", "Give only the folder, --threads and --json.")
        _verify(verify, threads, json)
        return
    if yes and not push:
        raise UsageError("--yes needs --push OWNER/NAME", "Name the repository on the Hub, or omit --yes.")
    if output is None:
        raise UsageError("--output is missing", "Name the folder of the release: -o FOLDER.")
    from dgpt2_quant.publish.push import check_repo
    from dgpt2_quant.publish.release import release as make_release

    if push:
        check_repo(push, "push")  # as the flag, which the library calls `repo`
    with progress_bar() as progress:
        made = make_release(
            model or "distilbert/distilgpt2",
            output=output,
            type=type,
            recipe=recipe,
            calibrate=calibrate,
            calibration_license=calibration_license,
            text=text,
            repo=push,
            license=license,
            base_model=base_model,
            rounds=rounds,
            threads=threads,
            revision=revision,
            offline=offline,
            overwrite=overwrite,
            progress=progress,
            announce=note,
        )
    if json:
        print_json({"folder": str(made.folder), "files": made.files, "bench": made.document})
    else:
        print_report(made.document)
    check = shlex.join(["dgpt2-quant", "release", "--verify", str(made.folder)])
    note(f"Release: {made.folder}, {len(made.files)} files. Check it with `{check}`.")
    _upload(made, push, yes)


def _upload(made: "Release", repo: str | None, yes: bool) -> None:
    from dgpt2_quant.publish.card import repository
    from dgpt2_quant.publish.push import push, upload_command

    command = upload_command(made.folder, repository(made.record))
    if repo is None:
        note(f"Upload it with: {command}")
        return
    if not yes:
        if not sys.stdin.isatty():
            note(f"Not uploaded: stdin is not a terminal to confirm on. Add --yes, or upload it with: {command}")
            return
        if not typer.confirm(f"Upload {len(made.files)} files to {repo}?", err=True):
            note(f"Not uploaded. To upload it later: {command}")
            return
    note(f"Uploaded: {push(made.folder, made.files, repo)}")


def _verify(folder: Path, threads: int | None, json: bool) -> None:
    from dgpt2_quant.publish.verify import verify

    with progress_bar() as progress:
        checks = verify(folder, threads=threads, progress=progress)
    wrong = [check for check in checks if check.problem]
    if json:
        print_json({"folder": str(folder), "ok": not wrong, "checks": [_to_json(check) for check in checks]})
    else:
        for check in checks:
            typer.echo(
                f"{'FAIL' if check.problem else 'ok  '} {check.name}" + (f": {check.problem}" * bool(check.problem))
            )
        typer.echo(f"{len(checks)} checks, {len(wrong)} failed." if wrong else f"{len(checks)} checks passed.")
    if wrong:
        note("Download the failed files again, or make the release again with the command in its README.md.")
        raise typer.Exit(1)


def _to_json(check: "Check") -> dict[str, str | bool]:
    return {"name": check.name, "ok": not check.problem, "problem": check.problem}
