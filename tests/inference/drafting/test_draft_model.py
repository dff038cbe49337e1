"""A draft model: the same text, in fewer calls; its tokenizer and its memory are checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlxkv
from mlxkv.device import Device
from mlxkv.errors import ConfigError, MismatchError, ModelNotFoundError, OutOfMemoryError
from mlxkv.events import TurnFinished
from mlxkv.inference.drafting.model_drafts import ModelDrafts
from mlxkv.inference.draws import Draws
from mlxkv.inference.sampling import SamplingParams
from mlxkv.model import Model
from tests.chats import CONFIG, GREEDY
from tests.inference.drafting.helpers import OpenGate
from tests.tokenizers import tiny_folder

PROMPT = "once upon a time"


@pytest.fixture
def drafted(tiny_path: Path) -> Iterator[Model]:
    """The random model, with itself as its draft model and the gate open."""
    model = mlxkv.load(str(tiny_path), draft=str(tiny_path))
    drafting = model.runner.drafting
    assert drafting is not None
    drafting.gate = OpenGate()
    yield model
    model.close()


def test_the_text_is_the_same_in_fewer_calls(model: Model, drafted: Model) -> None:
    ways: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 0.8, "seed": 5, "top_k": 5}]
    for sampling in ways:
        expected = model.generate(PROMPT, cache=CONFIG, max_tokens=60, **sampling)
        found = drafted.generate(PROMPT, cache=CONFIG, max_tokens=60, **sampling)
        assert found.tokens == expected.tokens
        assert found.text == expected.text
        assert found.stats.accepted_tokens > 0
        assert found.stats.decode_steps < expected.stats.decode_steps


class ModelGate(OpenGate):
    """Lets the draft model draft alone, as much as it can."""

    def length(self, match: int, most: int) -> int:
        return 0 if match else most


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0, "seed": 3},
        {"temperature": 1.0},
        {"temperature": 0.9, "top_k": 9, "seed": 4, "repetition_penalty": 1.3},
        {"temperature": 0.0, "presence_penalty": 1.0},
    ],
)
def test_it_draws_with_the_keys_of_the_reply(drafted: Model, sampling: dict[str, Any]) -> None:
    """At any temperature and with penalties: as the draft model is the model itself, its tokens are those of the
    reply."""
    drafted.runner.drafting.gate = ModelGate()  # type: ignore[union-attr]
    mx.random.seed(1)
    stats = drafted.generate(PROMPT, cache=CONFIG, max_tokens=60, **sampling).stats
    assert stats.drafted_tokens > 20
    assert stats.accepted_tokens >= 0.95 * stats.drafted_tokens


@pytest.mark.parametrize("width", [50, 64, 80])
def test_a_draft_models_logits_are_those_of_the_model_in_size(width: int) -> None:
    logits, draws = mx.random.normal((1, 64), key=mx.random.key(2)), Draws(SamplingParams(temperature=1.0, seed=7), ())
    logits[:, 50:] = -mx.inf
    others = mx.pad(logits, [(0, 0), (0, 16)], constant_values=-mx.inf)[:, :width]
    ahead, y = draws.ahead(64), mx.array([5])
    found = [ahead.next(others, y).item() for _ in range(20)]
    assert found == [draws.next(logits, y).item() for _ in range(20)]
    assert len(set(found)) > 5


def test_its_cache_is_kept_in_step(drafted: Model) -> None:
    """Through turns of two chats that alternate, and going back."""
    chats = [drafted.chat(cache=CONFIG, **GREEDY) for _ in range(2)]
    for text in ("hello", "what is it?"):
        for chat in chats:
            assert isinstance(list(chat.send(text))[-1], TurnFinished)
    chats[0].undo()
    last = list(chats[0].send("and you?"))[-1]
    assert isinstance(last, TurnFinished)
    assert last.stats.accepted_tokens > 0
    drafts = drafted.runner.drafting.model  # type: ignore[union-attr]
    assert isinstance(drafts, ModelDrafts)
    drafts.cache.check_log()
    assert drafts.propose([*drafts.cache.tokens[:5], 9, 8, 7], 4, Draws(SamplingParams(), ()))
    assert drafts.cache.tokens[5:8] == [9, 8, 7]


@pytest.mark.parametrize("draft", [True, False])
def test_without_one(tiny_path: Path, draft: bool) -> None:
    model = mlxkv.load(str(tiny_path), draft=draft)
    assert (model.runner.drafting is not None) is draft
    assert model.generate(PROMPT, cache=CONFIG, **GREEDY).stats.drafted_tokens == 0
    model.close()


def test_another_tokenizer_is_refused_in_a_sentence(tiny_path: Path, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", reverse=True)
    with pytest.raises(MismatchError, match=r"other cannot draft for .*: it has another tokenizer \(the token 4 is"):
        mlxkv.load(str(tiny_path), draft=other)


@pytest.mark.parametrize(("draft", "error"), [(3, ConfigError), ("no-such-model", ModelNotFoundError)])
def test_what_is_no_model_is_refused(tiny_path: Path, draft: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        mlxkv.load(str(tiny_path), draft=draft)


def test_its_memory_counts(tiny_path: Path, monkeypatch: pytest.MonkeyPatch, drafted: Model) -> None:
    """What a cache may take is what both models, and the draft model's cache, leave."""
    alone = mlxkv.load(str(tiny_path))
    both = drafted._runtime.weight_bytes
    assert both > 2 * alone._runtime.weight_bytes
    from mlxkv.device import current_device

    small: Device = replace(current_device(), memory_limit=alone.loaded.weight_bytes * 3 // 2)
    monkeypatch.setattr("mlxkv.model.current_device", lambda: small)
    with pytest.raises(OutOfMemoryError):
        mlxkv.load(str(tiny_path), draft=str(tiny_path))
    alone.close()
