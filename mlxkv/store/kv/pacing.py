"""Restore rows from disk, or let the model read the tokens again? Whichever was measured to be faster here.

Pure arithmetic on numbers that others measure; no files, no MLX. Any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

START_S = 0.005  # what a restore takes besides reading
PATIENCE = 0.03  # of the time that reading the tokens again would take: so much may go into finding out; a piece more
SMALL = 4 << 20  # bytes that any disk gives in no time, so that measuring says nothing about them: always restored
FIRST = 16 << 10  # bytes after which a restore is first asked whether it goes on
MEASURED = 1 << 20  # bytes, the fewest that are worth remembering
_NEW = 0.7  # weight of what was measured last

Clock = Callable[[], float]


@dataclass(frozen=True)
class Pace:
    """What was measured on this machine: bytes per second of restoring, tokens per second of prefill. None: never."""

    read_bps: float | None = None
    prefill_tps: float | None = None


@dataclass(frozen=True)
class Offer:
    """Reading `bytes` brings back the first `tokens` of the prompt."""

    tokens: int
    bytes: int


def mixed(old: float | None, new: float) -> float:
    """What to remember after one more measurement."""
    return new if old is None else (1 - _NEW) * old + _NEW * new


def choose(offers: Iterable[Offer], num_tokens: int, held: int, pace: Pace) -> Offer | None:
    """What to restore, so that all `num_tokens` are read soonest; None: go on from the `held` ones that are in memory.

    What was never measured is taken to be in favour of restoring. Where the disk was measured to be too slow, but a
    look at it costs little, the offer is given all the same: `Watch` stops if nothing has changed.
    """
    better = [offer for offer in offers if offer.tokens > held]
    if not better:
        return None
    tps, bps = pace.prefill_tps, pace.read_bps
    most = max(better, key=lambda offer: offer.tokens)
    if tps is None or bps is None or most.bytes < SMALL:
        return most

    def seconds(offer: Offer) -> float:
        return START_S + offer.bytes / bps + (num_tokens - offer.tokens) / tps

    best = min(better, key=seconds)
    again = (num_tokens - held) / tps
    return best if seconds(best) <= again or START_S + FIRST / bps <= PATIENCE * again else None


class Watch:
    """Asked while an offer is read whether to go on: a disk may be slower than it was. Any thread."""

    def __init__(self, offer: Offer, held: int, pace: Pace, clock: Clock = time.perf_counter) -> None:
        self._offer, self._clock = offer, clock
        self._again = None
        if pace.prefill_tps is not None and offer.bytes >= SMALL:
            self._again = (offer.tokens - held) / pace.prefill_tps
        self._lock = threading.Lock()
        self._started = clock()
        self._is_over = False
        self.done = 0

    def stop(self) -> None:
        """Whoever asks next is to end."""
        self._is_over = True

    def goes_on(self, num_bytes: int) -> bool:
        """So many more bytes have been read. False: reading the tokens again will be faster than the rest."""
        with self._lock:
            self.done += num_bytes
            if self._is_over:
                return False
            if self._again is None or self.seconds < PATIENCE * self._again:
                return True
            return (self._offer.bytes - self.done) * self.seconds <= self._again * self.done

    @property
    def seconds(self) -> float:
        return self._clock() - self._started

    @property
    def read_bps(self) -> float | None:
        """What was measured; None for too little to tell."""
        seconds = self.seconds
        return self.done / seconds if self.done >= min(MEASURED, SMALL) and seconds > 0 else None
