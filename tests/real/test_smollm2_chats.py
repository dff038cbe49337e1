"""Chats of SmolLM2 as a user has them: answers, a new process, forks, prompt caches, memory. In bfloat16."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import mlxkv
from mlxkv.model import Model
from tests.chats import say
from tests.real.conftest import Run

pytestmark = [pytest.mark.real, pytest.mark.slow]

CONFIG = mlxkv.CacheConfig(window=128, block=16)
FRANCE, ITALY = "What is the capital of France?", "And of Italy?"


@pytest.fixture
def model(smollm2: Model) -> Model:
    return smollm2


def chat_about_france(model: Model) -> mlxkv.Chat:
    chat = model.chat(cache=CONFIG, temperature=0.0, max_tokens=10)
    say(chat, FRANCE)
    assert chat.messages[-1].text == "The capital of France is Paris."
    return chat


def test_a_chat_continues_in_a_new_process_as_if_it_had_never_been_closed(model: Model, run: Run) -> None:
    chat = chat_about_france(model)
    open_all_along = chat.fork()
    chat.save(title="capitals")
    chat.close()
    say(open_all_along, ITALY)

    path = model.loaded.path
    reply = json.loads(run("-r", "capitals", "-m", path, "-p", ITALY, "--output-format", "json"))
    assert reply["text"] == open_all_along.messages[-1].text
    assert "Rome" in reply["text"]
    stats, usage = open_all_along.stats, reply["usage"]
    assert (usage["prompt_tokens"], usage["cached_tokens"]) == (stats.prompt_tokens, stats.cached_tokens)
    assert usage["cached_tokens"] >= sum(len(turn.ids) for turn in chat.turns)  # nothing of the old turn is prefilled


def test_a_fork_and_an_edit_say_the_same(model: Model) -> None:
    chat = chat_about_france(model)
    twin = chat.fork()
    say(twin, ITALY)
    say(chat, "Is it a large city?")
    assert twin.messages[-1].text != chat.messages[-1].text
    for _ in chat.edit(2, ITALY):
        pass
    assert chat.turns[-1].ids == twin.turns[-1].ids
    assert chat.stats.cached_tokens >= twin.stats.cached_tokens


def test_a_prompt_cache_of_the_command_line_answers_there(model: Model, run: Run, tmp_path: Path) -> None:
    text, file = "The ship is called Aurora. Its captain is Mrs Holm.", tmp_path / "ship.txt"
    file.write_text(text)
    run("cache", "create", "ship", "-f", file, "-s", "Answer from it.", "-m", model.loaded.path, "--window", "256")
    question = "\n\nWhat is the ship called?"
    reply = json.loads(
        run("-p", question, "--cache", "ship", "--temp", "0", "--max-tokens", "12", "--output-format", "json")
    )
    assert "Aurora" in reply["text"]
    assert reply["usage"]["cached_tokens"] >= model.num_tokens(text)


def test_the_estimate_is_what_a_long_chat_takes_and_keeps(model: Model) -> None:
    config = mlxkv.CacheConfig(window=64, block=16)
    chat = model.chat(cache=config, temperature=0.0, max_tokens=12)
    sizes = []
    for question in (FRANCE, "Tell me about its museums.", "Tell me about its rivers."):
        say(chat, question)
        sizes.append(chat.cache.nbytes)
    estimate = mlxkv.estimate(model.loaded.path, replace(config, sinks=chat.cache.plan.resolved.sinks))
    assert sizes == [estimate.cache_bytes] * 3
    assert chat.stats.evicted_tokens > 0
    assert estimate.weight_bytes == model.loaded.weight_bytes


def test_print_mode_answers(model: Model, run: Run) -> None:
    reply = run("-p", FRANCE, "-m", model.loaded.path, "--temp", "0", "--max-tokens", "10", "--window", "256", "-q")
    assert reply.strip() == "The capital of France is Paris."


def test_four_bit_weights_answer(smollm2_4bit: Model) -> None:
    done = smollm2_4bit.generate("The capital of France is", temperature=0.0, max_tokens=4, cache=CONFIG)
    assert done.text.startswith(" Paris")
    path: Path = smollm2_4bit.loaded.path
    assert mlxkv.estimate(path).weight_bytes == smollm2_4bit.loaded.weight_bytes
