"""Predicts the memory of a model's weights from their headers, and refuses too large ones.

The KV cache and prefill are predicted in mlxkv.cache. Pure: any thread may call it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mlxkv.device import Device
from mlxkv.errors import OutOfMemoryError
from mlxkv.models.catalogue import suggestions
from mlxkv.models.files.text_part import tensor_kind
from mlxkv.safetensors.header import Header, Tensor, num_bytes
from mlxkv.stats import bytes_text

_NAMES = {"F16": "float16", "BF16": "bfloat16"}  # of safetensors' types
_FP8_SCALES = (".weight_scale_inv", ".activation_scale")  # not kept once the weights are decoded


def slow_dtypes(device: Device, *, is_quantized: bool) -> tuple[str, ...]:
    """The 16-bit types whose weights this device computes with in float32 instead, as config.json names them.

    float16, and with quantized weights bfloat16 too: the CPU backend multiplies those several times slower than with
    float32, and adds up in 16 bits, which is several percent off.
    """
    if device.has_fast_float16:
        return ()
    return ("float16", "bfloat16") if is_quantized else ("float16",)


def predict_weights(headers: Iterable[Header], device: Device, kv_b_rank: int = 0) -> tuple[int, tuple[str, ...]]:
    """Return (bytes of the text part's weights in memory, the types that become float32).

    They stay where float32 would not fit. `kv_b_rank`: see the function of that name in `text_part`.
    """
    tensors = [tensor for header in headers for tensor in header.tensors if not tensor_kind(tensor.name)]
    slow = slow_dtypes(device, is_quantized=any(tensor.name.endswith(".scales") for tensor in tensors))
    stored = halves = 0
    for dtype, size in _loaded_sizes(tensors, kv_b_rank):
        stored += size
        halves += size if _NAMES.get(dtype) in slow else 0
    if not halves or stored + halves > device.memory_limit:
        return stored, ()
    return stored + halves, slow


def _loaded_sizes(tensors: Sequence[Tensor], kv_b_rank: int) -> Iterator[tuple[str, int]]:
    """The stored type and the bytes of each tensor as it is loaded."""
    unpacked = {t.name.removesuffix(".scales") for t in tensors if kv_b_rank and t.name.endswith(".kv_b_proj.scales")}
    for tensor in tensors:
        path, _, part = tensor.name.rpartition(".")
        size = tensor.end - tensor.start
        if path in unpacked:  # to the type of its scales
            if part == "scales":
                yield tensor.dtype, num_bytes(tensor.dtype, (*tensor.shape[:-1], kv_b_rank))
        elif tensor.dtype == "F8_E4M3":
            yield tensor.dtype, 2 * size  # decoded to 16 bits
        elif not tensor.name.endswith(_FP8_SCALES):
            yield tensor.dtype, size


def check_fits(name: str, weight_bytes: int, device: Device) -> None:
    """Refuse weights that do not fit the memory limit.

    Raises:
        OutOfMemoryError: the message names both sizes and a model that fits.
    """
    if weight_bytes <= device.memory_limit:
        return
    best = next((suggestion.entry for suggestion in suggestions(device.memory_limit)), None)
    advice = (
        f"{best.id} ({bytes_text(best.size_bytes)})" if best else f"a model under {bytes_text(device.memory_limit)}"
    )
    raise OutOfMemoryError(
        f"The weights of {name} need {bytes_text(weight_bytes)} and this machine lets a process use "
        f"{bytes_text(device.memory_limit)} of its {bytes_text(device.total_memory)}; {advice} would fit."
    )
