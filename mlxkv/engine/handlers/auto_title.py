"""Titles that the model writes: whether it is able to, what it is asked, and whether the answer is a title.

A title that does not pass is dropped: the chat keeps the first words of its question. The engine decides when to ask.
On the MLX thread.
"""

from __future__ import annotations

import re

from mlxkv.chat.chat import Chat
from mlxkv.chat.conversation import title_of
from mlxkv.events import FinishReason, TurnFinished
from mlxkv.inference.sampling import random_state, set_random_state
from mlxkv.model import Model
from mlxkv.models import BUILT_IN
from mlxkv.text.clean import clean
from mlxkv.text.folding import folded

MIN_PARAMETERS = 1_000_000_000  # smaller models continue the chat, or repeat the request, too often
MAX_TOKENS = 12
MAX_REPLIES = 3  # after which the first words have served so long that the user knows the chat by them
_MAX_PREFILL = 256  # tokens: less than a second of prefill
_LENGTHS = range(2, 61)  # characters
REQUEST = "Write a title for this conversation, at most five words, in its language. Reply with the title only."
_LABEL = re.compile(r"(?:the )?(?:chat |conversation )?title(?: is)?\s*[:：]\s*", re.IGNORECASE)
_MARKS = " \t\"'`*_#“”‘’„«»「」『』.。:"
_REFUSALS = (
    "i'm ", "i am ", "i cannot", "i can't", "i can ", "i do not", "i don't", "i will", "i'll ", "i would", "as an ai",
    "sorry", "sure", "of course", "certainly", "okay", "here is", "here's", "unfortunately", "no title", "untitled",
    "none", "n/a",
)  # fmt: skip


def num_parameters(model: Model) -> int:
    """Parameters of the loaded weights; packed ones counted by their bits."""
    from mlx_lm.utils import get_total_parameters

    return int(get_total_parameters(model.loaded.model))


def is_able(model: Model) -> bool:
    """Whether a model is asked for titles: a chat model that is not built in, of a billion parameters or more."""
    return model.name not in BUILT_IN and model.has_chat_template and num_parameters(model) >= MIN_PARAMETERS


def is_due(chat: Chat) -> bool:
    """Whether a chat is saved, young and called by the first words of its question, and its window has space to ask."""
    if chat.session_id is None or chat.read_only or chat.is_behind or not chat.turns:
        return False
    num_replies = sum(turn.role == "assistant" for turn in chat.turns)
    if not 1 <= num_replies <= MAX_REPLIES or chat.title != title_of(chat.turns[0].text):
        return False
    prefill, cache = chat.num_to_read(REQUEST), chat.cache
    has_space = not cache.capacity or cache.offset + prefill + MAX_TOKENS < cache.capacity  # nothing may be evicted
    return prefill <= _MAX_PREFILL and has_space and not cache.num_evicted


def title_in(finished: TurnFinished, question: str) -> str:
    """The title in the answer to REQUEST; "" if it is none."""
    if finished.reason != FinishReason.STOP or finished.thinking or finished.tool_calls:
        return ""  # cut off, or no answer to the request
    lines = [line for line in clean(finished.text).splitlines() if line.strip()]
    if len(lines) != 1:
        return ""
    title = _LABEL.sub("", " ".join(lines[0].split()).strip(_MARKS), count=1).strip(_MARKS)
    words = folded(title)
    if len(title) not in _LENGTHS or not any(c.isalpha() for c in title) or words.startswith(_REFUSALS):
        return ""
    repeats = words in folded(REQUEST) or folded(" ".join(question.split())).startswith(words)
    return "" if repeats or "title" in words.split() else title


class RandomNumbers:
    """Leaves the random numbers of later replies as they were."""

    def __enter__(self) -> None:
        self._state = random_state()

    def __exit__(self, *_: object) -> None:
        set_random_state(self._state)
