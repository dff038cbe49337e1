"""Two sides measured alternately, and what `mlxkv bench` says of a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models import mixtral, qwen2

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.planning.traits import traits_of
from mlxkv.cli.bench import measure as benchmark
from mlxkv.cli.bench import parts as parts_module
from mlxkv.cli.bench.measure import (
    Ratio,
    Speeds,
    compare,
    copy_bandwidth,
    decode_speeds,
    fill,
    peak_of,
    prefill_speeds,
    random_ids,
)
from mlxkv.cli.bench.parts import Options, Subject, bytes_read, measure, speed_row
from mlxkv.cli.bench.report import Part
from mlxkv.errors import OutOfMemoryError
from mlxkv.inference.runner import ModelRunner
from mlxkv.models import load_model
from tests.reference import tiny_llama


def test_rounds_in_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    ours, theirs = iter([9.0, 1, 2, 3, 4, 5]), iter([9.0, 4, 2, 12, 8, 10])

    def side(name: str, times: Any) -> Any:
        return lambda: (calls.append(name), next(times))[1]

    ratio = compare(side("a", ours), side("b", theirs))
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab" + "ba" + "ab"
    assert ratio == Ratio(3, 8, worst=1.0)
    assert ratio.median == pytest.approx(8 / 3)


def test_tokens_per_second() -> None:
    speeds = Speeds("decode", 64, Ratio(2.0, 4.0, 1.5))
    assert (speeds.ours_tps, speeds.theirs_tps) == (32, 16)


def test_both_sides_do_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each side feeds every token of a round once, and the rounds of decoding begin at the same place."""
    model = tiny_llama(layers=1)
    fed: list[int] = []

    class Counting:
        args, layers = model.args, model.layers

        def __call__(self, ids: Any, cache: Any) -> Any:
            fed.append(ids.shape[1])
            return model(ids, cache=cache)

    def once(ours: Any, theirs: Any, rounds: int) -> Ratio:
        counts = []
        for side in (ours, theirs, ours, theirs):
            fed.clear()
            assert side() > 0
            counts.append(sum(fed))
        sums.append(counts)
        return Ratio(1, 1, 1)

    sums: list[list[int]] = []
    monkeypatch.setattr(benchmark, "compare", once)
    plan, ids = plan_cache(model, CacheConfig(window=64)), random_ids(20, 100)
    traits_of(counting := Counting())  # once per model, and not what is measured
    runner = ModelRunner(counting)  # type: ignore[arg-type]
    prefill_speeds(runner, plan, ids)
    decode_speeds(runner, fill(runner, plan, ids), ids[-1], 5)
    (ours, theirs, *again), decoding = sums
    assert ours == 20
    assert theirs in (20, 21)  # mlx-lm's loop is a step ahead
    assert again == [ours, theirs]
    assert decoding[0] == decoding[2] == 6
    assert decoding[1] == decoding[3] in (6, 7)


@pytest.fixture(autouse=True)
def short_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "_COPIED", 1 << 16)


def measured(path: Path, *contexts: int, **options: Any) -> dict[str, Part]:
    loaded = load_model(str(path))
    subject = Subject("tiny", loaded.model, loaded.weight_bytes, 60)
    return {part.name: part for part in measure(subject, Options(contexts, 3, rounds=1, **options))}


