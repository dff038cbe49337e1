"""Slots: the prompt caches of the endpoint, and which of them a prompt begins with. On the MLX thread.

How many there are is how many requests run at once. A slot that a request uses is busy; the others keep what their last
request left, for the next one that begins like it. The least recently used one is taken for another prompt: its rows
are on disk already, if anyone saved them (`archive.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.server.conversations import Conversation
from mlxkv.token_ids import common_prefix

_LOST = 64  # tokens of a cache that a prompt may overwrite where it continues nearly all of it


@dataclass(eq=False)
class Slot:
    """A cache.

    Attributes:
        conversation: whose rows it holds, where they are those of one.
        used: when, by counting.
    """

    cache: PromptCache
    conversation: Conversation | None = None
    is_busy: bool = False
    used: int = 0

    def reusable(self, ids: Sequence[int]) -> int:
        """The number of the first `ids` that need not be prefilled."""
        return self.cache.rewind_target(min(common_prefix(self.cache.log, ids), len(ids) - 1)) if self.cache.log else 0


class Slots:
    """`most` caches, made when they are needed.

    Args:
        make: makes an empty cache.
        save: called with a slot whose cache is about to hold something else.
    """

    def __init__(self, make: Callable[[], PromptCache], most: int, save: Callable[[Slot], object]) -> None:
        self._make, self.most, self._save = make, most, save
        self._slots: list[Slot] = []
        self._clock = 0

    def take(self, ids: Sequence[int]) -> Slot:
        """A slot for this prompt, busy from now on, which holds as much of its beginning as any that is idle.

        At most `most` are taken at once.
        """
        idle = sorted((slot for slot in self._slots if not slot.is_busy), key=lambda slot: slot.used)
        reusable = {id(slot): slot.reusable(ids) for slot in idle}
        best = max((slot for slot in idle if reusable[id(slot)]), key=lambda slot: reusable[id(slot)], default=None)
        found = best
        if best is None or best.cache.offset - reusable[id(best)] > _LOST:  # it holds another conversation, too
            found = self._other([slot for slot in idle if slot is not best], best)
            if best is not None and found is not best:
                found.cache = best.cache.fork()
        assert found is not None
        found.is_busy, found.conversation = True, None
        return found

    def _other(self, idle: Sequence[Slot], best: Slot | None) -> Slot:
        """An empty slot, a new one, or the least recently used one; `best` if there is no other."""
        if empty := next((slot for slot in idle if not slot.cache.log), None):
            return empty
        if len(self._slots) < self.most:
            self._slots.append(Slot(self._make()))
            return self._slots[-1]
        found = next(iter(idle), best)
        assert found is not None, "as many requests run as there are slots"
        self._save(found)
        return found

    def release(self, slot: Slot) -> None:
        """The request that took it has ended."""
        self._clock += 1
        slot.is_busy, slot.used = False, self._clock

    def close(self) -> None:
        """Save what the slots hold."""
        for slot in self._slots:
            self._save(slot)

    @property
    def nbytes(self) -> int:
        """Bytes of all caches."""
        return sum(slot.cache.nbytes for slot in self._slots)
