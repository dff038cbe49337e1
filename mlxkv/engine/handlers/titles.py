"""Handler that asks the model for a title while the window is idle. Gives up when a command arrives. MLX thread.

`auto_title.py` has the request and the checks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing

from mlxkv.engine.context import EngineContext
from mlxkv.engine.handlers import auto_title
from mlxkv.events import TurnFinished
from mlxkv.protocol.events import ChatTitled, EngineEvent

_log = logging.getLogger("mlxkv.engine")


def suggest_title(context: EngineContext) -> Iterator[EngineEvent]:
    """Give the open chat a title of the model's; no event unless it got one, and no error."""
    context.wants_title = False
    try:
        title = _title(context)
        chat = context.chat
        if title and chat is not None and chat.suggest_title(title):
            yield ChatTitled(str(chat.session_id), title)
    except Exception:  # nobody asked for it
        _log.exception("no title was written")


def _title(context: EngineContext) -> str:
    chat, model = context.chat, context.model
    if chat is None or model is None or not (context.save and context.settings.auto_title):
        return ""
    if not (auto_title.is_due(chat) and auto_title.is_able(model)):
        return ""
    sampling = {"temperature": 0.0, "max_tokens": auto_title.MAX_TOKENS}
    with auto_title.RandomNumbers(), closing(chat.aside(auto_title.REQUEST, **sampling)) as events:
        for event in events:
            if context.is_awaited:
                context.wants_title = True  # once the user pauses again
                return ""
            if isinstance(event, TurnFinished):
                return auto_title.title_in(event, chat.turns[0].text)
    return ""
