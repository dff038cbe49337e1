"""A whole prompt cache in one file (`pc.save("book.kv")`): write, describe, verify, read.

A safetensors file: `ids` (int32), the rows as `kv.<group>.<part>.<tensor>`, `prompt` (its text, if it begins a
chat), and last `xxh3`, the xxh3-128 of every byte before it, so that one pass writes the file and one verifies it.
The thread that owns MLX calls `write` and `read`; `describe` and `verify` need no MLX.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash

from mlxkv.cache.interchange import PromptText
from mlxkv.errors import CorruptError, MismatchError, StoreError
from mlxkv.safetensors.header import MAX_HEADER, Header, num_bytes, read_header
from mlxkv.safetensors.writer import encode_header, flat_bytes
from mlxkv.store.db.history import pack_ids, to_json, unpack_ids
from mlxkv.store.files import Files, Step, no_step
from mlxkv.store.identity import ModelIdentity, first_difference, model_parts, spec_parts
from mlxkv.store.kv.arrays import load_arrays, to_tensors
from mlxkv.store.kv.chunk_format import check_tensors, hash_file
from mlxkv.store.kv.commits import STATE
from mlxkv.store.kv.disk_usage import CheckSize, no_limit
from mlxkv.store.kv.protocols import KVCacheLike, LayerGroup, Range
from mlxkv.store.kv.ranges import covers, rows_per_chunk
from mlxkv.store.records import Restored, is_clock
from mlxkv.system.regular_file import opened, parse_json

FORMAT = "prompt-cache 2"
_FORMATS = ("prompt-cache 1", FORMAT)
_NEWER = re.compile(r"prompt-cache [0-9]{1,9}")
MAX_PROMPT = 256 << 20  # bytes of text in one file
_HEAD = 200  # characters of text in the header, for lists

_DESCRIBED = ("num_tokens", "layout", "config", "model", "head", "parts")

Part = tuple[int, int, int]
"""Group number and rows [a, b)."""


@dataclass(frozen=True)
class ReadFile(Restored):
    """Result of `read_prompt_file`: the restored rows, and the prompt's text."""

    prompt: PromptText | None = None


def write_prompt_file(
    path: Path, cache: KVCacheLike, identity: ModelIdentity, config: Mapping[str, Any] | None = None,
    before: Step = no_step, prompt: PromptText | None = None, check_size: CheckSize = no_limit,
) -> int:  # fmt: skip
    """Write the cache to `path` atomically and return the file's size.

    `config`: the CacheConfig's fields, so that a reader can make the right cache first. `prompt`: the prompt's text.
    `check_size` is called with the file's size before the first byte is written; an exception ends the write.

    Raises:
        StoreError: the folder does not exist, or the disk refuses.
    """
    ids = pack_ids(cache.log)
    metadata = {
        "mlxkv": FORMAT,
        "num_tokens": str(len(ids)),
        "layout": to_json(cache.layout()),
        "config": to_json(None if config is None else dict(config)),
        "head": to_json(None if prompt is None else {"system": _head(prompt.system), "text": _head(prompt.text)}),
        "model": to_json(asdict(identity)),
    }
    text = to_json(None if prompt is None else asdict(prompt)).encode()
    if len(text) > MAX_PROMPT:
        raise StoreError(f"The text of this prompt cache takes {len(text):,} bytes; the limit is {MAX_PROMPT:,}.")
    parts, header = _plan(cache, len(ids), len(text), metadata)
    shapes = _shapes(cache, len(ids), len(text), parts).values()
    check_size(len(header) + sum(num_bytes(dtype, shape) for shape, dtype in shapes))
    return Files(before).overwrite(path, _bytes(header, ids.tobytes(), cache, parts, text), "The prompt cache ")


def describe_prompt_file(path: Path) -> dict[str, Any]:
    """The description in a file's header: num_tokens, layout, config, model, head, parts, bytes, and of these the
    row_bytes and state_bytes. Reads no rows.

    Raises:
        CorruptError: the file is not a prompt cache.
    """
    return _described(path, read_header(path))


def verify_prompt_file(path: Path) -> dict[str, Any]:
    """`describe_prompt_file`, after verifying the checksum of every byte.

    Raises:
        CorruptError: the file was changed or damaged.
    """
    about = describe_prompt_file(path)
    try:
        with opened(path) as file:
            end = about["bytes"] - 16
            _check(path, os.pread(file.fileno(), 16, end), hash_file(file.fileno(), end))
    except OSError as error:
        raise CorruptError(f"{path} cannot be read ({error.strerror}).") from error
    return about


