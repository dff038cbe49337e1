"""MLX arrays from files and as bytes: the only module of store/kv that imports MLX, inside its functions.

The thread that owns MLX calls these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlxkv.errors import CorruptError, StoreError
from mlxkv.safetensors.header import Header, Tensor
from mlxkv.safetensors.writer import flat_bytes
from mlxkv.store.kv.chunk_format import Shapes
from mlxkv.store.kv.ranges import MAX_CHUNK

if TYPE_CHECKING:
    import mlx.core as mx


def dtype_name(array: mx.array) -> str:
    """The safetensors name of an array's dtype."""
    from mlxkv.cache.rings.uninitialized import SAFETENSORS_DTYPE

    return SAFETENSORS_DTYPE[array.dtype]


def to_tensors(
    arrays: Mapping[str, mx.array], shapes: Shapes
) -> dict[str, tuple[str, tuple[int, ...], bytes | memoryview]]:
    """The bytes of exported rows, copied only if they are not contiguous.

    Raises:
        StoreError: the cache exported other tensors than it announced, which would be unreadable later.
    """
    import mlx.core as mx

    found = {name: (tuple(x.shape), dtype_name(x)) for name, x in arrays.items()}
    if found != {name: (tuple(shape), dtype) for name, (shape, dtype) in shapes.items()}:
        raise StoreError(f"The KV cache exported {found}, not {dict(shapes)}; this is a bug, nothing was saved.")
    dense = {name: mx.contiguous(x) for name, x in arrays.items()}
    mx.eval(dense)
    return {name: (found[name][1], found[name][0], flat_bytes(x)) for name, x in dense.items()}


def empty_arrays(shapes: Shapes) -> dict[str, mx.array]:
    """Arrays to read a chunk into: evaluated, with arbitrary contents."""
    from mlxkv.cache.rings.uninitialized import SAFETENSORS_DTYPE, uninitialized_arrays

    dtypes = {name: dtype for dtype, name in SAFETENSORS_DTYPE.items()}
    return dict(
        zip(shapes, uninitialized_arrays([(shape, dtypes[dtype]) for shape, dtype in shapes.values()]), strict=True)
    )


def load_arrays(path: Path, header: Header) -> Iterator[tuple[str, mx.array]]:
    """Each array of a file with this checked header, evaluated, in the order of its bytes, 32 MiB at a time.

    Raises:
        CorruptError: reading failed. Drop every array of the file then: a second eval returns garbage silently.
    """
    import mlx.core as mx

    try:
        lazy = mx.load(str(path), format="safetensors")
        if not isinstance(lazy, dict):
            raise CorruptError(f"The file {path.name} is not a table of tensors.")
        for batch in _batches(header.tensors):
            arrays = [lazy.pop(tensor.name) for tensor in batch]
            mx.eval(arrays)  # together: MLX then reads them in parallel
            for tensor, x in zip(batch, arrays, strict=True):
                if tuple(x.shape) != tensor.shape or dtype_name(x) != tensor.dtype:
                    raise CorruptError(f"The file {path.name} changed while it was read.")
                yield tensor.name, x
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise CorruptError(f"The file {path.name} cannot be read ({error}).") from error


def _batches(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    batch: list[Tensor] = []
    for tensor in tensors:
        if batch and tensor.end - batch[0].start > MAX_CHUNK:
            yield batch
            batch = []
        batch.append(tensor)
    if batch:
        yield batch
