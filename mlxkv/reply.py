"""From sampled ids to what is shown of a reply: text, with the model's reasoning told apart and markers left out.

Knows how models mark their reasoning, and stop strings; nothing of caches or messages. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mlxkv.tokens import Detokenizer

State = Literal["start", "thinking", "text", "hidden"]
"""`start`: nothing visible was said yet, so that reasoning may still begin. `hidden`: a header between markers."""

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
_NAMES: Mapping[str, State] = {"normal": "text", "reasoning": "thinking", "tool": "text"}  # mlx-lm's states


@dataclass(frozen=True)
class Reasoning:
    """How a model marks its reasoning: which marker leads from which state to which."""

    edges: Edges
    initial: State = "start"
    opening: str | None = None  # what a prompt ends with that has begun the reasoning itself

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
                "thinking": ((end, "text"),),
                "text": unseen,
            }
            return cls(edges, "start", begin)
        vocab = tokenizer.get_vocab()
        if all(marker in vocab for marker in ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")):
            return cls(_HARMONY, "hidden")
        return None

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
        self._edges = reasoning.edges
        self.state: State = state
        self._held = ""

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
            yield ("hidden", "") if self.state == "start" else (self.state, self._held[:at])  # only blanks came before
            self._held, self.state = self._held[at + len(marker) :], to
        if self.state != "start":
            sure = len(self._held) - _beginning(self._held, [marker for marker, _ in edges])
            piece, self._held = self._held[:sure], self._held[sure:]
            yield self.state, piece

    def rest(self) -> tuple[State, str]:
        held, self._held = self._held, ""
        return self.state, held

    def _may_begin(self) -> bool:
        """Reasoning comes before anything else: a marker in the middle of a text is talked about, not meant."""
        said = self._held.lstrip()
        return any(said.startswith(marker) or marker.startswith(said) for marker, _ in self._edges.get("start", ()))


class ReplyText:
    """One reply as it grows.

    Attributes:
        text, thinking: what is shown, without markers and without the blank lines around them.
        raw: everything, as the tokenizer words it, but for the end-of-turn token.

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
        self._follows_marker = False  # blanks there are no part of the text

    @property
    def is_stopped(self) -> bool:
        """A stop string was found."""
        return self._stops.hit

    def add(self, token: int) -> None:
        """Take the next id; not an end-of-turn token."""
        self._take(self._detokenizer.add(token))

    def finish(self) -> None:
        """Nothing follows: show what was held back."""
        self._take(self._detokenizer.finish())
        if self._splitter is not None:
            self._show(*self._splitter.rest())
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
        if state == "hidden":
            self._hidden += piece
            self._follows_marker = True
        elif state == "thinking":
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
    for token in ids[:-1] if ids and ids[-1] in tokenizer.eos_token_ids else ids:
        reply.add(token)
    reply.finish()
    return reply.raw


def _state(name: str) -> State:
    return _NAMES.get(name, "hidden")


def _beginning(text: str, markers: Sequence[str]) -> int:
    """The length of the longest end of `text` that a marker begins with."""
    return max((n for marker in markers for n in range(1, len(marker)) if text.endswith(marker[:n])), default=0)
