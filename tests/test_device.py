"""What a machine is, on machines we do not have: fake descriptions in, budgets and sentences out."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mlxkv
from mlxkv import device
from mlxkv.device import Device, Wired, check_platform, check_temporary_folder, current_device, describe
from mlxkv.errors import ConfigError, PlatformError
from mlxkv.models import load_model

M2 = {
    "architecture": "applegpu_g14s",
    "device_name": "Apple M2 Max",
    "max_recommended_working_set_size": 22_906_503_168,
    "memory_size": 34_359_738_368,
}


def test_metal_says_itself_what_it_can_take() -> None:
    found = describe(M2, is_metal=True, total_memory=1, cgroup_limit=None)
    assert found == Device("Apple M2 Max", True, 22_906_503_168, 34_359_738_368, True)
    assert str(found) == "Apple M2 Max (Metal, 23 GB of 34 GB usable)"


def test_metal_that_does_not_say() -> None:
    found = describe({"architecture": "applegpu"}, is_metal=True, total_memory=1000)
    assert (found.name, found.memory_limit, found.total_memory) == ("applegpu", 800, 1000)


def test_cpu_leaves_room_for_the_rest_of_the_system() -> None:
    found = describe({"device_name": "Xeon"}, is_metal=False, total_memory=1000)
    assert found == Device("Xeon", False, 800, 1000, False)


def test_the_container_counts_not_the_machine() -> None:
    assert describe({}, is_metal=False, total_memory=1000, cgroup_limit=500).memory_limit == 400
    assert describe({}, is_metal=False, total_memory=1000, cgroup_limit=5000).memory_limit == 800


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("512 mb", 512 * 10**6), ("1.5GB", 1_500_000_000), ("123456", 123456), ("", None)],
)
def test_the_user_lowers_the_limit(text: str, size: int | None) -> None:
    assert device.memory_setting({"MLXKV_MEMORY_LIMIT": text}) == size
    found = current_device({"MLXKV_MEMORY_LIMIT": text}).memory_limit
    assert found == min(size or found, current_device({}).memory_limit)


@pytest.mark.parametrize("text", ["much", "0", "-1GB", "8GiB", "1e9", "٣GB"])
def test_a_limit_that_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="MLXKV_MEMORY_LIMIT"):
        current_device({"MLXKV_MEMORY_LIMIT": text})


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("memory.max", "1073741824\n", 1 << 30),
        ("memory.max", "max\n", None),
        ("memory.max", "", None),
        ("memory/memory.limit_in_bytes", "536870912\n", 1 << 29),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),  # version 1's "max"
        ("other", "1", None),
    ],
)
def test_cgroup_limit(tmp_path: Path, name: str, text: str, limit: int | None) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert device.cgroup_limit(tmp_path) == limit


def test_this_machine() -> None:
    found = current_device()
    assert 0 < found.memory_limit < found.total_memory
    assert found.has_fast_float16 == found.is_metal
    assert found.name


@pytest.mark.parametrize(
    ("system", "machine", "libc"),
    [
        ("Darwin", "arm64", ("", "")),
        ("Linux", "x86_64", ("glibc", "2.35")),
        ("Linux", "aarch64", ("glibc", "2.39")),
        ("Linux", "x86_64", ("glibc", "3.0")),
    ],
)
def test_platforms_that_work(system: str, machine: str, libc: tuple[str, str]) -> None:
    check_platform(system, machine, libc)


@pytest.mark.parametrize(
    ("system", "machine", "libc", "named"),
    [
        ("Darwin", "x86_64", ("", ""), "x86_64"),
        ("Windows", "AMD64", ("", ""), "Windows"),
        ("FreeBSD", "amd64", ("", ""), "FreeBSD"),
        ("", "", ("", ""), "this system"),
        ("Linux", "armv7l", ("glibc", "2.39"), "armv7l"),
        ("Linux", "x86_64", ("glibc", "2.31"), "2.31"),
        ("Linux", "x86_64", ("glibc", "2.4"), "2.4"),  # older than 2.35, though not as text
        ("Linux", "x86_64", ("glibc", ""), "glibc 2.35"),
        ("Linux", "x86_64", ("musl", "1.2.4"), "musl"),
        ("Linux", "x86_64", ("", ""), "another C library"),  # how Python before 3.13 sees musl
    ],
)
def test_platforms_that_do_not(system: str, machine: str, libc: tuple[str, str], named: str) -> None:
    with pytest.raises(PlatformError) as caught:
        check_platform(system, machine, libc)
    assert named in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_checking_the_platform_imports_no_mlx() -> None:
    """Where MLX cannot be imported, this has to be able to say so."""
    code = (
        "import sys, mlxkv.device as d; d.check_platform(); sys.exit('mlx' in sys.modules or 'mlx.core' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def fake_wired(monkeypatch: pytest.MonkeyPatch, set_limit: Callable[[int], int]) -> None:
    import mlx.core as mx

    monkeypatch.setattr(mx, "set_wired_limit", set_limit)


def mac(gigabytes: int, usable: float = 0.75) -> Device:
    total = gigabytes << 30
    return Device("M2", True, int(total * usable), total, True)


def test_memory_is_wired_while_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all models, and not around every reply."""
    calls: list[int] = []
    fake_wired(monkeypatch, lambda limit: calls.append(limit) or 7)
    first, second = Wired(mac(64)), Wired(mac(64))
    assert calls == [48 << 30]  # one limit for the sum
    first.close()
    first.close()
    assert calls == [48 << 30]
    second.close()
    assert calls == [48 << 30, 7]
    again = Wired(mac(64))
    assert calls[2:] == [48 << 30]
    again.close()
    assert calls[3:] == [7]


