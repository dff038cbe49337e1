"""What each commit checks in part, and `MLXKV_THOROUGH=1` as a whole; `models.yml` does most of it once a week."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TypeVar

Case = TypeVar("Case")
THOROUGH = bool(os.environ.get("MLXKV_THOROUGH"))


def part(cases: Iterable[Case], every: int) -> Sequence[Case]:
    """All cases, or the first and every `every`-th after it."""
    return [*cases][:: 1 if THOROUGH else every]
