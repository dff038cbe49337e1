"""The real window and a hub of our own: a model is downloaded inside it, loaded, and listed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes_hub import FakeHub, serve
from tests.tui.terminal import Terminal

pytestmark = pytest.mark.slow


def test_a_model_is_downloaded_in_the_window_and_loaded(tiny_path: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in tiny_path.iterdir()}
    with serve(FakeHub(repo="org/tiny", files=files)) as hub:
        env = {"HF_ENDPOINT": str(hub.endpoint), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        terminal = Terminal(["-m", "org/tiny", "--window", "256", "--max-tokens", "8"], env=env)
        terminal.wait_for("tiny is ready")
        terminal.type("hi\r")
        terminal.wait_for("cut at max-tokens")
        terminal.type("/model\r")
        terminal.wait_for("Used lately")
        terminal.wait_for("org/tiny")
        terminal.type("\x1b")
        terminal.wait_for("cut at max-tokens")  # a letter that came with Esc would be Alt and that letter
        terminal.type("/model org/none\r")
        terminal.wait_for("✗ The hub has no repository org/none")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert b"Traceback" not in terminal.output
