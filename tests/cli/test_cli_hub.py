"""A model from the hub, from the command line to the reply: downloaded, broken off, resumed, used offline, refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlxkv.cli.models import models_pull
from tests.fakes_hub import FakeHub, serve

pytestmark = pytest.mark.slow

ASK = ["-p", "hi", "--temp", "0", "--max-tokens", "8", "--window", "256"]


@pytest.fixture
def fake(tiny_path: Path) -> Iterator[FakeHub]:
    files = {path.name: path.read_bytes() for path in tiny_path.iterdir()} | {"evil.py": b"raise SystemExit"}
    with serve(FakeHub(repo="org/tiny", files=files)) as hub:
        yield hub


def mlxkv(fake: FakeHub, tmp_path: Path, *args: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HF_ENDPOINT": fake.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "01"[offline]}
    command = [sys.executable, "-m", "mlxkv.cli.app", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_downloaded_once_and_then_used_offline(fake: FakeHub, tiny_path: Path, tmp_path: Path) -> None:
    local = mlxkv(fake, tmp_path, "-m", str(tiny_path), *ASK, "--no-save")
    first = mlxkv(fake, tmp_path, "-m", "org/tiny", *ASK)
    assert (first.returncode, first.stdout) == (0, local.stdout), first.stderr
    assert "evil.py" not in fake.sent
    asked = len(fake.requests)
    again = mlxkv(fake, tmp_path, "-m", "org/tiny", *ASK, offline=True)
    assert again.stdout == first.stdout
    assert len(fake.requests) == asked
    assert "org/tiny" in mlxkv(fake, tmp_path, "models", "ls", offline=True).stdout
    assert "freed" in mlxkv(fake, tmp_path, "models", "rm", "-y", "org/tiny", offline=True).stdout


def test_an_interrupted_pull_goes_on_where_it_broke_off(fake: FakeHub, tmp_path: Path) -> None:
    size = len(fake.files["model.safetensors"])
    fake.break_after = size // 2
    broken = mlxkv(fake, tmp_path, "models", "pull", "org/tiny")
    assert broken.returncode == 1
    assert "Traceback" not in broken.stderr
    sent, fake.break_after = fake.sent.get("model.safetensors", 0), None
    whole = mlxkv(fake, tmp_path, "models", "pull", "org/tiny")
    assert whole.returncode == 0, whole.stderr
    assert fake.sent["model.safetensors"] == max(sent, size)
    assert Path(whole.stdout.strip()).is_dir()


def test_a_stopped_pull_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def download(*_: object, progress: Callable[[int, int], None]) -> None:
        progress(1_000_000, 2_000_000)
        raise KeyboardInterrupt

    monkeypatch.setattr("mlxkv.models.download", download)
    with pytest.raises(KeyboardInterrupt):
        models_pull("org/tiny")
    assert capsys.readouterr().err == (
        "\r1.0 MB / 2.0 MB   \nThe download was stopped; the same command continues it.\n"
    )


@pytest.mark.parametrize(("status", "says"), [(401, "private"), (404, "no"), (500, "try again")])
def test_a_refusal_is_one_sentence(fake: FakeHub, tmp_path: Path, status: int, says: str) -> None:
    fake.status = status
    done = mlxkv(fake, tmp_path, "-m", "org/tiny", *ASK)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("mlxkv: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
