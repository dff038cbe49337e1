"""Machines: rank 0's view of a model that is split between processes: makes its runner and its caches, and closes it.

`load_split` loads every part: each process reads its own files and compares with the others what must be equal. On the
MLX thread.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import CachePlan
from mlxkv.cache.prompt_cache import PromptCache, PromptFiles
from mlxkv.distributed.cache_peers import CachePeers
from mlxkv.distributed.group import Wish
from mlxkv.distributed.lead_model import LeadModel
from mlxkv.distributed.link import Link, Op
from mlxkv.distributed.split import Split
from mlxkv.errors import MachineError, MlxkvError
from mlxkv.inference.runner import ModelRunner
from mlxkv.memory import Budget
from mlxkv.models import LoadedModel
from mlxkv.models.loading.skeleton import skeleton
from mlxkv.system.regular_file import opened

_COMPARED = ("version of mlx", "version of mlx-lm", "config.json", "weights")


@dataclass(frozen=True)
class Machines:
    """The processes that have a part of `split`'s model; held by rank 0's LoadedModel."""

    link: Link
    split: Split

    @property
    def is_lost(self) -> bool:
        """Whether one is known to be gone. MLX may then raise in, or wait for ever in, whatever it computes."""
        return self.link.is_lost

    @property
    def description(self) -> str:
        """Such as "tensor split between studio and air"."""
        names = self.link.names
        return f"{self.split.kind} split between {', '.join(names[:-1])} and {names[-1]}"

    def make_runner(self, model: Any, chunk: int | None, budget: Budget) -> ModelRunner:
        lead = LeadModel(model, self.link)
        return ModelRunner(lead, chunk, budget, machines=lead)

    def make_cache(
        self, config: CacheConfig, num_pinned: int, budget: Budget, used: int, model: Any, files: PromptFiles
    ) -> PromptCache:
        """See ModelRuntime.new_cache; every machine must have room for its part.

        Raises:
            MlxkvError: one has not.
        """
        number = self.link.new_number()
        table = {"config": asdict(config), "pinned": num_pinned}
        with self.link.held():
            self.link.send(Op.NEW, number, ids=list(json.dumps(table).encode()))
            plan = agreed_plan(self.link, config, num_pinned, budget, used)
            cache = PromptCache(plan, model, files)
            CachePeers(self.link, number, cache)
        return cache

    def close(self, store: str | None, sessions: Sequence[str]) -> None:
        """Let the others free their parts, once their rows are on disk.

        Args:
            store, sessions: the id of rank 0's store and all sessions it has: the others delete the rows of those that
                are gone. None: it was not opened.
        """
        if not self.is_lost:
            with suppress(MachineError), self.link.held():
                self.link.send(Op.UNLOAD, ids=list(json.dumps({"store": store, "sessions": list(sessions)}).encode()))
                self.link.agree(0)


def agreed_plan(link: Link, config: CacheConfig, num_pinned: int, budget: Budget, used: int) -> CachePlan:
    """The same plan on every machine: with the smallest window that one of them has room for by itself.

    Raises:
        MlxkvError: there is no room on one of them.
    """
    plan, error = _planned(config, num_pinned, budget, used)
    link.check(error)
    assert plan is not None
    window = plan.geometry.window if plan.geometry else 0
    least = min(row[0] for row in link.compare(window))
    if least < window:
        plan, error = _planned(replace(config, window=least), num_pinned, budget, used)
    link.check(error)
    assert plan is not None
    own = zlib.crc32(repr(plan.geometry).encode()) >> 1
    if any(row != [own] for row in link.compare(own)):
        raise MachineError("The machines plan different caches for this model; give all of them the same `window`.")
    return plan


def _planned(
    config: CacheConfig, num_pinned: int, budget: Budget, used: int
) -> tuple[CachePlan | None, MlxkvError | None]:
    try:
        plan = budget.plan(config, used, system_tokens=num_pinned)
        budget.check(plan, used)
    except MlxkvError as error:
        return None, error
    return plan, None


def load_split(link: Link, name: str, wish: Wish, load: Callable[[Split], LoadedModel]) -> tuple[LoadedModel, Split]:
    """This process's part, once every process has its own and they are parts of the same model; all call this.

    Args:
        load: loads the model and applies the split to it.

    Raises:
        MlxkvError: a process could not, or has other files or versions; every process raises it.
    """
    split = Split(link.group, wish, lambda: skeleton(name)[1])
    loaded, error = None, None
    try:
        loaded = load(split)
    except MlxkvError as raised:
        error = raised
    link.check(error)
    assert loaded is not None
    own = _fingerprint(loaded)
    for host, row in zip(link.names, rows := link.compare(*own), strict=True):
        for what, here, there in zip(_COMPARED, rows[0], row, strict=True):
            if here != there:
                raise MachineError(f"{host} has another {what} than {link.names[0]}; make them equal.")
    return loaded, split


def _fingerprint(loaded: LoadedModel) -> tuple[int, ...]:
    """What must be equal, as numbers of 31 bits. Weights by the names, sizes and headers of their files: the content is
    hashed by `mlxkv doctor --hosts`."""
    config = json.dumps(loaded.config, sort_keys=True, default=str)
    versions = (version("mlx"), version("mlx-lm"))
    return tuple(zlib.crc32(text.encode()) >> 1 for text in (*versions, config, _weights(loaded.path)))


def _weights(folder: Path) -> str:
    found = []
    for file in sorted(folder.glob("*.safetensors")):
        with opened(file) as stream:
            size = int.from_bytes(stream.read(8), "little")
            found.append(f"{file.name} {file.stat().st_size} {zlib.crc32(stream.read(min(size, 1 << 26)))}")
    return "\n".join(found)
