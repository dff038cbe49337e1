"""Resume parity: a cache that went to disk and back goes on bit by bit like the one that never left memory.

200 cut points over rings (wrapped or not), quantized rings, sliding windows, chunked attention and recurrent states, by
sessions (chunk by chunk or, as large ones are, several at once) and by prompt files in turn. `MLXKV_THOROUGH=1` takes
ten times as many.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.inference.runner import ModelRunner
from mlxkv.store.kv import chunk_reader
from mlxkv.store.prompts.kv_file import read_prompt_file, write_prompt_file
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.hybrids import tiny
from tests.reference import largest, random_ids, tiny_llama
from tests.store.fake import model as identity
from tests.thorough import THOROUGH

pytestmark = pytest.mark.slow

CUTS = 200 if THOROUGH else 20  # of each kind
CONFIG = CacheConfig(window=96, block=16, slack=32, sinks=4)
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 20}


def config(bits: int | tuple[int, int]) -> CacheConfig:
    return CacheConfig(window=96, block=16, slack=32, sinks=4, bits=bits, group_size=32)


def bfloat16(model: Any) -> Any:
    model.set_dtype(mx.bfloat16)
    return model


KINDS: dict[str, tuple[Callable[[], Any], CacheConfig]] = {
    "ring": (tiny_llama, CONFIG),
    "bfloat16": (lambda: bfloat16(tiny_llama()), CONFIG),
    "8 bits": (lambda: tiny_llama(hidden=128), config(8)),
    "8 and 4 bits": (lambda: tiny_llama(hidden=128), config((8, 4))),
    "sliding": (lambda: tiny_llama(**SLIDING), CONFIG),
    "sliding, 8 bits": (lambda: tiny_llama(hidden=128, **SLIDING), config(8)),
    "qwen3_next": (lambda: tiny("qwen3_next"), CONFIG),
    "falcon_h1": (lambda: tiny("falcon_h1"), CONFIG),
    "recurrent_gemma": (lambda: tiny("recurrent_gemma"), CONFIG),
    "llama4": (lambda: tiny("llama4"), CONFIG),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_bit_by_bit(kind: str, store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, settings = KINDS[kind]
    model, dice = make(), random.Random(kind)
    runner, plan = ModelRunner(model), plan_cache(model, settings)
    cache, wrapped, restored = PromptCache(plan, model), 0, 0
    session = ""
    while restored < CUTS:
        if not session or cache.offset > 300:
            cache.reset()
            session = store.sessions.create("cuts", identity())
        ids = random_ids(dice.randrange(1, 40), seed=dice.randrange(10_000))
        cache.checkpoint()
        for _ in runner.prefill(cache, ids):
            pass
        store.add_turn(session, TurnRecord("user", "x", tuple(ids)))
        assert store.commit_kv(session, cache, identity()).pos == cache.offset
        back = PromptCache(plan, model)
        if restored % 2:
            write_prompt_file(tmp_path / "x.kv", cache, identity())
            read_prompt_file(tmp_path / "x.kv", back, identity())
        else:
            monkeypatch.setattr(chunk_reader, "_PARALLEL_FROM", 0 if restored % 4 else 32 << 20)
            found = store.restore_kv(session, back, identity(), cache.tokens)
            assert (found.tokens, found.notice) == (cache.offset, None)
        assert back.tokens == cache.tokens
        probe = random_ids(dice.randrange(2, 30), seed=7)
        expected = runner.score(cache.fork(), probe)
        assert largest(runner.score(back, probe) - expected) == 0.0, (kind, cache.offset)
        restored += 1
        wrapped += cache.num_evicted > 0
    assert 0 < wrapped < restored or plan.geometry is None
    print(f"{kind}: {restored} cut points, {wrapped} of them after the ring had wrapped, difference 0.0")
