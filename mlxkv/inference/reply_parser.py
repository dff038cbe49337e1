"""From sampled ids to what is shown of a reply: text, with the model's reasoning told apart and markers left out.

Knows how models mark their reasoning, and stop strings; nothing of caches or messages. On the MLX thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlxkv.token_ids import common_prefix
from mlxkv.tokenizer.tokens import Detokenizer

State = Literal["start", "thinking", "text", "hidden", "implied"]
"""`start`: nothing visible was said yet. `hidden`: a header between markers. `implied`: not a state of the reply but a
remark about it: all the text so far was reasoning, for its end has come and its beginning never did."""

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
_TALKING = " \t\"'`(<[*\u201c\u2018"  # before a marker in the middle of a line: it is talked about
_NAMES: Mapping[str, State] = {"normal": "text", "reasoning": "thinking", "tool": "text"}  # mlx-lm's states


@dataclass(frozen=True)
class Reasoning:
    """How a model marks its reasoning: which marker leads from which state to which."""

    edges: Edges
    initial: State = "start"
    opening: str | None = None  # what a prompt ends with that has begun the reasoning itself
    closing: str | None = None  # the other half of it, where the two come in pairs

    @classmethod
    def of(cls, tokenizer: Any) -> Reasoning | None:
        """By the tokenizer's own markers, as mlx-lm's wrapper finds them; None where it has none."""
        if transitions := tokenizer.response_transitions:
            edges: Edges = {_state(s): tuple((m, _state(to)) for m, to in pairs) for s, pairs in transitions.items()}
            return cls(edges, _state(tokenizer.response_initial_state or "normal"))
        if tokenizer.has_thinking:
            begin, end = tokenizer.think_start, tokenizer.think_end
            unseen: tuple[tuple[str, State], ...] = tuple((m, "text") for m in tokenizer.structural_markers)
            edges = {
                "start": ((begin, "thinking"), (end, "text"), *unseen),
                "thinking": ((end, "text"), (begin, "thinking")),
                "text": ((begin, "thinking"), (end, "text"), *unseen),
            }
            return cls(edges, "start", begin, end)
        vocab = tokenizer.get_vocab()
        if all(marker in vocab for marker in ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")):
            return cls(_HARMONY, "hidden")
        return None

    @property
    def markers(self) -> Iterator[str]:
        """All of them."""
        return (marker for edges in self.edges.values() for marker, _ in edges)

    def after(self, prompt: str) -> State:
        """Where a reply to this prompt begins: some templates open the reasoning themselves."""
        return "thinking" if self.opening and prompt.rstrip().endswith(self.opening) else self.initial


class StopStrings:
    """Holds back text that may turn out to be the start of a stop string."""

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
    """Tells reasoning from text, however the text is cut into pieces."""

    def __init__(self, reasoning: Reasoning, state: State) -> None:
        self._reasoning, self._edges = reasoning, reasoning.edges
        self.state: State = state
        self._held = self._said = ""
        self._was_closed = False  # some reasoning has come to its end
        self._num_quoted = 0  # beginnings that were talked about and not yet followed by an end

    def feed(self, text: str) -> Iterator[tuple[State, str]]:
        """The pieces that are sure, with their states; what may be the beginning of a marker is held back."""
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
            before, after = self._held[:at], at + len(marker)
            if self.state == "start":
                yield "hidden", ""  # only blanks came before
            elif self._is_quoted(marker, self._said + before):
                yield self.state, self._say(self._held[:after])
                self._held = self._held[after:]
                continue
            else:
                yield self.state, self._say(before)
                if self.state == "text" and marker == self._reasoning.closing and not self._was_closed:
                    yield "implied", ""
                yield "hidden", ""
            self._was_closed = self._was_closed or marker == self._reasoning.closing
            self._held, self.state = self._held[after:], to
        if self.state != "start":
            sure = len(self._held) - _beginning(self._held, [marker for marker, _ in edges])
            piece, self._held = self._held[:sure], self._held[sure:]
            yield self.state, self._say(piece)

    def rest(self, is_cut: bool) -> tuple[State, str]:
        """What was held back; of a reply that is cut not what may become a marker."""
        held, self._held = self._held, ""
        return self.state, "" if is_cut else held

    def _say(self, piece: str) -> str:
        self._said += piece
        return piece

    def _is_quoted(self, marker: str, before: str) -> bool:
        """Whether a marker that stands in the middle is talked about and not meant: in code, after a blank or a quote.

        Those that are meant stand at the beginning of a line, or follow what was said without a blank.
        """
        opening, closing = self._reasoning.opening, self._reasoning.closing
        if closing is None or marker not in (opening, closing) or (self.state == "thinking" and marker == closing):
            return False
        line = before[before.rfind("\n") + 1 :]
        in_code = before.count("```") % 2 == 1 or line.count("`") % 2 == 1
        is_quoted = in_code or (bool(line.strip()) and (line[-1] in _TALKING or self.state == "thinking"))
        if self.state == "text" and marker == opening:
            self._num_quoted += is_quoted
        elif self.state == "text" and self._num_quoted:
            self._num_quoted, is_quoted = self._num_quoted - 1, True
        return is_quoted

    def _may_begin(self) -> bool:
        """Reasoning that has a beginning begins the reply, or stands where `_is_quoted` wants it."""
        said = self._held.lstrip()
        return any(said.startswith(marker) or marker.startswith(said) for marker, _ in self._edges.get("start", ()))


class ReplyText:
    """One reply as it grows.

    Attributes:
        text, thinking: what is shown, without markers and without the blank lines around them.
        raw: everything, as the tokenizer words it, but for the end-of-turn token, and for a character at the very end
            of which not all tokens are there.
        ends: where in `raw` each token ends, after a 0.
        restarts: what `new` gave as text is reasoning now, which it gives again; whoever shows it sets this back.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
        stop: strings that end the text (not the reasoning) and are not part of it.
        reasoning: how it is marked; None takes everything for text.
        state: where the reply begins; see `Reasoning.after`.
        before: the ids that it continues exactly; None for a message of its own, where the space goes that many
            tokenizers begin with.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str] = (),
        reasoning: Reasoning | None = None,
        state: State = "text",
        before: Sequence[int] | None = None,
    ) -> None:
        self.text = self.thinking = self.raw = ""
        self._detokenizer = Detokenizer(tokenizer, before or ())
        self._is_trimmed = before is not None
        self._stops = StopStrings(stop)
        self._splitter = ReasoningSplitter(reasoning, state) if reasoning else None
        self._hidden = ""
        self._blank = ""  # at the end of the reasoning so far
        self.ends = [0]  # of each token in `raw`
        self._given = [0, 0]  # characters of text and of reasoning that `new` gave out
        self._in_span = False  # the last piece was reasoning
        self._follows_marker = False  # blanks there are no part of the text
        self.restarts = False

    @property
    def is_stopped(self) -> bool:
        """A stop string was found."""
        return self._stops.hit

    def add(self, token: int) -> None:
        """Take the next id; not an end-of-turn token."""
        self._take(self._detokenizer.add(token))
        self.ends.append(len(self.raw))

    def replay(self, ids: Sequence[int], text: str, thinking: str) -> None:
        """Take the ids of a reply that is continued, of which `text` and `thinking` were shown. No stop string is
        looked for in what was said before."""
        stops, self._stops = self._stops, StopStrings(())
        for token in ids:
            self.add(token)
        self._stops, self.restarts = stops, False
        self._given = [common_prefix(self.text, text), common_prefix(self.thinking, thinking)]

    def new(self) -> list[tuple[bool, str]]:
        """What is to be shown beyond what this gave before: whether it is reasoning, and the piece."""
        given, self._given = self._given, [len(self.text), len(self.thinking)]
        pieces = ((True, self.thinking[given[1] :]), (False, self.text[given[0] :]))
        return [piece for piece in pieces if piece[1]]

    def num_tokens_of(self, text: str) -> int:
        """How many of the tokens taken make the beginning `text`: up to the one in which it ends, if that says more.

        Not for replies with reasoning.
        """
        count = bisect_left(self.ends, len(text))
        return count if count < len(self.ends) and self.ends[count] == len(text) else count - 1

    def finish(self, is_cut: bool = False) -> None:
        """Nothing follows: show what was held back.

        Args:
            is_cut: the reply may be continued: part of a marker is not shown then, since it could not be taken back.
        """
        segment = self._detokenizer.finish()
        self._take(segment.rstrip("\N{REPLACEMENT CHARACTER}") if is_cut else segment)
        if self._splitter is not None:
            self._show(*self._splitter.rest(is_cut))
        self.text += self._stops.rest()
        if not self.text and not self.thinking and "<|" not in self._hidden:
            self.text = self._hidden.strip()  # no header after all

    def _take(self, segment: str) -> None:
        if segment and not self._is_trimmed:
            segment, self._is_trimmed = segment.removeprefix(" "), True
        self.raw += segment
        if self._splitter is None:
            self.text += self._stops.feed(segment)
            return
        for state, piece in self._splitter.feed(segment):
            self._show(state, piece)

    def _show(self, state: State, piece: str) -> None:
        if state == "implied":
            self.thinking, self.text, self._stops.held = (self.text + self._stops.held).strip(), "", ""
            self._given, self.restarts = [0, 0], True  # it has been given out as text
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
            self.text += self._stops.feed(piece)


def raw_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """What `ReplyText.raw` was after these ids; an end-of-turn token at their end does not count."""
    reply = ReplyText(tokenizer)
    has_ended = bool(ids) and ids[-1] in tokenizer.eos_token_ids
    for token in ids[:-1] if has_ended else ids:
        reply.add(token)
    reply.finish(is_cut=not has_ended)
    return reply.raw


def ids_of_text(tokenizer: Any, text: str, ids: Sequence[int], before: Sequence[int]) -> tuple[tuple[int, ...], str]:
    """Of a reply that a stop string ended the ids of what was shown, and the rest of `text` that those lack. It follows
    the ids `before`, and has no reasoning."""
    reply = ReplyText(tokenizer, before=before)
    for token in ids:
        reply.add(token)
    count = reply.num_tokens_of(text)
    return tuple(ids[:count]), text[reply.ends[count] :]


def _state(name: str) -> State:
    return _NAMES.get(name, "hidden")


def _beginning(text: str, markers: Sequence[str]) -> int:
    """The length of the longest end of `text` that a marker begins with."""
    return max(
        (n for marker in markers for n in range(1, min(len(marker), len(text) + 1)) if text.endswith(marker[:n])),
        default=0,
    )