def test_parts_show_speed_memory_and_bandwidth(tiny_path: Path) -> None:
    parts = measured(tiny_path, 24, 40)
    assert [*parts] == ["speed", "cache", "bandwidth"]
    speed, cache, bandwidth = parts.values()
    assert [row.what for row in speed.rows] == [
        "prefill, 24 tokens", "decode, 24 tokens", "prefill, 40 tokens", "decode, 40 tokens"
    ]  # fmt: skip
    for row in speed.rows:
        assert row.values["ratio"] == pytest.approx(float(row.values["mlxkv"]) / float(row.values["mlx-lm"]))  # type: ignore[arg-type]
    assert "mlx-lm 0." in speed.environment.versions
    assert re.search(r"Prefill came to calls of [\d,]+ tokens, within a block", " ".join(speed.notes))
    assert any(note.startswith("A decode step is evaluated ahead") for note in speed.notes)
    held = {row.what: row.values for row in cache.rows}
    assert held["40 tokens, mlx-lm (KVCache)"]["rows held"] == 256  # it allocates in steps
    token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, head_dim, float32
    for values in held.values():
        assert values["a token"] == token
        assert values["bytes held"] == pytest.approx(token * values["rows held"], rel=0.05)  # type: ignore[operator]
        assert values["peak of prefill"] >= values["bytes held"] <= values["peak of decode"]  # type: ignore[operator]
    assert bandwidth.rows[0].values["share"] == 1.0
    assert len(bandwidth.rows) == 3


def test_a_window_bounds_both_sides(tiny_path: Path) -> None:
    cache = measured(tiny_path, 200, window=32)["cache"]
    ours, theirs = (row.values["rows held"] for row in cache.rows)
    assert ours == 4 + 32 + 16
    assert theirs == 256  # mlx-lm's llama ignores max_kv_size
    args = qwen2.ModelArgs("qwen2", 32, 1, 64, 4, 1e-5, 64, num_key_value_heads=2)
    found = measure(Subject("tiny", qwen2.Model(args), 0, 60), Options((200,), 3, window=32, rounds=1))
    assert "200 tokens, mlx-lm (RotatingKVCache)" in [row.what for row in found[1].rows]


@pytest.mark.parametrize(("ratio", "met"), [(0.98, False), (1.0, True)])
def test_slower_than_mlx_lm_is_a_missed_goal(ratio: float, met: bool) -> None:
    assert speed_row("decode", Speeds("decode", 10, Ratio(1.0, ratio, ratio)), 512).met is met


def test_a_context_that_nobody_asked_for_may_be_left_out(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "CONTEXTS", (8, 16))
    monkeypatch.setattr(parts_module, "_PATIENCE", 0.0)
    speed = measured(tiny_path)["speed"]
    assert len(speed.rows) == 2
    assert "`--context 16`" in speed.notes[0]
    for part in measured(tiny_path, 8).values():  # rows of one table were measured alike
        assert part.settings.startswith("a window that holds all; 3 tokens generated")
    assert len(measured(tiny_path, 8, 16)["speed"].rows) == 4


def test_a_decode_step_reads_tied_tables_and_the_active_experts() -> None:
    def size(model: Any) -> int:
        return sum(array.nbytes for _, array in tree_flatten(model.parameters()))  # type: ignore[union-attr]

    tied, untied = (tiny_llama(vocab=100, tie_word_embeddings=tie) for tie in (True, False))
    assert bytes_read(tied) == size(tied)
    assert bytes_read(untied) == size(untied) - 100 * 32 * 4
    experts = mixtral.Model(mixtral.ModelArgs("mixtral", vocab_size=64, hidden_size=32, intermediate_size=64,
                                              num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
                                              num_local_experts=8, num_experts_per_tok=2))  # fmt: skip
    unused = 3 * 6 * 32 * 64 * 4  # three matrices of six experts
    assert bytes_read(experts) == size(experts) - 64 * 32 * 4 - unused


def test_a_peak_counts_what_was_freed_again() -> None:
    made, rise = peak_of(lambda: mx.eval(mx.sum(mx.ones((1 << 20,)) + 1)))
    assert made is None
    assert rise >= 4 << 20


@pytest.mark.parametrize("is_cpu", [True, False])
def test_copies_have_a_rate(is_cpu: bool) -> None:
    assert copy_bandwidth(1 << 16, is_cpu, rounds=1) > 0


def test_what_does_not_fit_is_refused(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXKV_MEMORY_LIMIT", "3MB")
    with pytest.raises(OutOfMemoryError):
        measured(tiny_path, 3000)
