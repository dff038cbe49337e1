"""Learned positions: how many rows the table has in which a model looks them up. On the MLX thread.

Rotary positions continue past the trained length, worse and worse. Past the end of a table there is none, and what
comes out is no number, however few rows a window keeps.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxkv.cache.probe import observe


def learned_positions(model: Any) -> int | None:
    """The rows of the table that a model looks positions up in; None for one that does without.

    Found by asking: of one token at two offsets, its position is what another row is looked up for. Nothing computed
    but those indices.
    """
    if not isinstance(model, nn.Module):  # what only behaves like one has no table to be found
        return None
    kinds = (nn.Embedding, nn.QuantizedEmbedding)
    tables: list[Any] = [module for _, module in model.named_modules() if isinstance(module, kinds)]
    if len({table.weight.shape[0] for table in tables}) < 2:  # of the vocabulary alone
        return None
    from mlx_lm.models.cache import make_prompt_cache

    seen: list[dict[int, list[mx.array]]] = []
    own = {id(table): type(table) for table in tables}
    for offset in (3, 5):
        looked_up: dict[int, list[mx.array]] = {}
        seen.append(looked_up)
        try:
            for table in tables:
                table.__class__ = _watched(own[id(table)], looked_up)
            observe(model, make_prompt_cache(model), offset)
        except Exception:  # a model's own code, which cannot be asked so
            return None
        finally:
            for table in tables:
                table.__class__ = own[id(table)]
    rows = [t.weight.shape[0] for t in tables if _differ(seen[0].get(id(t), []), seen[1].get(id(t), []))]
    return min(rows, default=None)


def _watched(kind: type, looked_up: dict[int, list[mx.array]]) -> type:
    class Watched(kind):
        def __call__(self, x: mx.array) -> mx.array:
            looked_up.setdefault(id(self), []).append(x)
            return super().__call__(x)

    return Watched


def _differ(a: list[mx.array], b: list[mx.array]) -> bool:
    return any(not mx.array_equal(x, y).item() for x, y in zip(a, b, strict=False))
