"""TokenSource: what a `Generation` needs of a runner: `ModelRunner`, and `RowRunner` for a row of a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from typing import Protocol

from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.inference.decoding import DecodeCounts
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.inference.draws import Draws
from mlxkv.inference.sampling import SamplingParams


class TokenSource(Protocol):
    """Prefills a cache and decodes tokens into it. `ModelRunner` documents the methods."""

    @property
    def drafting(self) -> Drafting | None:
        """What drafts for its replies."""
        ...

    @property
    def peak_memory(self) -> int:
        """Bytes."""
        ...

    def reset_peak_memory(self) -> None: ...

    def check(self, cache: PromptCache, /) -> None: ...

    def prefill(
        self,
        cache: PromptCache,
        ids: Sequence[int],
        cancelled: Callable[[], bool] = ...,
        checkpoints: Collection[int] = ...,
        prefixes: Collection[int] = ...,
        /,
    ) -> Iterator[int]: ...

    def decode(
        self,
        cache: PromptCache,
        last: int,
        params: SamplingParams,
        seen: Sequence[int],
        /,
        *,
        ends: Collection[int],
        num_before: int,
        counts: DecodeCounts,
        draws: Callable[[], Draws],
    ) -> Generator[int]: ...
