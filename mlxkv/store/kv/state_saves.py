"""Which recurrent states a save writes, and which ones stay on disk.

A state is as large as the rows of a thousand tokens or more, so it is written where it saves a long prefill, not at
every turn. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mlxkv.cache.recurrent.spacing import needed, superfluous

MIN_TURN = 1024  # new tokens since the last written state that are worth another one after a turn,
MIN_PAUSE = 256  # and in a pause
MIN_PREFIX = 256  # tokens of a prefix worth a state of its own: other chats begin with it too
MAX_STATES = 8  # of one chat on disk, besides those of prefixes and forks


class Occasion(StrEnum):
    """Why rows are saved."""

    TURN = "turn"  # a reply has ended
    PAUSE = "pause"  # the user has been away for a while
    CLOSING = "closing"  # the process may end: no prefill when the chat is resumed


@dataclass(frozen=True)
class StateChoice:
    """Positions of the states to `write`, and of those on disk to `keep`, the new ones included."""

    write: tuple[int, ...]
    keep: frozenset[int]


def choose_states(
    held: Sequence[int],
    saved: Collection[int],
    prefixes: Sequence[int],
    occasion: Occasion,
    turns: Sequence[int],
    resume_at: Callable[[], int],
    paused_at: int = 0,
) -> StateChoice:
    """Choose among the states `held` by the cache, whose positions are ascending.

    Args:
        saved: positions of the states on disk.
        prefixes: where parts end that other chats begin with too.
        turns: where turns began.
        resume_at: the tokens that the next prompt continues; asked only if a state may be written.
        paused_at: the state written in the last pause, which the next one replaces.
    """
    pinned = [p for p in prefixes if p >= MIN_PREFIX]
    end = held[-1] if held else 0
    last, new = max(saved, default=0), [p for p in held if p not in saved]
    write: list[int] = []
    if occasion == Occasion.CLOSING:
        resumed = max((p for p in held if p <= resume_at()), default=0)
        wanted = needed([*saved, *held], end, MAX_STATES, [*pinned, resumed], turns)
        write = [p for p in new if p in wanted]
    elif prefix := [p for p in new if p in pinned]:
        write = prefix[:1]
    elif end - last >= (MIN_TURN if occasion == Occasion.TURN else MIN_PAUSE):
        at = max((p for p in new if p <= resume_at()), default=0)
        write = [at] if at > last else []
    kept = {*saved, *write}
    before = max((p for p in saved if p < paused_at), default=0)
    if write and paused_at in saved and paused_at - before < MIN_TURN:  # else it is worth its place anyway
        kept.discard(paused_at)
    return StateChoice(tuple(write), frozenset(kept - superfluous(kept, end, MAX_STATES + len(pinned), pinned, turns)))
