"""The last minute in tokens per second, and how fast prompts are read: what the panel draws. Pure; UI thread."""

from __future__ import annotations

from collections import deque

from mlxkv.events import PrefillProgress, TextDelta, TurnFinished
from mlxkv.protocol.events import EngineEvent, TurnStarted

SECONDS = 60


class Meter:
    """Counts tokens by the second they came in. `prefill_tps` is the last prompt's, 0 before any."""

    def __init__(self) -> None:
        self.prefill_tps = 0.0
        self._seconds: deque[tuple[int, int]] = deque(maxlen=SECONDS + 2)  # second, tokens in it
        self._counted = 0

    def take(self, event: EngineEvent, now: float) -> None:
        match event:
            case TextDelta(_, num_tokens):
                new, self._counted = max(0, num_tokens - self._counted), max(num_tokens, self._counted)
                second = int(now)
                if self._seconds and self._seconds[-1][0] == second:
                    new += self._seconds.pop()[1]
                self._seconds.append((second, new))
            case PrefillProgress(tps=tps) if tps > 0:
                self.prefill_tps = tps
            case TurnStarted():
                self._counted = 0
            case TurnFinished(stats=stats):
                self._counted = 0
                self.prefill_tps = stats.prefill_tps or self.prefill_tps

    def rates(self, now: float) -> list[int]:
        """Tokens in each of the last 60 whole seconds, the latest last."""
        counts = dict(self._seconds)
        end = int(now)
        return [counts.get(second, 0) for second in range(end - SECONDS, end)]
