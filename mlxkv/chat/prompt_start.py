"""How a chat begins: from nothing, or from a prompt cache, whose text is the beginning of its first message.

Pure: looks at a cache's text and ids and never at its rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from mlxkv.cache.interchange import PromptText
from mlxkv.cache.mlx_lm import ForeignCache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat import clock
from mlxkv.chat.prompt import PromptFormat, PromptState, in_front, message
from mlxkv.errors import ConfigError
from mlxkv.token_ids import TokenIds

_DAYS = 400  # back from today


@dataclass(frozen=True)
class Start:
    """`text` stands in front of what is said first; `fed` is what the model has read of both and of `system`.
    `began` is the time that the template prints."""

    system: str | None = None
    text: str = ""
    fed: PromptState = field(default_factory=PromptState)
    began: datetime = field(default_factory=clock.now)


def start_from(cache: PromptCache, system: str | None, prompts: PromptFormat) -> Start:
    """A chat that goes on from `cache`.

    An imported cache stands for whatever comes before the text of a first message, as mlx-lm's own command reads one.

    Raises:
        ConfigError: it has a system prompt of its own, or holds raw text.
    """
    if system is not None:
        raise ConfigError("A chat that goes on from a prompt cache has that cache's system prompt; leave `system` out.")
    if isinstance(cache, ForeignCache):
        began = clock.now()
        return Start(
            None, "", PromptState(prompts.at(began).chat_prefix(None, "").text, TokenIds(list(cache.log))), began
        )
    if (prompt := cache.prompt) is None:
        raise ConfigError(
            "This prompt cache holds raw text; make it with `model.prefill(text, system=...)` to chat from it, or use "
            "`model.generate`."
        )
    ids = cache.log[: prompt.num_tokens]
    began = clock.from_text(prompt.clock) or _read_off(prompt, prompts)
    return Start(prompt.system, in_front(prompt.text), PromptState(prompt.rendered, ids), began)


def _read_off(prompt: PromptText, prompts: PromptFormat) -> datetime:
    """The latest day on which the template words the text of a file as it stands there: older files have no clock."""
    today = clock.now()
    said = [message("system", prompt.system)] if prompt.system else []
    said.append(message("user", in_front(prompt.text) + "x"))
    days = (today - timedelta(days) for days in range(_DAYS if prompts.prints_time else 0))
    return next((day for day in days if prompts.at(day).render(said).startswith(prompt.rendered)), today)
