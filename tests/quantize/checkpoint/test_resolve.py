"""Resolving MODEL: local names in this process, Hub names over real HTTP against `fake_hub`.

huggingface_hub reads its environment when it is imported, so such calls run in a child process with its own Hub cache.
A child makes several calls, because most of its time is that import.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import CheckpointError, DgptQuantError, ModelNotFoundError, UsageError
from dgpt2_quant.quantize.checkpoint.resolve import resolve

from ..fake_hub import COMMIT, FakeHub, Refusal, Repository, serve

CHECKPOINT = {
    "README.md": b"---\nlicense: mit\n---\n",
    "config.json": b'{"model_type": "gpt2"}',
    "vocab.json": b'{"a": 0}',
    "merges.txt": b"#version: 0.2\n",
    "model.safetensors": bytes(range(256)) * 4,
}
SHARDS = {
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
}
SHARDED = {name: content for name, content in CHECKPOINT.items() if name != "model.safetensors"} | SHARDS

CHILD = """
import json, sys
from dgpt2_quant.core.errors import DgptQuantError
from dgpt2_quant.quantize.checkpoint.resolve import resolve
for call in map(json.loads, sys.argv[1:]):
    try:
        answer = {key: value and str(value) for key, value in vars(resolve(**call)).items()}
    except DgptQuantError as error:
        answer = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    print(json.dumps(answer | {"http_library": "httpx2" in sys.modules}))
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with serve() as running:
        yield running


