"""QuantizedRingKVCache: the ring in 8 or 4 bits.

mlx-lm's attention has a path for quantized caches that makes the whole score matrix: fine for one query, far too large
for a prefill. So a decode step gets packed rows, and a prefill gets this layer's rows decoded into a temporary, for the
fused attention; on the CPU in 16 bits a decode step too (`layer_plan.quantized`). mlx-lm takes the packed path
for a cache that has `bits`, so it has them only then.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlxkv.cache.rings.geometry import Geometry
from mlxkv.cache.rings.ring import RingKVCache
from mlxkv.cache.rings.rows import Codec
from mlxkv.cache.rings.sink_rotation import SinkRotation


class QuantizedRingKVCache(RingKVCache):
    """A ring of quantized rows; see RingKVCache.

    Args:
        key_codec, value_codec: bits and group size of each; where they differ, or with `is_fused` or `is_shared`, every
            call gets decoded rows, since mlx-lm's packed attention supports one number of bits and no learned sinks.
    """

    def __init__(
        self,
        geometry: Geometry,
        rotation: SinkRotation | None = None,
        native_window: int | None = None,
        key_codec: Codec = Codec(8),  # noqa: B008  # frozen
        value_codec: Codec = Codec(8),  # noqa: B008
        is_shared: bool = False,
        is_fused: bool = False,
    ) -> None:
        super().__init__(geometry, rotation, native_window, key_codec, value_codec, is_shared)
        self.is_fused = is_fused or is_shared or key_codec != value_codec
        self.group_size = key_codec.group_size
        self._hands_out_packed = False

    @property
    def bits(self) -> int:
        """The bits of the rows just returned. AttributeError while they are numbers: mlx-lm asks with hasattr."""
        if not self._hands_out_packed or self.key_codec.bits is None:
            raise AttributeError("bits")
        return self.key_codec.bits

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        self._hands_out_packed = keys.shape[2] == 1 and not self.is_fused
        return super().update_and_fetch(keys, values)

    def _fetch(self, live: int) -> tuple[Any, Any]:
        if self._hands_out_packed:
            return self._keys.parts(0, live), self._values.parts(0, live)
        return self._keys.dense(0, live), self._values.dense(0, live)
