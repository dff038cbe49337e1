"""Compaction: going on in a branch that begins with a summary of what was said and has the last messages as they were.

A full window rotates by itself and forgets the oldest messages; a summary that is pinned stays. The chat itself is left
as it is. What stays is planned here, and the branch made; asking and showing is the engine's. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace

from mlxkv.chat.chat import Chat
from mlxkv.chat.replay import spans
from mlxkv.errors import PromptError
from mlxkv.events import TurnFinished
from mlxkv.protocol.status import CompactPlan
from mlxkv.store import TurnRecord

_MOST = 1024  # tokens of a summary
_LEAST = 48
_WORDS_PER_TOKEN = 0.5  # asked for fewer than there is room for: a summary that is cut is worth little


def plan(chat: Chat, model: str, can_summarise: bool) -> CompactPlan:
    """What compacting would keep, and what it would cost.

    Raises:
        PromptError: there is nothing to leave out, or the last message alone fills the window.
    """
    turns, places, window = chat.turns, spans(chat.turns), chat.cache.capacity
    mine = [i for i, turn in enumerate(turns) if turn.role == "user"]
    if len(mine) < 2:
        raise PromptError("There is nothing to compact yet: it takes two questions or more.")
    total = len(chat.log)
    most = min(window // 4, total // 3) if window else total // 3
    first = next((i for i in mine if total - places[i][0] <= most), mine[-1])
    kept = total - places[first][0]
    if window and kept > window * 3 // 4:
        raise PromptError(
            f"The last question and its reply take {kept:,} of {window:,} tokens, so leaving the others out helps "
            "little; /set ctx makes the window larger."
        )
    summary = max(_LEAST, min(_MOST, (window or 8 * _MOST) // 8)) if can_summarise else 0
    return CompactPlan(
        model=model,
        window=window,
        kept_messages=len(turns) - first,
        kept_tokens=kept,
        older_messages=first,
        older_tokens=places[first][0],
        gone_tokens=min(chat.cache.num_evicted, places[first][0]),
        ask_tokens=chat.num_to_read(request(summary)) if summary else 0,
        summary_tokens=summary,
    )


def request(summary_tokens: int) -> str:
    """What the model is asked, and what stands before its summary from then on."""
    return (
        f"Summarise our conversation so far in at most {int(summary_tokens * _WORDS_PER_TOKEN)} words, so that we can "
        "go on from the summary alone. Keep names, numbers, decisions, and what is still open."
    )


def summary_of(finished: TurnFinished) -> str:
    """The summary; one that was cut ends with its last whole sentence."""
    text = finished.text.strip()
    if finished.reason != "length":
        return text
    end = max(text.rfind(mark) for mark in (". ", ".\n", "! ", "? ", "\n"))
    return text[: end + 1].strip() if end > len(text) // 2 else text


def branch(chat: Chat, plan: CompactPlan, summary: TurnFinished | None, titles: Iterable[str] = ()) -> Chat:
    """The chat to go on in, not read yet; `summary` None leaves the older messages out. `titles` are taken.

    Raises:
        StoreError: it cannot be saved. OutOfMemoryError.
    """
    turns = chat.turns[plan.older_messages :]
    head: tuple[TurnRecord, ...] = ()
    if summary is not None:
        # A stop string has no meaning here, and its finish reason would: the ids are those of the text.
        stats = asdict(replace(summary.stats, finish_reason="stop"))
        reply = TurnRecord("assistant", summary_of(summary), stats=stats)
        head = (TurnRecord("user", request(plan.summary_tokens)), reply)
    return chat.abridge([*head, *turns], num_pinned=len(head), title=_title(chat.title, set(titles)))


def _title(title: str, taken: set[str]) -> str:
    """`Rust lifetimes · compact`, the first that is free."""
    base = title.split(" · compact")[0]
    names = [f"{base} · compact", *(f"{base} · compact {n}" for n in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)
