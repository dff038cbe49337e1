"""mlx-lm's functions that take caches, given ours: what comes of each, a row per function and kind of ring."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import _merge_caches, batch_generate, generate_step, maybe_quantize_kv_cache
from mlx_lm.models import cache as theirs

import mlxkv
from mlxkv.errors import CacheError
from tests.reference import tiny_llama

KINDS: dict[str, dict[str, Any]] = {
    "ring": {}, "wrapped": {"window": 32, "block": 16}, "8 bits": {"bits": 8, "group_size": 32},
    "8 and 4 bits": {"bits": (8, 4), "group_size": 32},
}  # fmt: skip
EXPORT = r"PromptCache.export_mlx_lm\(path\)"
NO_SAVING, NO_BATCH, NO_BITS = f"cannot save .*{EXPORT}", f"cannot batch .*{EXPORT}", rf"CacheConfig\(bits=4.*{EXPORT}"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama(layers=2, hidden=64, heads=2)


@pytest.fixture(params=KINDS)
def cache(request: pytest.FixtureRequest, model: Any) -> list[Any]:
    """Fed with 80 tokens."""
    layers = mlxkv.make_cache(model, mlxkv.CacheConfig(**{"window": 256, **KINDS[request.param]}))
    for _ in range(5):
        mx.eval(model(mx.array([[*range(16)]]), cache=layers), [layer.state for layer in layers])
    return layers


class Tokens:
    """All that `batch_generate` wants of a tokenizer."""

    eos_token_ids = (2,)


Call = Callable[[Any, list[Any], Path], Any]
REFUSED: list[tuple[str, Call, str]] = [
    ("save_prompt_cache", lambda m, c, p: theirs.save_prompt_cache(str(p), c), NO_SAVING),
    ("save_prompt_cache with metadata", lambda m, c, p: theirs.save_prompt_cache(str(p), c, {"model": "x"}), NO_SAVING),
    ("meta_state, before 0.32", lambda m, c, p: [x.meta_state for x in c], NO_SAVING),
    ("CacheList.state", lambda m, c, p: theirs.save_prompt_cache(str(p), [theirs.CacheList(*c)]), NO_SAVING),
    ("_merge_caches", lambda m, c, p: _merge_caches([c, copy.deepcopy(c)]), NO_BATCH),
    ("CacheList.merge", lambda m, c, p: theirs.CacheList.merge([theirs.CacheList(*c)]), NO_BATCH),
    ("CacheList.extract", lambda m, c, p: theirs.CacheList(*c).extract(0), NO_BATCH),
    ("CacheList.filter", lambda m, c, p: theirs.CacheList(*c).filter([0]), NO_BATCH),
    ("CacheList.prepare", lambda m, c, p: theirs.CacheList(*c).prepare(lengths=[1]), NO_BATCH),
    ("batch_generate", lambda m, c, p: batch_generate(m, Tokens(), [[1]], prompt_caches=[c], max_tokens=1), NO_BATCH),
    ("to_quantized", lambda m, c, p: maybe_quantize_kv_cache(c, 0, 64, 4), NO_BITS),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("call", "says"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_refused_in_a_sentence_that_names_the_export(
    model: Any, cache: list[Any], tmp_path: Path, call: Call, says: str
) -> None:
    offset = cache[0].offset
    with pytest.raises(CacheError, match=says):
        call(model, cache, tmp_path / "x.safetensors")
    assert not [*tmp_path.glob("*.safetensors")]
    assert cache[0].offset == offset


ALLOWED: list[tuple[str, Callable[[Any, list[Any]], Any], Any]] = [
    ("can_trim_prompt_cache", lambda m, c: theirs.can_trim_prompt_cache(c), True),
    ("trim_prompt_cache", lambda m, c: (theirs.trim_prompt_cache(c, 2), c[1].offset), (2, 78)),
    ("deepcopy, as the server", lambda m, c: [x.offset for x in copy.deepcopy(c)], [80, 80]),
    ("nbytes, as the server", lambda m, c: all(x.nbytes > 0 for x in c), True),
    ("eval of state", lambda m, c: mx.eval([x.state for x in c]), None),
    ("size, empty", lambda m, c: [x.empty() or not x.size() for x in c], [False, False]),
    ("CacheList.nbytes", lambda m, c: theirs.CacheList(*c).nbytes == sum(x.nbytes for x in c), True),
    ("CacheList.trim", lambda m, c: theirs.CacheList(*c).trim(1), 1),
    ("generate_step", lambda m, c: len([*generate_step(mx.array([1, 2]), m, prompt_cache=c, max_tokens=3)]), 3),
    ("LRUPromptCache", lambda m, c: _kept_and_found(c), 80),
]  # fmt: skip


def _kept_and_found(cache: list[Any]) -> int:
    held = theirs.LRUPromptCache()
    held.insert_cache("model", [*range(80)], cache)
    found, _ = held.fetch_nearest_cache("model", [*range(90)])
    assert found is not None
    return found[0].offset


@pytest.mark.slow
@pytest.mark.parametrize(("call", "found"), [pytest.param(*row[1:], id=row[0]) for row in ALLOWED])
def test_what_works_as_with_their_own(model: Any, cache: list[Any], call: Callable[..., Any], found: Any) -> None:
    assert call(model, cache) == found


def test_kv_bits_of_their_loop_are_refused_before_a_token_is_chosen(model: Any, cache: list[Any]) -> None:
    steps = generate_step(mx.array([1]), model, prompt_cache=cache, kv_bits=4, quantized_kv_start=0)
    with pytest.raises(CacheError, match=NO_BITS):
        next(steps)


def test_kv_bits_that_the_rows_have_already_change_nothing(model: Any) -> None:
    cache = mlxkv.make_cache(model, mlxkv.CacheConfig(window=256, bits=8, group_size=32))
    before = [*cache]
    maybe_quantize_kv_cache(cache, 0, 32, 8)
    assert all(a is b for a, b in zip(cache, before, strict=True))


def test_an_empty_cache_is_not_saved_either(model: Any, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=NO_SAVING):
        theirs.save_prompt_cache(str(tmp_path / "x.safetensors"), mlxkv.make_cache(model))
