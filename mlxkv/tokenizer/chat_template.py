"""A tokenizer's chat template, compiled once in transformers' own sandbox.

Templates come with models and are as trustworthy as those: the sandbox keeps them from reaching anything else, and
whatever one fails with is one sentence. Nothing bounds what one takes: a template that loops without end hangs. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from mlxkv.errors import ModelError, as_sentence

FILE = "chat_template_file"  # an attribute of the tokenizer: the file that its template comes from

_SWITCHES = ("enable_thinking", "thinking")  # mlx-lm's own name first


class ChatTemplate:
    """What a tokenizer renders chats with: a jinja2 template, or one of mlx-lm's renderers written in Python.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper, with a chat template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def source(self) -> str:
        """The template's text; "" for a renderer written in Python."""
        is_jinja = self._tokenizer._chat_template is None and self._tokenizer.chat_template is not None
        return self._tokenizer.get_chat_template() if is_jinja else ""

    @cached_property
    def _compiled(self) -> Any:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        return _compile_jinja_template(self.source)

    @cached_property
    def think_switch(self) -> str | None:
        """The variable that turns reasoning on and off: Qwen's templates read `enable_thinking`, DeepSeek's `thinking`.

        None where the template reads neither. A renderer written in Python takes mlx-lm's own.
        """
        if not self.source:
            return _SWITCHES[0]
        from jinja2.meta import find_undeclared_variables

        try:
            read = find_undeclared_variables(self._compiled.environment.parse(self.source))
        except Exception:
            return None  # `render` says what is wrong with it
        return next((name for name in _SWITCHES if name in read), None)

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        for_reply: bool = True,
        think: bool | None = None,
        clock: datetime | None = None,
    ) -> str:
        """The text of `messages`, as `apply_chat_template` of transformers makes it.

        Args:
            for_reply: end with the beginning of the assistant's turn.
            think: whether the model shall reason first; None is the template's own default.
            clock: what `strftime_now` tells; None is now.

        Raises:
            ModelError: the template fails on these messages, in whatever way.
        """
        tokenizer = self._tokenizer
        chat = [dict(message) for message in messages]
        variables: dict[str, Any] = {"add_generation_prompt": for_reply}
        if think is not None and (switch := self.think_switch):
            variables[switch] = think
        with as_sentence(ModelError, self._refusal):
            if not self.source:
                return tokenizer.apply_chat_template(chat, tokenize=False, **variables)
            if clock is not None:
                variables["strftime_now"] = clock.strftime
            return self._compiled.render(
                messages=chat, tools=None, documents=None, **{**tokenizer.special_tokens_map, **variables}
            )

    def _refusal(self, why: str) -> str:
        file = getattr(self._tokenizer, FILE, "")
        whose = f"{self._tokenizer.name_or_path or 'this model'}{f' ({file})' if file else ''}"
        return (
            f"The chat template of {whose} refuses this chat ({why}); use another model, or "
            "`mlxkv.load(...).generate` for raw text."
        )
