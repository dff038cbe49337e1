"""DraftGate: whether to draft, and how many tokens, so that drafting never costs more than 3 % of decode time.

Measures what a forward of some sizes costs beside one of one token, and which share of drafted tokens was right lately.
A ledger of time bounds what trying may cost. Durations are handed in; no MLX, no clock.
"""

from __future__ import annotations

from collections import deque
from statistics import median

SIZES = (1, 2, 4, 8, 16)  # lengths of drafts whose costs are measured
ALLOWED = 0.03  # share of decode time that drafting may cost
_MIN_GAIN = 1.05  # times the tokens per second of plain steps; less is noise
_CARRIED = 2  # plain steps' time that a reply may take over from those before it
_STEPS = 15  # latest plain steps: their median is robust against a pause
_SAMPLES = 3  # latest ones of a cost
_BELIEVED = 2  # samples of a cost; one says little: kernels are compiled at first use
_LONGEST = 64  # plain steps that a step counts at most: a machine may sleep
_FORGET = 64, 1024  # plain steps after which a sample of a cost is forgotten, so that it is tried again: first, at most
_DECAY = 0.98  # weight of earlier drafted tokens with each new one
_WAITED = 1.2  # the cost of a step that waits for its token, before one was measured

# Of matches of 1, 2-3, 4-7, 8-15, 16-31 and more tokens: the share assumed right, with the weight of 2 tokens.
_ASSUMED = (0.4, 0.4, 0.5, 0.6, 0.7, 0.8, 0.8)
_WEIGHT = 2.0


