"""A process that chats with a hybrid is killed at random moments: nothing acknowledged is lost, and the next turn
prefills only what comes after the last state on disk. The full set of `bench.hybrids` kills more often."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.store.kill_hybrids import FAMILIES
from tests.thorough import part

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", part(FAMILIES, 3))
def test_kill_a_chat_with_a_hybrid(family: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.kill_hybrids", family, str(tmp_path), "--kills", "3", "--turns", "7"],
        cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["resumed"] >= 1
    assert found["turns"] >= 7
