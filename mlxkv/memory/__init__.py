"""Memory of weights, cache and prefill: checked before anything is allocated.

`budget` decides, `prefill_peak` is the formula, `preflight` checks before a model is loaded, `estimate` is public,
`overflow` counts the tokens that a prompt loses in a small window. Knows no files and no text. On the MLX thread.
"""

from mlxkv.memory.budget import CHUNKS, SIZES, Budget

__all__ = ["CHUNKS", "SIZES", "Budget"]
