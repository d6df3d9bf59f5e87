"""The files of a job as one: output, errors and record. After a kill, all three continue from the last whole slice.

A slice is appended to output and errors and flushed to the disk; then the record is replaced, with the bytes of both.
When the job continues, whatever is after those bytes is cut.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from dgpt2_quant.core.atomic_file import explain_errors, refuse_existing
from dgpt2_quant.core.errors import OutputError
from dgpt2_quant.core.paths import user_path

from .output_file import OutputFile, changed_error
from .record import Part, Record
from .slices import Answer


def errors_path(output: Path) -> Path:
    """The file for the lines that failed: out.errors.jsonl of out.jsonl, out.errors.jsonl.gz of out.jsonl.gz."""
    name = output.name.removesuffix(".gz")
    return output.with_name(f"{name.removesuffix('.jsonl')}.errors.jsonl{output.name[len(name) :]}")


def record_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.job.json")


class JobFiles:
    """Use it in `with`: it holds the lock of the output. Errors are inline, or in a file of their own."""

    def __init__(self, output: str | Path, *, inline: bool, restart: bool) -> None:
        """Raises `OutputError` for a file that cannot be written, or that belongs to another job or process."""
        self.path = path = user_path(output)
        self.errors, self.inline = errors_path(path), inline
        refuse_existing(path, overwrite=True)
        self._created = not path.exists()
        self._output = OutputFile(path)
        self._errors: OutputFile | None = None
        self.known: Record | None = None
        self.record = Record({})
        try:
            if not self._output.lock():
                other = Record.read(record_path(path))
                raise OutputError(
                    f"{path} is being written by {other.process if other else 'another process'}",
                    "Wait for it, or choose another `output`.",
                )
            if restart:
                return
            self.known = Record.read(record_path(path))
            taken = self.errors if self.errors.exists() and not inline else path
            if self.known is None and (self._output.size or taken is self.errors):
                raise OutputError(
                    f"{taken} already exists, and there is no record {record_path(path).name} of a job",
                    "Choose another `output`, or replace it with `restart`.",
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._created and not self._output.size and not record_path(self.path).exists():
            self.path.unlink(missing_ok=True)  # the job did not begin
        self._output.close()
        if self._errors is not None:
            self._errors.close()

    def require_same(self, job: dict[str, Any]) -> Record:
        """What is known of this job so far. Raises `OutputError` if it was begun otherwise."""
        if self.known is None:
            self.record = Record(job)
        else:
            self.known.require_same(job, self.path)
            if self.known.finished:
                self._require_unchanged(self.known)
            self.record = replace(self.known, process=self.record.process)
        return self.record

    def _require_unchanged(self, known: Record) -> None:
        if known.errors.bytes and not self.errors.exists():
            raise changed_error(self.errors)
        files = [(self._output, known.output)]
        if known.errors.bytes:
            files.append((self._open_errors(), known.errors))
        for file, part in files:
            if file.size != part.bytes:
                raise changed_error(file.path)
            file.continue_from(part.bytes, part.sha256)

    def begin(self) -> None:
        """Cuts what is after the last whole slice. Raises `OutputError` if the files have changed."""
        if self.known is None:
            self._write_record()  # first: after a kill the next run cuts the rest
        self._output.continue_from(self.record.output.bytes, self.record.output.sha256)
        if self.record.errors.bytes:
            self._open_errors().continue_from(self.record.errors.bytes, self.record.errors.sha256)
        elif not self.inline:
            with explain_errors(self.errors):
                self.errors.unlink(missing_ok=True)
        if self.known is not None:
            self._write_record()  # with the name of this process

    def add(self, answers: Sequence[Answer], read: Part) -> None:
        """Appends the answers to a slice; `read` is the input up to its end.

        Raises `OutputError`; then the files have whole slices only, and the job can continue.
        """
        record = self.record
        separate = [] if self.inline else [answer.text for answer in answers if answer.is_error]
        found = [answer.text for answer in answers if self.inline or not answer.is_error]
        try:
            with self._explained():
                self._output.append(_encoded(found))
                if separate:
                    self._open_errors().append(_encoded(separate))
        except BaseException:
            self._output.cut(record.output.bytes)
            if self._errors is not None:
                self._errors.cut(record.errors.bytes)
            raise
        errors = record.errors
        if self._errors is not None:
            errors = Part(errors.lines + len(separate), self._errors.bytes, self._errors.sha256)
        self.record = replace(
            record,
            input=read,
            output=Part(record.output.lines + len(found), self._output.bytes, self._output.sha256),
            errors=errors,
            failed=record.failed + sum(answer.is_error for answer in answers),
            tokens=record.tokens + sum(answer.tokens for answer in answers),
        )
        self._write_record()

    def finish(self) -> None:
        """Records that the job has read its whole input."""
        self.record.finished = True
        self._write_record()

    def _write_record(self) -> None:
        with self._explained():
            self.record.write(record_path(self.path))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Adds to a write error that the job can continue."""
        try:
            yield
        except OutputError as error:
            hint = "When that is repaired, run the same command again: it continues after the last whole slice."
            raise OutputError(error.message, hint) from error

    def _open_errors(self) -> OutputFile:
        if self._errors is None:
            self._errors = OutputFile(self.errors)
        return self._errors


def _encoded(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
