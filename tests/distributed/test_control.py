"""What rank 0 does once another process has ended."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlxkv.distributed import control
from mlxkv.distributed.control import Control
from mlxkv.errors import MachineError
from mlxkv.system.supervisor import ENDED_AT_ONCE
from tests.distributed.ranks import ROOT

_STUCK = """
from mlxkv.distributed import control
from tests.distributed.test_control import Lead, unconnected
control._STUCK_SECONDS = 0.01
unconnected()._end_if_stuck(Lead(["here"]))
"""


class Lead:
    """Rank 0's end of a group, whose thread is at these places; at the last one for ever."""

    def __init__(self, places: list[object]) -> None:
        self._places = places

    @property
    def place(self) -> object:
        return self._places.pop(0) if len(self._places) > 1 else self._places[0]

    def lost(self) -> MachineError:
        return MachineError("The connection to studio was lost.")


def unconnected() -> Control:
    made = object.__new__(Control)
    made._is_closing = False
    return made


def test_a_thread_that_waits_for_ever_is_ended_in_a_sentence() -> None:
    done = subprocess.run([sys.executable, "-c", _STUCK], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (ENDED_AT_ONCE, "mlxkv: The connection to studio was lost.\n")


def test_a_thread_that_notices_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_STUCK_SECONDS", 0.01)
    unconnected()._end_if_stuck(Lead(["here", "there", None]))
