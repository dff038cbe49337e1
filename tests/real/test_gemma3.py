"""Gemma 3 270M: sliding windows of 512 in most layers, a model that was not trained to chat. In bfloat16."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models import cache as theirs

import mlxkv
from mlxkv.model import Model
from tests.chats import say
from tests.reference import largest

pytestmark = [pytest.mark.real, pytest.mark.slow]


def processed(network: Any, caches: list[Any], ids: list[int], size: int) -> None:
    """Process `ids`, `size` at a time, without computing logits."""
    for i in range(0, len(ids), size):
        network(mx.array([ids[i : i + size]]), cache=caches)
        mx.eval([layer.state for layer in caches])


@pytest.fixture(scope="module")
def ids(gemma3: Model) -> list[int]:
    """533 tokens of English: the text of Python's own help on expressions."""
    topics = importlib.import_module("pydoc_data.topics").topics
    return list(gemma3.tokenizer.encode(topics["atom-identifiers"] + topics["assignment"]))[:533]


def test_logits_are_those_of_mlx_lms_caches_inside_and_past_the_sliding_window(gemma3: Model, ids: list[int]) -> None:
    network: Any = gemma3.loaded.model
    own = list(theirs.make_prompt_cache(network))
    assert {type(layer).__name__ for layer in own} == {"KVCache", "RotatingKVCache"}
    ours = gemma3.make_cache(mlxkv.CacheConfig(window=1024, sinks=4)).layers
    at = 0
    for until in (64, 530):  # inside the window of 512, and past it
        processed(network, own, ids[at:until], 64)
        processed(network, ours, ids[at:until], 64)
        for token in ids[until : until + 3]:
            expected, got = network(mx.array([[token]]), cache=own), network(mx.array([[token]]), cache=ours)
            difference = largest(got.astype(mx.float32) - expected.astype(mx.float32))
            print(f"after {ours[0].offset} tokens: {difference / largest(expected):.5f} of the largest logit")
            assert difference < 0.03 * largest(expected)  # bfloat16 has 8 bits, and the rows have another order
        at = until + 3


def test_a_chat_resumes_from_disk_as_if_it_had_never_been_closed(gemma3: Model) -> None:
    chat = gemma3.chat(cache=mlxkv.CacheConfig(window=128, block=16), temperature=0.0, max_tokens=8)
    say(chat, "The capital of France is")
    twin = chat.fork()
    chat.save(title="capitals")
    chat.close()
    again = gemma3.resume("capitals")
    assert again.restored is not None
    assert again.restored.tokens == again.cache.offset > 0
    for one in (twin, again):
        say(one, "And of Italy?")
    assert again.turns[-1].ids == twin.turns[-1].ids
    assert again.stats.prefill_tokens == twin.stats.prefill_tokens
    again.close()


def test_raw_text_is_continued_as_in_mlx_lms_loop(gemma3: Model) -> None:
    prompt, network = "The capital of France is", gemma3.loaded.model
    expected = [t for t, _ in generate_step(mx.array(gemma3.tokenizer.encode(prompt)), network, max_tokens=3)]
    done = gemma3.generate(prompt, temperature=0.0, max_tokens=3, cache=mlxkv.CacheConfig(window=128))
    assert list(done.tokens) == expected
