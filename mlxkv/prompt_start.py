"""How a chat begins: from nothing, or from a prompt cache, whose text is the beginning of its first message.

Pure: looks at a cache's text and ids and never at its rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mlxkv.cache.foreign import ForeignCache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.errors import ConfigError
from mlxkv.ids import TokenIds
from mlxkv.prompt import Fed, PromptFormat, in_front


@dataclass(frozen=True)
class Start:
    """`text` stands in front of what is said first; `fed` is what the model has read of both and of `system`."""

    system: str | None = None
    text: str = ""
    fed: Fed = field(default_factory=Fed)


def start_from(cache: PromptCache, system: str | None, prompts: PromptFormat) -> Start:
    """A chat that goes on from `cache`.

    An imported cache stands for whatever comes before the text of a first message, as mlx-lm's own command reads one.

    Raises:
        ConfigError: it has a system prompt of its own, or holds raw text.
    """
    if system is not None:
        raise ConfigError("A chat that goes on from a prompt cache has that cache's system prompt; leave `system` out.")
    if isinstance(cache, ForeignCache):
        return Start(None, "", Fed(prompts.opening(None, "").text, TokenIds(list(cache.tokens))))
    if (prompt := cache.prompt) is None:
        raise ConfigError(
            "This prompt cache holds raw text; make it with `model.prefill(text, system=...)` to chat from it, or use "
            "`model.generate`."
        )
    ids = cache.tokens[: prompt.num_tokens]
    return Start(prompt.system, in_front(prompt.text), Fed(prompt.rendered, ids))
