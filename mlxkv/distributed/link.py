"""Link: what rank 0 tells the other processes, as small arrays of whole numbers that MLX sums over the group.

Every process sums: rank 0 its numbers, the others zeros. An operation is a message of fixed size and, where it says so,
a second one with its numbers. Collectives must run in the same order everywhere, so a model call that rank 0 has only
begun is evaluated before the next message (`pending`). MLX raises the error of a lost connection in whatever it
evaluates next, so nothing is left in flight when rank 0 turns to other work (`held`). On the MLX thread.
"""

from __future__ import annotations

import json
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum, auto
from importlib.metadata import version
from typing import Any, Protocol

import mlx.core as mx

from mlxkv.distributed.group import machine_name
from mlxkv.distributed.stuck import place_of
from mlxkv.errors import MachineError, MlxkvError

_LONGEST_TEXT = 4096  # bytes
_WIDTH = 6  # whole numbers of a message: operation, cache, length of what follows, two numbers, a token id


class Op(IntEnum):
    """What the other processes do. `cache` is the number of a PromptCache."""

    LOAD = auto()  # JSON: load a model
    UNLOAD = auto()
    NEW = auto()  # JSON: plan and make a cache
    DROP = auto()  # ids: numbers of caches
    FEED = auto()  # ids: feed them, evaluate the rows, log them
    STEP = auto()  # feed one token, evaluate all, log it
    VERIFY = auto()  # ids: note the position, feed them, evaluate all
    ADVANCE = auto()  # ids: log them
    TAKE_BACK = auto()  # numbers: tokens fed since the noted position, tokens to keep
    REWIND = auto()
    RESET = auto()
    FORK = auto()  # number: that of the fork
    RECOVER = auto()  # number: tokens in the log
    BEGIN_TURN = auto()
    CHECKPOINT = auto()
    SAVE = auto()  # JSON: save rows of a session
    RESTORE = auto()  # number: bytes of the JSON before the ids; restore rows of these
    COMPARE = auto()  # numbers of log and offset
    ABOUT = auto()  # JSON: tell of versions and of a model's files
    SUM = auto()  # numbers: how many are summed, and how often
    PAIR = auto()  # ids: two ranks, how many numbers are sent from one to the other and back, and how often
    MEMORY = auto()  # JSON: tell of the memory that a part of a model needs
    REST = auto()  # nothing follows for a while
    END = auto()


@dataclass(frozen=True)
class Message:
    op: Op
    cache: int = 0
    a: int = 0
    b: int = 0
    token: int = 0
    ids: tuple[int, ...] = ()

    @property
    def table(self) -> dict[str, Any]:
        """`ids` as the JSON they are, or begin with."""
        return json.loads(bytes(self.ids[: self.a or None]))


class Caller(Protocol):
    """What can wake the others, and knows which is gone; `control.py` implements it."""

    is_broken: bool  # one is gone

    def call(self) -> None: ...

    def gone(self) -> tuple[int, str] | None:
        """The rank that ended first, and what it said last."""
        ...


