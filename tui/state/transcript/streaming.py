"""A reply in progress: its text as blocks, its phase, its decode speed. Pure; UI thread."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from mlxkv.events import PrefillProgress, TextDelta
from mlxkv.text.clean import CONTEXT, clean
from mlxkv.tui.markdown.stream_splitter import Splitter
from mlxkv.tui.state.labels import fit, prefill_text, seconds_short, spinner, streaming_text, thinking_text
from mlxkv.tui.state.transcript.blocks import Block, Kind

RATE_SECONDS = 2.0  # over which the speed shown is averaged
SETTLED_SECONDS = 0.25  # before that the speed is noise
WIDE = 60  # columns for two keys
QUIET_SECONDS = 0.5  # a shorter prefill is not shown


@dataclass
class StreamingReply:
    """`started` is when the question was sent, on the same clock as every `now`."""

    started: float
    stopping: bool = False
    answering: bool = False  # the end of the reasoning was asked for
    prefill: PrefillProgress | None = None
    num_tokens: int = 0
    _first: float | None = None  # when the first token arrived
    _samples: deque[tuple[float, int]] = field(default_factory=deque)
    _splitter: Splitter = field(default_factory=Splitter)
    _thinking_since: float | None = None
    _thinking_from: int = 0  # tokens before the reasoning
    _thought: str = ""
    has_text: bool = False
    _before: str = ""  # the last characters of the text

    def add_text(self, event: TextDelta, now: float) -> list[Block]:
        """Add a piece of text; returns the blocks that are final now."""
        if self._first is None:
            self._first = now
        out: list[Block] = []
        if event.thinking and self._thinking_since is None:
            self._thinking_since, self._thinking_from = now, self.num_tokens
        elif not event.thinking:
            out = self._end_thought(now)
        if event.restarts:  # the text so far was reasoning, from the first token on
            self._splitter, self.has_text, self._before, self._thought = Splitter(), False, "", ""
            self._thinking_since, self._thinking_from = self._first, 0
        self.num_tokens = max(self.num_tokens, event.num_tokens)
        self._samples.append((now, self.num_tokens))
        if event.thinking:
            self._thought += clean(event.text, self._thought, joined=True)
            return out
        self.has_text = self.has_text or bool(event.text)
        text = clean(event.text, self._before, joined=True)
        self._before = (self._before + event.text)[-CONTEXT:]
        return out + self._splitter.feed(text)

    def finish(self, now: float) -> list[Block]:
        return self._end_thought(now) + self._splitter.finish()

    def tail(self) -> list[Block]:
        """The blocks that are not final, as if the reply ended here."""
        thought = [Block(Kind.THOUGHT, "thinking", detail=self._thought.strip())] if self._thought else []
        return thought + self._splitter.preview()

    def _end_thought(self, now: float) -> list[Block]:
        if self._thinking_since is None:
            return []
        tokens, seconds = self.num_tokens - self._thinking_from, now - self._thinking_since
        detail, self._thought, self._thinking_since = self._thought.strip(), "", None
        return [Block(Kind.THOUGHT, f"thought {seconds_short(seconds)} · {tokens:,} tok", detail=detail)]

    @property
    def is_thinking(self) -> bool:
        """Whether the last piece was reasoning."""
        return self._thinking_since is not None

    def rate(self, now: float) -> float:
        """Tokens per second, averaged over the last two seconds."""
        samples = self._samples
        while len(samples) > 2 and samples[1][0] <= now - RATE_SECONDS:
            samples.popleft()
        if not samples:
            return 0.0
        start, tokens = samples[0]
        return (self.num_tokens - tokens) / (now - start) if now - start >= SETTLED_SECONDS else 0.0

    def activity(self, now: float, width: int) -> tuple[str, str]:
        """The line above the prompt: the current phase, and the key that ends it."""
        sign = spinner(now)
        if self.stopping:
            return f"{sign} stopping …", ""
        if self.answering and self._thinking_since is not None:
            return f"{sign} ending the reasoning …", "esc to stop"
        if self._first is None:
            if now - self.started <= QUIET_SECONDS:
                return "", ""
            parts, hint = prefill_text(self.prefill), "esc to cancel"
        elif self._thinking_since is not None:
            tokens = self.num_tokens - self._thinking_from
            parts = thinking_text(now - self._thinking_since, tokens, self.rate(now))
            hint = "ctrl+y answer now · esc to stop" if width >= WIDE else "esc to stop"
        else:
            parts, hint = streaming_text(self.rate(now), self.num_tokens, now - self._first), "esc to stop"
        return f"{sign} {fit(parts, width - 6 - len(hint))}", hint
