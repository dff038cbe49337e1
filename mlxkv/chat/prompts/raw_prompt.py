"""RawPrompt: text or token ids, without a chat template, as the prompt of a cache that may hold tokens already.

One rule for `Model.generate`, `Model.stream` and batches. Pure except for the tokenizer; no MLX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlxkv import arguments
from mlxkv.chat.prompts.prompt import PromptFormat, check_ids
from mlxkv.errors import PromptError
from mlxkv.text.encoding import well_formed
from mlxkv.token_ids import common_prefix
from mlxkv.tokenizer.tokens import decode


@dataclass(frozen=True)
class RawPrompt:
    """The ids of the whole prompt; `continued`: they are those of the cache, and the caller's after them."""

    ids: Sequence[int]
    continued: bool = False

    @classmethod
    def after(cls, held: Sequence[int], given: str | Sequence[int], prompts: PromptFormat) -> RawPrompt:
        """The prompt that a checked text or ids make for a cache that holds the ids `held`.

        It is the whole prompt if it begins with all of `held`; a text may do so as ids or as text, since its last word
        may be tokenized differently. Else it continues them.
        """
        whole = prompts.encode_raw(given) if isinstance(given, str) else given
        if not held or common_prefix(held, whole) == len(held):
            return cls(whole)
        if not isinstance(given, str):
            return cls([*held, *given], continued=True)
        if _begins_with(given, held, prompts.tokenizer):
            return cls(whole)
        return cls([*held, *prompts.encode_after(held, given)], continued=True)


def checked_prompt(given: Any, args: Any) -> str | tuple[int, ...]:
    """A text, or token ids of a model with these arguments.

    Raises:
        PromptError: it is empty, or an id is not in the vocabulary. ArgumentError: it is neither.
    """
    if isinstance(given, str):
        found: str | tuple[int, ...] = well_formed(given)
    else:
        ids = arguments.token_ids("prompt", given)
        found = check_ids(ids, args) if ids else ()
    if not found:
        raise PromptError("The prompt is empty; write something first.")
    return found


def _begins_with(text: str, held: Sequence[int], tokenizer: Any) -> bool:
    if min(held) < 0:  # ids of imported tokens are unknown
        return False
    bos = tokenizer.bos_token or ""
    ids = list(held[: len(held) - (held[-1] in tokenizer.eos_token_ids)])  # without an end-of-text id
    texts = [decode(tokenizer, part).removeprefix(bos).rstrip("\ufffd") for part in (ids[:16], ids)]
    return all(x and text.startswith(x) for x in texts)
