"""A tokenizer's chat template, compiled once in transformers' own sandbox.

Templates are as trustworthy as the models they come with: the sandbox isolates them, and every failure is reported in
one sentence. Their running time is not limited: an endless loop hangs. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from mlxkv.errors import ModelError, as_sentence

FILE = "chat_template_file"  # an attribute of the tokenizer: its template's file

_PROBE = "0x0TEXT0x0"
_SWITCHES = ("enable_thinking", "thinking")  # mlx-lm's own name first


class ChatTemplate:
    """Renders chats for a tokenizer: a jinja2 template, or one of mlx-lm's renderers in Python.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper, with a chat template.
        tools: the schemas of tools to tell the model of.
    """

    def __init__(self, tokenizer: Any, tools: Sequence[Mapping[str, Any]] = ()) -> None:
        self._tokenizer, self.tools = tokenizer, tools

    @cached_property
    def source(self) -> str:
        """The template's text; "" for a renderer in Python."""
        is_jinja = self._tokenizer._chat_template is None and self._tokenizer.chat_template is not None
        return self._tokenizer.get_chat_template(tools=list(self.tools) or None) if is_jinja else ""

    @cached_property
    def _compiled(self) -> Any:
        from transformers.utils.chat_template_utils import _compile_jinja_template

        return _compile_jinja_template(self.source)

    @cached_property
    def think_switch(self) -> str | None:
        """The variable that turns reasoning on and off: Qwen's templates read `enable_thinking`, DeepSeek's `thinking`.

        None if the template reads neither. A renderer in Python takes mlx-lm's.
        """
        if not self.source:
            return _SWITCHES[0]
        return next((name for name in _SWITCHES if name in self._variables), None)

    @cached_property
    def _variables(self) -> set[str]:
        """The variables that the template reads."""
        from jinja2.meta import find_undeclared_variables

        try:
            return find_undeclared_variables(self._compiled.environment.parse(self.source))
        except Exception:
            return set()  # `render` reports the error

    @cached_property
    def takes_tools(self) -> bool:
        """Whether it tells the model of tools; a renderer in Python does."""
        return not self.source or "tools" in self._variables

    @cached_property
    def shows_calls(self) -> bool:
        """Whether it renders tool calls of earlier replies, and their results."""
        return not self.source or "tool_calls" in self.source

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template shows the text of a list of parts alone, as those of some vision models do."""

        def shows(content: Any) -> bool:
            try:
                return _PROBE in self._render([{"role": "user", "content": content}], {"add_generation_prompt": True})
            except Exception:  # `render` reports the error
                return False

        return bool(self.source) and not shows(_PROBE) and shows(_parts(_PROBE))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        for_reply: bool = True,
        think: bool | None = None,
        clock: datetime | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of `messages`, equal to that of transformers' `apply_chat_template`.

        Args:
            for_reply: end with the beginning of the assistant's turn.
            think: whether the model should reason first; None: the template's default.
            clock: the time for `strftime_now`; None: now.
            tools: the schemas, if control tokens are marked in them; None: as they are.

        Raises:
            ModelError: the template fails on these messages.
        """
        tokenizer = self._tokenizer
        chat: list[dict[str, Any]] = [dict(message) for message in messages]
        told = list(self.tools if tools is None else tools) or None
        variables: dict[str, Any] = {"add_generation_prompt": for_reply} | ({"tools": told} if told else {})
        if think is not None and (switch := self.think_switch):
            variables[switch] = think
        with as_sentence(ModelError, self._refusal):
            if not self.source:
                return tokenizer.apply_chat_template(chat, tokenize=False, **variables)
            if clock is not None:
                variables["strftime_now"] = clock.strftime
            if self._takes_parts:
                chat = [{**m, "content": _parts(m["content"])} for m in chat]
            try:
                return self._render(chat, variables)
            except TypeError:
                if not any(message.get("tool_calls") for message in chat):
                    raise
                return self._render(list(map(_with_arguments_as_text, chat)), variables)

    def _render(self, chat: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
        own = self._tokenizer.special_tokens_map
        return self._compiled.render(messages=chat, documents=None, **{**own, "tools": None, **variables})

    def _refusal(self, why: str) -> str:
        file = getattr(self._tokenizer, FILE, "")
        whose = f"{self._tokenizer.name_or_path or 'this model'}{f' ({file})' if file else ''}"
        return (
            f"The chat template of {whose} refuses this chat ({why}); use another model, or "
            "`mlxkv.load(...).generate` for raw text."
        )


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _with_arguments_as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """For templates that join the arguments of tool calls to other text, as DeepSeek's do."""
    calls = [
        {**call, "function": {**call["function"], "arguments": _as_json(call["function"]["arguments"])}}
        for call in message.get("tool_calls") or ()
    ]
    return {**message, "tool_calls": calls} if calls else dict(message)


def _as_json(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
