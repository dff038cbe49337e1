"""A gate that is always open, drafts that are right for a known number of tokens, and one decoded reply."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.inference.decoding import DecodeCounts
from mlxkv.inference.drafting.drafts import Drafting
from mlxkv.inference.drafting.gate import DraftGate
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams


class OpenGate(DraftGate):
    """Drafts as much as it can."""

    def length(self, match: int, most: int) -> int:
        return most

    def is_worth_waiting(self, match: int, most: int) -> bool:
        return True


class Oracle:
    """Knows the text, and drafts it with a wrong token at random places: 0 to `most` tokens are right."""

    def __init__(self, text: Sequence[int], vocab: int, seed: int = 0) -> None:
        self.text, self.vocab, self.random = list(text), vocab, random.Random(seed)

    def prepare(self, ids: Sequence[int], cancelled: Callable[[], bool] = bool) -> None:
        pass

    def propose(self, ids: Sequence[int], most: int, draws: object) -> list[int]:
        draft = self.text[len(ids) : len(ids) + self.random.randint(1, most)]
        if draft and self.random.random() < 0.8:
            wrong = self.random.randrange(len(draft))
            draft[wrong] = (draft[wrong] + 1) % self.vocab
        return draft


def decode(
    model: Any,
    cache: PromptCache,
    ids: Sequence[int],
    params: SamplingParams,
    drafting: Drafting | None = None,
    counts: DecodeCounts | None = None,
) -> list[int]:
    """The reply to the prompt `ids`."""
    runner = ModelRunner(model)
    runner.drafting = drafting
    for _ in runner.prefill(cache, ids[cache.offset : -1]):
        pass
    return list(runner.decode(cache, ids[-1], params, ids[:-1], counts=counts))
