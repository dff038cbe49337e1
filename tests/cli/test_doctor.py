"""What `mlxkv doctor` finds: on this machine, and on machines that are broken in one way each."""

from __future__ import annotations

import importlib.metadata
import shutil
import sqlite3
from pathlib import Path

import pytest

import mlxkv
from mlxkv.cli import doctor
from mlxkv.cli.app import main
from mlxkv.cli.bench.report import Environment
from mlxkv.cli.doctor import Finding, examine
from mlxkv.config import Folders
from mlxkv.device import Device
from mlxkv.errors import PlatformError
from mlxkv.store.session_store import SessionStore
from tests.store.conftest import Talk
from tests.store.fake import FakeCache
from tests.store.test_damage import DAMAGE, chunks

MAC = Device("Apple M2 Max", True, 22_906_503_168, 34_400_000_000, True)


@pytest.fixture
def folders(home: Path) -> Folders:
    return Folders.from_env({"MLXKV_HOME": str(home)})


def findings(folders: Folders) -> dict[str, Finding]:
    found = {finding.subject: finding for finding in examine(folders)}
    assert all("\n" not in finding.text for finding in found.values())
    return found


def packages(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    """Only these are installed; names with `_` for `-`."""

    def version(name: str) -> str:
        if name.replace("-", "_") not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name.replace("-", "_")]

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_a_sound_installation(folders: Folders) -> None:
    found = findings(folders)
    assert [subject for subject, finding in found.items() if not finding.ok] == []
    assert found["mlx"].text == importlib.metadata.version("mlx")
    assert found["sessions"].text.startswith("0 chats")
    for name in ("config", "data", "cache", "state"):
        assert found[name].text == str(getattr(folders, name))


def test_every_command_tells_the_version_that_runs(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The metadata of an editable installation stay those of the day it was made."""
    monkeypatch.setattr(mlxkv, "__version__", "9.8.7")
    assert findings(folders)["mlxkv"].text == "9.8.7"
    assert Environment.here("x").versions.startswith("mlxkv 9.8.7, mlx ")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == "mlxkv 9.8.7\n"


def test_on_a_mac(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "current_device", lambda: MAC)
    packages(monkeypatch, mlx="0.32.4", mlx_metal="0.32.4")
    found = findings(folders)
    assert found["device"].text == "Apple M2 Max: Metal, 23 GB usable for models and KV"
    told = [finding.text.partition(": ")[0] for finding in examine(folders) if finding.subject == "model"]
    assert told == ["suggested for 32 GB or more", "quick choice for 32 GB or more"]
    assert "mlx backend" not in found  # nothing to choose, nothing to say
    assert "textual" not in found  # not installed: not claimed


def test_where_mlx_cannot_run_it_is_not_imported(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PlatformError("MLX needs Apple silicon.")

    def fail() -> Device:
        raise AssertionError("asked MLX on a machine it cannot run on")

    monkeypatch.setattr(doctor, "check_platform", refuse)
    monkeypatch.setattr(doctor, "current_device", fail)
    found = findings(folders)
    assert found["machine"] == Finding("machine", "MLX needs Apple silicon.", ok=False)
    assert "device" not in found
    assert found["data"].ok  # the rest is still looked at


def test_the_cpu_backend_says_how_to_get_cuda(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    packages(monkeypatch, mlx_cpu="0.32.4")
    backend = findings(folders)["mlx backend"]
    assert backend.ok
    assert "pip uninstall mlx-cpu" in backend.text


def test_two_backends_that_overwrite_each_other(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    packages(monkeypatch, mlx_cpu="0.32.4", mlx_cuda_13="0.32.4")
    backend = findings(folders)["mlx backend"]
    assert not backend.ok
    assert "mlx-cpu and mlx-cuda-13" in backend.text


def test_a_folder_that_others_can_write_to(folders: Folders) -> None:
    folders.data.mkdir(parents=True)
    folders.data.chmod(0o777)
    found = findings(folders)
    assert not found["data"].ok
    assert "chmod go-w" in found["data"].text
    assert found["cache"].ok


def test_a_home_that_others_can_write_to(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing in it is trusted, not even looked at."""
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    assert end.value.code == 2
    said = f"mlxkv: Others can write to {home}; run `chmod go-w {home}` or set MLXKV_HOME to a private folder.\n"
    assert capsys.readouterr().err == said
    assert list(home.iterdir()) == []


def test_a_database_that_is_none(folders: Folders) -> None:
    """It must say so and end, not raise: this is the command one runs when things are broken."""
    findings(folders)  # makes the store
    databases = [path for path in folders.data.iterdir() if path.suffix in (".db", ".sqlite", ".sqlite3")]
    assert databases
    for path in databases:
        path.write_bytes(b"no database" * 1000)
    assert not findings(folders)["sessions"].ok


def test_a_full_disk(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings(folders)["disk"].ok
    monkeypatch.setattr("shutil.disk_usage", lambda path: (10**12, 10**12, 1_000_000))
    assert not findings(folders)["disk"].ok
    assert "1.0 MB free" in findings(folders)["disk"].text


def test_models_are_counted(folders: Folders) -> None:
    assert "in the cache" in findings(folders)["models"].text


@pytest.fixture
def talk(folders: Folders) -> Talk:
    """A chat with saved rows; its store is closed."""
    with SessionStore.open(folders) as store:
        talk = Talk(store, FakeCache())
        talk.turn(100)
    return talk


def test_what_lies_on_disk(folders: Folders, talk: Talk) -> None:
    found = findings(folders)
    assert found["sessions"].text.startswith("1 chat")
    assert f" of 20 GB; {len(chunks(folders))} chunks" in found["KV on disk"].text
    assert "damage" not in found


def test_rows_that_are_gone(folders: Folders, talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    files = chunks(folders)
    DAMAGE["truncated"](files[0])
    DAMAGE["empty"](files[1])
    damage = findings(folders)["damage"]
    assert not damage.ok
    assert f"2 of {len(files)} chunk files" in damage.text
    assert "`mlxkv cache verify --repair`" in damage.text
    with pytest.raises(SystemExit, match="1"):
        main(["doctor"])
    assert "!!  damage" in capsys.readouterr().out


def test_a_kv_folder_that_was_cleared_is_no_damage(
    folders: Folders, talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    num_chunks = len(chunks(folders))
    shutil.rmtree(folders.cache / "kv")
    found = findings(folders)
    assert "damage" not in found
    assert found["KV"].ok
    assert f"{num_chunks} of {num_chunks} chunks" in found["KV"].text
    with pytest.raises(SystemExit, match="0"):
        main(["doctor"])
    assert "!!" not in capsys.readouterr().out


def test_named_prompt_caches_are_counted(folders: Folders, talk: Talk) -> None:
    (folders.cache / "prompts").mkdir(mode=0o700)
    (folders.cache / "prompts" / "book.kv").write_bytes(bytes(5_000_000))
    text = findings(folders)["KV on disk"].text
    assert text.startswith("5.1 MB of 20 GB, 5.0 MB of it named prompt caches; ")


def test_turns_that_are_not_what_was_written(folders: Folders, talk: Talk) -> None:
    db = sqlite3.connect(folders.data / "mlxkv.db")
    db.execute("UPDATE turn SET text = 'forged' WHERE i = 0")
    db.commit()
    db.close()
    assert not findings(folders)["damage"].ok
