"""What becomes of a process whose connection is lost, and that MLX lets wait for ever."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from mlxkv.distributed import stuck
from mlxkv.distributed.stuck import end_if_stuck, place_of
from mlxkv.errors import MachineError
from mlxkv.system.supervisor import ENDED_AT_ONCE
from tests.distributed.ranks import ROOT

_STUCK = """
import sys
import threading
from mlxkv.distributed import stuck
from mlxkv.errors import MachineError
stuck._SECONDS = 0.01
waiting = threading.Thread(target=threading.Event().wait, daemon=True)
waiting.start()
lost = lambda: MachineError("The connection to studio was lost.")
rests = [None] * int(sys.argv[1])
stuck.end_if_stuck(lambda: rests.pop() if rests else stuck.place_of(waiting.ident), lost, lambda: False)
"""


@pytest.mark.parametrize("num_looks_at_rest", [0, 20])
def test_a_thread_that_waits_for_ever_is_ended_in_a_sentence(num_looks_at_rest: int) -> None:
    command = [sys.executable, "-c", _STUCK, str(num_looks_at_rest)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (ENDED_AT_ONCE, "mlxkv: The connection to studio was lost.\n")


def test_a_thread_that_goes_on_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stuck, "_SECONDS", 0.01)
    places = iter([*range(30), *[None] * 30])
    ends = iter([*[False] * 50, True])
    end_if_stuck(lambda: next(places), lambda: MachineError("no"), lambda: next(ends))
    ends = iter([*[False] * 5, True])
    end_if_stuck(lambda: "here", lambda: MachineError("no"), lambda: next(ends))


def test_the_place_of_a_thread_that_has_ended_is_none() -> None:
    done = threading.Thread(target=lambda: None)
    done.start()
    done.join()
    assert done.ident is not None
    assert place_of(done.ident) is None
