"""Find chats by name: an exact title, an id, or a prefix or part of one. Pure; any thread.

One rule for the command line, the window, line mode and Python. Several matches are listed, never guessed among.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from mlxkv.errors import SessionNotFoundError
from mlxkv.protocol.status import ChatSummary
from mlxkv.stats import plural
from mlxkv.text.clean import clean
from mlxkv.text.folding import folded
from mlxkv.token_ids import common_prefix

_SHORTEST = 10  # characters of an id: its whole timestamp, so that a later chat never makes it ambiguous
_MOST_NAMED = 10
_MOST_SHOWN = 60  # characters of a title


def short_ids(found: Sequence[ChatSummary]) -> dict[str, str]:
    """The shortest unique prefix of each id, which every command takes for it; ten letters or more."""
    ids = sorted(c.id for c in found)
    out = {}
    for before, this, after in zip(["", *ids], ids, [*ids[1:], ""], strict=False):
        shared = max(common_prefix(this, before), common_prefix(this, after))
        out[this] = this[: max(shared + 1, _SHORTEST)]
    return out


def chats_called(chats: Sequence[ChatSummary], wanted: str) -> list[ChatSummary]:
    """Chats with this title, else with this id, else with this prefix of title or id, else with this part of the title.

    Titles are compared exactly first, then as shown, ignoring case and width. The order is kept. Versions of a chat and
    runs of print mode are found if no chat is.

    Raises:
        SessionNotFoundError: no chat matches, or the name is empty.
    """
    text = _folded(wanted)
    if not text:
        raise SessionNotFoundError(
            "The name of the chat is empty; give a title, an id, or a prefix of one (`mlxkv chats ls` lists them)."
        )
    names = [(chat, chat.id.casefold(), _folded(chat.title)) for chat in chats]
    for fits in (
        [chat for chat in chats if chat.title == wanted],
        [chat for chat, id, _ in names if id == text],
        [chat for chat, _, title in names if title == text],
        [chat for chat, id, title in names if id.startswith(text) or title.startswith(text)],
        [chat for chat, _, title in names if text in title],
    ):
        if fits:
            return [chat for chat in fits if chat.kind == "chat"] or fits
    known = f"the newest are {_named(chats[:5], chats)}" if chats else "there are none yet"
    raise SessionNotFoundError(f"No chat has the title or id {_short(wanted)!r}; {known}.")


def chat_called(chats: Sequence[ChatSummary], wanted: str) -> ChatSummary:
    """The only chat that `chats_called` finds.

    Raises:
        SessionNotFoundError: no chat matches, or several do; they are listed with id, title and time.
    """
    fits = chats_called(chats, wanted)
    if len(fits) > 1:
        raise SessionNotFoundError(
            f"{_short(wanted)!r} matches {plural(len(fits), 'chat')}: {_named(fits, chats)}; "
            "give a longer part, or the id."
        )
    return fits[0]


def _folded(text: str) -> str:
    """The displayed text for comparison: one line, without case and width."""
    return folded(" ".join(clean(text).split()))


def _named(chats: Sequence[ChatSummary], known: Sequence[ChatSummary]) -> str:
    """A list such as `01M8N8FW0B 'Trip to Porto' of 2026-11-29 14:02, ...`; the ids are short among `known`."""
    short = short_ids(known)
    names = [
        f"{short[chat.id]} {_short(chat.title)!r} of {datetime.datetime.fromtimestamp(chat.updated):%Y-%m-%d %H:%M}"
        for chat in chats[:_MOST_NAMED]
    ]
    more = [f"and {len(chats) - _MOST_NAMED:,} more"] if len(chats) > _MOST_NAMED else []
    return ", ".join([*names, *more])


def _short(text: str) -> str:
    text = " ".join(clean(text).split())
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"
