"""Models with a table of positions: nothing is fed past its end, and that is said before or where it happens."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

import mlxkv
from mlxkv.cache.planning.probe import learned_positions
from mlxkv.cache.planning.trained_length import trained_length
from mlxkv.cache.planning.traits import traits_of
from mlxkv.config import Folders
from mlxkv.errors import CacheError, ConfigError, PromptError
from mlxkv.events import Notice, TurnFinished
from mlxkv.model import Model
from mlxkv.models import skeleton
from tests.cache.architectures import ARCHITECTURES
from tests.tokenizers import VOCAB, tiny_tokenizer

POSITIONS = 96
GREEDY: dict[str, Any] = {"temperature": 0.0}


@pytest.fixture(params=["gpt2", "gpt_bigcode"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    architecture = ARCHITECTURES[request.param]
    config = architecture.config() | {"vocab_size": VOCAB, "n_positions": POSITIONS, "n_ctx": POSITIONS}
    del config["max_position_embeddings"]
    model = architecture.build(config)
    folder = tmp_path / "model"
    folder.mkdir()
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})  # type: ignore[arg-type]
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer()._tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def model(folder: Path, tmp_path: Path) -> Model:
    folders = Folders.from_env({"MLXKV_HOME": str(tmp_path / "home")})
    model = mlxkv.load(str(folder), folders=folders)
    model.tokenizer.eos_token_ids = set()  # no reply ends by itself
    return model


@pytest.mark.slow
def test_the_window_meant_by_none_is_within_the_table(model: Model, folder: Path) -> None:
    assert model.loaded.trained_length == POSITIONS
    assert learned_positions(model.loaded.model) == POSITIONS
    plan = model.make_cache(mlxkv.CacheConfig()).plan
    assert plan.geometry is not None
    assert plan.geometry.window == 64
    assert f"learned positions for {POSITIONS} tokens" in plan.description
    assert mlxkv.estimate(str(folder)).window == 64


@pytest.mark.slow
def test_a_window_beyond_the_table_is_refused_with_both_numbers(model: Model) -> None:
    with pytest.raises(
        ConfigError, match=r"`window` is 4,096, .* positions for 96 tokens; ask for no more than that\."
    ):
        model.make_cache(mlxkv.CacheConfig(window=4096))
    assert model.make_cache(mlxkv.CacheConfig(window=POSITIONS)).plan.learned == POSITIONS


@pytest.mark.slow
@pytest.mark.parametrize("window", [32, POSITIONS])
def test_a_reply_ends_where_the_table_does(model: Model, window: int) -> None:
    """Also in a window that rotates long before: positions go on with the tokens."""
    cache = model.prefill([5] * 40, mlxkv.CacheConfig(window=window, block=16))
    events = list(model.stream("hello", cache=cache, max_tokens=500, stop=["never"], **GREEDY))
    notice, last = events[-2:]
    assert isinstance(last, TurnFinished)
    assert last.reason == "length"
    assert isinstance(notice, Notice)
    assert "learned positions for 96 tokens, and they are used up" in notice.text
    assert last.stats.prompt_tokens + last.stats.generated_tokens == POSITIONS + 1  # the last one is not fed
    assert cache.offset == POSITIONS


def test_every_logit_is_a_number_up_to_the_end(model: Model) -> None:
    cache = model.make_cache(mlxkv.CacheConfig(window=32, block=16))
    ids = [3 + i % 50 for i in range(POSITIONS)]
    assert not mx.any(mx.isnan(model.runner.score(cache, ids))).item()
    assert cache.num_left == 0


def test_a_prompt_that_ends_beyond_the_table_is_refused(model: Model) -> None:
    says = rf"The prompt has 97 tokens, .* positions for {POSITIONS}; shorten it, or start a new chat\."
    ids = [5] * (POSITIONS + 1)
    with pytest.raises(PromptError, match=says):
        model.prefill(ids)
    with pytest.raises(PromptError, match=says):
        model.runner.score(model.make_cache(mlxkv.CacheConfig()), ids)
    full = model.prefill(ids[1:])
    with pytest.raises(PromptError, match="positions for 96"):
        model.generate("x", cache=full)


@pytest.mark.slow
def test_the_loop_of_mlx_lm_ends_at_the_table_with_a_sentence(model: Model) -> None:
    """Its own cache would go on, with positions that are none."""
    from mlx_lm.generate import generate_step

    cache = model.prefill([5] * 40, mlxkv.CacheConfig(window=32, block=16)).fork().layers
    reply = generate_step(mx.array([5]), model.loaded.model, max_tokens=500, prompt_cache=cache)
    given = [next(reply) for _ in range(POSITIONS - 41)]
    with pytest.raises(
        CacheError, match=r"^This model has learned positions for 96 tokens, and this call ends at 97; "
    ):
        given += reply
    assert len(given) == POSITIONS - 41
    fresh = model.make_cache(mlxkv.CacheConfig()).layers
    with pytest.raises(CacheError, match="this call ends at 97"):
        next(generate_step(mx.array([5] * 98), model.loaded.model, prompt_cache=fresh))


@pytest.mark.slow
def test_a_chat_that_reaches_the_end_says_so_and_keeps_what_was_said(model: Model) -> None:
    chat = model.chat(cache=mlxkv.CacheConfig(window=32, block=16), autosave=True, max_tokens=200, **GREEDY)
    *_, notice, last = chat.send("hello there", stop=["never"])
    assert isinstance(last, TurnFinished)
    assert last.reason == "length"
    assert isinstance(notice, Notice)
    turns = chat.turns
    with pytest.raises(PromptError, match="positions for 96"):
        list(chat.send("and then? " * 20))
    assert chat.turns == turns
    chat.undo()
    *_, again = chat.send("hi", max_tokens=2)
    assert isinstance(again, TurnFinished)
    assert math.isfinite(again.stats.ttft_s)


def test_a_chat_saved_with_a_window_beyond_the_table_is_resumed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, such a model was given one of 32,768."""
    with monkeypatch.context() as patch:
        patch.setattr(traits_of(model.loaded.model), "learned", None)
        wide = mlxkv.CacheConfig(window=32_768, positions="absolute")
        chat = model.chat(cache=wide, autosave=True, max_tokens=3, **GREEDY)
        list(chat.send("hello"))
    chat.close()
    assert chat.cache.plan.resolved.window == 32_768
    again = model.resume(str(chat.session_id))
    assert again.cache.plan.resolved.window == 64
    assert [turn.text for turn in again.turns] == [turn.text for turn in chat.turns]


