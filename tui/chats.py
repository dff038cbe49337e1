"""Finding and naming chats in a list. Pure; UI thread."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from mlxkv.events import ChatSummary
from mlxkv.stats import bytes_text
from mlxkv.text import clean


def find_chat(chats: Sequence[ChatSummary], wanted: str) -> ChatSummary | None:
    """By id, then title, then the start of either, then part of the title; the latest of several."""
    wanted = wanted.strip().casefold()
    latest_first = sorted(chats, key=lambda chat: -chat.updated)
    tests = (
        lambda chat: chat.id.casefold() == wanted,
        lambda chat: chat.title.casefold() == wanted,
        lambda chat: chat.title.casefold().startswith(wanted),
        lambda chat: len(wanted) >= 4 and chat.id.casefold().startswith(wanted),
        lambda chat: wanted in chat.title.casefold(),
    )
    return next((chat for test in tests for chat in latest_first if test(chat)), None)


def matching(chats: Sequence[ChatSummary], words: str) -> list[ChatSummary]:
    """The chats whose title has every word, the latest first."""
    parts = words.casefold().split()
    found = [chat for chat in chats if all(part in chat.title.casefold() for part in parts)]
    return sorted(found, key=lambda chat: -chat.updated)


def chat_line(chat: ChatSummary, width: int, now: float) -> str:
    """`● Rust lifetimes      3 turns · 916 MB · today 14:02`; ● resumes at once, ○ reads again."""
    sign = "●" if chat.kv_bytes else "○"
    turns = f"{chat.num_turns} turn{'' if chat.num_turns == 1 else 's'}"
    parts = [turns, bytes_text(chat.kv_bytes) if chat.kv_bytes else "no KV", when_text(chat.updated, now)]
    facts = " · ".join(parts if width >= 60 else parts[-1:])
    title = " ".join(clean(chat.title or "Untitled").split())
    room = max(8, width - len(facts) - 5)
    title = title if len(title) <= room else title[: room - 1] + "…"
    return f"{sign} {title.ljust(room)} {facts}"


def when_text(then: float, now: float) -> str:
    """`14:02` today, `yesterday`, else `2 Sep`, with the year if it is another one."""
    day, today = datetime.fromtimestamp(then), datetime.fromtimestamp(now)
    days = (today.date() - day.date()).days
    if days == 0:
        return f"{day:%H:%M}"
    if days == 1:
        return "yesterday"
    return f"{day.day} {day:%b}" + ("" if day.year == today.year else f" {day.year}")