class Costs:
    """The cost of a forward of a draft and one token, in plain steps, by the draft's length."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {size: deque(maxlen=_SAMPLES) for size in SIZES}
        self._known: dict[int, tuple[float, float]] = {}  # expected and worst, until something is measured
        self._per_token = 1.0

    @property
    def per_token(self) -> float:
        """Upper bound of what each token more costs, from prefill."""
        return self._per_token

    @per_token.setter
    def per_token(self, cost: float) -> None:
        if cost != self._per_token:
            self._per_token = cost
            self._known.clear()

    def add(self, length: int, cost: float) -> None:
        self._samples[_size(length)].append(cost)
        self._known.clear()

    def forget(self) -> None:
        """Drop the oldest sample of each size."""
        for samples in self._samples.values():
            if samples:
                samples.popleft()
        self._known.clear()

    def of(self, length: int) -> tuple[float, float]:
        """What is expected, and a bound of it."""
        if length not in self._known:
            self._known[length] = self.expected(length), self.worst(length)
        return self._known[length]

    @property
    def most(self) -> int:
        """The longest draft to try: short ones are measured first, since they cost least."""
        return next((size for size, samples in self._samples.items() if len(samples) < _BELIEVED), SIZES[-1])

    def expected(self, length: int) -> float:
        """The median measured twice or more; for other lengths in proportion to the next such ones; 1 before any."""
        below, above = self._around(length)
        low, high = (self._of(below) if below else 1.0), (self._of(above) if above else None)
        if below == length:
            return low
        if high is None:  # beyond what was measured: each token more as dear as those before, on average
            return low + (length - below) * ((low - 1) / below if below else 0.0)
        return low + (high - low) * (length - below) / (above - below)

    def worst(self, length: int) -> float:
        """A bound: the worst measured of this size, else of a larger one or as many plain steps as tokens."""
        if own := self._samples[_size(length)]:
            return max(own)
        larger = [max(samples) for size, samples in self._samples.items() if size > length and samples]
        return max(min([1 + length * self.per_token, *larger]), self.expected(length))

    def _around(self, length: int) -> tuple[int, int]:
        measured = [size for size, samples in self._samples.items() if len(samples) >= _BELIEVED]
        below = max((size for size in measured if size <= length), default=0)
        return below, min((size for size in measured if size > length), default=0)

    def _of(self, size: int) -> float:
        samples = self._samples[size]
        return median(samples) if len(samples) == _SAMPLES else min(samples)


class DraftGate:
    """Decides for all replies of one model; call `begin_reply` at the start of each.

    Attributes:
        lookup, model: costs of drafts by lookup and by a draft model.

    A match is the number of tokens at the end of the text that occurred before: the longer, the likelier is a draft
    right. For a draft model it is 0.
    """

    def __init__(self) -> None:
        self.lookup, self.model = Costs(), Costs()
        self._right = [share * _WEIGHT for share in _ASSUMED]
        self._wrong = [(1 - share) * _WEIGHT for share in _ASSUMED]
        self._plain: deque[float] = deque(maxlen=_STEPS)  # seconds
        self._waited: deque[float] = deque(maxlen=_STEPS)  # in plain steps
        self._ledger = 0.0  # seconds that drafting may still cost
        self._prefill = 0.0  # seconds per token
        self._plain_left, self._forget_after = _FORGET[0], _FORGET[0]  # plain steps
        self._step = 0.0  # seconds of a plain step; 0 before a few were measured

    # -- measurements ------------------------------------------------------------------------------------------------

    def begin_reply(self) -> None:
        """What earlier replies won is not to be lost in this one, whose steps may take another time."""
        self._ledger = min(self._ledger, _CARRIED * self._step)
        self._plain.clear()
        self._step = 0.0

    def prefilled(self, num_tokens: int, seconds: float) -> None:
        """A long forward: an upper bound of what a token more costs."""
        self._prefill = seconds / num_tokens

    def plain(self, seconds: float) -> None:
        """A step of one token, begun before its token had arrived."""
        self._plain.append(seconds)
        self._step = median(self._plain) if len(self._plain) >= _SAMPLES else 0.0
        self._ledger += ALLOWED * min(seconds, _LONGEST * self._step or seconds)
        self._plain_left -= 1
        if not self._plain_left:  # soon at first: on a busy machine the first samples say little
            self._plain_left = self._forget_after = min(2 * self._forget_after, _FORGET[1])
            self.lookup.forget()
            self.model.forget()
        if self._prefill and self._step:
            self.lookup.per_token = min(1.0, self._prefill / self._step)
            self.model.per_token = self.lookup.per_token + 1.0  # its own step, at most as dear as the model's

    def waited(self, seconds: float) -> None:
        """A step of one token, begun after its token had arrived, but without a draft."""
        if self._step:
            self._waited.append(seconds / self._step)
            self._account(1, seconds)

    def drafted(self, match: int, length: int, accepted: int, seconds: float) -> None:
        """A forward of one token and a draft of `length`, and all that came with it."""
        if self._step:
            self._costs(match).add(length, seconds / self._step)
            self._account(accepted + 1, seconds)

    def told(self, match: int, *, is_right: bool) -> None:
        """Whether the token that follows a match of this length is the predicted one; without a draft, too."""
        kind = _kind(match)
        self._right[kind] = self._right[kind] * _DECAY + is_right
        self._wrong[kind] = self._wrong[kind] * _DECAY + (not is_right)

    def _account(self, num_tokens: int, seconds: float) -> None:
        seconds = min(seconds, _LONGEST * self._step)
        self._ledger += (1 + ALLOWED) * num_tokens * self._step - seconds

    # -- decisions ---------------------------------------------------------------------------------------------------

    def length(self, match: int, most: int) -> int:
        """The length of the draft that gives the most tokens per second, at most `most`; 0 if plain steps do."""
        return self._best(match, most)[0]

    def is_worth_waiting(self, match: int, most: int) -> bool:
        """Whether to wait for a token that this match predicts, to draft after it."""
        length, won = self._best(match + 1 if match else 0, most)
        if not length:
            return False
        lost = self._lost
        right = self.share(match) if match else 1.0
        return right * won > (1 - right) * lost and lost * self._step <= self._ledger

    @property
    def _lost(self) -> float:
        """Plain steps that a step costs more for having waited; the one after a draft does."""
        return (max(self._waited, default=_WAITED) if len(self._waited) < _SAMPLES else median(self._waited)) - 1

    def share(self, match: int) -> float:
        """The share of tokens after such a match that were predicted."""
        kind = _kind(match)
        return self._right[kind] / (self._right[kind] + self._wrong[kind])

    def _best(self, match: int, most: int) -> tuple[int, float]:
        """The best length, and the plain steps that it wins; 0 and 0.0 if there is none."""
        step, costs = self._step, self._costs(match)
        best, won, gain = 0, 0.0, _MIN_GAIN
        if not step:
            return best, won
        spare = self._ledger / step + 1 - self._lost
        tokens = probability = 1.0
        for length in range(1, min(most, costs.most) + 1):
            probability *= self.share(match + length - 1 if match else 0)
            tokens += probability
            if length in SIZES or length == most:
                expected, worst = costs.of(length)
                if tokens > gain * expected and worst <= spare:
                    best, won, gain = length, tokens - expected, tokens / expected
        return best, won

    def _costs(self, match: int) -> Costs:
        return self.lookup if match else self.model


def _kind(match: int) -> int:
    """0 for a draft model, else by the binary order of magnitude."""
    return min(match.bit_length(), len(_ASSUMED) - 1)


def _size(length: int) -> int:
    """The smallest size that has room for it."""
    return next((size for size in SIZES if size >= length), SIZES[-1])
