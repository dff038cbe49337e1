"""Order, dates and nesting of the list of chats. Pure; UI thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.cells import cell_len, set_cell_size

from mlxkv.protocol.status import ChatSummary
from mlxkv.stats import bytes_text
from mlxkv.text.clean import clean
from mlxkv.text.folding import Wanted
from mlxkv.tui.state.lists.choices import cut


def latest_first(chats: Sequence[ChatSummary]) -> list[ChatSummary]:
    return sorted(chats, key=lambda chat: (-chat.seq, -chat.updated))


def listed_as(chats: Sequence[ChatSummary], session_id: str | None) -> str | None:
    """The chat in the list that a session is a version of."""
    return next((chat.id for chat in chats if session_id in chat.versions), session_id)


def when_text(then: float, now: float) -> str:
    """`14:02` today, `yesterday`, else `2 Sep`, with the year if it is not this year."""
    day, today = datetime.fromtimestamp(then), datetime.fromtimestamp(now)
    if (days := (today.date() - day.date()).days) in (0, 1):
        return "yesterday" if days else f"{day:%H:%M}"
    return f"{day.day} {day:%b}" + ("" if day.year == today.year else f" {day.year}")


def group_text(then: float, now: float) -> str:
    """`Today`, `Yesterday`, `September`, with the year if it is not this year."""
    day, today = datetime.fromtimestamp(then), datetime.fromtimestamp(now)
    if (days := (today.date() - day.date()).days) <= 1:
        return "Yesterday" if days == 1 else "Today"
    return f"{day:%B}" if day.year == today.year else f"{day:%B} {day.year}"


@dataclass(frozen=True)
class Entry:
    """A line of the sidebar; a heading has no `session_id`."""

    text: str
    session_id: str = ""


def sidebar_entries(
    chats: Sequence[ChatSummary], words: str, current: str | None, now: float, width: int
) -> list[Entry]:
    """Chats grouped by date with forks below their origin, named by their own question; a flat list while searching."""
    wanted = [found for word in words.split() if (found := Wanted.of(word))]
    newest = latest_first(chats)
    if wanted:
        found = [chat for chat in newest if all(word.is_in(f"{chat.title} {chat.name}") for word in wanted)]
        return [_entry(chat, "", current, width) for chat in found] or [Entry("No title matches.")]
    families: dict[str, list[ChatSummary]] = {}
    roots = _roots(chats)
    for chat in newest:  # a family is placed by its most recent chat
        families.setdefault(roots[chat.id], []).append(chat)
    out: list[Entry] = []
    group = ""
    dates = _plausible_dates([members[0].updated for members in families.values()], now)
    for (root, members), date in zip(families.items(), dates, strict=True):
        heading = group_text(date, now)
        if heading != group:
            group = heading
            out.append(Entry(heading))
        out += [_entry(chat, "", current, width) for chat in members if chat.id == root]
        forks = sorted((chat for chat in members if chat.id != root), key=lambda chat: (chat.made, chat.id))
        for number, chat in enumerate(forks, 1):
            out.append(_entry(chat, "└ " if number == len(forks) else "├ ", current, width))
    return out or [Entry("No chats yet.")]


def _plausible_dates(dates: Sequence[float], now: float) -> list[float]:
    """Correct dates written under a wrong clock. `dates` are in order of use, newest first: none may be after `now`, or
    before the date of a chat that was used earlier."""
    out: list[float] = []
    latest = 0.0
    for date in reversed(dates):
        latest = max(latest, date) if date <= now else latest
        out.append(latest or now)
    return out[::-1]


def _roots(chats: Sequence[ChatSummary]) -> dict[str, str]:
    """The oldest existing ancestor of each chat."""
    parents = {chat.id: chat.parent for chat in chats}
    roots: dict[str, str] = {}
    for chat in chats:
        path, at = [], chat.id
        while at not in roots and at not in path and (parent := parents[at]) in parents and parent is not None:
            path.append(at)
            at = parent
        root = roots.get(at, at)
        roots.update(dict.fromkeys([*path, at], root))
    return roots


def _entry(chat: ChatSummary, lead: str, current: str | None, width: int) -> Entry:
    mark = "▌" if chat.id == current else " "
    kv = bytes_text(chat.kv_bytes).replace(" ", "").replace("B", "") if chat.kv_bytes else ""
    facts = f"{'●' if chat.kv_bytes else '○'} {kv:>4}"
    name = chat.departure.own if chat.departure else chat.title
    title = f"{mark}{lead}{' '.join(clean(name or 'Untitled').split())}"
    room = width - cell_len(facts) - 1
    return Entry(f"{set_cell_size(cut(title, room), room)} {facts}", chat.id)
