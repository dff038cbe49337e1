"""The device: its memory limit, and the differences between Metal and the CPU backend.

`check_platform` imports no MLX, so that an unsupported machine gets a clear message instead of an import error.
Functions that call MLX run on the MLX thread.
"""

from __future__ import annotations

import os
import platform
import re
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from mlxkv.errors import ConfigError, PlatformError, quoted
from mlxkv.stats import bytes_text

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}  # the units of `bytes_text`
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]B|)", re.A | re.I)
MIN_GLIBC = (2, 35)  # which the mlx wheels for Linux require
_SMALL_MACHINE = 24 << 30  # bytes of memory: here a part of what may be used stays unwired
_UNWIRED_SHARE, _UNWIRED = 0.35, 8 << 30  # that part, and at least so many bytes


@dataclass(frozen=True)
class Device:
    """A machine and its memory in bytes.

    `memory_limit` is the most this process may use before the system swaps or, on Metal, aborts it. `is_cpu`: MLX uses
    its CPU backend.
    """

    name: str
    is_metal: bool
    memory_limit: int
    total_memory: int
    has_fast_float16: bool
    is_cpu: bool = False

    @property
    def wired_limit(self) -> int:
        """The most bytes to keep wired. Up to 24 GB of memory, wiring all that may be used can freeze the machine."""
        if self.total_memory > _SMALL_MACHINE:
            return self.memory_limit
        return max(self.memory_limit - max(int(self.memory_limit * _UNWIRED_SHARE), _UNWIRED), 0)

    def has_exact_packed_products(self, dtype: Any) -> bool:
        """Whether products with quantized rows of this mlx dtype accumulate in float32.

        The CPU backend accumulates in the rows' dtype: in 16 bits the error is 1.5 to 7.7 %, more with length.
        """
        return not self.is_cpu or dtype.size >= 4

    def __str__(self) -> str:
        backend = "Metal" if self.is_metal else "CPU"
        return f"{self.name} ({backend}, {bytes_text(self.memory_limit)} of {bytes_text(self.total_memory)} usable)"


def check_platform(system: str | None = None, machine: str | None = None, libc: tuple[str, str] | None = None) -> None:
    """Refuse a machine that MLX does not support. Without arguments: this machine.

    `system` and `machine` are those of the `platform` module, `libc` that of `platform.libc_ver()`.

    Raises:
        PlatformError: an Intel Mac, Windows, another system, or a Linux without glibc 2.35.
    """
    system = platform.system() if system is None else system
    machine = platform.machine() if machine is None else machine
    if system == "Darwin":
        if machine != "arm64":
            raise PlatformError(
                f"MLX needs Apple silicon, and this Python runs on {machine}: use an Apple silicon Mac, "
                "or an arm64 build of Python if this is one."
            )
        return
    if system != "Linux":
        raise PlatformError(f"MLX runs on macOS and Linux, not on {system or 'this system'}; use one of those.")
    if machine not in ("x86_64", "aarch64"):
        raise PlatformError(f"MLX for Linux supports x86_64 and aarch64, not {machine}; use another machine.")
    name, version = platform.libc_ver() if libc is None else libc
    wanted = ".".join(map(str, MIN_GLIBC))
    if name != "glibc":
        raise PlatformError(
            f"MLX for Linux needs glibc {wanted} or newer, and this system has {name or 'another C library'}; "
            "use a distribution with glibc."
        )
    if _version(version) < MIN_GLIBC:
        raise PlatformError(
            f"MLX for Linux needs glibc {wanted} or newer, and this system has {version}; use a newer distribution."
        )


