"""Memory of weights, cache and prefill: checked before anything is allocated.

`budget` decides, `prefill_peak` is the formula, `preflight` asks before a model is loaded, `estimate` is public,
`overflow` says what a prompt loses in a window that is too small. Knows no files and no text. On the MLX thread.
"""

from mlxkv.memory.budget import CHUNKS, Budget

__all__ = ["CHUNKS", "Budget"]
