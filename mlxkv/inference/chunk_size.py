"""ChunkSize: the tokens of the next prefill call, from how long the last ones took. Pure: durations are handed in.

A prefill is cancelled between two calls, so none should take more than a second; larger calls are faster, up to 2,048
tokens. Memory and block boundaries, which may ask for fewer, are the caller's.
"""

from __future__ import annotations

LEAST, START, MOST = 32, 512, 2048
LONGEST = 1.0  # seconds of one call
_FAR = 65_536  # keys; attention to more in one call may take so long that a GPU's watchdog ends it


class ChunkSize:
    """Starts at 512 tokens and stays a power of two from 32 to 2,048.

    Args:
        fixed: always this many tokens instead; None: as measured.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.fixed = fixed
        self._size = START

    @property
    def most(self) -> int:
        """The most tokens that a call may get."""
        return self.fixed or MOST

    def at(self, keys: int) -> int:
        """The tokens of the next call, whose first token attends `keys` rows."""
        if self.fixed:
            return self.fixed
        return self._size if keys <= _FAR else max(_power_of_two(self._size * _FAR / keys), LEAST)

    def took(self, num_tokens: int, seconds: float) -> None:
        """A call of `num_tokens` took so long: choose a size that takes a second at most."""
        if seconds > LONGEST:
            self._size = max(_power_of_two(min(num_tokens / seconds, self._size / 2)), LEAST)
        elif num_tokens >= self._size and 2 * seconds <= LONGEST:
            self._size = min(2 * self._size, MOST)


def _power_of_two(number: float) -> int:
    """The largest that is no larger; 0 below 1."""
    return 1 << int(number).bit_length() >> 1
