"""The end of a thread that used MLX."""

from __future__ import annotations

import gc


def end_mlx() -> None:
    """Free what is left and clear this thread's streams: the last call on it; without it the process aborts."""
    gc.collect()
    import mlx.core as mx

    mx.clear_streams()