def current_device(env: Mapping[str, str] | None = None) -> Device:
    """The device that MLX uses here. `MLXKV_MEMORY_LIMIT` lowers its memory limit (`8GB`, `512MB`, or bytes).

    Raises:
        ConfigError: that variable is not a size.
    """
    import mlx.core as mx

    is_cpu = mx.default_device().type == mx.DeviceType.cpu
    is_metal = mx.metal.is_available() and not is_cpu
    found = describe(mx.device_info(), is_metal=is_metal, total_memory=_physical_memory(), cgroup_limit=cgroup_limit())
    wanted = memory_setting(os.environ if env is None else env)
    limit = found.memory_limit if wanted is None else min(found.memory_limit, wanted)
    return replace(found, memory_limit=limit, is_cpu=is_cpu)


def check_temporary_folder(device: Device, env: Mapping[str, str] | None = None) -> None:
    """Check the folder in which MLX compiles on the CPU; Metal compiles in memory.

    Raises:
        ConfigError: TMPDIR, TMP, TEMP or TEMPDIR does not name a writable folder.
    """
    env = os.environ if env is None else env
    name = next((name for name in ("TMPDIR", "TMP", "TEMP", "TEMPDIR") if name in env), None)  # in MLX's order
    folder = env[name] if name else "/tmp"
    if device.is_cpu and not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        what = f"{name} is {quoted(folder)}, which" if name else folder
        raise ConfigError(f"{what} is not a writable folder; set TMPDIR to one, because MLX compiles there.")


def memory_setting(env: Mapping[str, str]) -> int | None:
    """The user's memory limit in bytes, None if there is none.

    Raises:
        ConfigError: it is not a size.
    """
    text = env.get("MLXKV_MEMORY_LIMIT", "").strip()
    if not text:
        return None
    match = _SIZE.fullmatch(text)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if not size:
        raise ConfigError(
            f"The environment variable MLXKV_MEMORY_LIMIT is {text[:40]!r}; it must be a size such as 8GB, 512MB or "
            "8000000000 (bytes)."
        )
    return size


def describe(info: Mapping[str, Any], *, is_metal: bool, total_memory: int, cgroup_limit: int | None = None) -> Device:
    """The Device for a result of `mx.device_info()`; pure, so that tests can use any machine."""
    name = str(info.get("device_name") or info.get("architecture") or "unknown device")
    total = int(info.get("memory_size") or total_memory) if is_metal else total_memory
    recommended = info.get("max_recommended_working_set_size") if is_metal else None
    # 0.8: the rest is for the system and other programs
    limit = int(recommended) if recommended else int(min(total, cgroup_limit or total) * 0.8)
    # on the CPU backend float16 is slower than float32
    return Device(name, is_metal, limit, total, has_fast_float16=is_metal)


class Wired:
    """Keeps memory wired (never paged out) while at least one is open: a loaded model each.

    No effect without Metal, or if macOS refuses. MLX has one limit for the whole process: it is for the sum of all that
    is open, set by the first and put back by the last.
    """

    _open: ClassVar[weakref.WeakSet[Wired]] = weakref.WeakSet()
    _before: ClassVar[int | None] = None  # the limit to put back

    def __init__(self, device: Device | None = None, *, is_wanted: bool = True) -> None:
        device = current_device() if device is None else device
        if not device.is_metal or not is_wanted:
            return
        import mlx.core as mx

        if not Wired._open:
            with suppress(RuntimeError, ValueError):  # macOS before 15 cannot
                before = mx.set_wired_limit(device.wired_limit)
                Wired._before = before if Wired._before is None else Wired._before  # of one that was never closed
        Wired._open.add(self)

    def close(self) -> None:
        """Stop; the last one that is open puts MLX's limit back."""
        is_open = self in Wired._open
        Wired._open.discard(self)
        if is_open and not Wired._open and Wired._before is not None:
            import mlx.core as mx

            mx.synchronize()  # changing the limit under running work is not safe
            mx.set_wired_limit(Wired._before)
            Wired._before = None


def cgroup_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The memory limit in bytes of this process's container, None if there is none."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # version 2, version 1
        try:
            text = (root / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:  # else "max" or, in version 1, a huge number
            return int(text)
    return None


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
