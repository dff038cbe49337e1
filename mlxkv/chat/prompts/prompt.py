"""PromptFormat: messages to token ids by the chat template, keeping the ids that the model generated.

A reply's text, tokenized again, need not give the sampled ids. So while the rendered text continues the last prompt and
reply exactly, only its new end is tokenized; if the template renders history differently, for example strips reasoning,
the part after the last unchanged cut is. Control tokens in messages are text (`control_tokens`). Pure except for the
tokenizer; no MLX.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Self

from mlxkv.arguments import shown, whole
from mlxkv.chat.tools import Tool, parse_calls
from mlxkv.errors import ConfigError, ModelError, PromptError
from mlxkv.events import ToolCall
from mlxkv.inference.reply_parser import Reasoning, ReplyText, ids_of_text, raw_text
from mlxkv.token_ids import TokenIds, common_prefix
from mlxkv.tokenizer.chat_template import ChatTemplate
from mlxkv.tokenizer.control_tokens import ControlTokens, Rendered
from mlxkv.tokenizer.tokens import decode, encode, encode_after, encode_start

Message = dict[str, Any]  # {"role": ..., "content": ...}, as chat templates take it; perhaps with tool calls


@dataclass(frozen=True)
class PromptState:
    """A prompt and perhaps its reply: `text` as rendered by the template, `ids` as prefilled and sampled.

    `cuts`: positions (characters, ids) before the end at which both agree: a prompt or a reply ends there.
    """

    text: str = ""
    ids: TokenIds = field(default_factory=TokenIds)
    cuts: tuple[tuple[int, int], ...] = ()

    @property
    def all_cuts(self) -> tuple[tuple[int, int], ...]:
        return (*self.cuts, (len(self.text), len(self.ids))) if self.text else self.cuts


class PromptFormat:
    """A tokenizer's chat template; without one, the messages of a chat are concatenated.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.

    Attributes:
        clock: the time that the template prints; None: the current time.
        tools: those that the template tells the model of.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.clock: datetime | None = None
        self.tools: tuple[Tool, ...] = ()
        self._template = ChatTemplate(tokenizer)
        self.reasoning = Reasoning.of(tokenizer) if self.has_template else None
        self._markup = self.reasoning  # with the markers of tool calls, if there are tools

    def at(self, clock: datetime) -> Self:
        """A copy that prints this time."""
        _ = self._control  # compute it once for all copies
        other = copy.copy(self)
        other.clock = clock
        return other

    def with_tools(self, tools: Sequence[Tool]) -> Self:
        """A copy that tells the model of these tools alone.

        Raises:
            ConfigError: this model has no chat template that takes tools, or mlx-lm has no parser of its calls.
        """
        tools = tuple(tools)
        if tools == self.tools:
            return self
        template = ChatTemplate(self.tokenizer, [tool.schema for tool in tools])
        if tools and not (self.has_template and template.takes_tools):
            raise ConfigError("This model's chat template takes no tools; leave them out, or use another model.")
        if tools and not self.tokenizer.has_tool_calling:
            raise ConfigError("mlx-lm has no parser of this model's tool calls; leave tools out, or use another model.")
        _ = self._control  # as in `at`
        other = copy.copy(self)
        other.tools, other._template = tools, template
        other._markup = Reasoning.of(self.tokenizer, with_tools=True) if tools else self.reasoning
        if template.source != self._template.source:  # another one for tools
            del other._control
        return other

    @property
    def has_template(self) -> bool:
        return bool(self.tokenizer.has_chat_template)

    @property
    def can_call_tools(self) -> bool:
        """Whether `with_tools` takes tools."""
        has_place = self.has_template and ChatTemplate(self.tokenizer, [{}]).takes_tools
        return has_place and bool(self.tokenizer.has_tool_calling)

    @property
    def shows_calls(self) -> bool:
        """Whether the template renders tool calls of earlier replies, and their results."""
        return self.has_template and self._template.shows_calls

    @property
    def prints_time(self) -> bool:
        """Whether the template prints the time."""
        return self.has_template and "strftime_now" in self._template.source

    @property
    def has_think_switch(self) -> bool:
        """Whether the template can turn reasoning on and off."""
        return self.has_template and self._template.think_switch is not None

    def think_notice(self, think: bool | None) -> str:
        """A sentence if this model cannot turn reasoning on or off as `think` says, else "". A model that never reasons
        can be told not to."""
        if think is None or self.has_think_switch or not (think or self.reasoning):
            return ""
        what = "on" if think else "off"
        return f"This model's chat template has no switch for reasoning: turning it {what} changes nothing."

    @cached_property
    def _control(self) -> ControlTokens:
        markers = [*(self.reasoning.markers if self.reasoning else ())]
        markers += filter(None, (self.tokenizer.tool_call_start, self.tokenizer.tool_call_end))
        source = self._template.source if self.has_template else ""
        return ControlTokens(self.tokenizer._tokenizer, source, markers)

    @cached_property
    def _has_no_system_role(self) -> bool:
        """Whether the template refuses or drops a system prompt."""
        user = message("user", "x")
        try:
            without = self._template.render([user])
        except ModelError:
            return False
        try:
            a, b = (self._template.render([message("system", x), user], clock=self.clock) for x in ("0", "x"))
        except ModelError:
            return bool(without)
        return a == b

    def prompt(self, messages: Sequence[Message], before: PromptState, think: bool | None = None) -> PromptState:
        """Render and tokenize the next prompt.

        Args:
            messages: all of them; the last is the user's.
            before: the state of the last prompt and its reply.
            think: whether the model should reason first, if its template has a switch; None leaves it to the model.

        Raises:
            ModelError: the template refuses these messages.
        """
        if not self.has_template:
            return self._continued(messages, before)
        rendered = self._rendered(messages, think=think)
        same = common_prefix(rendered.text, before.text)
        cuts = before.all_cuts
        cuts = cuts[: bisect_right(cuts, (same, len(before.ids)))]
        chars, num_ids = cuts[-1] if cuts else (0, 0)
        kept = before.ids[:num_ids]
        return PromptState(rendered.text, kept + self._encode_from(rendered, chars, kept), cuts)

    def notices(self, messages: Sequence[Message], is_new: bool) -> Iterator[str]:
        """Sentences about limits of the template and tokenizer that affect `messages`, each once in a chat.

        Args:
            is_new: the last message is the first one with this model.
        """
        if is_new and not self.has_template:
            yield "This model has no chat template: the messages are passed as raw text, one after the other."
        elif is_new and messages[0]["role"] == "system" and self._has_no_system_role:
            yield "This model's chat template has no system role: the first message begins with the system prompt."
        find_in = self._control.find_in
        token = next(filter(None, map(find_in, messages if is_new else messages[-1:])), None)
        if token and not self._control.can_escape and (is_new or not any(map(find_in, messages[:-1]))):
            yield f"This model's tokenizer cannot encode {token} as text: in this chat it is a control token."

    def with_reply(self, prompt: PromptState, text: str, ids: Sequence[int]) -> PromptState:
        """`prompt` and its reply: `text` with all markers, `ids` as sampled, with an end-of-turn token."""
        if ids and ids[-1] in self.tokenizer.eos_token_ids:
            text += decode(self.tokenizer, ids[-1:])
        return PromptState(prompt.text + text, prompt.ids + ids, prompt.all_cuts)

    def chat_prefix(self, system: str | None, text: str) -> PromptState:
        """The prompt up to the first message's text after `text`; the rest is tokenized by itself.

        Raises:
            ModelError: the template refuses it.
        """
        text = before_question(text)
        if not self.has_template:
            whole = (f"{system}\n\n" if system else "") + text
            return PromptState(whole, TokenIds(self._encode_first(whole)))
        head = [message("system", system)] if system else []
        a, b = (self._rendered([*head, message("user", text + x)]) for x in ("0", "x"))
        shared = a.part(0, common_prefix(a.text, b.text))
        return PromptState(shared.text, TokenIds(self._control.encode(shared)))

    def num_unchanged(self, messages: Sequence[Message], prompt: PromptState, think: bool | None = None) -> int:
        """The number of ids of `prompt`, made of `messages`, that are unchanged in the next prompt.

        All of them, unless the template renders the beginning of a reply differently in history, for example strips
        reasoning. The next prompt rewinds the cache to there.
        """
        if not self.has_template:
            return len(prompt.ids)
        same, whole = len(prompt.text) - self._num_rewritten(messages, prompt.text, think), Rendered(prompt.text)
        if any(map(self._control.find_in, messages)):
            whole = self._rendered(messages, think=think)
        lost = self._control.encode(whole.part(same))
        start = len(prompt.ids) - len(lost)
        if start >= 0 and list(prompt.ids[start:]) == lost:
            return start
        chars, num_ids = next((cut for cut in reversed(prompt.cuts) if cut[0] <= same), (0, 0))
        before = prompt.ids[:num_ids]
        kept = [*before, *self._encode_from(whole.part(0, same), chars, before)]  # they differ within a token
        return next((i for i, (a, b) in enumerate(zip(kept, prompt.ids, strict=False)) if a != b), len(kept))

    def _num_rewritten(self, messages: Sequence[Message], text: str, think: bool | None) -> int:
        """The number of characters at the end of `text`, the prompt of `messages`, that differ in history.

        Renders the last message alone if that ends the same way, so that a long chat is not rendered again.
        """
        ends = [*(m for m in messages[:1] if m["role"] == "system"), messages[-1]]
        for some in (ends, messages) if messages[-1]["role"] == "user" else (messages,):
            alone = text if some is messages else self.render(some, think=think)
            later = self.render([*some, message("assistant", "x"), message("user", "x")], think=think)
            end = alone[common_prefix(alone, later) :]
            if text.endswith(end) and len(end) < len(alone):
                return len(end)
        return len(text)

    def reader(self, prompt: PromptState, stop: Sequence[str] = (), num_calls: int = 0) -> ReplyText:
        """A parser for the reply to `prompt`, which `num_calls` tool calls precede."""
        markup, before = self._markup, None if self.has_template else prompt.ids
        state = markup.state_after(prompt.text) if markup else "text"

        def parse(text: str, num_before: int) -> tuple[ToolCall, ...] | None:
            return parse_calls(self.tokenizer, text, self.tools, num_calls + num_before)

        closing = self._closing_ids if self.reasoning is not None and self.reasoning.closing_text else None
        return ReplyText(self.tokenizer, stop, markup, state, before, parse if self.tools else None, closing)

    def _closing_ids(self, before: Sequence[int], *, is_bare: bool) -> list[int]:
        """The ids that end the reasoning after the ids `before`; `is_bare`: without blanks after the marker."""
        text = self._closing_text
        return encode_after(self.tokenizer, before, text.rstrip() if is_bare else text)

    @cached_property
    def _closing_text(self) -> str:
        """What ends the reasoning, with the line ends that the template writes around the marker."""
        assert self.reasoning is not None  # `reader` asks it
        usual, marker = self.reasoning.closing_text, self.reasoning.closing
        asked, (text, thinking) = message("user", "0"), ("0x0TEXT0x0", "0x0REASONING0x0")
        if not marker:
            return usual
        try:
            whole = self.render([asked, message("assistant", text, thinking)], for_reply=False)
        except ModelError:
            return usual
        between = whole.rpartition(thinking)[2].partition(text)[0]
        return between if thinking in whole and between.strip() == marker else usual

    def raw(self, text: str, ids: Sequence[int]) -> str:
        """A reply with its markers, for `with_reply`, from its displayed text and its ids."""
        return raw_text(self.tokenizer, ids) if self._markup or self.tokenizer.has_tool_calling else text

    def begun(self, prompt: PromptState, text: str) -> tuple[int, ...]:
        """The ids of a reply to `prompt` that begins with `text`, with the markers before it.

        A prompt that has begun the reasoning is answered without any.
        """
        markup = self._markup
        marker = self.encode(markup.before_text(markup.state_after(prompt.text))) if markup else []
        return (*marker, *self.encode_text(text, [*prompt.ids, *marker]))

    def displayed_ids(self, text: str, ids: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
        """The ids of a reply without the stop string that ended it, after the ids `before`; for models without a
        template. As sampled, unless the stop string begins within a token."""
        kept, rest = ids_of_text(self.tokenizer, text, ids, before)
        return (*kept, *(self.encode_after((*before, *kept), rest) if rest else ()))

    def render(self, messages: Sequence[Message], *, for_reply: bool = True, think: bool | None = None) -> str:
        """Render `messages`.

        Raises:
            ModelError: the template refuses these messages, also with the system prompt moved into the first message.
        """
        return self._rendered(messages, for_reply=for_reply, think=think).text

    def _rendered(self, messages: Sequence[Message], *, for_reply: bool = True, think: bool | None = None) -> Rendered:
        told = {"role": "", "tools": [tool.schema for tool in self.tools]}
        (told, *apart), mark = self._control.marked([told, *messages])
        moved = _without_system_role(apart)
        if moved != apart and self._has_no_system_role:
            apart = moved
        try:
            text = self._template.render(apart, for_reply=for_reply, think=think, clock=self.clock, tools=told["tools"])
        except ModelError:
            if moved == apart:
                raise
            text = self._template.render(moved, for_reply=for_reply, think=think, clock=self.clock, tools=told["tools"])
        return Rendered.of(text, mark)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which all control tokens are special, without BOS and EOS."""
        return encode(self.tokenizer, text)

    def _encode_from(self, rendered: Rendered, chars: int, before: Sequence[int]) -> list[int]:
        """Ids of the rendered text from `chars` on, encoded after the last of the ids `before` it."""
        rest = rendered.part(chars)
        if not before:
            return self._control.encode(rest)
        last = decode(self.tokenizer, before[-1:])
        if rendered.text.endswith(last, 0, chars):
            both = self._control.encode(rendered.part(chars - len(last)))
            if both[:1] == [before[-1]]:
                return both[1:]
        return encode_after(
            self.tokenizer, before, rest.text, lambda mark: self._control.encode(rest.with_prefix(mark))
        )

    def encode_raw(self, text: str) -> list[int]:
        """Ids of raw text with the BOS token; control tokens in it are special, as in mlx-lm."""
        return encode_start(self.tokenizer, text)

    def encode_after(self, before: Sequence[int], text: str) -> list[int]:
        """Ids of raw text that follows the ids `before`; as `encode_raw` if there are none."""
        return encode_after(self.tokenizer, before, text) if before else self.encode_raw(text)

    def encode_text(self, text: str, before: Sequence[int] = ()) -> list[int]:
        """Ids of a message's text, in which nothing is special, after the ids `before`."""
        return self._control.encode_text(text, before)

    def _encode_first(self, text: str) -> list[int]:
        """`encode_text` with the BOS token."""
        full, bare = self.encode_raw("0"), self.encode("0")
        return [*full[: len(full) - len(bare)], *self.encode_text(text)]

    def num_tokens(self, messages: Sequence[Message]) -> int:
        """The number of tokens of these messages: of the prompt for a reply if the last one is not a reply."""
        if not self.has_template:
            return len(self._continued(messages, PromptState()).ids)
        return len(self._control.encode(self._rendered(messages, for_reply=messages[-1]["role"] != "assistant")))

    def num_system_tokens(self, system: str | None) -> int:
        """The number of tokens before the first message of a chat with this system prompt, or without one; a template
        may add its own, such as a date or a default system prompt."""
        if not self.has_template:
            return len(self._encode_first(system + "\n\n")) if system else 0
        head = [message("system", system)] if system else []
        try:
            a, b = (self._control.encode(self._rendered([*head, message("user", x)])) for x in ("0", "x"))
        except ModelError:
            return 0  # the first message reports the error
        common = common_prefix(a, b)
        if system and self._has_no_system_role:
            return common
        try:
            if not system:  # without the header of the first message
                return min(common, common_prefix(a, self.encode(self.render([message("assistant", "0")]))))
            without = self._rendered(head, for_reply=False)
        except ModelError:
            return common
        if system.strip() not in without.text:  # it is rendered with the first message, as in Gemma's template
            return common
        # Without a user message the text ends before that message's header, which need not be pinned.
        alone = self._control.encode(without)
        return len(alone) if alone == a[: len(alone)] and len(alone) <= common else common

    def has_text(self, ids: Sequence[int]) -> bool:
        """Whether these ids are more than marks, such as the BOS token, and blanks."""
        marks = set(self.tokenizer.get_added_vocab().values())
        return bool(decode(self.tokenizer, [i for i in ids if i not in marks]).strip())

    def _continued(self, messages: Sequence[Message], before: PromptState) -> PromptState:
        text = "".join(m["content"] + ("\n\n" if m["role"] == "system" else "") for m in messages)
        if not before.ids:
            return PromptState(text, TokenIds(self._encode_first(text)))
        is_first = len(messages) < 3 and before.text and text.startswith(before.text)  # after a `chat_prefix`
        new = text[len(before.text) :] if is_first else messages[-1]["content"]
        return PromptState(before.text + new, before.ids + self.encode_text(new, before.ids))


def before_question(text: str) -> str:
    """`text` before a question."""
    return f"{text}\n\n" if text else ""


def check_ids(ids: Sequence[int], args: Any) -> tuple[int, ...]:
    """Check token ids for a model with these arguments.

    Raises:
        PromptError: there are none, or one is not in the vocabulary; the message names it.
    """
    size = getattr(args, "vocab_size", None) or 1 << 31
    found = []
    for i, token in enumerate(ids):
        try:
            found.append(whole("token", token, 0, size - 1))
        except ConfigError:
            raise PromptError(
                f"Token {i} of the prompt is {shown(token)}; it must be a whole number below {size:,}."
            ) from None
    if not found:
        raise PromptError("There are no token ids to prefill; give some.")
    return tuple(found)


def message(role: str, text: str, thinking: str = "") -> Message:
    """A message for templates, which call reasoning by one of two names."""
    if thinking:
        return {"role": role, "content": text, "reasoning_content": thinking, "thinking": thinking}
    return {"role": role, "content": text}


def _without_system_role(messages: Sequence[Message]) -> list[Message]:
    """Messages for templates without a system role: the first message begins with the system prompt."""
    if not messages or messages[0]["role"] != "system" or len(messages) < 2:
        return list(messages)
    first = messages[1]
    return [{**first, "content": messages[0]["content"] + "\n\n" + first["content"]}, *messages[2:]]