def run(
    home: Path, endpoint: str, *calls: dict[str, Any], prefix: tuple[str, ...] = (), **environment: str
) -> list[dict[str, Any]]:
    """Results of calls of `resolve` in one child process with its Hub cache at `home`."""
    outer = {k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY")}
    outer = {k: v for k, v in outer.items() if not k.startswith(("HF_", "HUGGING", "TRANSFORMERS_", "XDG_"))}
    settings = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
    outer |= dict.fromkeys(settings, "1") | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint} | environment
    command = [*prefix, sys.executable, "-c", CHILD, *map(json.dumps, calls)]
    child = subprocess.run(command, env=outer, cwd=home.parent, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr
    return [json.loads(line) | {"stderr": child.stderr} for line in child.stdout.splitlines()]


def content(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_download_fetches_only_checkpoint_files(hub: FakeHub, tmp_path: Path) -> None:
    extra = {
        "onnx/config.json": b"{}",
        "onnx/model.safetensors": b"-",
        "pytorch_model.bin": b"-",
        ".gitattributes": b"-",
    }
    hub.repositories["owner/model"] = Repository(CHECKPOINT | SHARDS | extra)
    seen = len(hub.requests)
    [source] = run(tmp_path / "home", hub.url, {"model": "owner/model"}, HF_TOKEN="hf_secret")
    assert (source["name"], source["repository"], source["commit"]) == ("model", "owner/model", COMMIT)
    assert content(source["folder"]) == CHECKPOINT
    assert {Path(request.path).name for request in hub.downloads("owner/model")} == set(CHECKPOINT)
    for request in hub.requests[seen:]:
        assert request.headers["authorization"] == "Bearer hf_secret"
        assert request.headers["user-agent"].startswith(f"dgpt2-quant/{version('dgpt2-quant')};")


def test_cached_model_needs_no_network(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["owner/cached"] = Repository(CHECKPOINT)
    home = tmp_path / "home"
    [fresh] = run(home, hub.url, {"model": "owner/cached"})
    seen = len(hub.requests)
    kept = run(
        home,
        hub.url,
        {"model": "owner/cached", "offline": True},
        {"model": "owner/cached", "prefer_cache": True},
        {"model": "owner/cached", "revision": COMMIT},
    )
    kept += run(home, hub.url, {"model": "owner/cached"}, HF_HUB_OFFLINE="1")
    assert [(source["folder"], source["commit"]) for source in kept] == [(fresh["folder"], COMMIT)] * 4
    assert not any(source["http_library"] for source in kept)
    assert len(hub.requests) == seen


def test_unreachable_hub_falls_back_to_the_cache(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["owner/kept"] = Repository(CHECKPOINT)
    home = tmp_path / "home"
    [fresh] = run(home, hub.url, {"model": "owner/kept"})
    [kept, other] = run(home, closed_port(), {"model": "owner/kept"}, {"model": "owner/other"})
    assert kept["folder"] == fresh["folder"]
    assert f"using commit {COMMIT} from the cache" in kept["stderr"]
    assert other["error"] == "ModelNotFoundError"
    assert "ConnectError" in other["message"]
    assert "storybook" in other["hint"]
    hub.repositories["owner/kept"] = Repository(CHECKPOINT, refusal=Refusal(503))
    [kept] = run(home, hub.url, {"model": "owner/kept"})
    assert kept["folder"] == fresh["folder"]


def test_incomplete_snapshot_is_not_used(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["owner/shards"] = Repository(SHARDED)
    call = {"model": "owner/shards", "prefer_cache": True}
    home = tmp_path / "home"
    [source] = run(home, hub.url, call)
    assert content(source["folder"]) == SHARDED
    for lost in ("model-00002-of-00002.safetensors", "merges.txt"):
        file = Path(source["folder"], lost)
        file.resolve().unlink()
        file.unlink()
        offline, healed = run(home, hub.url, {"model": "owner/shards", "offline": True}, call)
        assert offline["error"] == "ModelNotFoundError"
        assert "not completely" in offline["message"]
        assert healed["folder"] == source["folder"]
        assert content(source["folder"]) == SHARDED


PYTORCH = {name: content for name, content in CHECKPOINT.items() if name != "model.safetensors"}
PYTORCH_SHARDS = {
    "pytorch_model-00001-of-00002.bin": b"first",
    "pytorch_model-00002-of-00002.bin": b"second",
    "pytorch_model.bin.index.json": SHARDS["model.safetensors.index.json"]
    .replace(b"model-", b"pytorch_model-")
    .replace(b".safetensors", b".bin"),
}
ADAPTER = {"adapter_config.json": b'{"base_model_name_or_path": "owner/base"}', "adapter_model.safetensors": b"a"}
OTHERS = {"training_args.bin": b"-", "flax_model.msgpack": b"-"}


@pytest.mark.parametrize(
    ("files", "others"),
    [
        (PYTORCH | {"pytorch_model.bin": b"weights", "chat_template.jinja": b"{}"}, OTHERS | PYTORCH_SHARDS),
        (PYTORCH | PYTORCH_SHARDS, {"optimizer.pt": b"-"}),
        (CHECKPOINT | {"generation_config.json": b"{}"}, {"pytorch_model.bin": b"-"}),
    ],
)
def test_the_first_kind_of_weights_is_downloaded(
    hub: FakeHub, tmp_path: Path, files: dict[str, bytes], others: dict[str, bytes]
) -> None:
    hub.repositories["owner/torch"] = Repository(files | others)
    home = tmp_path / "home"
    [source, kept] = run(home, hub.url, {"model": "owner/torch"}, {"model": "owner/torch", "offline": True})
    assert content(source["folder"]) == files
    assert kept["folder"] == source["folder"]
    lost = Path(source["folder"], sorted(name for name in files if name.endswith((".bin", ".safetensors")))[-1])
    lost.unlink()
    [offline] = run(home, hub.url, {"model": "owner/torch", "offline": True})
    assert "not completely" in offline["message"]


def test_an_adapter_on_the_hub_is_downloaded_with_its_base(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories |= {"owner/poet": Repository(ADAPTER | OTHERS), "owner/base": Repository(CHECKPOINT)}
    call = {"model": "owner/poet"}
    for answer in run(tmp_path / "home", hub.url, call, call | {"offline": True}):
        assert (answer["name"], answer["repository"]) == ("poet", "owner/base")
        assert content(answer["folder"]) == CHECKPOINT
        assert "models--owner--poet" in answer["adapters"]


def test_interrupted_download_resumes(hub: FakeHub, tmp_path: Path) -> None:
    """huggingface_hub keeps whole blocks of 10 MiB within one call, and requests the rest of a block again."""
    block, weights = 10 * 2**20, bytes(range(256)) * (11 * 2**12)
    files = CHECKPOINT | {"model.safetensors": weights}
    hub.repositories["owner/cut"] = Repository(files, cut_after=block + 2**19)
    [source] = run(tmp_path / "home", hub.url, {"model": "owner/cut"})
    assert content(source["folder"]) == files
    tries = [r for r in hub.downloads("owner/cut") if r.path.endswith("/model.safetensors")]
    assert [request.headers.get("range") for request in tries] == [None, f"bytes={block}-"]
    assert tries[1].body_bytes == len(weights) - block


@pytest.fixture(scope="module")
def failures(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Failures of `resolve` by name, with an empty Hub cache and no token."""
    hub.repositories |= {
        "owner/good": Repository(CHECKPOINT),
        "owner/gated": Repository(CHECKPOINT, refusal=Refusal(403, "GatedRepo")),
        "owner/gated-files": Repository(CHECKPOINT, file_refusal=Refusal(401, "GatedRepo")),
        "owner/bad-token": Repository(
            CHECKPOINT, refusal=Refusal(401, message="Invalid credentials in Authorization header")
        ),
        "owner/down": Repository(CHECKPOINT, refusal=Refusal(503)),
        "owner/no-list": Repository(CHECKPOINT, tree_refusal=Refusal(403, message="not from here")),
        "owner/lost-file": Repository(CHECKPOINT, file_refusal=Refusal(404, "EntryNotFound")),
        "owner/silent": Repository(CHECKPOINT, silent=True),
        "owner/old": Repository({"config.json": b"{}", "vocab.json": b"{}", "tf_model.h5": b"-"}),
        "owner/gguf": Repository({"README.md": b"-", "it.Q4_K_M.gguf": b"-"}),
    }
    asked = ["owner/missing", "owner/distilgtp2", "owner/good@nope", *hub.repositories]
    asked = [name for name in asked if name != "owner/good"] + ["bad name", "a--b"]
    calls = [dict(zip(("model", "revision"), name.split("@"), strict=False)) for name in asked]
    home = tmp_path_factory.mktemp("failures") / "home"
    return dict(zip(asked, run(home, hub.url, *calls, HF_HUB_ETAG_TIMEOUT="1"), strict=True))


@pytest.mark.parametrize(
    ("asked", "error", "message", "hint"),
    [
        ("owner/missing", "ModelNotFoundError", "no model owner/missing", "HF_TOKEN"),
        ("owner/distilgtp2", "ModelNotFoundError", "no model owner/distilgtp2", "mean distilgpt2?"),
        ("owner/gated", "ModelNotFoundError", "owner/gated is gated", "/owner/gated and set HF_TOKEN"),
        ("owner/gated-files", "ModelNotFoundError", "is gated", "Accept its terms"),
        ("owner/bad-token", "ModelNotFoundError", "Invalid credentials", "unset it"),
        ("owner/good@nope", "ModelNotFoundError", "owner/good has no revision 'nope'", "/owner/good/commits"),
        (
            "owner/down",
            "ModelNotFoundError",
            "answers 503 for owner/down: Service Unavailable",
            "storybook",
        ),
        ("owner/no-list", "ModelNotFoundError", "answers 403 for owner/no-list: not from here", "storybook"),
        ("owner/lost-file", "ModelNotFoundError", "answers 404 for owner/lost-file", "Try again later"),
        ("owner/silent", "ModelNotFoundError", "Timeout", "storybook"),
        ("owner/old", "CheckpointError", "no model.safetensors, only tf_model.h5", "save_pretrained()"),
        ("owner/gguf", "CheckpointError", "no config.json, only it.Q4_K_M.gguf", "original model"),
        ("bad name", "ModelNotFoundError", "'bad name' is neither a folder nor a Hub name", "storybook"),
        ("a--b", "ModelNotFoundError", "'a--b' is neither a folder nor a Hub name", "storybook"),
    ],
)
def test_hub_failures_are_explained(
    failures: dict[str, dict[str, Any]], asked: str, error: str, message: str, hint: str
) -> None:
    answer = failures[asked]
    assert answer["error"] == error
    assert message in answer["message"]
    assert hint in answer["hint"]


@pytest.mark.usefixtures("failures")
def test_repository_without_readable_weights_is_refused(hub: FakeHub) -> None:
    assert hub.downloads("owner/old") == []


@pytest.mark.skipif(importlib.util.find_spec("hf_xet") is None, reason="hf_xet is not made for this processor")
def test_xet_failure_suggests_plain_http(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["owner/xet"] = Repository(CHECKPOINT, xet=True)
    [answer] = run(tmp_path / "home", hub.url, {"model": "owner/xet"}, HF_HUB_DISABLE_XET="0")
    assert answer["error"] == "ModelNotFoundError"
    assert "the download of owner/xet was interrupted" in answer["message"]
    assert "HF_HUB_DISABLE_XET=1" in answer["hint"]


def test_unwritable_hub_cache(hub: FakeHub, tmp_path: Path) -> None:
    hub.repositories["owner/model"] = Repository(CHECKPOINT)
    home = tmp_path / "home"
    home.write_text("a file where the folder should be")
    [answer] = run(home, hub.url, {"model": "owner/model"})
    assert answer["error"] == "OutputError"
    assert str(home) in answer["message"]
    assert "HF_HOME" in answer["hint"]


def test_full_disk(hub: FakeHub, tmp_path: Path) -> None:
    """The Hub cache is on a file system of 256 KiB, in a separate mount namespace."""
    home = tmp_path / "home"
    home.mkdir()
    own = ("unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=256k tmpfs "$0" && exec "$@"', str(home))
    if shutil.which("unshare") is None or subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("no unprivileged mount namespaces here")
    hub.repositories["owner/large"] = Repository(CHECKPOINT | {"model.safetensors": bytes(2**20)})
    [answer] = run(home, hub.url, {"model": "owner/large"}, prefix=own)
    assert answer["error"] == "OutputError"
    assert answer["message"].endswith("No space left on device")
    assert "Free some space" in answer["hint"]


def test_short_names(tmp_path: Path) -> None:
    names = {
        "distilgpt2": "distilbert/distilgpt2",
        "gpt2": "openai-community/gpt2",
        "gpt2-medium": "openai-community/gpt2-medium",
        "gpt2-large": "openai-community/gpt2-large",
        "gpt2-xl": "openai-community/gpt2-xl",
    }
    for answer, repository in zip(
        run(tmp_path / "home", closed_port(), *({"model": name, "offline": True} for name in names)),
        names.values(),
        strict=True,
    ):
        assert answer["error"] == "ModelNotFoundError"
        assert f"offline, and {repository} (revision main)" in answer["message"]
        assert "storybook" in answer["hint"]


@pytest.mark.parametrize(
    ("model", "other"),
    [
        ("gpt2", "openai-community/gpt2"),
        ("storybook", "the bundled checkpoint"),
        ("distilbert/distilgpt2", "(distilgpt2)"),
        ("owner/cached", "on the Hub"),
    ],
)
def test_folder_takes_precedence_with_a_warning(hub: FakeHub, tmp_path: Path, model: str, other: str) -> None:
    """As in Transformers; with a revision, the name means the Hub."""
    home = tmp_path / "home"
    if model == "owner/cached":
        hub.repositories[model] = Repository(CHECKPOINT)
        run(home, hub.url, {"model": model})
    (tmp_path / model).mkdir(parents=True)
    (tmp_path / model / "config.json").write_text("{}")
    [answer] = run(home, closed_port(), {"model": model})
    assert (answer["folder"], answer["repository"]) == (str((tmp_path / model).resolve()), None)
    assert f"{model} is a folder here" in answer["stderr"]
    assert other in answer["stderr"]
    [plain] = run(home, closed_port(), {"model": f"./{model}"})
    assert plain["folder"] == answer["folder"]
    assert plain["stderr"] == ""
    [pinned] = run(home, closed_port(), {"model": model, "revision": "main", "offline": True})
    if model == "owner/cached":
        assert pinned["repository"] == model
    else:
        assert pinned["error"] == ("UsageError" if model == "storybook" else "ModelNotFoundError")
    if model != "storybook":
        assert "but `revision`" in pinned["stderr"]


def test_unambiguous_folder_gives_no_warning(tmp_path: Path) -> None:
    """A folder without a checkpoint, such as an output folder, does not hide a name either."""
    for name in ("out/tiny", "storybook"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "out" / "tiny" / "config.json").write_text("{}")
    ours, bundled = run(tmp_path / "home", closed_port(), {"model": "out/tiny"}, {"model": "storybook"})
    assert ours["folder"] == str((tmp_path / "out" / "tiny").resolve())
    assert Path(bundled["folder"]).name == "demo"
    assert ours["stderr"] == ""
    (tmp_path / "storybook" / "model.safetensors").touch()
    [bundled] = run(tmp_path / "home", closed_port(), {"model": "storybook"})
    assert "ignoring the folder storybook here: it has no config.json" in bundled["stderr"]


@pytest.mark.parametrize("installed", [True, False])
def test_storybook_needs_no_other_package(tmp_path: Path, installed: bool) -> None:
    package, demo = tmp_path / "dgpt2_quant", tmp_path / "dgpt2_quant" / "demo"
    demo.mkdir(parents=True)
    for name in ("quantize/checkpoint/resolve", "quantize/checkpoint/model_name", "core/errors"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).parents[3] / f"{name}.py", package / f"{name}.py")
    (demo / "__init__.py").write_text("raise RuntimeError('imported')")
    if installed:
        (demo / "config.json").write_text("{}")
    child = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{CHILD}"
    command = [sys.executable, "-I", "-S", "-c", child, '{"model": "storybook"}']
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    if installed:
        assert (answer["name"], answer["folder"], answer["repository"]) == ("storybook", str(demo), None)
    else:
        assert answer["error"] == "ModelNotFoundError"
        assert "Reinstall dgpt2-quant" in answer["hint"]


@pytest.mark.parametrize("spelling", ["{}", "./{}", "{}/", "owner/../{}"])
def test_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    for name in ("owner", "my-model"):
        (tmp_path / name).mkdir()
    (tmp_path / "my-model" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    source = resolve(spelling.format("my-model"))
    assert (source.name, source.folder) == ("my-model", tmp_path.resolve() / "my-model")
    assert (source.repository, source.commit) == (None, None)


def test_local_folder_takes_precedence_over_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "distilbert" / "distilgpt2").mkdir(parents=True)
    (tmp_path / "distilbert" / "distilgpt2" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for model in ("distilbert/distilgpt2", "~/distilbert/distilgpt2"):
        assert resolve(model).folder == tmp_path.resolve() / "distilbert" / "distilgpt2"


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("small.gguf", UsageError, "small.gguf is a GGUF file"),
        ("-", UsageError, "cannot be read from stdin"),
        ("./Q4/SMALL.GGUF", UsageError, "is a GGUF file"),
        ("./nowhere", ModelNotFoundError, "the folder ./nowhere"),
        ("/nowhere/at/all", ModelNotFoundError, "the folder /nowhere/at/all"),
        ("../nowhere", ModelNotFoundError, "the folder ../nowhere"),
        ("nowhere/", ModelNotFoundError, "the folder nowhere/"),
        ("ckpt.pt", ModelNotFoundError, "the file ckpt.pt"),
        ("out/of/here/model.bin", ModelNotFoundError, "the file out/of/here/model.bin"),
        ("out/models/nowhere", ModelNotFoundError, "the folder out/models/nowhere"),
        ("https://huggingface.co/distilbert/distilgpt2", ModelNotFoundError, "the folder https:"),
        ("~nobody-of-that-name/model", ModelNotFoundError, "cannot read ~nobody-of-that-name/model"),
        ("x" * 5000, ModelNotFoundError, "File name too long"),
        ("empty", CheckpointError, "empty has no config.json"),
        ("./empty", CheckpointError, "./empty has no config.json"),
        ("weights/notes.txt", CheckpointError, "is a file, but not one of weights"),
        ("weights/model-00001-of-00002.safetensors", CheckpointError, "is one of several shards"),
        ("weights/adapter_model.safetensors", CheckpointError, "is a PEFT adapter, not a model"),
    ],
)
def test_invalid_models_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, error: type[DgptQuantError], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights").mkdir()
    for name in ("notes.txt", "model-00001-of-00002.safetensors", "adapter_model.safetensors"):
        (tmp_path / "weights" / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as raised:
        resolve(model)
    assert message in raised.value.message
    assert raised.value.hint


def test_a_file_of_weights_is_a_model(tmp_path: Path) -> None:
    """Its name is the model's, unless it says nothing; the folder of nanoGPT has no config.json."""
    folder = tmp_path / "out-novels"
    folder.mkdir()
    for file, name in [("ckpt.pt", "out-novels"), ("model.pth", "out-novels"), ("poems.bin", "poems")]:
        (folder / file).touch()
        source = resolve(str(folder / file))
        assert (source.name, source.folder, source.weights) == (name, folder.resolve(), folder.resolve() / file)
    for extra in ("model.pth", "poems.bin"):
        (folder / extra).unlink()
    assert (resolve(str(folder)).folder, resolve(str(folder)).weights) == (folder.resolve(), None)
    with pytest.raises(UsageError, match=r"ckpt\.pt is a file"):
        resolve(str(folder / "ckpt.pt"), revision="main")


def test_an_adapter_leads_to_its_base(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base, adapter = tmp_path / "base", tmp_path / "poet"
    for folder in (base, adapter):
        folder.mkdir()
    (base / "config.json").write_text("{}")

    def states(**config: Any) -> None:
        (adapter / "adapter_config.json").write_text(json.dumps(config))

    states(base_model_name_or_path=str(base), revision=None)
    source = resolve(str(adapter))
    assert (source.name, source.folder, source.adapters) == ("poet", base.resolve(), ((adapter.resolve(), 1.0),))
    for stated, words in [
        (None, "names none"),
        ("", "names none"),
        (str(tmp_path / "lost"), "does not exist"),
        (str(adapter), "which is an adapter too"),
    ]:
        states(base_model_name_or_path=stated)
        with pytest.raises(DgptQuantError, match="without the model that it adapts") as caught:
            resolve(str(adapter))
        assert words in caught.value.message
        assert f"convert BASE --lora {adapter}" in caught.value.hint
    (adapter / "model.safetensors").touch()
    (adapter / "config.json").touch()
    assert resolve(str(adapter)).adapters == ()
    assert "the adapter is not merged" in caplog.text


def test_a_folder_of_checkpoints_names_the_last_one(tmp_path: Path) -> None:
    for name in ("checkpoint-500", "checkpoint-900"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no config\.json") as caught:
        resolve(str(tmp_path))
    assert caught.value.hint == f"Name a folder in it, such as {tmp_path / 'checkpoint-900'}"
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"a PEFT adapter, but no adapter_config\.json"):
        resolve(str(tmp_path))


def test_revision_needs_a_hub_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="`revision` needs a Hub name") as raised:
        resolve(str(tmp_path), revision="main")
    assert "`revision`" in raised.value.hint
    with pytest.raises(UsageError, match="`revision` is empty"):
        resolve("distilgpt2", revision="")


def closed_port() -> str:
    """An address without a server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
