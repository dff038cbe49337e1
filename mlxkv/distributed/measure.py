"""What `mlxkv doctor --hosts` asks of a group: versions, weights, connections, and which splits of a model fit.

Every process runs the functions that take a Link at the same time; `examine` is rank 0's. On the MLX thread.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.trained_length import trained_length
from mlxkv.device import current_device
from mlxkv.distributed.link import Link, Op
from mlxkv.distributed.split import Kind, divide, kinds_of, problem_of
from mlxkv.errors import MlxkvError
from mlxkv.memory import CHUNKS, Budget
from mlxkv.models import Hub, resolve, skeleton
from mlxkv.models.files.architecture import read_config
from mlxkv.models.hub.hub import find_local
from mlxkv.stats import bytes_text
from mlxkv.store.identity import identify

_COMPARED = ("mlx", "mlx-lm")
_SMALL, _ROUNDS = 16, 50  # numbers of a short message, and how often
_LARGE, _LARGE_ROUNDS = 4 << 20, 4  # numbers of 4 bytes
_MIB = 1 << 20
_WORDS = 4  # numbers of 31 bits that a hash is sent as


def about(link: Link, name: str) -> list[list[int]]:
    """Of every rank: checksums of its versions, then parts of the hash of the model's weights; 0 where it has none."""
    versions = [zlib.crc32(version(package).encode()) >> 1 for package in _COMPARED]
    return link.compare(*versions, *_hash_of(name))


def _hash_of(name: str) -> list[int]:
    try:
        source = resolve(name)
        folder = source.path or (find_local(Hub(), source.repo, source.revision) if source.repo else None)
        if folder is None:
            return [0] * _WORDS
        model_id = identify(Path(folder), read_config(Path(folder), name)).model_id
    except (MlxkvError, OSError):
        return [0] * _WORDS
    return [int(model_id[8 * i : 8 * i + 8], 16) >> 1 | 1 for i in range(_WORDS)]


def seconds_of_sum(link: Link, count: int, rounds: int) -> float:
    """Seconds of a sum of `count` 4-byte numbers over the group: the mean of `rounds`, after one more."""
    numbers, started = mx.ones((count,)), 0.0
    for number in range(rounds + 1):
        if number == 1:
            started = time.perf_counter()
        link.add_up(numbers)
    return (time.perf_counter() - started) / rounds


def seconds_between(link: Link, first: int, second: int, count: int, rounds: int) -> float:
    """Seconds in which `count` 4-byte numbers go from one rank to another: the mean of `rounds`, both ways."""
    started, microseconds = 0.0, 0
    for number in range(rounds + 1):
        if number == 1:
            started = time.perf_counter()
        for source, target in ((first, second), (second, first)):
            link.hand_over(mx.ones((count,)), source, target)
    if link.rank == first:
        microseconds = int((time.perf_counter() - started) * 1e6 / (2 * rounds))
    return max(link.compare(microseconds)[first][0], 1) / 1e6


