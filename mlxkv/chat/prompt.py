"""From messages to token ids: the chat template, and the splice that keeps ids the model really generated.

A reply's text, tokenized again, need not give the ids that were sampled. So where the template's text goes on exactly
from what was fed and generated before, only the new end is tokenized; where it does not (a template that rewrites
history, as those do that strip reasoning), what follows the last place that stayed. Control tokens that a message
spells are text (`control_tokens`). Pure but for the tokenizer; no MLX.
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
from mlxkv.errors import ConfigError, ModelError, PromptError
from mlxkv.inference.reply_parser import Reasoning, ReplyText, ids_of_text, raw_text
from mlxkv.token_ids import TokenIds, common_prefix
from mlxkv.tokenizer.chat_template import ChatTemplate
from mlxkv.tokenizer.control_tokens import ControlTokens, Rendered
from mlxkv.tokenizer.tokens import decode, encode, encode_after, encode_start

Message = dict[str, str]  # {"role": ..., "content": ...}, as chat templates take it


@dataclass(frozen=True)
class PromptState:
    """What a prompt and its reply came to: `text` as the template words it, `ids` as they were fed and sampled.

    `cuts`: places (characters, ids) before the end where the two belong together: a prompt or a reply ends there.
    """

    text: str = ""
    ids: TokenIds = field(default_factory=TokenIds)
    cuts: tuple[tuple[int, int], ...] = ()

    @property
    def all_cuts(self) -> tuple[tuple[int, int], ...]:
        """`cuts` and the end."""
        return (*self.cuts, (len(self.text), len(self.ids))) if self.text else self.cuts


class PromptFormat:
    """A tokenizer's chat template; without one, the texts of a chat simply continue each other.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.

    Attributes:
        clock: the time that the template prints; None: now.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.clock: datetime | None = None
        self._template = ChatTemplate(tokenizer)
        self.reasoning = Reasoning.of(tokenizer) if self.has_template else None

    def at(self, clock: datetime) -> Self:
        """The same at that time."""
        _ = self._control  # made once, for all of them
        other = copy.copy(self)
        other.clock = clock
        return other

    @property
    def has_template(self) -> bool:
        return bool(self.tokenizer.has_chat_template)

    @property
    def prints_time(self) -> bool:
        """Whether the template asks for it."""
        return self.has_template and "strftime_now" in self._template.source

    @property
    def has_think_switch(self) -> bool:
        """Whether the template lets reasoning be turned on and off."""
        return self.has_template and self._template.think_switch is not None

    def think_notice(self, think: bool | None) -> str:
        """Says that telling this model to reason, or not to, changes nothing; "" where it does, or where a model that
        never reasons is told not to."""
        if think is None or self.has_think_switch or not (think or self.reasoning):
            return ""
        what = "on" if think else "off"
        return f"This model's chat template has no switch for reasoning: turning it {what} changes nothing."

    @cached_property
    def _control(self) -> ControlTokens:
        markers = self.reasoning.markers if self.reasoning else ()
        source = self._template.source if self.has_template else ""
        return ControlTokens(self.tokenizer._tokenizer, source, markers)

    @cached_property
    def _has_no_system_role(self) -> bool:
        """Whether the template refuses a system prompt that it could do without, or leaves it out."""
        user = _message("user", "x")
        try:
            without = self._template.render([user])
        except ModelError:
            return False
        try:
            a, b = (self._template.render([_message("system", x), user], clock=self.clock) for x in ("0", "x"))
        except ModelError:
            return bool(without)
        return a == b

    def prompt(self, messages: Sequence[Message], fed: PromptState, think: bool | None = None) -> PromptState:
        """The next prompt: `messages` end with the user's, `fed` is all that came before.

        Args:
            think: whether the model shall reason first, where its template knows of that; None leaves it to the model.

        Raises:
            ModelError: the template refuses these messages.
        """
        if not self.has_template:
            return self._continued(messages, fed)
        rendered = self._rendered(messages, think=think)
        same = common_prefix(rendered.text, fed.text)
        cuts = fed.all_cuts
        cuts = cuts[: bisect_right(cuts, (same, len(fed.ids)))]
        chars, num_ids = cuts[-1] if cuts else (0, 0)
        return PromptState(
            rendered.text, fed.ids[:num_ids] + self._encode_from(rendered, chars, fed.ids[:num_ids]), cuts
        )

    def notices(self, messages: Sequence[Message], is_new: bool) -> Iterator[str]:
        """What to tell of this model's template and tokenizer, each once: `messages` end with what is said now.

        Args:
            is_new: nothing was said in this chat before, or with another model.
        """
        if is_new and not self.has_template:
            yield "This model has no chat template: the messages reach it as raw text, one after the other."
        elif is_new and messages[0]["role"] == "system" and self._has_no_system_role:
            yield "This model's chat template has no place for a system prompt: the first message begins with it."
        spelled_in = self._control.spelled_in
        token = next(filter(None, map(spelled_in, messages if is_new else messages[-1:])), None)
        if token and not self._control.can_tell and (is_new or not any(map(spelled_in, messages[:-1]))):
            yield f"This model's tokenizer cannot read {token} as text: in this chat it is a control token."

    def with_reply(self, prompt: PromptState, text: str, ids: Sequence[int]) -> PromptState:
        """`prompt` with the reply: its `text` with all markers, its `ids` as sampled, an end-of-turn token included."""
        if ids and ids[-1] in self.tokenizer.eos_token_ids:
            text += decode(self.tokenizer, ids[-1:])
        return PromptState(prompt.text + text, prompt.ids + ids, prompt.all_cuts)

    def chat_prefix(self, system: str | None, text: str) -> PromptState:
        """A chat up to where its first message goes on after `text`; what is said next is tokenized by itself.

        Raises:
            ModelError: the template refuses it.
        """
        text = in_front(text)
        if not self.has_template:
            whole = (f"{system}\n\n" if system else "") + text
            return PromptState(whole, TokenIds(self._start(whole)))
        head = [_message("system", system)] if system else []
        a, b = (self._rendered([*head, _message("user", text + x)]) for x in ("0", "x"))
        shared = a.part(0, common_prefix(a.text, b.text))
        return PromptState(shared.text, TokenIds(self._control.encode(shared)))

    def num_lasting(self, messages: Sequence[Message], prompt: PromptState, think: bool | None = None) -> int:
        """How many ids of `prompt`, made of `messages`, stay what they are once there is a reply and a next message.

        All of them, unless the template words a reply's beginning otherwise in history, as those do that strip
        reasoning. To there a rewritten history goes back.
        """
        if not self.has_template:
            return len(prompt.ids)
        same, whole = len(prompt.text) - self._num_reworded(messages, prompt.text, think), Rendered(prompt.text)
        if any(map(self._control.spelled_in, messages)):
            whole = self._rendered(messages, think=think)
        lost = self._control.encode(whole.part(same))
        start = len(prompt.ids) - len(lost)
        if start >= 0 and list(prompt.ids[start:]) == lost:
            return start
        chars, num_ids = next((cut for cut in reversed(prompt.cuts) if cut[0] <= same), (0, 0))
        before = prompt.ids[:num_ids]
        kept = [*before, *self._encode_from(whole.part(0, same), chars, before)]  # the difference is within a token
        return next((i for i, (a, b) in enumerate(zip(kept, prompt.ids, strict=False)) if a != b), len(kept))

    def _num_reworded(self, messages: Sequence[Message], text: str, think: bool | None) -> int:
        """Characters at the end of `text`, the prompt of `messages`, that history has otherwise.

        A chat of the last message alone tells, so that a long one is not rendered again, if both end alike.
        """
        for some in (_ends(messages), messages):
            alone = text if some is messages else self.render(some, think=think)
            later = self.render([*some, _message("assistant", "x"), _message("user", "x")], think=think)
            end = alone[common_prefix(alone, later) :]
            if text.endswith(end) and len(end) < len(alone):
                return len(end)
        return len(text)

    def reader(self, prompt: PromptState, stop: Sequence[str] = ()) -> ReplyText:
        """For the reply to `prompt`: ids to text, with the reasoning told apart."""
        state = self.reasoning.after(prompt.text) if self.reasoning else "text"
        return ReplyText(self.tokenizer, stop, self.reasoning, state, None if self.has_template else prompt.ids)

    def raw(self, text: str, ids: Sequence[int]) -> str:
        """A reply with its markers, as `replied` wants it, from what is shown of it and its ids."""
        return raw_text(self.tokenizer, ids) if self.reasoning else text

    def shown(self, text: str, ids: Sequence[int], before: Sequence[int]) -> tuple[int, ...]:
        """The ids of a reply that a stop string ended, without that: as sampled, but for a token it began within. Where
        there is no template: it continues the ids `before`."""
        kept, rest = ids_of_text(self.tokenizer, text, ids, before)
        return (*kept, *(self.encode_after((*before, *kept), rest) if rest else ()))

    def render(self, messages: Sequence[Message], *, for_reply: bool = True, think: bool | None = None) -> str:
        """The template's text.

        Raises:
            ModelError: the template refuses these messages, also with the system prompt moved into the first message.
        """
        return self._rendered(messages, for_reply=for_reply, think=think).text

    def _rendered(self, messages: Sequence[Message], *, for_reply: bool = True, think: bool | None = None) -> Rendered:
        apart, mark = self._control.marked(messages)
        moved = _without_system_role(apart)
        if moved != apart and self._has_no_system_role:
            apart = moved
        try:
            text = self._template.render(apart, for_reply=for_reply, think=think, clock=self.clock)
        except ModelError:
            if moved == apart:
                raise
            text = self._template.render(moved, for_reply=for_reply, think=think, clock=self.clock)
        return Rendered.of(text, mark)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, in which control tokens are special wherever they stand, and without the tokenizer's own."""
        return encode(self.tokenizer, text)

    def _encode_from(self, rendered: Rendered, chars: int, before: Sequence[int]) -> list[int]:
        """Ids of the template's text from `chars` on, which follows `before`: those that the tokenizer gives it behind
        the last of these."""
        rest = rendered.part(chars)
        if not before:
            return self._control.encode(rest)
        last = decode(self.tokenizer, before[-1:])
        if rendered.text.endswith(last, 0, chars):
            both = self._control.encode(rendered.part(chars - len(last)))
            if both[:1] == [before[-1]]:
                return both[1:]
        return encode_after(self.tokenizer, before, rest.text, lambda mark: self._control.encode(rest.behind(mark)))

    def encode_raw(self, text: str) -> list[int]:
        """Ids of plain text, with the tokenizer's own beginning; it may name special tokens, as with mlx-lm."""
        return encode_start(self.tokenizer, text)

    def encode_after(self, before: Sequence[int], text: str) -> list[int]:
        """Ids of plain text that follows the ids `before`; as `encode_raw` where there are none."""
        return encode_after(self.tokenizer, before, text) if before else self.encode_raw(text)

    def continued(self, held: Sequence[int], text: str) -> list[int]:
        """The ids of raw `text` for a cache that holds `held`: the whole prompt where it begins with all of that, as
        ids or as text (a last word may be cut into other tokens than it was alone); else a continuation of `held`."""
        whole = self.encode_raw(text)
        if not held or common_prefix(held, whole) == len(held) or self._begins_with(text, held):
            return whole
        return [*held, *self.encode_after(held, text)]

    def _begins_with(self, text: str, held: Sequence[int]) -> bool:
        if min(held) < 0:  # an imported cache's tokens have no ids
            return False
        bos = self.tokenizer.bos_token or ""
        ends = self.tokenizer.eos_token_ids
        ids = list(held[: len(held) - (held[-1] in ends)])  # a reply that ended, after which the text continues
        said = [decode(self.tokenizer, part).removeprefix(bos).rstrip("\ufffd") for part in (ids[:16], ids)]
        return all(x and text.startswith(x) for x in said)

    def encode_text(self, text: str, before: Sequence[int] = ()) -> list[int]:
        """Ids of what somebody wrote: nothing in it is special. `before`: what it follows."""
        return self._control.encode_text(text, before)

    def _start(self, text: str) -> list[int]:
        """`encode_text`, with the tokenizer's own beginning."""
        own, bare = self.encode_raw("0"), self.encode("0")
        return [*own[: len(own) - len(bare)], *self.encode_text(text)]

    def num_system_tokens(self, system: str | None) -> int:
        """Tokens at the front of every prompt of a chat with this system prompt, or without one: also what the template
        itself puts before the first message, such as a date or a system prompt of its own."""
        if not self.has_template:
            return len(self._start(system + "\n\n")) if system else 0
        head = [_message("system", system)] if system else []
        try:
            a, b = (self._control.encode(self._rendered([*head, _message("user", x)])) for x in ("0", "x"))
        except ModelError:
            return 0  # the first message says why
        common = common_prefix(a, b)
        if system and self._has_no_system_role:
            return common
        try:
            if not system:  # the user's header may follow what stands in front, or the assistant's
                return min(common, common_prefix(a, self.encode(self.render([_message("assistant", "0")]))))
            without = self._rendered(head, for_reply=False)
        except ModelError:
            return common
        if system.strip() not in without.text:  # it comes with the first message, as in Gemma's template
            return common
        # Without a user's turn the text ends before the header of that turn, which need not be pinned.
        alone = self._control.encode(without)
        return len(alone) if alone == a[: len(alone)] and len(alone) <= common else common

    def _continued(self, messages: Sequence[Message], fed: PromptState) -> PromptState:
        text = "".join(m["content"] + ("\n\n" if m["role"] == "system" else "") for m in messages)
        if not fed.ids:
            return PromptState(text, TokenIds(self._start(text)))
        goes_on = len(messages) < 3 and fed.text and text.startswith(fed.text)  # from an opening
        new = text[len(fed.text) :] if goes_on else messages[-1]["content"]
        return PromptState(fed.text + new, fed.ids + self.encode_text(new, fed.ids))


def in_front(text: str) -> str:
    """`text` as it stands before a question."""
    return f"{text}\n\n" if text else ""


def checked_ids(ids: Sequence[int], args: Any) -> tuple[int, ...]:
    """Token ids that a model with these arguments can be fed.

    Raises:
        PromptError: there are none, or one is not of its vocabulary; the message names it.
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
    """A message for templates; each calls reasoning by one of two names."""
    if thinking:
        return {"role": role, "content": text, "reasoning_content": thinking, "thinking": thinking}
    return {"role": role, "content": text}


def _ends(messages: Sequence[Message]) -> list[Message]:
    """The system prompt and the last message."""
    return [*(m for m in messages[:1] if m["role"] == "system"), messages[-1]]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _without_system_role(messages: Sequence[Message]) -> list[Message]:
    """For templates that know no system role: its text goes to the front of the first message."""
    if not messages or messages[0]["role"] != "system" or len(messages) < 2:
        return list(messages)
    first = messages[1]
    return [_message(first["role"], messages[0]["content"] + "\n\n" + first["content"]), *messages[2:]]
