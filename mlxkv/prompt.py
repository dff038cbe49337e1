"""From messages to token ids: the chat template, and the splice that keeps ids the model really generated.

A reply's text, tokenized again, need not give the ids that were sampled. So where the template's text goes on exactly
from what was fed and generated before, only the new end is tokenized; where it does not (a template that rewrites
history), all of it is, and reuse stops at the first id that differs. Pure but for the tokenizer; no MLX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlxkv.errors import ModelError

Message = dict[str, str]  # {"role": ..., "content": ...}, as chat templates take it


@dataclass(frozen=True)
class Fed:
    """What a prompt and its reply came to: `text` as the template words it, `ids` as they were fed and sampled."""

    text: str = ""
    ids: tuple[int, ...] = ()


class PromptFormat:
    """A tokenizer's chat template; without one, the texts of a chat simply continue each other.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @property
    def has_template(self) -> bool:
        return bool(self.tokenizer.has_chat_template)

    def prompt(self, messages: Sequence[Message], fed: Fed) -> Fed:
        """The next prompt: `messages` end with the user's, `fed` is all that came before.

        Raises:
            ModelError: the template refuses these messages.
        """
        if not self.has_template:
            return self._continued(messages, fed)
        text = self.render(messages)
        if fed.text and text.startswith(fed.text):
            return Fed(text, (*fed.ids, *self.encode(text[len(fed.text) :])))
        return Fed(text, tuple(self.encode(text)))

    def replied(self, prompt: Fed, text: str, ids: Sequence[int]) -> Fed:
        """`prompt` with the reply: its `text` as shown, its `ids` as sampled, an end-of-turn token included."""
        if ids and ids[-1] in self.tokenizer.eos_token_ids:
            text += self.tokenizer.decode([ids[-1]])
        return Fed(prompt.text + text, (*prompt.ids, *ids))

    def render(self, messages: Sequence[Message], *, for_reply: bool = True) -> str:
        """The template's text.

        Raises:
            ModelError: the template refuses these messages, also with the system prompt moved into the first message.
        """
        import jinja2

        for attempt in (list(messages), _without_system_role(messages)):
            try:
                return self.tokenizer.apply_chat_template(attempt, tokenize=False, add_generation_prompt=for_reply)
            except jinja2.TemplateError as error:
                refusal = error
        raise ModelError(
            f"The model's chat template refuses this chat ({str(refusal).splitlines()[0]}); use another model, "
            f"or `mlxkv.load(...).generate` for raw text."
        ) from refusal

    def encode(self, text: str) -> list[int]:
        """Ids of text that a template made: it brings its own special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def encode_raw(self, text: str) -> list[int]:
        """Ids of plain text, with the tokenizer's own beginning (as mlx-lm does)."""
        bos = self.tokenizer.bos_token
        return list(self.tokenizer.encode(text, add_special_tokens=bos is None or not text.startswith(bos)))

    def num_system_tokens(self, system: str | None) -> int:
        """Tokens at the front of every prompt of a chat with this system prompt; 0 without one."""
        if not system:
            return 0
        if not self.has_template:
            return len(self.encode_raw(system + "\n\n"))
        a, b = (self.encode(self.render([_message("system", system), _message("user", x)])) for x in ("0", "x"))
        common = next((i for i, (p, q) in enumerate(zip(a, b, strict=False)) if p != q), min(len(a), len(b)))
        try:
            alone = self.encode(self.render([_message("system", system)], for_reply=False))
        except ModelError:
            return common
        # Without a user's turn the text ends before the header of that turn, which need not be pinned.
        return len(alone) if alone == a[: len(alone)] and len(alone) <= common else common

    def _continued(self, messages: Sequence[Message], fed: Fed) -> Fed:
        if fed.ids:
            text = messages[-1]["content"]
            return Fed(fed.text + text, (*fed.ids, *self.encode(text)))
        text = "".join(m["content"] + ("\n\n" if m["role"] == "system" else "") for m in messages)
        return Fed(text, tuple(self.encode_raw(text)))


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _without_system_role(messages: Sequence[Message]) -> list[Message]:
    """For templates that know no system role: its text goes to the front of the first message."""
    if not messages or messages[0]["role"] != "system" or len(messages) < 2:
        return list(messages)
    first = messages[1]
    return [_message(first["role"], messages[0]["content"] + "\n\n" + first["content"]), *messages[2:]]