def memory_of(link: Link, name: str, kind: Kind) -> list[list[int]]:
    """Of every rank in MiB: weights, cache and prefill, and what a process may use, for its part; zeros if unknown."""
    needs = [0, 0, 0]
    with suppress(MlxkvError):
        settings, model = skeleton(name)
        divide(model, kind, link.group)
        limit = current_device().memory_limit
        weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()) if not isinstance(array, str))
        budget = Budget(model, limit, trained_length(settings))
        plan = budget.plan(CacheConfig(), weights, is_loaded=False)
        chunk = budget.largest_chunk(plan, weights) or CHUNKS[-1]
        needs = [weights, budget.cache_bytes(plan) + budget.prefill_bytes(plan, chunk), limit]
    return link.compare(*(-(-n // _MIB) for n in needs))


def examine(link: Link, name: str, backend: str = "ring") -> Iterator[tuple[bool, str, str]]:
    """Rank 0's findings: whether all is well, about what, and a sentence."""
    yield True, "machines", f"{link.size} are connected: {', '.join(link.names)}."
    link.send(Op.ABOUT, ids=list(json.dumps({"name": name}).encode()))
    rows = about(link, name)
    for i, package in enumerate(_COMPARED):
        others = [host for host, row in zip(link.names, rows, strict=True) if row[i] != rows[0][i]]
        text = f"{', '.join(others)} has another version of {package} than this machine; make them equal."
        yield not others, package, text if others else f"{version(package)} on all."
    hashes = [tuple(row[len(_COMPARED) :]) for row in rows]
    lacking = [host for host, found in zip(link.names, hashes, strict=True) if not any(found)]
    others = [host for host, found in zip(link.names, hashes, strict=True) if found != hashes[0] and any(found)]
    if lacking:
        yield False, "weights", f"{', '.join(lacking)} does not have {name}; download it there."
    elif others:
        yield False, "weights", f"{', '.join(others)} has other files of {name}; download it again there."
    else:
        yield True, "weights", f"the files of {name} are equal on all."
    link.send(Op.SUM, 0, _SMALL, _ROUNDS)
    short = seconds_of_sum(link, _SMALL, _ROUNDS)
    link.send(Op.SUM, 0, _LARGE, _LARGE_ROUNDS)
    long = seconds_of_sum(link, _LARGE, _LARGE_ROUNDS)
    rate = bytes_text(int(4 * _LARGE / long))
    yield True, "sum", f"a short one over all takes {short * 1e3:.2f} ms, and {rate} a second are summed."
    for first, second in _pairs(link.size, backend):
        link.send(Op.PAIR, ids=[first, second, _SMALL, _ROUNDS])
        short = seconds_between(link, first, second, _SMALL, _ROUNDS)
        link.send(Op.PAIR, ids=[first, second, _LARGE, _LARGE_ROUNDS])
        long = seconds_between(link, first, second, _LARGE, _LARGE_ROUNDS)
        text = f"{short * 1e3:.2f} ms, and {bytes_text(int(4 * _LARGE / long))} a second"
        yield True, "connection", f"{link.names[first]} to {link.names[second]}: {text}."
    try:
        kinds = kinds_of(skeleton(name)[1])
        problems: dict[Kind, str | None] = {kind: problem_of(skeleton(name)[1], kind, link.size) for kind in kinds}
    except MlxkvError as error:
        yield False, "split", str(error)
        return
    fits: list[Kind] = [kind for kind in kinds if problems[kind] is None]
    if not fits:
        why = next(filter(None, problems.values()), "is of an architecture that mlx-lm cannot split")
        yield False, "split", f"{name} {why}."
        return
    yield True, "split", f"{name} takes a {' or a '.join(fits)} split between {link.size} machines."
    for kind in fits:
        yield from _memory(link, name, kind)


def _pairs(size: int, backend: str) -> list[tuple[int, int]]:
    """Those that the backend connects: in a ring, neighbours."""
    if backend == "jaccl":
        return list(combinations(range(size), 2))
    return [(rank, (rank + 1) % size) for rank in range(size if size > 2 else size - 1)]


def _memory(link: Link, name: str, kind: Kind) -> Iterator[tuple[bool, str, str]]:
    link.send(Op.MEMORY, ids=list(json.dumps({"name": name, "kind": kind}).encode()))
    for host, needs in zip(link.names, memory_of(link, name, kind), strict=True):
        weights, rest, limit = (n * _MIB for n in needs)
        if not weights:
            yield False, "memory", f"{host} cannot tell what its part needs; download {name} there."
            continue
        text = f"{host} needs {bytes_text(weights + rest)} in a {kind} split, {bytes_text(weights)} of it for weights,"
        if limit and weights + rest > limit:
            yield False, "memory", f"{text} and lets a process use {bytes_text(limit)}; use more machines."
        else:
            yield True, "memory", f"{text} and lets a process use {bytes_text(limit)}."
