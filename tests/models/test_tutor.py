"""The built-in model as it ships: what it can do on cases it never saw, and that a cache can be watched with it.

`make tutor-eval` measures all cases; here a fixed subset must stay above a floor that lies well below those figures.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mlxkv
import mlxkv.models
from mlxkv.models.training import cases
from mlxkv.models.training.evaluate import reply, say
from mlxkv.models.training.knowledge import read_topics

FOLDER = Path(mlxkv.models.__file__).parent / "tutor"
FLOORS = {
    "questions": (160, 0.8),
    "memory": (75, 0.75),
    "not told": (24, 0.85),
    "long output": (20, 0.8),
    "system prompts": (30, 0.7),
    "everything else": (30, 0.8),
}  # every n-th case, and the share that must be right


@pytest.fixture(scope="module")
def tutor() -> mlxkv.Model:
    return mlxkv.load("tutor")


@pytest.mark.slow
@pytest.mark.parametrize("figure", list(FLOORS))
def test_held_out_cases_stay_above_their_floor(tutor: mlxkv.Model, figure: str) -> None:
    every, floor = FLOORS[figure]
    group = cases.groups(read_topics())[figure][::every]
    wrong = [(case.question, said) for case in group if not case.right(said := reply(tutor, case))]
    assert 1 - len(wrong) / len(group) >= floor, wrong


def test_it_knows_what_a_kv_cache_is(tutor: mlxkv.Model) -> None:
    said = say(tutor.chat(), "What is a KV cache?")
    assert "stores the keys and values" in said


@pytest.mark.slow
def test_what_rotated_out_is_forgotten(tutor: mlxkv.Model) -> None:
    """The demonstration: the same chat, in a large window and in a small one, and with the fact pinned."""
    assert "Norbel" in _asked_later(tutor, window=1024)
    assert _asked_later(tutor, window=96) == "You have not told me your name."
    assert "Norbel" in _asked_later(tutor, window=96, system="The user's name is Norbel.")


def _asked_later(tutor: mlxkv.Model, window: int, system: str | None = None) -> str:
    chat = tutor.chat(system=system, cache=mlxkv.CacheConfig(window=window), max_tokens=100)
    if system is None:
        say(chat, "My name is Norbel.")
    for question in ("What is a KV cache?", "What is a token?", "How do I save a chat?", "What is prefill?"):
        say(chat, question)
    assert window > 500 or chat.stats.evicted_tokens > 0
    return say(chat, "What is my name?")


def test_the_default_is_greedy_and_small_enough() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert json.loads((FOLDER / "generation_config.json").read_text())["temperature"] == 0
    assert config["head_dim"] in (32, 64)
    assert config["max_position_embeddings"] >= 1024
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12_000_000
