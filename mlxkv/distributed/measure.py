"""What `mlxkv doctor --hosts` asks of a group: versions, weights, the time of a sum, and which splits fit a model.

Every process runs the functions that take a Link at the same time; `examine` is rank 0's. On the MLX thread.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from mlxkv.distributed.link import Link, Op
from mlxkv.distributed.split import kinds_of, problem_of
from mlxkv.errors import MlxkvError
from mlxkv.models import Hub, resolve, skeleton
from mlxkv.models.files.architecture import read_config
from mlxkv.models.hub.hub import find_local
from mlxkv.stats import bytes_text
from mlxkv.store.identity import identify

_COMPARED = ("mlx", "mlx-lm")
_SMALL, _ROUNDS = 16, 50  # numbers of a short message, and how often
_LARGE, _LARGE_ROUNDS = 4 << 20, 4  # numbers of 4 bytes
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


def examine(link: Link, name: str) -> Iterator[tuple[bool, str, str]]:
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
    yield True, "connection", f"a short sum over all takes {short * 1e3:.2f} ms, and {rate} a second are summed."
    yield from _splits(name, link.size)


def _splits(name: str, size: int) -> Iterator[tuple[bool, str, str]]:
    try:
        kinds = kinds_of(skeleton(name)[1])
        problems = {kind: problem_of(skeleton(name)[1], kind, size) for kind in kinds}
    except MlxkvError as error:
        yield False, "split", str(error)
        return
    fits = [kind for kind, problem in problems.items() if problem is None]
    if fits:
        yield True, "split", f"{name} takes a {' or a '.join(fits)} split between {size} machines."
    else:
        why = next(filter(None, problems.values()), "is of an architecture that mlx-lm cannot split")
        yield False, "split", f"{name} {why}."
