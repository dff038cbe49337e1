"""A KV cache of the size of a test: rows by position in a dict, held as a block ring would hold them.

Each row is a function of all ids up to its position and of `run`, a number that differs from run to run as rounding
does: bit equality then proves that rows came from the disk and not from a second prefill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx

from mlxkv.cache.peers import Peers
from mlxkv.store.identity import ModelIdentity

LAYERS, HEADS, DIM = 2, 2, 4


def model(name: str = "fake", **parts: str) -> ModelIdentity:
    return ModelIdentity.of(name, {"config.hidden": "8", "file.model.safetensors": "1:ab", **parts})


class FakeGroup:
    def __init__(
        self, cache: FakeCache, name: str, window: int | None, sinks: int, block: int, undo: int, dim: int
    ) -> None:
        self.cache, self.name, self.window, self.sinks, self.block, self.undo = cache, name, window, sinks, block, undo
        self.dim = dim
        self.rows: dict[int, bytes] = {}
        self.imports: list[tuple[int, int]] = []

    @property
    def row_bytes(self) -> int:
        return LAYERS * 2 * HEADS * self.dim * 4

    def _first(self, offset: int, undo: int) -> int:
        if self.window is None:
            return self.sinks
        over = offset - self.sinks - self.window
        evicted = 0 if over <= 0 else -(-over // self.block)
        return self.sinks + max(0, evicted - undo) * self.block

    def _ranges(self, offset: int, undo: int) -> list[tuple[int, int]]:
        if offset <= self.sinks:
            return [(0, offset)] if offset else []
        return [*([(0, self.sinks)] if self.sinks else []), (self._first(offset, undo), offset)]

    def held(self) -> list[tuple[int, int]]:
        return self._ranges(len(self.cache.log), 0)

    def required(self, offset: int) -> list[tuple[int, int]]:
        return self._ranges(offset, 0)

    def optional(self, offset: int) -> list[tuple[int, int]]:
        first, last = self._first(offset, self.undo), self._first(offset, 0)
        return [(a, a + self.block) for a in range(first, last, self.block)]

    def shapes(self, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
        shape = ((1, HEADS, rows, self.dim), "F32")
        return {f"{layer}.{kind}": shape for layer in range(LAYERS) for kind in "kv"}

    def export_rows(self, a: int, b: int) -> dict[str, mx.array]:
        assert any(x <= a < b <= y for x, y in _joined(self.held())), (a, b, self.held())
        out = {}
        for n, name in enumerate(self.shapes(b - a)):
            flat = b"".join(_part(self.rows[p], n, self.dim) for p in range(a, b))
            out[name] = mx.array(cast(Any, memoryview(flat))).view(mx.float32).reshape(b - a, 1, HEADS, self.dim)
            out[name] = mx.contiguous(out[name].transpose(1, 2, 0, 3))
        return out

    def import_rows(self, a: int, b: int, arrays: dict[str, mx.array]) -> None:
        flats = []
        for name, (shape, _) in self.shapes(b - a).items():
            assert arrays[name].shape == shape
            flats.append(bytes(memoryview(mx.contiguous(arrays[name].transpose(2, 0, 1, 3)))))  # type: ignore[arg-type]
        size = HEADS * self.dim * 4
        for i, p in enumerate(range(a, b)):
            self.rows[p] = b"".join(flat[i * size : (i + 1) * size] for flat in flats)
        self.imports.append((a, b))

    def feed(self, position: int, prefix: bytes) -> None:
        need = self.row_bytes
        self.rows[position] = hashlib.shake_128(prefix + self.name.encode()).digest(need)

    def evict(self) -> None:
        keep = [p for a, b in self.held() for p in range(a, b)]
        self.rows = {p: self.rows[p] for p in keep}


def _part(row: bytes, n: int, dim: int) -> bytes:
    size = HEADS * dim * 4
    return row[n * size : (n + 1) * size]


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for a, b in ranges:
        if out and out[-1][1] == a:
            out[-1] = (out[-1][0], b)
        else:
            out.append((a, b))
    return out


class FakeCache:
    """Two groups: "full" with `window` (None: unbounded) and "window64" with half of it."""

    peers: Peers | None = None

    def __init__(
        self, window: int | None = None, sinks: int = 4, block: int = 16, undo: int = 2, run: int = 0, dim: int = DIM
    ) -> None:
        self.log: list[int] = []
        self.settings = {"window": window, "sinks": sinks, "block": block, "dim": dim}
        self.run = run
        half = None if window is None else window // 2
        self.groups: Sequence[FakeGroup] = (
            FakeGroup(self, "full", window, sinks, block, undo, dim),
            FakeGroup(self, "window64", half, 0, block, undo, dim),
        )
        self.restoring: list[int] | None = None
        self._prefix = hashlib.blake2b()

    @property
    def tokens(self) -> list[int]:
        return self.log

    def layout(self) -> dict[str, Any]:
        return {"class": "FakeCache", **self.settings}

    def feed(self, ids: Sequence[int]) -> None:
        for token in ids:
            self._prefix.update(token.to_bytes(4, "little"))
            self.log.append(token)
            for group in self.groups:
                group.feed(len(self.log) - 1, self._prefix.digest() + bytes([self.run]))
        for group in self.groups:
            group.evict()

    def state(self) -> list[dict[int, bytes]]:
        """What a continuation would read: the required rows of every group."""
        n = len(self.log)
        return [{p: g.rows[p] for a, b in g.required(n) for p in range(a, b)} for g in self.groups]

    def reset(self) -> None:
        self.log, self.restoring = [], None
        self._prefix = hashlib.blake2b()
        for group in self.groups:
            group.rows, group.imports = {}, []

    def begin_restore(self, ids: Sequence[int]) -> None:
        self.reset()
        self.restoring = list(ids)

    def finish_restore(self) -> None:
        assert self.restoring is not None
        self.log = self.restoring
        for token in self.log:
            self._prefix.update(token.to_bytes(4, "little"))
        for group in self.groups:
            for a, b in group.required(len(self.log)):
                assert all(p in group.rows for p in range(a, b)), (group.name, a, b)
