"""Which checkpoints to drop, so that the gaps between the others grow with their distance from the end.

The rule: to go back `d` tokens, to where a turn began, at most `d / 2 + SLACK` tokens are prefilled again. Used for
checkpoints in memory and for states on disk. Pure; any thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence

SLACK = 128  # tokens; prefilling these takes a fraction of a second


def superfluous(
    positions: Iterable[int], end: int, most: int, pinned: Collection[int] = (), targets: Sequence[int] = ()
) -> set[int]:
    """The positions to drop so that `most` are left; those in `pinned` and the last one stay.

    Positions that the rule does not need go first, the least needed before others; then the oldest.

    Args:
        end: the number of tokens now.
        targets: where turns began, ascending: what users go back to.
    """
    kept = sorted({*positions})
    dropped = set[int]()
    while len(kept) > most and (free := _free(kept, pinned)):
        shares = {i: _share(kept, i, end, targets) for i in free}
        least = min(free, key=lambda i: (shares[i], kept[i + 1] - kept[i]))
        dropped.add(kept.pop(least if shares[least] <= 1 else free[0]))
    return dropped


def needed(
    positions: Iterable[int], end: int, most: int, pinned: Collection[int] = (), targets: Sequence[int] = ()
) -> set[int]:
    """The positions that the rule needs, at most `most` of them, with those in `pinned` and the last one."""
    kept = sorted({*positions} - superfluous(positions, end, most, pinned, targets))
    while shares := {i: share for i in _free(kept, pinned) if (share := _share(kept, i, end, targets)) <= 1}:
        kept.pop(min(shares, key=lambda i: (shares[i], kept[i + 1] - kept[i])))
    return {*kept}


def _free(kept: list[int], pinned: Collection[int]) -> list[int]:
    return [i for i in range(len(kept) - 1) if kept[i] not in pinned]


def _share(kept: list[int], i: int, end: int, targets: Sequence[int]) -> float:
    """Tokens prefilled again without position `i`, in the worst case, as a share of what the rule allows."""
    before, after = kept[i - 1] if i else 0, kept[i + 1]
    last = bisect_left(targets, after) - 1  # the target in the gap that is farthest from `before`
    if last < 0 or targets[last] <= before:
        return 0.0
    return (targets[last] - before) / ((end - targets[last]) / 2 + SLACK)
