"""Which chat a user means by what was typed: an exact title, an id, or the beginning of one of both. Pure; any thread.

One rule for the command line, the window, line mode and Python. Several that fit are listed, never guessed among.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from mlxkv.errors import SessionNotFoundError
from mlxkv.protocol.status import ChatSummary
from mlxkv.stats import plural
from mlxkv.text.clean import clean
from mlxkv.text.folding import folded

_MOST_NAMED = 10
_MOST_SHOWN = 60  # characters of a title


def chats_called(chats: Sequence[ChatSummary], wanted: str) -> list[ChatSummary]:
    """Those with this title, else this id, else those whose title or id begins so, else those whose title has this in
    it; in their order. Titles are compared as they are, then as they are shown, whatever their case and width.

    Raises:
        SessionNotFoundError: nothing fits, or nothing was given.
    """
    text = _folded(wanted)
    if not text:
        raise SessionNotFoundError(
            "The name of the chat is empty; give a title, an id, or the beginning of one (`mlxkv chats ls` lists them)."
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
            return fits
    known = f"the newest are {_named(chats[:5])}" if chats else "there are none yet"
    raise SessionNotFoundError(f"No chat has the title or id {_short(wanted)!r}; {known}.")


def chat_called(chats: Sequence[ChatSummary], wanted: str) -> ChatSummary:
    """The one that `chats_called` finds.

    Raises:
        SessionNotFoundError: see there; or several fit, which are listed with id, title and time.
    """
    fits = chats_called(chats, wanted)
    if len(fits) > 1:
        raise SessionNotFoundError(
            f"{_short(wanted)!r} fits {plural(len(fits), 'chat')}: {_named(fits)}; give more of the title, or the id."
        )
    return fits[0]


def _folded(text: str) -> str:
    """As it is shown, in one line."""
    return folded(" ".join(clean(text).split()))


def _named(chats: Sequence[ChatSummary]) -> str:
    """`01J… "Trip to Porto" of 2026-11-29 14:02`, separated by commas."""
    names = [
        f"{chat.id} {_short(chat.title)!r} of {datetime.datetime.fromtimestamp(chat.updated):%Y-%m-%d %H:%M}"
        for chat in chats[:_MOST_NAMED]
    ]
    more = [f"and {len(chats) - _MOST_NAMED:,} more"] if len(chats) > _MOST_NAMED else []
    return ", ".join([*names, *more])


def _short(text: str) -> str:
    text = " ".join(clean(text).split())
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"
