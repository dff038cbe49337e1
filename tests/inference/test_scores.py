"""`Model.score` and `Model.choose` against log-probabilities of the whole text, computed at once."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.errors import ArgumentError, ConfigError, PromptError
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.scores import Scorer
from mlxkv.model import Model, result_of
from tests.hybrids import tiny
from tests.inference.batches import cache_of
from tests.reference import random_ids, tiny_llama


def expected(model: Any, ids: Sequence[int], start: int) -> list[float]:
    logprobs = nn.log_softmax(model(mx.array([list(ids)]))[0].astype(mx.float32), axis=-1)
    return [logprobs[i - 1, ids[i]].item() for i in range(start, len(ids))]  # type: ignore[misc]


def test_a_score_is_that_of_a_full_computation(model: Model) -> None:
    pc = model.prefill("once upon a time")
    before, lm = pc.tokens, model.loaded.model
    score = model.score(" there was", cache=pc)
    assert score.logprobs == pytest.approx(expected(lm, [*before, *score.tokens], len(before)), abs=1e-4)
    assert score.logprob == pytest.approx(sum(score.logprobs))
    assert (score.num_tokens, score.perplexity) == (10, pytest.approx(math.exp(-score.logprob / 10)))
    assert pc.tokens == before
    assert model.score("once upon a time there was", cache=pc).logprobs == pytest.approx(score.logprobs, abs=1e-4)
    alone = model.score("once upon a time there was", cache=CacheConfig(window=64))
    assert alone.tokens == (*before[1:], *score.tokens)  # the first one has no probability
    assert alone.logprobs[-10:] == pytest.approx(score.logprobs, abs=1e-4)
    result = model.generate(" there", cache=pc.fork(), temperature=0.0, max_tokens=5, logprobs=0)
    again = model.score(" there" + result.text, cache=pc)
    assert again.logprobs[6:] == pytest.approx(
        [told.logprob for told in result.logprobs][: again.num_tokens - 6], abs=1e-4
    )


@pytest.mark.parametrize("kind", [tiny_llama, pytest.param(lambda: tiny("falcon_h1"), marks=pytest.mark.slow)])
def test_what_options_share_is_computed_once(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, held = kind(), random_ids(40)
    cache, fed = cache_of(model, ids=held), list[int]()
    tails = [[5, 6, 7, 8, 9, 1], [9], [5, 6, 7, 8, 2], [5, 6], [5, 6, 7, 8, 9, 1]]
    feed = ModelRunner._feed
    monkeypatch.setattr(ModelRunner, "_feed", lambda *args: (fed.append(len(args[2]) - args[3]), feed(*args))[1])
    found = result_of(Scorer(ModelRunner(model), cache).steps([[*held, *tail] for tail in tails]))
    for score, tail in zip(found, tails, strict=True):
        assert score.tokens == tuple(tail)
        assert score.logprobs == pytest.approx(expected(model, [*held, *tail], 40), abs=1e-3)
    assert cache.tokens == held
    if kind is tiny_llama:  # a recurrent state goes back to a checkpoint alone
        assert sum(fed) == (1 + 2) + (1 + 3) + (1 + 2) + (1 + 1)  # sorted; the last token before is fed again


def test_the_most_probable_option_wins(model: Model) -> None:
    pc = model.prefill("once upon a time")
    options = [" a", " ab", " abc", " x"]
    choice = model.choose(options, cache=pc)
    sums = [sum(model.score(option, cache=pc).logprobs) for option in options]
    assert [score.logprob for score in choice.scores] == pytest.approx(sums, abs=1e-4)
    assert (choice.index, choice.option) == (sums.index(max(sums)), options[sums.index(max(sums))])
    means = [total / len(option) for total, option in zip(sums, options, strict=True)]
    best = means.index(max(means))
    assert model.choose(iter(options), cache=pc, normalize="tokens").index == best
    assert model.choose(options, cache=pc, normalize="characters").option == options[best]
    assert best != sums.index(max(sums)), "they tell nothing apart"


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"options": []}, ConfigError, "it must have at least one text"),
    ({"options": ["a", ""]}, ConfigError, "none that is empty"),
    ({"options": "ab"}, ArgumentError, "it must be a list of texts"),
    ({"options": ["a", 1]}, ArgumentError, "`options[1]` is 1"),
    ({"options": ["ab"], "normalize": "bytes"}, ConfigError, "`normalize` is 'bytes'"),
    ({"options": ["a"]}, PromptError, "There is nothing to score"),
]


@pytest.mark.parametrize(("given", "kind", "text"), WRONG, ids=[text for *_, text in WRONG])
def test_what_is_wrong_is_one_sentence(model: Model, given: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=re.escape(text)) as caught:
        model.choose(**given)
    assert str(caught.value).endswith(".")
