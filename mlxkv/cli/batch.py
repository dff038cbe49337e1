"""`mlxkv -p --batch FILE`: JSON lines in, JSON lines out, many replies at once; a second run continues the first.

`batch_lines` reads the lines, `chat.batches` answers them. On the MLX thread.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from mlxkv.cli.batch_lines import Finished, Line, lines_of
from mlxkv.cli.input_files import input_bytes
from mlxkv.cli.print_mode import logprobs_json, open_cache
from mlxkv.errors import ConfigError, MlxkvError, OutputError, PromptError, shortened
from mlxkv.events import Notice, ReplyFinished, RequestFailed
from mlxkv.inference.sampling import SamplingParams
from mlxkv.stats import plural, rate_text, seconds_text
from mlxkv.system.regular_file import open_regular, reason
from mlxkv.system.streams import INTERRUPTED
from mlxkv.text.clean import clean

if TYPE_CHECKING:
    from mlxkv.cache.config import CacheConfig
    from mlxkv.config import Settings
    from mlxkv.model import Model
    from mlxkv.scheduler import Request


@dataclass(frozen=True)
class BatchRequest:
    """What the command line says about a batch. `file` "-" is standard input; `output` None is standard output."""

    file: str
    output: Path | None = None
    as_finished: bool = False
    system: str | None = None
    cache: Path | None = None  # a prompt cache that all prompts continue
    think: bool | None = None
    quiet: bool = False
    schema: dict[str, Any] | None = None  # of replies to lines without one


def batch_request(
    file: str | None,
    output: Path | None,
    as_finished: bool,
    others: Mapping[str, object],
    settings: Settings,
    cache: Path | None,
    quiet: bool,
    schema: dict[str, Any] | None = None,
) -> BatchRequest:
    """The batch that the command line asks for; `others` are options that a batch does not take.

    Raises:
        ConfigError: one of them is given, or options of a batch without one.
    """
    if file is None:
        raise ConfigError(f"{'-o' if output else '--as-finished'} belongs to a batch; give --batch FILE too.")
    if other := next((name for name, value in others.items() if value), None):
        raise ConfigError(f"--batch takes its prompts from a file; leave out {other}.")
    system = None if cache else settings.system
    return BatchRequest(file, output, as_finished, system, cache, settings.think, quiet, schema)


@dataclass
class OpenBatch:
    """A batch whose files are open and belong together, before a model is loaded."""

    request: BatchRequest
    input: BinaryIO
    write: Callable[[str], object]  # a line of the output
    finished: Finished | None = None  # of an earlier run
    num_lines: int | None = None  # None: unknown

    def waiting_lines(self) -> Iterator[Line]:
        """The lines without a result."""
        return (line for line in lines_of(self.input) if self.finished is None or not self.finished.take(line))


@contextmanager
def opened_batch(request: BatchRequest, stdout: TextIO) -> Iterator[OpenBatch]:
    """Open the input and the output of a batch.

    Raises:
        PromptError: the input cannot be read. ConfigError: the output is of another input. OutputError: it cannot be
        written, or another process writes it.
    """
    with ExitStack() as stack:
        source = stack.enter_context(_input(request.file))
        batch = OpenBatch(request, source, lambda text: print(text, file=stdout, flush=True))
        if source.seekable() and (sys.stderr.isatty() and not request.quiet):
            batch.num_lines = sum(1 for _ in lines_of(source))
            source.seek(0)
        if request.output is not None:
            file = stack.enter_context(_output(request.output, source))
            if file.seekable() and os.fstat(file.fileno()).st_size:
                batch.input = source = stack.enter_context(_seekable(source))
                batch.finished = _finished(request, file, source)
            batch.write = lambda text: _write_line(file, text)
        yield batch


def run_batch(model: Model, batch: OpenBatch, cache: CacheConfig | None, sampling: dict[str, Any], err: TextIO) -> int:
    """Answer all lines; the exit code: 1 if any has failed, 130 if interrupted."""
    request = batch.request
    held = open_cache(model, request.cache) if request.cache is not None else cache
    prompts = model.batch_prompts(held, request.think)
    results = _Results(batch, model.name, err, model.tokenizer)
    hooks = prompts.hooks({"schema": request.schema})

    def requests() -> Iterator[Request | tuple[int, MlxkvError]]:
        for line in batch.waiting_lines():
            results.begin(line)
            try:
                if line.error is not None:
                    raise PromptError(line.error)
                params = SamplingParams.for_model(model.loaded.generation, **{**sampling, **line.sampling})
                own = prompts.hooks({"schema": line.schema}) if line.schema is not None else hooks
                yield prompts.request(line.number, _with_system(line, request.system), params, hooks=own)
            except MlxkvError as error:
                yield line.number, error

    events = prompts.events(requests())
    try:
        for number, event in events:
            if isinstance(event, ReplyFinished | RequestFailed):
                results.end(int(number), event)
            elif isinstance(event, Notice):
                results.notices.setdefault(int(number), []).append(event.text)
    except KeyboardInterrupt:
        results.report("stopped")
        kept = "run the same command again to continue" if request.output else "with -o FILE a second run continues"
        print(f"{plural(results.num_written, 'line')} written; {kept}", file=err)
        return INTERRUPTED
    finally:
        events.close()
        model.close()
    results.report("done")
    return 1 if results.num_failed else 0


@dataclass
class _Results:
    """Writes results as they finish or in order, and says how far the batch is."""

    batch: OpenBatch
    model: str
    err: TextIO
    tokenizer: Any
    notices: dict[int, list[str]] = field(default_factory=dict)
    num_written: int = 0
    num_failed: int = 0
    num_tokens: int = 0

    def __post_init__(self) -> None:
        self._lines: dict[int, Line] = {}  # without a result, in order
        self._held: dict[int, str] = {}  # results that wait for earlier ones
        self._began = self._shown = time.monotonic()
        self._shows = self.err.isatty() and not self.batch.request.quiet
        finished = self.batch.finished
        self._before, self.num_failed = (len(finished), finished.num_failed) if finished else (0, 0)
        if self._before and not self.batch.request.quiet:
            print(f"{plural(self._before, 'line')} were answered before; continuing", file=self.err)

    def begin(self, line: Line) -> None:
        self._lines[line.number] = line

    def end(self, number: int, event: ReplyFinished | RequestFailed) -> None:
        line = self._lines[number]
        about: dict[str, Any] = {"id": line.id}
        if isinstance(event, RequestFailed):
            about |= {"error": clean(str(event.error))}
            self.num_failed += 1
        else:
            about |= _reply_json(event, self.notices.pop(number, []), self.tokenizer)
            self.num_tokens += event.stats.generated_tokens
        self._held[number] = json.dumps(about | {"input": line.digest})
        if self.batch.request.as_finished:
            del self._lines[number]
            self._write(self._held.pop(number))
        else:
            while self._lines and (first := next(iter(self._lines))) in self._held:
                del self._lines[first]
                self._write(self._held.pop(first))
        self._show()

    def _write(self, text: str) -> None:
        try:
            self.batch.write(text)
        except OSError as error:
            raise OutputError(
                f"{shortened(self.batch.request.output)} cannot be written ({error.strerror}); free some space and run "
                "the same command again."
            ) from error
        self.num_written += 1

    def _show(self) -> None:
        if self._shows and time.monotonic() - self._shown > 0.1:
            self._shown = time.monotonic()
            self.err.write(f"\r\x1b[K{self._text()}")
            self.err.flush()

    def _text(self) -> str:
        done = self._before + self.num_written + len(self._held)
        of = f"{done:,}/" if self.batch.num_lines else ""
        failed = f" · {self.num_failed:,} failed" if self.num_failed else ""
        rate = self.num_tokens / max(time.monotonic() - self._began, 1e-9)
        lines = plural(self.batch.num_lines or done, "line")
        return f"{of}{lines}{failed} · {self.num_tokens:,} tok · {rate_text(rate)} tok/s"

    def report(self, what: str) -> None:
        """The last line on stderr."""
        if not self.batch.request.quiet:
            clear = "\r\x1b[K" if self._shows else ""
            print(f"{clear}{what}: {self._text()} · {seconds_text(time.monotonic() - self._began)}", file=self.err)


def _reply_json(event: ReplyFinished, notices: list[str], tokenizer: Any) -> dict[str, Any]:
    stats = event.stats
    about: dict[str, Any] = {
        "text": event.text,
        "thinking": event.thinking,
        "finish_reason": event.reason,
        "usage": {
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": stats.cached_tokens,
            "completion_tokens": stats.generated_tokens,
        },
        "timing": {
            "ttft_s": round(stats.ttft_s, 4),
            "decode_tps": round(stats.decode_tps, 2),
            "total_s": round(stats.total_s, 4),
        },
        "batched": stats.batched,
    }
    if stats.not_batched_why:
        about["not_batched_why"] = stats.not_batched_why
    if event.logprobs:
        about["logprobs"] = logprobs_json(event.logprobs, tokenizer)
    return about | ({"notices": notices} if notices else {})


def _with_system(line: Line, system: str | None) -> list[dict[str, Any]]:
    """The messages of a line, with the system prompt of the command line where it has none."""
    first = line.messages[0] if isinstance(line.messages[0], dict) else {}
    head = [] if system is None or first.get("role") == "system" else [{"role": "system", "content": system}]
    return [*head, *line.messages]


# -- files -------------------------------------------------------------------------------------------------------------


@contextmanager
def _input(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield input_bytes(sys.stdin)
        return
    try:
        file = os.fdopen(open_regular(name, pipes=True), "rb")
    except OSError as error:
        raise PromptError(f"{shortened(name)} cannot be read ({reason(error)}); check the name.") from error
    with file:
        yield file


@contextmanager
def _output(path: Path, source: BinaryIO) -> Iterator[BinaryIO]:
    """The output, for this process alone; positioned at its end."""
    try:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
    except OSError as error:
        raise OutputError(f"{shortened(path)} cannot be written ({reason(error)}); choose another file.") from error
    with file:
        with suppress(io.UnsupportedOperation):  # text in memory has no descriptor
            if os.path.sameopenfile(file.fileno(), source.fileno()):
                raise ConfigError(f"{shortened(path)} is the input of this batch; write to another file.")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{shortened(path)} is being written by another batch; wait for its end.") from error
        except OSError:
            pass  # a file system without locks
        yield file  # type: ignore[misc]


@contextmanager
def _seekable(source: BinaryIO) -> Iterator[BinaryIO]:
    """The input, to be read twice; a pipe is copied into a temporary file."""
    if source.seekable():
        yield source
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(source, copy)
        copy.seek(0)
        yield copy


def _write_line(file: BinaryIO, text: str) -> None:
    """Write a line at once: a kill leaves at most the last one incomplete."""
    data = memoryview(f"{text}\n".encode())
    while data:
        data = data[file.write(data) :]


def _finished(request: BatchRequest, file: BinaryIO, source: BinaryIO) -> Finished:
    """The results of an earlier run; a half line at the end is removed.

    Raises:
        ConfigError: they are of another input, or no results; nothing was changed.
    """
    try:
        with os.fdopen(os.dup(file.fileno()), "rb") as copy:
            finished = Finished(copy)
        finished.check(lines_of(source), in_order=not request.as_finished)
    except ValueError as error:
        hint = "" if request.as_finished else ", or continue it with --as-finished if it was begun so"
        raise ConfigError(
            f"{shortened(request.output)} cannot be continued: {error}; write to another file{hint}."
        ) from error
    source.seek(0)
    file.truncate(finished.size)
    file.seek(finished.size)
    return finished
