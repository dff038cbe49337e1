"""kill -9 before every single step on disk: nothing acknowledged is lost, nothing wrong comes back.

In CI before every second one; MLXKV_THOROUGH=1 takes them all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.thorough import THOROUGH

pytestmark = pytest.mark.slow

STRIDE = 1 if THOROUGH else 2


def test_kill_before_every_step(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.crash_driver", str(tmp_path), str(STRIDE)],
        cwd=root, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(f"{found['kills']} kills, 0 acknowledged turns lost: {found['steps']}")
    assert found["kills"] >= 200 // STRIDE
    assert {"create", "write", "fsync", "rename", "fsync folder", "commit", "committed", "unlink", "backup"} <= set(
        found["steps"]
    )
