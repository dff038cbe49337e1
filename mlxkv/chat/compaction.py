"""Compaction: a branch of a chat that begins with a summary of the older messages and keeps the last ones.

A full window evicts the oldest messages; a pinned summary stays. The chat itself is unchanged. This plans what to keep
and makes the branch; the engine asks for the summary and shows it. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace

from mlxkv.chat.chat import Chat
from mlxkv.chat.history import spans
from mlxkv.errors import PromptError
from mlxkv.events import FinishReason, TurnFinished
from mlxkv.protocol.status import CompactPlan
from mlxkv.store.records import TurnRecord

_MAX_SUMMARY = 1024  # tokens
_MIN_SUMMARY = 48
_WORDS_PER_TOKEN = 0.5  # fewer than fit: a truncated summary is of little use


def plan(chat: Chat, model: str, can_summarise: bool) -> CompactPlan:
    """Plan which messages to keep, and what the summary would cost.

    Raises:
        PromptError: there are no older messages, or the last turn alone fills the window.
    """
    turns, places, window = chat.turns, spans(chat.turns), chat.cache.capacity
    questions = [i for i, turn in enumerate(turns) if turn.role == "user"]
    if len(questions) < 2:
        raise PromptError("There is nothing to compact yet: it takes at least two questions.")
    total = len(chat.log)
    most = min(window // 4, total // 3) if window else total // 3
    first = next((i for i in questions if total - places[i][0] <= most), questions[-1])
    kept = total - places[first][0]
    if window and kept > window * 3 // 4:
        raise PromptError(
            f"The last question and its reply take {kept:,} of {window:,} tokens, so leaving the others out helps "
            "little; /set ctx makes the window larger."
        )
    summary = max(_MIN_SUMMARY, min(_MAX_SUMMARY, (window or 8 * _MAX_SUMMARY) // 8)) if can_summarise else 0
    return CompactPlan(
        model=model,
        window=window,
        kept_messages=len(turns) - first,
        kept_tokens=kept,
        older_messages=first,
        older_tokens=places[first][0],
        evicted_tokens=min(chat.cache.num_evicted, places[first][0]),
        ask_tokens=chat.num_to_read(request(summary)) if summary else 0,
        summary_tokens=summary,
    )


def request(summary_tokens: int) -> str:
    """The request for the summary, which also precedes it in the branch."""
    return (
        f"Summarise our conversation so far in at most {int(summary_tokens * _WORDS_PER_TOKEN)} words, so that we can "
        "continue from the summary alone. Keep names, numbers, decisions, and what is still open."
    )


def summary_of(finished: TurnFinished) -> str:
    """The summary; a truncated one without its incomplete last sentence."""
    text = finished.text.strip()
    if finished.reason != FinishReason.LENGTH:
        return text
    end = max(text.rfind(mark) for mark in (". ", ".\n", "! ", "? ", "\n"))
    return text[: end + 1].strip() if end > len(text) // 2 else text


def branch(chat: Chat, plan: CompactPlan, summary: TurnFinished | None, titles: Iterable[str] = ()) -> Chat:
    """Make the chat to continue in, not prefilled yet, with a title that is not in `titles`. Without a `summary` the
    older messages are simply dropped.

    Raises:
        StoreError: it cannot be saved. OutOfMemoryError.
    """
    turns = chat.turns[plan.older_messages :]
    head: tuple[TurnRecord, ...] = ()
    if summary is not None:
        # The ids are tokenized from the text, so a stop string no longer matters.
        stats = asdict(replace(summary.stats, finish_reason=FinishReason.STOP))
        reply = TurnRecord("assistant", summary_of(summary), stats=stats)
        head = (TurnRecord("user", request(plan.summary_tokens)), reply)
    return chat.abridge([*head, *turns], num_pinned=len(head), title=_title(chat.title, set(titles)))


def _title(title: str, taken: set[str]) -> str:
    """`Rust lifetimes · compact`, with a number if it is taken."""
    base = title.split(" · compact")[0]
    names = [f"{base} · compact", *(f"{base} · compact {n}" for n in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)