@pytest.mark.slow
def test_only_these_two_have_a_table() -> None:
    found = {name for name in ("gpt2", "gpt_bigcode", "gemma3n", "longcat_flash_ngram", "gemma4", "llama", "gptj")
             if learned_positions(ARCHITECTURES[name].build())}  # fmt: skip
    assert found == {"gpt2", "gpt_bigcode"}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 512}, 512),
        ({"n_ctx": 512}, 512),
        ({"seq_length": 512}, 512),
        ({"max_seq_len": 512}, 512),
        ({"max_sequence_length": 512}, 512),
        ({"max_position_embeddings": 512.0}, 512),
        ({"text_config": {"max_position_embeddings": 512}, "n_ctx": 3}, 512),
        ({"max_position_embeddings": None, "n_positions": 512}, 512),
        ({"max_position_embeddings": 1024, "rope_scaling": YARN}, 4096),
        ({"max_position_embeddings": 1024, "rope_parameters": {**YARN, "rope_theta": 1e4}}, 4096),
        ({"n_ctx": 1024, "rope_parameters": {"full_attention": YARN, "sliding_attention": None}}, 4096),
        ({"max_position_embeddings": 131072, "rope_scaling": {**YARN, "rope_type": "llama3"}}, 131072),
        ({"max_position_embeddings": 512, "rope_scaling": {"type": "linear", "factor": 8.0}}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": {**YARN, "factor": "4"}}, 1024),
        ({"max_position_embeddings": "512"}, None),
        ({"max_position_embeddings": True}, None),
        ({"max_position_embeddings": -1}, None),
        ({"max_position_embeddings": 1e400}, None),
        ({"max_position_embeddings": 10**30}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_trained_length_is_found_under_every_name(config: dict[str, Any], length: int | None) -> None:
    assert trained_length(config) == length


def test_a_model_and_its_config_say_the_same_length(folder: Path) -> None:
    config, network = skeleton(folder)
    assert trained_length(config) == trained_length(network) == POSITIONS


@pytest.mark.slow
def test_a_reply_that_ended_with_the_table_is_not_continued_and_says_why(model: Model) -> None:
    """Before, the advice was to shorten a prompt that nobody had written."""
    chat = model.chat(cache=mlxkv.CacheConfig(window=32, block=16), max_tokens=200, **GREEDY)
    list(chat.send("hello there"))
    with pytest.raises(PromptError, match=r"96 learned positions are used up, .* continued; start a new chat\."):
        chat.continue_reply()
