"""ReplyText: sampled ids to text, reasoning and tool calls, without the markers between them, up to a stop string.

Knows how models mark these, but no caches or messages. On the MLX thread.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlxkv.events import ToolCall
from mlxkv.token_ids import common_prefix
from mlxkv.tokenizer.tokens import Detokenizer

State = Literal["start", "thinking", "text", "tool", "hidden", "implied"]
"""`start`: nothing visible yet. `tool`: in a tool call. `hidden`: a header between markers. `implied`, only beside a
piece: all text so far was reasoning, since a closing marker came without an opening one."""

Edges = Mapping[State, tuple[tuple[str, State], ...]]

_HARMONY: Edges = {  # gpt-oss: a reply is a list of messages, each in a channel
    "hidden": (
        ("<|channel|>analysis<|message|>", "thinking"),
        ("<|channel|>final<|message|>", "text"),
        ("<|message|>", "text"),  # any other channel
    ),
    "thinking": (("<|end|>", "hidden"),),
    "text": (("<|end|>", "hidden"),),
}
_TO_FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>"
_PAIRS = (("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"))  # Mistral's and Seed's, unknown to mlx-lm
_QUOTING = " \t\"'`(<[*\u201c\u2018"  # before a marker in the middle of a line: it is quoted
_NAMES: dict[str, State] = {"normal": "text", "reasoning": "thinking", "tool": "text"}  # mlx-lm's states


@dataclass(frozen=True)
class Reasoning:
    """Markers of a model's reasoning and of tool calls, and the states they lead to, by state."""

    edges: Edges
    initial: State = "start"
    opening: str | None = None  # the marker; a prompt that ends with it has begun the reasoning
    closing: str | None = None  # its counterpart, if they come in pairs

    @classmethod
    def of(cls, tokenizer: Any, *, with_tools: bool = False) -> Reasoning | None:
        """The markers that mlx-lm's wrapper finds in the tokenizer, or one of `_PAIRS`; None if there are none.

        `with_tools`: those of tool calls, too; else a call is text.
        """
        if transitions := tokenizer.response_transitions:
            own: dict[str, State] = {"tool": "tool"} if with_tools else {}
            names = _NAMES | own
            edges: Edges = {
                _state(s, names): tuple((m, _state(to, names)) for m, to in pairs) for s, pairs in transitions.items()
            }
            return cls(edges, _state(tokenizer.response_initial_state or "normal", names))
        found = cls._of_reasoning(tokenizer)
        return cls._with_tools(tokenizer, found) if with_tools and tokenizer.has_tool_calling else found

    @classmethod
    def _with_tools(cls, tokenizer: Any, found: Reasoning | None) -> Reasoning:
        begin, end = tokenizer.tool_call_start, tokenizer.tool_call_end
        found = found or cls({"text": ()}, "text")
        edges = {
            state: (*pairs, (begin, "tool")) if state != "thinking" else pairs for state, pairs in found.edges.items()
        }
        ends: tuple[tuple[str, State], ...] = ((end, "text"),) if end else ()  # Mistral's lasts to the end of the reply
        return replace(found, edges={**edges, "tool": ends})

    @classmethod
    def _of_reasoning(cls, tokenizer: Any) -> Reasoning | None:
        vocab = tokenizer.get_vocab()
        pair = next((pair for pair in _PAIRS if all(marker in vocab for marker in pair)), None)
        if tokenizer.has_thinking:
            pair = tokenizer.think_start, tokenizer.think_end
        if pair is not None:
            begin, end = pair
            unseen: tuple[tuple[str, State], ...] = tuple((m, "text") for m in tokenizer.structural_markers)
            pairs: Edges = {
                "start": ((begin, "thinking"), (end, "text"), *unseen),
                "thinking": ((end, "text"), (begin, "thinking")),
                "text": ((begin, "thinking"), (end, "text"), *unseen),
            }
            return cls(pairs, "start", begin, end)
        if all(marker in vocab for marker in ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")):
            return cls(_HARMONY, "hidden")
        return None

    @property
    def markers(self) -> Iterator[str]:
        """All markers."""
        return (marker for edges in self.edges.values() for marker, _ in edges)

    def state_after(self, prompt: str) -> State:
        """The state in which a reply to this prompt begins: some templates open the reasoning."""
        return "thinking" if self.opening and prompt.rstrip().endswith(self.opening) else self.initial

    @property
    def closing_text(self) -> str:
        """What a model writes to end its reasoning and begin its answer, where no template shows it; "": unknown."""
        if self.edges is _HARMONY:
            return _TO_FINAL
        closing = self.closing or next((marker for marker, to in self.edges.get("thinking", ()) if to == "text"), "")
        return f"\n{closing}\n\n" if closing.startswith("</") else closing

    def before_text(self, state: State) -> str:
        """What a reply that is in this state writes before its text."""
        if state == "thinking" and self.closing:
            return f"{self.closing}\n\n"
        markers = self.edges.get(state, ()) if state == "hidden" else ()
        return next((marker for marker, to in markers if to == "text"), "")


class StopStrings:
    """Holds back text that may be the start of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.held = ""
        self.hit = False

    def feed(self, text: str) -> str:
        """The text that is safe to show now; nothing more once `hit`."""
        if self.hit:
            return ""
        if not self.stops:
            return text
        text, self.held = self.held + text, ""
        starts = [i for stop in self.stops if (i := text.find(stop)) >= 0]
        if starts:
            self.hit = True
            return text[: min(starts)]
        keep = _beginning(text, self.stops)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        held, self.held = self.held, ""
        return "" if self.hit else held


class ReasoningSplitter:
    """Separates reasoning from text that arrives in arbitrary pieces."""

    def __init__(self, reasoning: Reasoning, state: State) -> None:
        self._reasoning, self._edges = reasoning, reasoning.edges
        self.state: State = state
        self._held = self._seen = ""
        self.found = ""  # the last marker
        self._was_closed = False  # a closing marker was seen
        self._num_quoted = 0  # quoted opening markers without a closing one so far

    def feed(self, text: str) -> Iterator[tuple[State, str]]:
        """Yield the certain pieces with their states; a possible beginning of a marker is held back."""
        self._held += text
        while True:
            if self.state == "start" and not self._may_begin():
                self.state = "text"
            edges: tuple[tuple[str, State], ...] = self._edges.get(self.state, ())
            hits: list[tuple[int, int, str, State]] = [
                (at, -len(marker), marker, to) for marker, to in edges if (at := self._held.find(marker)) >= 0
            ]
            if not hits:
                break
            at, _, marker, to = min(hits)
            before, after, self.found = self._held[:at], at + len(marker), marker
            if self.state == "start":
                yield "hidden", ""  # only whitespace came before
            elif self._is_quoted(marker, self._seen + before):
                yield self.state, self._add_seen(self._held[:after])
                self._held = self._held[after:]
                continue
            else:
                yield self.state, self._add_seen(before)
                if self.state == "text" and marker == self._reasoning.closing and not self._was_closed:
                    yield "implied", ""
                yield "hidden", ""
            self._was_closed = self._was_closed or marker == self._reasoning.closing
            self._held, self.state = self._held[after:], to
        if self.state != "start":
            sure = len(self._held) - _beginning(self._held, [marker for marker, _ in edges])
            piece, self._held = self._held[:sure], self._held[sure:]
            yield self.state, self._add_seen(piece)

    @property
    def openings(self) -> tuple[str, ...]:
        """The markers that may come next and lead away from the text."""
        return tuple(marker for marker, to in self._edges.get(self.state, ()) if to in ("thinking", "hidden"))

    def rest(self, is_cut: bool) -> tuple[State, str]:
        """The text held back; "" if the reply was cut, since it may become a marker."""
        held, self._held = self._held, ""
        return self.state, "" if is_cut else held

    def _add_seen(self, piece: str) -> str:
        self._seen += piece
        return piece

    def _is_quoted(self, marker: str, before: str) -> bool:
        """Whether a marker is only quoted: in code, or within a line after whitespace or a quotation mark.

        Real ones are at the beginning of a line, or follow text directly.
        """
        opening, closing = self._reasoning.opening, self._reasoning.closing
        if closing is None or marker not in (opening, closing) or (self.state == "thinking" and marker == closing):
            return False
        line = before[before.rfind("\n") + 1 :]
        in_code = before.count("```") % 2 == 1 or line.count("`") % 2 == 1
        is_quoted = in_code or (bool(line.strip()) and (line[-1] in _QUOTING or self.state == "thinking"))
        if self.state == "text" and marker == opening:
            self._num_quoted += is_quoted
        elif self.state == "text" and self._num_quoted:
            self._num_quoted, is_quoted = self._num_quoted - 1, True
        return is_quoted

    def _may_begin(self) -> bool:
        """Whether the reply may still begin with a marker."""
        start = self._held.lstrip()
        return any(start.startswith(marker) or marker.startswith(start) for marker, _ in self._edges.get("start", ()))


class ReplyText:
    """One reply as it grows.

    Attributes:
        text, thinking: for display, without markers and without the blank lines around them.
        raw: everything decoded, except the end-of-turn token and an incomplete character at the end.
        ends: 0, then the end of each token in `raw`.
        restarts: earlier text is reasoning after all, and `new_pieces` returns it again; the caller resets this.
        tool_calls: the calls so far; what cannot be parsed is text.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
        stop: strings that end the text (not the reasoning) and are not part of it.
        reasoning: its markers; None takes everything as text.
        state: the first state; see `Reasoning.state_after`.
        before: the ids that the reply continues exactly; None for a separate message, from which the leading space of
            many tokenizers is removed.
        parse: reads the text between two markers of a tool call, given the number of calls before it; None if it is
            none.
        closing: makes the ids that end the reasoning after some ids, `is_bare` without blanks after the marker; None:
            unknown.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str] = (),
        reasoning: Reasoning | None = None,
        state: State = "text",
        before: Sequence[int] | None = None,
        parse: Callable[[str, int], tuple[ToolCall, ...] | None] | None = None,
        closing: Callable[..., list[int]] | None = None,
    ) -> None:
        self.closing = closing
        self.text = self.thinking = self.raw = ""
        self.tool_calls: tuple[ToolCall, ...] = ()
        self._parse, self._call = parse, ""
        self._call_start: str | None = None  # the marker of the call that `_call` holds
        self._last_marker = ""
        self._detokenizer = Detokenizer(tokenizer, before or ())
        self._is_trimmed = before is not None
        self._stops = StopStrings(stop)
        self._splitter = ReasoningSplitter(reasoning, state) if reasoning else None
        self._hidden = ""
        self._blank = ""  # whitespace at the end of the reasoning so far
        self._text_blank = ""  # and of the text, if a tool call may follow
        self.ends = [0]
        self._given = [0, 0]  # characters of text and of reasoning that `new_pieces` has returned
        self._in_span = False  # the last piece was reasoning
        self._follows_marker = False  # whitespace there is not part of the text
        self.restarts = False

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stops.hit

    def splitter(self) -> ReasoningSplitter | None:
        """A copy of what separates the reasoning, as it is now; None: everything is text."""
        return copy.copy(self._splitter)

    def add(self, token: int) -> None:
        """Add the next id; not an end-of-turn token."""
        self._take(self._detokenizer.add(token))
        self.ends.append(len(self.raw))

    def replay(self, ids: Sequence[int], text: str, thinking: str) -> None:
        """Add the ids of a reply to continue, whose `text` and `thinking` were shown; stop strings are ignored."""
        stops, self._stops = self._stops, StopStrings(())
        for token in ids:
            self.add(token)
        self._stops, self.restarts = stops, False
        self._given = [common_prefix(self.text, text), common_prefix(self.thinking, thinking)]

    def new_pieces(self) -> list[tuple[bool, str]]:
        """The pieces since the last call: whether each is reasoning, and its text."""
        given, self._given = self._given, [len(self.text), len(self.thinking)]
        pieces = ((True, self.thinking[given[1] :]), (False, self.text[given[0] :]))
        return [piece for piece in pieces if piece[1]]

    def num_tokens_of(self, text: str) -> int:
        """The number of tokens that end within the prefix `text`; not for replies with reasoning."""
        count = bisect_left(self.ends, len(text))
        return count if count < len(self.ends) and self.ends[count] == len(text) else count - 1

    def finish(self, is_cut: bool = False) -> None:
        """End the reply: release text that was held back.

        Args:
            is_cut: the reply may be continued, so part of a marker stays hidden: it could not be withdrawn.
        """
        segment = self._detokenizer.finish()
        self._take(segment.rstrip("\N{REPLACEMENT CHARACTER}") if is_cut else segment)
        if self._splitter is not None:
            self._show(*self._splitter.rest(is_cut))
        if self._call_start is not None:
            self._end_call("")
        self.text += self._stops.feed(self._text_blank) + self._stops.rest()
        self._text_blank = ""
        if not (self.text or self.thinking or self.tool_calls) and "<|" not in self._hidden:
            self.text = self._hidden.strip()  # it was not a header

    def _take(self, segment: str) -> None:
        if segment and not self._is_trimmed:
            segment, self._is_trimmed = segment.removeprefix(" "), True
        self.raw += segment
        if self._splitter is None:
            self.text += self._stops.feed(segment)
            return
        for state, piece in self._splitter.feed(segment):
            self._show(state, piece)

    def _end_call(self, end: str) -> None:
        """End the tool call, at its marker `end`; one that cannot be parsed is text."""
        self._follows_marker = True
        call, start, blank = self._call, self._call_start, self._text_blank
        self._call, self._call_start, self._text_blank = "", None, ""
        found = self._parse(call, len(self.tool_calls)) if self._parse else None
        if found is None:
            self.text += self._stops.feed(f"{blank}{start}{call}{end}")
            self._follows_marker = False
        else:
            self.tool_calls += found

    def _show(self, state: State, piece: str) -> None:
        if state == "tool":
            self._call_start = self._last_marker if self._call_start is None else self._call_start
            self._call += piece
            return
        if self._splitter is not None and state == "hidden":
            self._last_marker = self._splitter.found
            if self._call_start is not None:
                self._end_call(self._last_marker)
                self._in_span = False
                return
        if state == "implied":
            self.thinking, self.text, self._stops.held = (self.text + self._stops.held).strip(), "", ""
            self._given, self.restarts = [0, 0], True  # it was returned as text
        elif state == "hidden":
            self._hidden += piece
            self._follows_marker, self._in_span = True, False
        elif state == "thinking":
            if not self._in_span and self.thinking:
                piece = piece.lstrip()
                self._blank = "\n\n"  # between two spans of reasoning
            self._in_span = self._in_span or bool(piece)
            self._follows_marker = True
            piece = self._blank + piece if self.thinking else piece.lstrip()
            kept = piece.rstrip()
            self.thinking, self._blank = self.thinking + kept, piece[len(kept) :]
        else:
            if self._follows_marker:
                piece = piece.lstrip()
                self._follows_marker = not piece
            if self._parse is not None:
                piece = self._text_blank + piece
                self._text_blank = piece[len(piece.rstrip()) :]
                piece = piece.rstrip()
            self.text += self._stops.feed(piece)


def raw_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """`ReplyText.raw` of these ids, without an end-of-turn token at their end."""
    reply = ReplyText(tokenizer)
    has_ended = bool(ids) and ids[-1] in tokenizer.eos_token_ids
    for token in ids[:-1] if has_ended else ids:
        reply.add(token)
    reply.finish(is_cut=not has_ended)
    return reply.raw


def ids_of_text(tokenizer: Any, text: str, ids: Sequence[int], before: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """The ids of a reply before its stop string, and the rest of its `text`. The reply follows the ids `before`
    and has no reasoning."""
    reply = ReplyText(tokenizer, before=before)
    for token in ids:
        reply.add(token)
    count = reply.num_tokens_of(text)
    return tuple(ids[:count]), text[reply.ends[count] :]


def _state(name: str, names: Mapping[str, State]) -> State:
    return names.get(name, "hidden")


def _beginning(text: str, markers: Sequence[str]) -> int:
    """The length of the longest suffix of `text` that is a prefix of a marker."""
    return max(
        (n for marker in markers for n in range(1, min(len(marker), len(text) + 1)) if text.endswith(marker[:n])),
        default=0,
    )