def read_prompt_file(path: Path, cache: KVCacheLike, identity: ModelIdentity) -> ReadFile:
    """Reset the cache and fill it from `path`. On any error the cache is empty.

    Raises:
        MismatchError: it was made with another model or cache layout; names the field. CorruptError: it is damaged.
    """
    started = time.perf_counter()
    cache.reset()
    header = read_header(path)
    about = _described(path, header)
    _check_identity(path, about, cache, identity)
    num_tokens, parts = about["num_tokens"], about["parts"]
    wanted = [_wanted(path, n, g, parts, num_tokens) for n, g in enumerate(cache.groups)]
    size = next((t.end - t.start for t in header.tensors if t.name == "prompt"), 0)
    check_tensors(header, _shapes(cache, num_tokens, min(size, MAX_PROMPT), parts), path.name)
    try:
        text = _fill(path, header, cache, parts, wanted)
        prompt = _prompt(path, text, num_tokens)
    except BaseException:
        cache.reset()
        raise
    return ReadFile(num_tokens, header.file_size, time.perf_counter() - started, prompt=prompt)


def _head(text: str | None) -> str | None:
    return None if text is None else text[:_HEAD]


def _prompt(path: Path, text: bytes, num_tokens: int) -> PromptText | None:
    try:
        table = parse_json(text)
        if table is None:
            return None
        prompt = PromptText(**table)
        texts = (prompt.text, prompt.rendered, prompt.system or "")
        if not all(isinstance(t, str) for t in texts) or type(prompt.num_tokens) is not int:
            raise TypeError("text or num_tokens")
        if not (prompt.clock is None or is_clock(prompt.clock)):
            raise TypeError(f"clock {ascii(prompt.clock)[:80]}")
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptError(f"The text inside {path} cannot be read ({error}); make the file again.") from error
    return replace(prompt, num_tokens=min(max(prompt.num_tokens, 0), num_tokens))


def _check(path: Path, found: bytes, h: xxhash.xxh3_128) -> None:
    if found != h.digest():
        raise CorruptError(f"{path} was changed or damaged after it was made; make it again.")


def _plan(cache: KVCacheLike, num_tokens: int, text_bytes: int, metadata: dict[str, str]) -> tuple[list[Part], bytes]:
    """Divide the rows into parts small enough to export one by one, and few enough for the header; returns both."""
    rows = min((rows_per_chunk(g.row_bytes) for g in cache.groups if g.name != STATE), default=1)
    while True:
        parts = [
            (n, start, min(b, start + rows))
            for n, group in enumerate(cache.groups)
            for a, b in (group.required(num_tokens) if group.name == STATE else group.held())
            for start in range(a, b, rows)
        ]
        shapes = _shapes(cache, num_tokens, text_bytes, parts)
        sized = [(name, dtype, shape, num_bytes(dtype, shape)) for name, (shape, dtype) in shapes.items()]
        try:
            return parts, encode_header(sized, metadata | {"parts": to_json(parts)})
        except ValueError as error:
            if rows > num_tokens:
                raise StoreError(f"This cache does not fit a header of {MAX_HEADER} bytes ({error}).") from error
            rows *= 2


def _shapes(
    cache: KVCacheLike, num_tokens: int, text_bytes: int, parts: list[Part]
) -> dict[str, tuple[tuple[int, ...], str]]:
    out: dict[str, tuple[tuple[int, ...], str]] = {"ids": ((num_tokens,), "I32"), "xxh3": ((16,), "U8")}
    out["prompt"] = ((text_bytes,), "U8")
    for i, (n, a, b) in enumerate(parts):
        out |= {_name(n, i, name): shape for name, shape in cache.groups[n].shapes(b - a).items()}
    return out


def _name(group: int, part: int, tensor: str) -> str:
    return f"kv.{group:02}.{part:05}.{tensor}"  # sorted names are the order of the bytes, part by part


def _bytes(
    header: bytes, ids: bytes, cache: KVCacheLike, parts: list[Part], text: bytes
) -> Iterator[bytes | memoryview]:
    """The file, exporting one part at a time."""
    h = xxhash.xxh3_128()
    for data in (header, ids):
        h.update(data)
        yield data
    for n, a, b in parts:
        tensors = to_tensors(cache.groups[n].export_rows(a, b), cache.groups[n].shapes(b - a))
        for name in sorted(tensors):
            h.update(tensors[name][2])
            yield tensors[name][2]
    h.update(text)
    yield text
    yield h.digest()


