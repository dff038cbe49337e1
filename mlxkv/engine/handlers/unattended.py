"""Where what the model attends to begins in the open chat, for the rule in the transcript. MLX thread.

Looked up with every status, so it is computed only when tokens were evicted or the chat has changed.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from mlxkv.cache.planning.probe import leaves
from mlxkv.cache.recurrent.state import is_recurrent, tokens_fed, unseen_positions
from mlxkv.chat.history import spans
from mlxkv.errors import MlxkvError
from mlxkv.protocol.status import Unattended
from mlxkv.store.records import TurnRecord, TurnState
from mlxkv.tokenizer.tokens import decode

if TYPE_CHECKING:
    from mlxkv.cache.prompt_cache import PromptCache
    from mlxkv.chat.chat import Chat
    from mlxkv.engine.context import EngineContext

_MOST = 32_768  # evicted tokens of one message that are decoded to find the place in its text


def unattended(context: EngineContext) -> Unattended | None:
    """What no layer attends to any more; None if nothing. A chat that is yet to be prefilled counts as if it were."""
    chat = context.chat
    if chat is None or not chat.turns:
        return None
    begin, end = unattended_positions(chat.cache, num_tokens(chat))
    found_from = (chat.turns, begin, end)  # tuples of turns are replaced, not changed
    known, found = context.unattended
    if not (isinstance(known, tuple) and known[0] is chat.turns and known[1:] == (begin, end)):
        found = None
        if begin < end:
            with suppress(MlxkvError):  # the chat template or the tokenizer fails, as the next message will say
                found = _find(context, chat, begin, end)
        context.unattended = (found_from, found)
    return found


def num_held(chat: Chat, num_messages: int | None = None) -> int:
    """Tokens of the chat, or of its first messages, that its cache holds: those its next prompt can continue."""
    if not chat.turns:
        return 0
    tokens = num_tokens(chat) if num_messages is None else spans(chat.turns)[num_messages][0]
    return min(tokens, chat.cache.offset)


def num_tokens(chat: Chat) -> int:
    """Tokens of the chat as its next prompt continues it; after a rewind the cache has more, before a prefill fewer."""
    size, offset, last = len(chat.log), chat.cache.offset, chat.turns[-1]
    if last.role != "assistant" or last.state == TurnState.OPEN:
        return max(size, offset)
    return offset if offset == size else size - 1  # the token sampled last is fed with the next prompt


def unattended_positions(cache: PromptCache, num_tokens: int) -> tuple[int, int]:
    """Positions [begin, end) of `num_tokens` that the last of them attends to in no layer of rows."""
    layers = leaves(cache.layers)
    used = [layer for layer in layers if tokens_fed(layer)] or [layer for layer in layers if not is_recurrent(layer)]
    places = [unseen_positions(layer, num_tokens - 1) for layer in used]
    return max((begin for begin, _ in places), default=0), min((end for _, end in places), default=0)


def _find(context: EngineContext, chat: Chat, begin: int, end: int) -> Unattended | None:
    turns, places = chat.turns, spans(chat.turns)
    system = min(chat.num_system_tokens, places[0][1])
    places[0] = (system, places[0][1])
    message = next((i for i, (_, stop) in enumerate(places) if stop > end), len(turns))
    pinned = sum(stop <= begin for _, stop in places)
    chars: int | None = 0
    if message < len(turns) and places[message][0] < end:
        skipped = system if message == 0 else 0  # the first message's ids begin with the system prompt's
        chars = _chars(context, turns[message], skipped, end - places[message][0])
        if chars is not None and chars == len(turns[message].text):  # all but the template's tokens after it
            message, chars = message + 1, 0
    return Unattended(
        tokens=end - begin,
        num_messages=message - pinned + (chars != 0),
        message=message,
        chars=chars,
        pinned=begin,
        pins_system=0 < system <= begin and bool(chat.system or chat.has_own_system_prompt),
        pinned_messages=pinned,
        in_state=chat.cache.checkpoints.is_needed,
    )


def _chars(context: EngineContext, turn: TurnRecord, skipped: int, num_tokens: int) -> int | None:
    """The characters of a message's text in `num_tokens` of its ids, after the first `skipped`; None if unknown."""
    if num_tokens > _MOST or not turn.text:
        return None
    tokenizer, ids = context.ready_model.loaded.tokenizer, turn.ids[skipped:]
    head, whole = decode(tokenizer, ids[:num_tokens]).rstrip("\ufffd"), decode(tokenizer, ids)
    is_reply = turn.role == "assistant"  # its text comes after its reasoning, another's before the template's tokens
    place = whole.rfind(turn.text) if is_reply else whole.find(turn.text)
    if place < 0 or not whole.startswith(head) or (turn.thinking and len(head) < place):
        return None
    return min(max(len(head) - place, 0), len(turn.text))
