"""A whole prompt cache in one file (`pc.save("book.kv")`): write, describe, read.

A safetensors file: `ids` (int32), the rows as `kv.<group>.<part>.<tensor>`, and last `xxh3`, the xxh3-128 of every byte
before it, so that one pass writes it and one pass checks it. The thread that owns MLX calls `write` and `read`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import xxhash

from mlxkv.errors import CorruptError, MismatchError, StoreError
from mlxkv.safetensors import ITEM_SIZES, MAX_HEADER, Header, encode_header, read_header
from mlxkv.store.arrays import buffer_of, evaluated, to_tensors
from mlxkv.store.files import Files, Step, no_step
from mlxkv.store.format import check_tensors
from mlxkv.store.history import pack_ids, to_json, unpack_ids
from mlxkv.store.identity import ModelIdentity, first_difference, model_parts, spec_parts
from mlxkv.store.ports import KVCacheLike, LayerGroup, Range
from mlxkv.store.ranges import covers, rows_per_chunk
from mlxkv.store.records import Restored
from mlxkv.store.refs import STATE

FORMAT = "prompt-cache 1"

Part = tuple[int, int, int]
"""Group number and rows [a, b)."""


def write_prompt_file(
    path: Path, cache: KVCacheLike, identity: ModelIdentity, config: Mapping[str, Any] | None = None,
    before: Step = no_step,
) -> int:  # fmt: skip
    """Write the cache to `path` and return the bytes; an older file there stays whole until the new one is.

    `config`: the CacheConfig's fields, so that a reader can make the right cache first.

    Raises:
        StoreError: the folder does not exist, or the disk refuses.
    """
    ids = pack_ids(cache.tokens)
    metadata = {
        "mlxkv": FORMAT,
        "num_tokens": str(len(ids)),
        "layout": to_json(cache.layout()),
        "config": to_json(None if config is None else dict(config)),
        "model": to_json(
            {
                "name": identity.name,
                "model_id": identity.model_id,
                "template_id": identity.template_id,
                "parts": dict(identity.parts),
            }
        ),
    }
    parts, header = _plan(cache, len(ids), metadata)
    try:
        if not path.parent.is_dir():
            raise StoreError(f"The folder {path.parent} does not exist; make it first.")
        return Files(before).write(path, _bytes(header, ids.tobytes(), cache, parts), path.parent)
    except OSError as error:
        raise StoreError(f"The prompt cache {path} cannot be written ({error.strerror}); check the disk.") from error


def describe_prompt_file(path: Path) -> dict[str, Any]:
    """What a file says about itself: num_tokens, layout, config, model, parts and bytes. The rows are not checked.

    Raises:
        CorruptError: it is no prompt cache.
    """
    return _described(path, read_header(path))


def read_prompt_file(path: Path, cache: KVCacheLike, identity: ModelIdentity) -> Restored:
    """Reset the cache and fill it from `path`. On any error the cache is empty.

    Raises:
        MismatchError: made with another model or cache layout; names the field. CorruptError: damaged.
    """
    started = time.perf_counter()
    cache.reset()
    header = read_header(path)
    about = _described(path, header)
    _check_identity(path, about, cache, identity)
    num_tokens, parts = about["num_tokens"], about["parts"]
    wanted = [_wanted(path, n, g, parts, num_tokens) for n, g in enumerate(cache.groups)]
    check_tensors(header, _shapes(cache, num_tokens, parts), path.name)
    try:
        _fill(path, header, cache, parts, wanted)
    except BaseException:
        cache.reset()
        raise
    return Restored(num_tokens, header.file_size, time.perf_counter() - started)


def _plan(cache: KVCacheLike, num_tokens: int, metadata: dict[str, str]) -> tuple[list[Part], bytes]:
    """Parts small enough to export one by one, large enough for their names to fit the header."""
    rows = min((rows_per_chunk(g.row_bytes) for g in cache.groups if g.name != STATE), default=1)
    while True:
        parts = [
            (n, start, min(b, start + rows))
            for n, group in enumerate(cache.groups)
            for a, b in (group.required(num_tokens) if group.name == STATE else group.held())
            for start in range(a, b, rows)
        ]
        shapes = _shapes(cache, num_tokens, parts)
        sized = [(name, dtype, shape, _nbytes(shape, dtype)) for name, (shape, dtype) in shapes.items()]
        try:
            return parts, encode_header(sized, metadata | {"parts": to_json(parts)})
        except ValueError as error:
            if rows > num_tokens:
                raise StoreError(f"This cache does not fit a header of {MAX_HEADER} bytes ({error}).") from error
            rows *= 2


def _shapes(cache: KVCacheLike, num_tokens: int, parts: list[Part]) -> dict[str, tuple[tuple[int, ...], str]]:
    out: dict[str, tuple[tuple[int, ...], str]] = {"ids": ((num_tokens,), "I32"), "xxh3": ((16,), "U8")}
    for i, (n, a, b) in enumerate(parts):
        out |= {_name(n, i, name): shape for name, shape in cache.groups[n].shapes(b - a).items()}
    return out


def _name(group: int, part: int, tensor: str) -> str:
    return f"kv.{group:02}.{part:05}.{tensor}"  # sorted names are the order of the bytes, part by part


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    size = ITEM_SIZES[dtype]
    for n in shape:
        size *= n
    return size


def _bytes(header: bytes, ids: bytes, cache: KVCacheLike, parts: list[Part]) -> Iterator[bytes | memoryview]:
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
    yield h.digest()


def _described(path: Path, header: Header) -> dict[str, Any]:
    found = header.metadata.get("mlxkv")
    if found != FORMAT:
        raise CorruptError(f"{path} is not a prompt cache of this mlxkv (format {found!r}, expected {FORMAT!r}).")
    try:
        about = {key: json.loads(header.metadata[key]) for key in ("num_tokens", "layout", "config", "model", "parts")}
        ModelIdentity(**about["model"])
        about["parts"] = [(int(n), int(a), int(b)) for n, a, b in about["parts"]]
        if type(about["num_tokens"]) is not int or not isinstance(about["layout"], dict):
            raise TypeError("num_tokens or layout")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CorruptError(f"The description inside {path} cannot be read ({error}); make the file again.") from error
    return about | {"bytes": header.file_size}


def _check_identity(path: Path, about: dict[str, Any], cache: KVCacheLike, identity: ModelIdentity) -> None:
    made_with = ModelIdentity(**about["model"])
    field = None
    if made_with.model_id != identity.model_id:
        field = first_difference(model_parts(made_with.parts), model_parts(identity.parts)) or "model_id"
    else:
        old = spec_parts(about["layout"], made_with.spec_extra)
        field = first_difference(old, spec_parts(cache.layout(), identity.spec_extra))
    if field is not None:
        raise MismatchError(
            f"{path} was made with the model {made_with.name!r}, and `{field}` differs now; "
            "load it with that model and setting, or make it again.",
            field,
        )


def _wanted(path: Path, n: int, group: LayerGroup, parts: list[Part], num_tokens: int) -> list[Range]:
    """The ranges to import for one group: all that is required, and what is optional and there."""
    there = [(a, b) for i, a, b in parts if i == n]
    required = group.required(num_tokens)
    ascending = all(a < b for a, b in there) and all(x[1] <= y[0] for x, y in pairwise(there))
    if not ascending or not covers(there, required):
        raise CorruptError(f"{path} lacks rows it needs for {num_tokens} tokens; make the file again.")
    return [*required, *(r for r in group.optional(num_tokens) if covers(there, [r]))]


def _fill(path: Path, header: Header, cache: KVCacheLike, parts: list[Part], wanted: list[list[Range]]) -> None:
    with path.open("rb", buffering=0) as head:
        h = xxhash.xxh3_128(os.pread(head.fileno(), header.data_start, 0))
    arrays = evaluated(path, header)
    _, ids = next(arrays)
    h.update(buffer_of(ids))
    cache.begin_restore(unpack_ids(bytes(buffer_of(ids))).tolist())
    for i, (n, a, b) in enumerate(parts):
        group = cache.groups[n]
        rows = {}
        for name in sorted(group.shapes(b - a)):
            found, x = next(arrays)
            assert found == _name(n, i, name)
            h.update(buffer_of(x))
            rows[name] = x
        for low, high in wanted[n]:
            start, end = max(a, low), min(b, high)
            if start < end:
                part = rows
                if (start, end) != (a, b):  # a state has no rows, and always comes whole
                    part = {name: x[..., start - a : end - a, :] for name, x in rows.items()}
                group.import_rows(start, end, part)
    _, checksum = next(arrays)
    if bytes(buffer_of(checksum)) != h.digest():
        raise CorruptError(f"{path} has the checksum {h.hexdigest()}, not the one in the file; make it again.")
    cache.finish_restore()
