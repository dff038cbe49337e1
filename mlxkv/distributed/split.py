"""Split: how a model is divided between processes, by mlx-lm's own `shard` (tensor) and `pipeline`.

In a tensor split each machine has a part of the heads of every layer, in a pipeline whole layers. Refuses what does not
divide, before weights are read, and names what would. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlxkv.cache.planning.probe import leaves
from mlxkv.cache.planning.traits import native_cache, traits_of
from mlxkv.distributed.group import Wish
from mlxkv.errors import ModelUnsupportedError, first_line
from mlxkv.stats import plural

Kind = Literal["tensor", "pipeline"]
_MOST = 16  # machines that are tried for a sentence
_SPLIT_MODEL = "it is split between machines"
_NAMES = {
    "n_heads": "head", "num_heads": "head", "num_attention_heads": "head", "n_kv_heads": "KV head",
    "num_key_value_heads": "KV head", "num_k_heads": "linear KV head", "num_v_heads": "linear head",
}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One of `size` processes, with the two methods that mlx-lm's splits ask of MLX's group: to try a split out."""

    number: int
    count: int

    def rank(self) -> int:
        return self.number

    def size(self) -> int:
        return self.count


def kinds_of(model: Any) -> tuple[Kind, ...]:
    """The splits that mlx-lm has for this model."""
    found: list[Kind] = ["tensor"] if hasattr(model, "shard") else []
    return (*found, "pipeline") if _pipelined(model) is not None else tuple(found)


class Split:
    """One process's part of a model.

    Args:
        group: MLX's group, or a Member.
        wish: "auto": a tensor split where there is one and the heads divide, else a pipeline.
        fresh: makes the model without weights, to find out what would fit.

    Attributes:
        kind: how the model was divided; None before.
        rank, size: of this process, and the number of processes.
    """

    def __init__(self, group: Any, wish: Wish, fresh: Callable[[], Any]) -> None:
        self._group, self._wish, self._fresh = group, wish, fresh
        self.kind: Kind | None = None
        self.rank, self.size = int(group.rank()), int(group.size())

    @property
    def part(self) -> str:
        """Which part of the model this process has, such as "tensor 0/2"."""
        return f"{self.kind} {self.rank}/{self.size}"

    def apply(self, model: Any, name: str) -> None:
        """Divide a model whose weights are not read yet.

        Raises:
            ModelUnsupportedError: mlx-lm does not divide it so, or not between so many machines.
        """
        kinds = kinds_of(model)
        if not kinds:
            raise ModelUnsupportedError(f"mlx-lm cannot split {name} between machines; run it on one, or use another.")
        wanted: tuple[Kind, ...] = kinds if self._wish == "auto" else tuple(k for k in kinds if k == self._wish)
        if not wanted:
            raise ModelUnsupportedError(
                f"mlx-lm has no {self._wish} split of {name}; use `distributed={kinds[0]!r}` instead."
            )
        problems = {kind: problem_of(self._fresh(), kind, self.size) for kind in wanted}
        self.kind = next((kind for kind in wanted if problems[kind] is None), None)
        if self.kind is None:
            why = next(filter(None, problems.values()))
            raise ModelUnsupportedError(f"{name} {why}; {self._advice(wanted)}.")
        traits = traits_of(model)
        sinks = traits.sinks(model, is_loaded=True)  # before: it computes, and others would have to, too
        entries = [len(leaves([cache])) for cache in native_cache(model)]
        divide(model, self.kind, self._group)
        own = traits_of(model)
        own._sinks[True] = sinks if self.kind == "tensor" else _own_part(model, sinks, entries)
        own.batch_errors[:] = [_SPLIT_MODEL]

    def _advice(self, wanted: Sequence[Kind]) -> str:
        for kind in wanted:
            fits = [n for n in range(2, _MOST + 1) if n != self.size and problem_of(self._fresh(), kind, n) is None]
            if fits:
                counts = ", ".join(str(n) for n in fits[:-1])
                listed = f"{counts} or {fits[-1]}" if counts else str(fits[0])
                return f"a {kind} split fits {listed} machines"
        return "run it on one machine"


def divide(model: Any, kind: Kind, group: Any) -> None:
    """Leave `model` with this process's part."""
    if kind == "tensor":
        model.shard(group)
    else:
        _pipelined(model).pipeline(group)


def problem_of(model: Any, kind: Kind, size: int) -> str | None:
    """Why a model, which is used up, does not divide by `size` processes: "has ...", None if it does."""
    if kind == "pipeline":
        return _pipeline_problem(model, size)
    before = dict(_numbers(model))
    try:
        divide(model, kind, Member(0, size))
    except (ValueError, AssertionError, TypeError, IndexError) as error:  # from mlx-lm, where sizes do not divide
        uneven = [(key, n) for key, n in before.items() if key[1] in _NAMES and n % size]
        return _uneven(uneven, size) if uneven else f"does not divide by {size} machines ({first_line(error)})"
    after = dict(_numbers(model))
    cut = [(key, n) for key, n in before.items() if n % size and after.get(key) == n // size]
    return _uneven(cut, size) if cut else None


def _uneven(cut: Sequence[tuple[tuple[str, str], int]], size: int) -> str:
    found = dict.fromkeys(plural(n, _NAMES.get(name, name)) for (_, name), n in cut)
    return f"has {' and '.join(found)}, which {size} machines cannot share evenly"


def _pipeline_problem(model: Any, size: int) -> str | None:
    kinds = [tuple(type(leaf).__name__ for leaf in leaves([cache])) for cache in native_cache(model)]
    if size > len(kinds):
        return f"has {plural(len(kinds), 'layer')}, too few for {size} machines"
    base, extra = divmod(len(kinds), size)
    at = 0
    for rank in reversed(range(size)):  # the last rank has the first layers
        n = base + (rank < extra)
        if {*kinds[at : at + n]} != {*kinds}:
            return f"has layers of several kinds, and one of {size} machines would have none of some kind"
        at += n
    divide(model, "pipeline", Member(0, size))
    if any(layer is None for layer in model.layers):
        return "has a pipeline in mlx-lm whose layers cannot be told apart from outside"
    return None


def _own_part(model: Any, sinks: Sequence[Any], entries: Sequence[int]) -> tuple[Any, ...]:
    """Those of this process's layers, in a pipeline."""
    part: Any = _pipelined(model)
    first, end = part.start_idx, part.end_idx
    return tuple(sinks[sum(entries[:first]) : sum(entries[:end])])


def _pipelined(model: Any) -> Any:
    from mlx_lm.models.pipeline import PipelineMixin

    modules = model.modules() if hasattr(model, "modules") else ()
    return next((module for module in modules if isinstance(module, PipelineMixin)), None)


def _numbers(model: Any) -> Iterator[tuple[tuple[str, str], int]]:
    """The whole numbers among the attributes of all modules, by module and name."""
    for path, module in model.named_modules():
        for name, value in {**vars(module), **module}.items():
            if isinstance(value, int) and not isinstance(value, bool):
                yield (path, name), value
