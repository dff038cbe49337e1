"""What a model's weights will take in memory, from headers alone, and the refusal when that is too much.

Counts weights only; the KV cache and prefill are predicted in mlxkv.cache. Pure values: any thread may call it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from mlxkv.device import Device
from mlxkv.errors import OutOfMemoryError
from mlxkv.models.catalogue import catalogue
from mlxkv.safetensors import Header
from mlxkv.stats import bytes_text


def predict_weights(headers: Iterable[Header], device: Device) -> tuple[int, bool]:
    """(bytes the weights take in memory, whether float16 becomes float32 there).

    float16 is kept where it is fast, and where float32 would not fit.
    """
    stored = halves = 0
    for header in headers:
        for tensor in header.tensors:
            stored += tensor.end - tensor.start
            halves += tensor.end - tensor.start if tensor.dtype == "F16" else 0
    promote = halves > 0 and not device.has_fast_float16 and stored + halves <= device.memory_limit
    return (stored + halves if promote else stored), promote


def check_fits(name: str, weight_bytes: int, device: Device) -> None:
    """Refuse weights that this process cannot hold.

    Raises:
        OutOfMemoryError: names what is needed, what there is, and a model that would fit.
    """
    if weight_bytes > device.memory_limit:
        _refuse(name, weight_bytes, device)


def _refuse(name: str, weight_bytes: int, device: Device) -> NoReturn:
    fitting = [entry for entry in catalogue() if entry.fits(device.memory_limit)]
    best = max(fitting, key=lambda entry: entry.size_bytes, default=None)
    advice = (
        f"{best.id} ({bytes_text(best.size_bytes)}) would fit"
        if best
        else f"a model under {bytes_text(device.memory_limit)} would fit"
    )
    raise OutOfMemoryError(
        f"The weights of {name} need {bytes_text(weight_bytes)} and this machine lets a process use "
        f"{bytes_text(device.memory_limit)} of its {bytes_text(device.total_memory)}; {advice}."
    )