def test_a_model_that_was_never_closed_keeps_no_other_from_putting_the_limit_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [7]
    fake_wired(monkeypatch, lambda limit: now.append(limit) or now[-2])
    forgotten = Wired(mac(64))
    del forgotten
    gc.collect()
    Wired(mac(64)).close()
    assert now[-1] == 7


@pytest.mark.parametrize(("gigabytes", "wired"), [(8, 0.0), (16, 4.0), (24, 10.0), (32, 24.0), (128, 96.0)], ids=str)
def test_small_machines_keep_memory_unwired(gigabytes: int, wired: float) -> None:
    """Wiring all that may be used froze machines of 16 GB. 35 % or 8 GB, whichever is more, up to 24 GB."""
    assert mac(gigabytes).wired_limit == wired * (1 << 30)
    roomy = mac(24, 1.0)
    assert roomy.wired_limit == roomy.memory_limit - int(0.35 * roomy.memory_limit) < 16 << 30


def test_wired_limit_where_macos_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(limit: int) -> int:
        raise RuntimeError("macOS 15")

    fake_wired(monkeypatch, refuse)
    Wired(mac(64)).close()


@pytest.mark.parametrize(("device", "is_wanted"), [(Device("Xeon", False, 100, 200, False), True), (mac(64), False)])
def test_wired_limit_off_metal_or_not_wanted_is_not_touched(
    device: Device, is_wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(limit: int) -> int:
        raise AssertionError

    fake_wired(monkeypatch, fail)
    Wired(device, is_wanted=is_wanted).close()


@pytest.mark.slow
@pytest.mark.parametrize("is_wanted", [True, False])
def test_a_model_is_wired_from_load_to_close(tiny_path: Path, is_wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    fake_wired(monkeypatch, lambda limit: calls.append(limit) or 7)
    monkeypatch.setattr("mlxkv.chat.runtime.current_device", lambda: mac(64))
    monkeypatch.setenv("MLXKV_WIRED", str(is_wanted).lower())
    model = mlxkv.load(str(tiny_path))
    model.generate("once", max_tokens=2)
    list(model.chat(max_tokens=2).send("hi"))
    model.prefill("once")
    assert calls == [48 << 30] * is_wanted
    model.close()
    assert calls == [48 << 30, 7] * is_wanted


TEMPORARY = {
    "missing": ({"TMPDIR": "/no/such/folder"}, "TMPDIR is '/no/such/folder'"),
    "a file": ({"TMPDIR": __file__}, "TMPDIR is"),
    "long": ({"TMPDIR": "/" + "t" * 5000}, r"5,001 characters"),
    "empty": ({"TMPDIR": ""}, "TMPDIR is ''"),
    "another name": ({"TMP": "/no/such/folder"}, "TMP is"),
}


@pytest.mark.parametrize("name", TEMPORARY)
def test_no_folder_for_temporary_files(name: str) -> None:
    """MLX would raise a RuntimeError of C++ from within the first reply."""
    env, text = TEMPORARY[name]
    cpu = Device("Xeon", False, 800, 1000, False, is_cpu=True)
    with pytest.raises(ConfigError, match=text):
        check_temporary_folder(cpu, env)
    check_temporary_folder(Device("Apple M2", True, 1, 1, True), env)  # Metal compiles in memory


def test_a_folder_for_temporary_files(tmp_path: Path) -> None:
    check_temporary_folder(current_device(), {"TMPDIR": str(tmp_path)})
    check_temporary_folder(current_device(), {})


def test_a_model_is_not_loaded_without_one(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/no/such/folder")
    monkeypatch.setattr(device, "current_device", lambda: Device("Xeon", False, 1 << 40, 1 << 40, False, is_cpu=True))
    with pytest.raises(ConfigError, match="TMPDIR"):
        load_model(str(tiny_path), device=device.current_device())
