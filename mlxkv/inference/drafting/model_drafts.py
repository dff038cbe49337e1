"""ModelDrafts: another, smaller model with the same tokenizer drafts the tokens that it would draw itself.

Its own prompt cache is kept in step with the text by their common prefix. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.errors import PromptError
from mlxkv.inference.draws import Draws
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams


class ModelDrafts:
    """Drafts of `runner`'s model, which has `cache`.

    Args:
        vocab: ids from here on, which only pad a model's logits, are not drafted.
    """

    def __init__(self, runner: ModelRunner, cache: PromptCache, vocab: int) -> None:
        self._runner, self.cache, self._vocab = runner, cache, vocab

    def prepare(self, ids: Sequence[int], cancelled: Callable[[], bool] = bool) -> None:
        """Prefill what the cache lacks of `ids` but the last one, as far as the model has learned positions."""
        learned = self.cache.plan.learned
        if learned is not None and len(ids) > learned:
            return
        new = ids[self.cache.reuse(ids).cached : -1]
        if min(new, default=0) < 0:  # imported tokens have no ids
            return
        for _ in self._runner.prefill(self.cache, new, cancelled):
            pass
        self.cache.checkpoint()

    def propose(self, ids: Sequence[int], most: int, draws: Draws) -> list[int]:
        """Up to `most` tokens that may follow `ids`, by `draws`."""
        self.prepare(ids)
        if self.cache.offset != len(ids) - 1:
            return []
        params = SamplingParams(max_tokens=most)
        try:
            draft = list(self._runner.decode(self.cache, ids[-1], params, draws=lambda: draws))
        except PromptError:
            return []
        return draft[: next((i for i, token in enumerate(draft) if token >= self._vocab), len(draft))]
