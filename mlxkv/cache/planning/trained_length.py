"""Trained length: the number of positions that a model was trained for, by its configuration. Pure values; no MLX."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_KEYS = (
    "max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "max_seq_length", "max_sequence_length",
    "n_ctx", "model_max_length", "block_size", "context_length",
)  # fmt: skip
_NESTED = ("text_config", "llm_config", "language_config")
_MOST = 1 << 40  # tokenizers write 10^30 for no limit
_EXTENDING = ("yarn", "llama3", "longrope", "su", "deepseek_yarn", "telechat3-yarn")


def trained_length(source: Any) -> int | None:
    """The trained length of a config.json or a model (its `args`) in tokens; None if it is not given.

    A scaled rope extends what the model was first trained for: `original_max_position_embeddings` times `factor` where
    that is more than the configuration says itself.
    """
    source = getattr(source, "args", source)
    for table in config_tables(source):
        if length := next((n for key in _KEYS if (n := _length(table.get(key)))), None):
            return max(length, *(_extended(scaling) for scaling in _scalings(table)), 0)
    return None


def config_tables(source: Any) -> Iterator[Mapping[str, Any]]:
    """The configuration of the language model first, then the one around it."""
    table = source if isinstance(source, Mapping) else getattr(source, "__dict__", {})
    for key in _NESTED:
        if inner := table.get(key):
            yield from config_tables(inner)
    yield table


def _scalings(table: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(given := table.get(key), Mapping):
            yield from [v for v in given.values() if isinstance(v, Mapping)] or [given]


def _extended(scaling: Mapping[str, Any]) -> int:
    original, factor = _length(scaling.get("original_max_position_embeddings")), scaling.get("factor")
    if (scaling.get("rope_type") or scaling.get("type")) not in _EXTENDING or original is None:
        return 0
    if isinstance(factor, (int, float)) and not isinstance(factor, bool) and 1 <= factor < _MOST:
        return int(original * factor)
    return original


def _length(value: Any) -> int | None:
    is_one = (
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < _MOST and value == int(value)
    )
    return int(value) if is_one else None
