"""Lines of a batch file: JSON objects to prompts with their own sampling, and the lines of an earlier run's output.

A line that is no prompt has an error instead; it never stops the others. Pure but for reading; no MLX.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from mlxkv.arguments import shown
from mlxkv.errors import first_line
from mlxkv.text.encoding import TEXT, marked_encoding, well_formed

MAX_LINE = 32 << 20  # bytes
SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "thinking_budget",
    "seed", "stop", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "repetition_context_size", "presence_context_size", "frequency_context_size", "logit_bias",
    "xtc_probability", "xtc_threshold", "logprobs",
)  # fmt: skip
_FIELDS = ("id", "prompt", "messages", "system", "schema", *SAMPLING_FIELDS)
_DIGEST = 16  # hexadecimal digits


@dataclass(frozen=True)
class Line:
    """One line of the input.

    Attributes:
        number: in the file, from 1 on.
        id: its own, or its number.
        digest: the beginning of the SHA-256 of its bytes.
        messages: for the chat template, without the system prompt of the command line.
        sampling: by the names of SamplingParams.
        schema: JSON schema that the reply follows, unchecked.
        error: why it is no prompt, one sentence.
        is_repeated: an earlier line has its id.
    """

    number: int
    id: int | str
    digest: str
    messages: tuple[dict[str, Any], ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)
    schema: Any = None
    error: str | None = None
    is_repeated: bool = False

    @property
    def key(self) -> str:
        """Tells it from lines of another input: its id and its digest."""
        return f"{json.dumps(self.id)} {self.digest}"


def lines_of(file: BinaryIO) -> Iterator[Line]:
    """The lines that are not blank, one at a time."""
    seen: dict[str, int] = {}
    for number, data in enumerate(_split(file), 1):
        if data is not None and not data.strip():
            continue
        line = _line(number, data)
        name = json.dumps(line.id)
        if name in seen and line.error is None:
            error = f"Line {number} has the id {shown(line.id)}, as line {seen[name]}; give each its own."
            line = Line(number, line.id, line.digest, error=error, is_repeated=True)
        seen.setdefault(name, number)
        yield line


class Finished:
    """The whole lines of an earlier run's output.

    Attributes:
        size: bytes of the whole lines; what follows is the half line of a run that was killed.
        num_failed: how many of the lines are errors.

    Raises (the constructor):
        ValueError: a line is no result of a batch; the text is a clause that says which.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.size = self.num_failed = 0
        self._keys: list[str] = []
        for number, data in enumerate(file, 1):
            if not data.endswith(b"\n"):
                break
            try:
                table = json.loads(data)
                key = f"{json.dumps(table['id'])} {table['input']}"
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise ValueError(f"its line {number} is no result of a batch") from error
            self._keys.append(f"{key} error" if "error" in table else key)
            self.num_failed += "error" in table
            self.size += len(data)
        self._left = Counter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def take(self, line: Line) -> bool:
        """Whether the line has a result, which counts once."""
        keys = [f"{line.key} error"] if line.is_repeated else [line.key, f"{line.key} error"]
        key = next((key for key in keys if self._left[key]), None)
        if key is not None:
            self._left[key] -= 1
        return key is not None

    def check(self, lines: Iterator[Line], *, in_order: bool) -> None:
        """Check that each result is of one of the lines, in order of the first ones.

        Raises:
            ValueError: it is not; the text is a clause that says which.
        """
        left = Counter(self._keys)
        for at, line in enumerate(lines):
            if in_order and at < len(self._keys) and self._keys[at].removesuffix(" error") != line.key:
                raise ValueError(f"its line {at + 1} is no result of line {line.number} of this input")
            if self.take(line):
                left = self._left
        if missing := next((key for key, count in left.items() if count), None):
            raise ValueError(f"it has a result with the id {missing.split(' ')[0]}, which no line of this input has")
        self._left = Counter(self._keys)


def _split(file: BinaryIO) -> Iterator[bytes | None]:
    """The lines as UTF-8, without line ends; None for one that is too long."""
    encoding = marked_encoding(file.peek(4)[:4])  # type: ignore[attr-defined]  # it is buffered
    if encoding not in (None, "utf-8-sig"):
        text = io.TextIOWrapper(file, encoding, "replace", newline="\n")
        try:
            for line in iter(lambda: text.readline(MAX_LINE), ""):
                yield line.rstrip("\r\n").encode("utf-8", "replace")
        finally:
            text.detach()  # else it would close the file
        return
    if encoding is not None:
        file.read(3)
    while data := file.readline(MAX_LINE + 1):
        is_long = len(data) > MAX_LINE
        while len(data) > MAX_LINE and not data.endswith(b"\n"):
            data = file.readline(MAX_LINE + 1)
        yield None if is_long else data.rstrip(b"\r\n")


def _line(number: int, data: bytes | None) -> Line:
    if data is None:
        return Line(number, number, "too-long", error=f"Line {number} is over {MAX_LINE >> 20} MiB; give less.")
    digest = hashlib.sha256(data).hexdigest()[:_DIGEST]
    try:
        table = json.loads(data.decode())
    except UnicodeDecodeError:
        return Line(number, number, digest, error=f"Line {number} is not text; give {TEXT}.")
    except (ValueError, RecursionError) as error:
        why = f'is not JSON ({first_line(error)}); give an object such as {{"prompt": "hi"}}.'
        return Line(number, number, digest, error=f"Line {number} {why}")
    if not isinstance(table, dict):
        return Line(number, number, digest, error=f"Line {number} is {shown(table)}; it must be an object.")
    name = table.get("id", number)
    if isinstance(name, bool) or not isinstance(name, int | str):
        error = f"The `id` of line {number} is {shown(name)}; it must be text or a whole number."
        return Line(number, number, digest, error=error)
    try:
        messages = _messages(table)
    except ValueError as error:
        return Line(number, name, digest, error=f"Line {number} {error}.")
    sampling = {key: table[key] for key in SAMPLING_FIELDS if table.get(key) is not None}
    return Line(number, name, digest, tuple(messages), sampling, table.get("schema"))


def _messages(table: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a line. Raises ValueError with a clause that follows "Line 3"."""
    if unknown := next((key for key in table if key not in _FIELDS), None):
        near = difflib.get_close_matches(unknown, _FIELDS, 1)
        advice = f"did you mean `{near[0]}`?" if near else f"it may have {', '.join(_FIELDS)}"
        raise ValueError(f"has a field {shown(unknown)}; {advice}".rstrip("?"))
    prompt, messages, system = table.get("prompt"), table.get("messages"), table.get("system")
    if (prompt is None) == (messages is None):
        raise ValueError("has to have either a `prompt` or `messages`")
    if system is not None and not isinstance(system, str):
        raise ValueError(f"has the `system` {shown(system)}; it must be text")
    if prompt is not None:
        if not isinstance(prompt, str):
            raise ValueError(f"has the `prompt` {shown(prompt)}; it must be text")
        if not prompt.strip():
            raise ValueError("has an empty `prompt`; give one")
        found: list[Any] = [{"role": "user", "content": well_formed(prompt)}]
    elif isinstance(messages, list) and messages:
        found = messages
    else:
        raise ValueError(f"has the `messages` {shown(messages)}; they must be a list of objects")
    first = found[0] if isinstance(found[0], dict) else {}
    if system is not None and first.get("role") == "system":
        raise ValueError("has two system prompts, in `system` and in `messages`; leave out one of them")
    return [{"role": "system", "content": well_formed(system)}, *found] if system is not None else found
