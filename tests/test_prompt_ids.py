"""Token ids as prompts: of one text or several, streamed or in a batch, and how they meet a prompt cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxkv.events import TurnFinished
from mlxkv.model import Model
from mlxkv.stats import TurnStats
from tests.chats import CONFIG, GREEDY, new, say


@pytest.mark.parametrize("kind", [list, tuple, np.array, mx.array], ids=["list", "tuple", "numpy", "mlx"])
def test_ids_give_what_their_text_gives(model: Model, kind: Callable[[list[int]], Any]) -> None:
    text = "once upon a time"
    ids = model.prefill(text).tokens
    expected, found = model.generate(text, **GREEDY), model.generate(kind(ids), **GREEDY)
    assert (found.text, found.tokens) == (expected.text, expected.tokens)
    assert (model.count(kind(ids)), found.stats.prompt_tokens) == (len(ids), len(ids))
    *_, end = model.stream(kind(ids), **GREEDY)
    assert isinstance(end, TurnFinished)
    assert end.text == expected.text
    assert [several.tokens for several in model.generate(kind(ids), n=2, **GREEDY)] == [expected.tokens] * 2


# What a prompt cache holds, what is given, and whether that continues it.
HELD = [5, 6, 7, 8]
CASES: list[tuple[str, list[int], list[int], bool]] = [
    ("begins with all", HELD, [*HELD, 9, 10], False),
    ("is all", HELD, HELD, False),
    ("begins with a part", HELD, HELD[:3], True),
    ("differs at the end", HELD, [*HELD[:3], 9, 10], True),
    ("begins otherwise", HELD, [9, 10], True),
    ("nothing is held", [], HELD, False),
]


@pytest.mark.parametrize(("held", "given", "continued"), [pytest.param(*row[1:], id=row[0]) for row in CASES])
def test_ids_that_begin_with_all_of_a_cache_are_the_whole_prompt(
    model: Model, held: list[int], given: list[int], continued: bool
) -> None:
    whole = [*held, *given] if continued else given
    expected = model.generate(whole, cache=CONFIG, **GREEDY)

    def cache() -> Any:
        return model.prefill(held, CONFIG) if held else model.make_cache(CONFIG)

    def check(tokens: tuple[int, ...], stats: TurnStats) -> None:
        assert tokens == expected.tokens
        reused = min(len(held), len(whole) - 1)  # the last token is fed for its logits
        assert (stats.continued, stats.cached_tokens, stats.prompt_tokens) == (continued, reused, len(whole))

    one = model.generate(given, cache=(pc := cache()), **GREEDY)
    check(one.tokens, one.stats)
    assert pc.tokens == [*whole, *one.tokens]
    *_, end = model.stream(given, cache=cache(), **GREEDY)
    assert isinstance(end, TurnFinished)
    check(expected.tokens, end.stats)
    assert end.text == expected.text
    for batched in model.generate_batch([given, given], cache=cache(), **GREEDY):
        check(batched.tokens, batched.stats)
    several = model.generate(given, cache=(pc := cache()), n=2, **GREEDY)
    check(several[0].tokens, several[0].stats)
    assert pc.tokens == whole[:-1]


def test_a_conversation_in_ids_is_prefilled_from_its_end_only(model: Model) -> None:
    """Ids given back with those of the reply are the whole prompt: what a text may fail at, tokenized again."""
    pc, ids = model.make_cache(CONFIG), [5, 6, 7, 8]
    for step in range(3):
        result = model.generate(ids, cache=pc, **GREEDY)
        assert not result.stats.continued
        assert result.stats.prefill_tokens == (4 if step == 0 else 2)
        ids = [*ids, *result.tokens, 9, 10]


def test_a_count_is_that_of_the_prompt(model: Model) -> None:
    chat = new(model, system="be brief")
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    for prompt in ("once upon", "<|im_end|>", messages):
        assert model.count(prompt) == model.generate_batch([prompt], **GREEDY)[0].stats.prompt_tokens
    assert model.count(messages) == (say(chat, "hello"), chat.stats.prompt_tokens)[1]
    answered = [*messages, {"role": "assistant", "content": chat.messages[-1].text}]
    assert model.count(messages) < model.count(answered) < model.count([*answered, messages[1]])