class Link:
    """One process's end.

    Args:
        group: MLX's group.
        caller: of rank 0; None: the others never rest.

    Attributes:
        names: of the machines, by rank.
        is_cut: a connection is closed, which this process's thread need not know yet. Any thread.
        is_lost: it knows that one is gone.
    """

    def __init__(self, group: Any, caller: Caller | None = None) -> None:
        self.group, self.rank, self.size = group, int(group.rank()), int(group.size())
        self._caller, self._rests = caller, False
        self._thread = threading.get_ident()
        self._pending: Callable[[], Any] | None = None
        self._dropped: list[int] = []
        self._num_holders = 0
        self._num_caches = 0
        self.is_cut, self.is_lost, self._why = False, False, None
        self.names = [f"rank {rank}" for rank in range(self.size)]
        own, release = machine_name().encode()[:64], zlib.crc32(version("mlxkv").encode()) >> 1
        table = self._gathered([release, len(own), *own, *[0] * (64 - len(own))])
        hosts = [bytes(row[2 : 2 + row[1]]).decode(errors="replace") for row in table]
        self.names = [host if hosts.count(host) == 1 else f"{host} (rank {rank})" for rank, host in enumerate(hosts)]
        if other := next((name for name, row in zip(self.names, table, strict=True) if row[0] != release), None):
            raise MachineError(f"{other} has another version of mlxkv than {self.names[self.rank]}; make them equal.")

    # -- rank 0 ------------------------------------------------------------------------------------------------------

    def new_number(self) -> int:
        """A number for a cache."""
        self._num_caches += 1
        return self._num_caches

    def drop(self, number: int) -> None:
        """Forget this cache with the next message; may be called while objects are freed."""
        self._dropped.append(number)

    def send(self, op: Op, cache: int = 0, a: int = 0, b: int = 0, ids: Sequence[int] = ()) -> None:
        """Tell the others.

        Raises:
            MachineError: one is gone.
        """
        self._before()
        self._send(op, cache, a, b, ids)

    def send_step(self, cache: int, token: mx.array) -> None:
        """Tell the others to feed one token, shape (1,), which need not be computed yet: nothing is waited for."""
        self._before()
        head = mx.array([Op.STEP, cache, 0, 0, 0], mx.int32)
        self._guarded(lambda: mx.async_eval(self._sum(mx.concatenate([head, token.reshape(1).astype(mx.int32)]))))

    def expect(self, pending: Callable[[], Any]) -> None:
        """`pending` makes the arrays that have to be evaluated before the next message, as the others do."""
        self._pending = pending

    @contextmanager
    def held(self) -> Iterator[None]:
        """Messages are sent in here. At the outermost end all is computed, and the others sleep until the next one.

        Raises:
            MachineError: one is gone.
        """
        self._num_holders += 1
        try:
            yield
        except MlxkvError:
            raise
        except RuntimeError as error:  # how MLX reports a lost connection
            raise self.lost(error) from error
        finally:
            self._num_holders -= 1
            if not self._num_holders and not self._rests and not self.is_lost:
                with shielded():
                    self._settle()

    def _settle(self) -> None:
        if self._caller is None:
            self._before()
        else:
            self.send(Op.REST)
        self._guarded(lambda: mx.synchronize(mx.default_stream(mx.cpu)))  # type: ignore[arg-type]
        self._rests = self._caller is not None

    def end(self) -> None:
        """Let the other processes end; errors do not matter any more. Those with a pipe end when it closes."""
        if self.is_lost or self._caller is not None or threading.get_ident() != self._thread:
            return
        with suppress(MlxkvError):
            self.send(Op.END)
        self.is_lost = True

    # -- the others --------------------------------------------------------------------------------------------------

    def receive(self) -> Message:
        """The next message.

        Raises:
            MachineError: rank 0 is gone.
        """
        op, cache, n, a, b, token = self._summed([0] * _WIDTH)
        return Message(Op(op), cache, a, b, token, tuple(self._summed([0] * n)) if n else ())

    # -- all at once -------------------------------------------------------------------------------------------------

    def check(self, error: MlxkvError | None) -> None:
        """Ask every process whether it failed; all of them call this.

        Raises:
            MlxkvError: this process's own error, or that of the first other with its name.
        """
        texts = self.texts("" if error is None else str(error))
        if error is not None:
            raise error
        if failed := next(((name, text) for name, text in zip(self.names, texts, strict=True) if text), None):
            raise MachineError(": ".join(failed))

    def texts(self, own: str) -> list[str]:
        """The short text of every process, by rank; all of them call this."""
        data = own.encode()[:_LONGEST_TEXT]
        sizes = [row[0] for row in self._gathered([len(data)])]
        if not any(sizes):
            return [""] * self.size
        rows = self._gathered([*data, *[0] * (max(sizes) - len(data))])
        return [bytes(row[:size]).decode(errors="replace") for row, size in zip(rows, sizes, strict=True)]

    def agree(self, number: int) -> list[int]:
        """The number of every process, by rank; all of them call this."""
        return [row[0] for row in self._gathered([number])]

    def compare(self, *numbers: int) -> list[list[int]]:
        """The numbers of every process, by rank; all of them call this with as many."""
        return self._gathered(list(numbers))

    def add_up(self, x: mx.array) -> None:
        """Sum every process's array, as a measurement; all of them call this."""
        self._guarded(lambda: mx.eval(self._sum(x)))

    def hand_over(self, x: mx.array, source: int, target: int) -> None:
        """Send an array from one rank to another, as a measurement; all of them may call this."""
        if self.rank == source:
            self._guarded(lambda: mx.eval(mx.distributed.send(x, target, group=self.group, stream=mx.cpu)))  # type: ignore[arg-type]
        elif self.rank == target:
            self._guarded(lambda: mx.eval(mx.distributed.recv_like(x, source, group=self.group, stream=mx.cpu)))  # type: ignore[arg-type]

    def lost(self, error: BaseException | None = None) -> MachineError:
        """The error to raise once a collective has failed; the group is of no use any more."""
        if self._why is None:
            others = [name for rank, name in enumerate(self.names) if rank != self.rank]
            who, said = others[0] if len(others) == 1 else f"one of {', '.join(others)}", ""
            if self._caller is not None and (found := self._caller.gone()) is not None:
                who, said = self.names[found[0]], found[1]
            self._why = (
                f"The connection to {who} was lost{f' ({said})' if said else ''}; what was said before is kept: start "
                "mlxkv again."
            )
        self.is_lost = True
        return MachineError(self._why)

    @property
    def place(self) -> object:
        """Where this process's thread is; None: it needs no other process now. Any thread."""
        return None if self._rests else place_of(self._thread)

    # ----------------------------------------------------------------------------------------------------------------

    def check_connected(self) -> None:
        """Raises MachineError: another process is known to be gone."""
        if self.is_lost or self.is_cut or (self._caller is not None and self._caller.is_broken):
            raise self.lost()

    def _before(self) -> None:
        self.check_connected()
        if self._rests and self._caller is not None:
            self._rests = False
            self._caller.call()
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._guarded(lambda: mx.async_eval(pending()))
        if self._dropped:
            dropped, self._dropped = self._dropped, []
            self._send(Op.DROP, 0, 0, 0, dropped)

    def _send(self, op: Op, cache: int, a: int, b: int, ids: Sequence[int]) -> None:
        for numbers in ([op, cache, len(ids), a, b, 0], list(ids)):  # in this order: two evaluations
            if numbers:
                self._guarded(lambda numbers=numbers: mx.async_eval(self._sum(mx.array(numbers, mx.int32))))

    def _sum(self, x: mx.array) -> mx.array:
        return mx.distributed.all_sum(x, group=self.group, stream=mx.cpu)  # type: ignore[arg-type]

    def _summed(self, numbers: list[int]) -> list[int]:
        return self._guarded(lambda: self._sum(mx.array(numbers, mx.int32)).tolist())

    def _gathered(self, numbers: list[int]) -> list[list[int]]:
        table = [[0] * len(numbers)] * self.rank + [numbers] + [[0] * len(numbers)] * (self.size - self.rank - 1)
        found = self._summed([n for row in table for n in row])
        return [found[i : i + len(numbers)] for i in range(0, len(found), len(numbers))]

    def _guarded(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except RuntimeError as error:  # how MLX reports a lost connection
            raise self.lost(error) from error


@contextmanager
def shielded() -> Iterator[None]:
    """Hold Ctrl+C back until the end: half an operation would leave the processes out of step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[Any] = []
    before = signal.signal(signal.SIGINT, lambda *args: held.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held and callable(before):
        before(*held[0])