def _described(path: Path, header: Header) -> dict[str, Any]:
    found = header.metadata.get("mlxkv", "")
    if found not in _FORMATS:
        if _NEWER.fullmatch(found):
            raise CorruptError(f"{path} was written by a newer mlxkv ({found}, this one knows {FORMAT}); update mlxkv.")
        raise CorruptError(f"{path} is not a prompt cache of this mlxkv (format {found!r}, expected {FORMAT!r}).")
    try:
        about = {key: parse_json(header.metadata[key]) for key in _DESCRIBED}
        ModelIdentity(**about["model"])
        about["parts"] = [(int(n), int(a), int(b)) for n, a, b in about["parts"]]
        if type(about["num_tokens"]) is not int or not isinstance(about["layout"], dict):
            raise TypeError("num_tokens or layout")
        if not isinstance(about["config"], dict | None):
            raise TypeError("config")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CorruptError(f"The description inside {path} cannot be read ({error}); make the file again.") from error
    return about | {"bytes": header.file_size} | _shares(header, about["layout"])


def _shares(header: Header, layout: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of the rows and of the recurrent state."""
    groups = layout.get("groups")
    group = groups.get(STATE) if isinstance(groups, dict) else None
    names = group.get("arrays") if isinstance(group, dict) else None
    out = {"row_bytes": 0, "state_bytes": 0}
    for tensor in header.tensors:
        if tensor.name.startswith("kv."):
            is_state = isinstance(names, dict) and tensor.name.split(".", 3)[-1] in names
            out["state_bytes" if is_state else "row_bytes"] += tensor.end - tensor.start
    return out


def _check_identity(path: Path, about: dict[str, Any], cache: KVCacheLike, identity: ModelIdentity) -> None:
    made_with = ModelIdentity(**about["model"])
    if made_with.model_id != identity.model_id:
        field = first_difference(model_parts(made_with.parts), model_parts(identity.parts)) or "model_id"
    else:
        old = spec_parts(about["layout"], made_with.spec_extra)
        field = first_difference(old, spec_parts(cache.layout(), identity.spec_extra))
    if field is not None:
        raise MismatchError(
            f"{path} was made with the model {made_with.name!r}{_and_adapter(made_with)}, and `{field}` differs now; "
            "load it with that model and setting, or make it again.",
            field,
        )


def _and_adapter(made_with: ModelIdentity) -> str:
    return "" if made_with.adapter is None else f" and the adapter {made_with.adapter!r}"


def _wanted(path: Path, n: int, group: LayerGroup, parts: list[Part], num_tokens: int) -> list[Range]:
    """The ranges to import for one group: all required ones, and the optional ones that the file has."""
    found = [(a, b) for i, a, b in parts if i == n]
    required = group.required(num_tokens)
    ascending = all(a < b for a, b in found) and all(x[1] <= y[0] for x, y in pairwise(found))
    if not ascending or not covers(found, required):
        raise CorruptError(f"{path} lacks rows it needs for {num_tokens} tokens; make the file again.")
    return [*required, *(r for r in group.optional(num_tokens) if covers(found, [r]))]


def _fill(path: Path, header: Header, cache: KVCacheLike, parts: list[Part], wanted: list[list[Range]]) -> bytes:
    """Import the rows and return the text's bytes; verifies the checksum of every byte."""
    with opened(path) as head:
        h = xxhash.xxh3_128(os.pread(head.fileno(), header.data_start, 0))
    arrays = load_arrays(path, header)
    _, ids = next(arrays)
    h.update(flat_bytes(ids))
    cache.begin_restore(unpack_ids(bytes(flat_bytes(ids))).tolist())
    for i, (n, a, b) in enumerate(parts):
        group = cache.groups[n]
        rows = {}
        for name in sorted(group.shapes(b - a)):
            found, x = next(arrays)
            assert found == _name(n, i, name)
            h.update(flat_bytes(x))
            rows[name] = x
        for low, high in wanted[n]:
            start, end = max(a, low), min(b, high)
            if start < end:
                part = rows
                if (start, end) != (a, b):  # a state has no rows, and is always imported whole
                    part = {name: x[..., start - a : end - a, :] for name, x in rows.items()}
                group.import_rows(start, end, part)
    _, text = next(arrays)
    h.update(flat_bytes(text))
    _, checksum = next(arrays)
    _check(path, bytes(flat_bytes(checksum)), h)
    cache.finish_restore()
    return bytes(flat_bytes(text))
