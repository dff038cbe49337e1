"""What rank 0 tells the others is heard, or the loss reported, before rank 0 turns to other work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

import mlxkv
from mlxkv.distributed.link import Link, Op
from mlxkv.errors import MachineError, WrongThreadError
from tests.distributed.ranks import ranks

_DIES_AT_REST = """
import os, signal
import mlx.core as mx
from mlxkv.distributed.link import Link, Op
from mlxkv.errors import MachineError

class Caller:
    is_broken = False
    def call(self): pass
    def gone(self): return 1, ""

link = Link(mx.distributed.init(backend="ring", strict=True), Caller())
if link.rank:
    assert link.receive().op == Op.CHECKPOINT
    os.kill(os.getpid(), signal.SIGKILL)
try:
    with link.held():
        link.send(Op.CHECKPOINT)
except MachineError as error:
    print(error)
print((mx.array([1]) + 1).tolist(), flush=True)
mx.clear_cache()
print("closed", flush=True)
os._exit(0)
"""


class _Caller:
    is_broken = False

    def call(self) -> None: ...

    def gone(self) -> None: ...


class _Alone(Link):
    """The only process of its group."""

    def __init__(self) -> None:
        super().__init__(mx.distributed.init(), _Caller())
        self.sent: list[int] = []

    def _send(self, op: Op, cache: int, a: int, b: int, ids: object) -> None:
        self.sent.append(op)
        super()._send(op, cache, a, b, ids)  # type: ignore[arg-type]


@pytest.fixture
def synchronized(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    calls: list[object] = []
    monkeypatch.setattr(mx, "synchronize", calls.append)
    return calls


def test_a_machine_that_dies_at_the_last_message_is_reported_there_and_nowhere_later(tmp_path: Path) -> None:
    with ranks(2, tmp_path, "-c", _DIES_AT_REST) as (first, _):
        said, told = first.communicate(timeout=60)
    assert "(rank 1) was lost" in said.splitlines()[0]
    assert said.splitlines()[1:] == ["[2]", "closed"], told


def test_the_others_rest_once_at_the_outermost_end(synchronized: list[object]) -> None:
    link = _Alone()
    with link.held():
        with link.held():
            link.send(Op.CHECKPOINT)
        link.send(Op.REWIND)
        assert not synchronized
    assert link.sent == [Op.CHECKPOINT, Op.REWIND, Op.REST]
    assert synchronized == [mx.default_stream(mx.cpu)]  # type: ignore[arg-type]
    with link.held():
        pass
    assert link.sent[3:] == []  # they rest already


def test_an_error_of_this_process_is_not_the_loss_of_another(synchronized: list[object]) -> None:
    link = _Alone()
    with pytest.raises(WrongThreadError), link.held():
        raise WrongThreadError("no")
    assert not link.is_lost
    with pytest.raises(MachineError), link.held():
        raise RuntimeError("[ring] connection to a peer was lost")
    assert link.is_lost
    assert link.sent == [Op.REST]
    assert len(synchronized) == 1


def test_closing_a_model_computes_nothing_once_a_machine_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlxkv.load("tutor")
    lost: Any = SimpleNamespace(is_lost=True, close=lambda *_: None)
    monkeypatch.setattr(model._runtime, "loaded", replace(model.loaded, machines=lost))
    monkeypatch.setattr(mx, "clear_cache", lambda: pytest.fail("it would wait for ever, or raise"))
    model.close()


def test_a_connection_that_was_closed_at_rest_is_reported_before_anything_is_sent(synchronized: list[object]) -> None:
    link = _Alone()
    with link.held():
        link.send(Op.CHECKPOINT)
    link.is_cut = True
    with pytest.raises(MachineError, match="was lost"):
        link.send(Op.CHECKPOINT)
    assert link.sent == [Op.CHECKPOINT, Op.REST]
