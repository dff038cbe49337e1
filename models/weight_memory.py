"""Predicts the memory of a model's weights from their headers, and refuses too large ones.

The KV cache and prefill are predicted in mlxkv.cache. Pure: any thread may call it.
"""

from __future__ import annotations

from collections.abc import Iterable

from mlxkv.device import Device
from mlxkv.errors import OutOfMemoryError
from mlxkv.models.catalogue import suggestions
from mlxkv.models.text_part import tensor_kind
from mlxkv.safetensors.header import Header
from mlxkv.stats import bytes_text

_NAMES = {"F16": "float16", "BF16": "bfloat16"}  # of safetensors' types


def slow_dtypes(device: Device, *, is_quantized: bool) -> tuple[str, ...]:
    """The 16-bit types whose weights this device computes with in float32 instead, as config.json names them.

    float16, and with quantized weights bfloat16 too: the CPU backend multiplies those several times slower than with
    float32, and adds up in 16 bits, which is several percent off.
    """
    if device.has_fast_float16:
        return ()
    return ("float16", "bfloat16") if is_quantized else ("float16",)


def predict_weights(headers: Iterable[Header], device: Device) -> tuple[int, tuple[str, ...]]:
    """Return (bytes of the text part's weights in memory, the types that become float32).

    They stay where float32 would not fit.
    """
    tensors = [tensor for header in headers for tensor in header.tensors if not tensor_kind(tensor.name)]
    slow = slow_dtypes(device, is_quantized=any(tensor.name.endswith(".scales") for tensor in tensors))
    stored = halves = 0
    for tensor in tensors:
        size = tensor.end - tensor.start
        stored += size * (2 if tensor.dtype == "F8_E4M3" else 1)  # decoded to 16 bits
        halves += size if _NAMES.get(tensor.dtype) in slow else 0
    if not halves or stored + halves > device.memory_limit:
        return stored, ()
    return stored + halves, slow


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
