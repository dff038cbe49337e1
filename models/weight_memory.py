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


def predict_weights(headers: Iterable[Header], device: Device) -> tuple[int, bool]:
    """Return (bytes of the text part's weights in memory, whether float16 becomes float32).

    float16 stays where it is fast, or where float32 would not fit.
    """
    stored = halves = 0
    for header in headers:
        for tensor in (tensor for tensor in header.tensors if not tensor_kind(tensor.name)):
            stored += (tensor.end - tensor.start) * (2 if tensor.dtype == "F8_E4M3" else 1)  # decoded to 16 bits
            halves += tensor.end - tensor.start if tensor.dtype == "F16" else 0
    promote = halves > 0 and not device.has_fast_float16 and stored + halves <= device.memory_limit
    return (stored + halves if promote else stored), promote


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
