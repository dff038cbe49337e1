"""ChatPrefix: the beginning of a chat: empty, or a prompt cache, whose text begins the first message.

Pure: reads a cache's text and ids, never its rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Self

from mlxkv.cache.interchange import PromptText
from mlxkv.cache.mlx_lm import ImportedCache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.prompts import clock
from mlxkv.chat.prompts.prompt import PromptFormat, PromptState, before_question, message
from mlxkv.errors import ConfigError
from mlxkv.token_ids import TokenIds

_DAYS = 400  # back from today


@dataclass(frozen=True)
class ChatPrefix:
    """The part of a chat before the user's first words.

    Args:
        text: begins the first message.
        prompt_state: `system` and `text` as prefilled.
        began: the time that the chat template prints.
    """

    system: str | None = None
    text: str = ""
    prompt_state: PromptState = field(default_factory=PromptState)
    began: datetime = field(default_factory=clock.now)

    @classmethod
    def of_cache(cls, cache: PromptCache, system: str | None, prompts: PromptFormat) -> Self:
        """Make the prefix that `cache` contains.

        An imported cache is taken to end before the text of the first message, as in mlx-lm's own command.

        Raises:
            ConfigError: it has a system prompt of its own, or holds raw text.
        """
        if system is not None:
            raise ConfigError("A chat from a prompt cache has the system prompt of that cache; leave `system` out.")
        if isinstance(cache, ImportedCache):
            began = clock.now()
            text = prompts.at(began).chat_prefix(None, "").text
            return cls(None, "", PromptState(text, TokenIds(list(cache.log))), began)
        if (prompt := cache.prompt) is None:
            raise ConfigError(
                "This prompt cache holds raw text; make it with `model.prefill(text, system=...)` to chat from it, or "
                "use `model.generate`."
            )
        ids = cache.log[: prompt.num_tokens]
        began = clock.from_text(prompt.clock) or _time_of(prompt, prompts)
        return cls(prompt.system, before_question(prompt.text), PromptState(prompt.rendered, ids), began)


def _time_of(prompt: PromptText, prompts: PromptFormat) -> datetime:
    """The latest day for which the template renders the text of a file that has no clock, as older versions wrote."""
    today = clock.now()
    messages = [message("system", prompt.system)] if prompt.system else []
    messages.append(message("user", before_question(prompt.text) + "x"))
    days = (today - timedelta(days) for days in range(_DAYS if prompts.prints_time else 0))
    return next((day for day in days if prompts.at(day).render(messages).startswith(prompt.rendered)), today)
