"""The benchmark suite: each part once at a tiny size, and how a run of all parts is put together."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from bench import __main__ as suite
from bench import (
    batches,
    drafting,
    drafting_equality,
    first_token,
    full_window,
    overhead,
    perplexity,
    quantized,
    recompute,
    saving,
    speed,
    streaming,
)
from bench.hybrid_models import FAMILIES
from bench.hybrids import bytes_part, row
from bench.measure import fresh_home, make_part
from bench.rows import Pair, Shape
from mlxkv.cache.config import CacheConfig
from mlxkv.cli.bench.measure import their_bytes
from mlxkv.cli.bench.report import Goal, Part, Row, Unit
from mlxkv.cli.bench.report_file import read_report
from mlxkv.model import Model
from tests.reference import tiny_llama
from tests.tokenizers import tiny_tokenizer

SHAPE = Shape("a tiny model", 2, 2, 32)
PART = make_part("p", "Title", "model", "settings", {"x": Unit.NUMBER}, [Row("row", {"x": 1}, Goal("x", 2))])


def numbers(part: Part, column: str) -> list[Any]:
    return [row.values.get(column) for row in part.rows]


def test_every_part_of_the_suite_is_a_module_with_parts() -> None:
    for name in suite.PARTS:
        assert callable(importlib.import_module(f"bench.{name}").parts)


def test_a_pair_holds_the_same_tokens_on_both_sides() -> None:
    pair = Pair(SHAPE, CacheConfig(window=64, sinks=4))
    assert pair.feed(100) == tuple(range(100))
    assert pair.ours.tokens == list(range(100))
    assert [cache.offset for cache in pair.theirs] == [100, 100]
    assert pair.plan.bytes_per_token == SHAPE.row_bytes
    assert their_bytes(pair.theirs) == 256 * SHAPE.row_bytes  # KVCache allocates in steps


def test_speed_by_context() -> None:
    model = speed.few_layers(hidden=64, mlp=64, layers=1)
    part = speed.by_context(model, (16,), (8, 24), steps=2, rounds=1)
    assert [row.what for row in part.rows] == ["prefill, 16 tokens", "decode, 8 tokens", "decode, 24 tokens"]
    assert all(row.goal == Goal("ratio", at_least=0.99) for row in part.rows)


@pytest.mark.slow
def test_batches_beside_mlx_lm() -> None:
    sizes = {"count": 3, "prompt": 8, "reply": 6, "shared": 40, "question": 4, "answer": 5, "rounds": 1}
    part = batches.batches(tiny_llama(), tiny_tokenizer(), "tiny", 64, **sizes)
    assert [row.goal for row in part.rows] == [Goal("ratio", at_least=0.99), Goal("ratio", at_least=3.0)]
    assert numbers(part, "differing") == [0, 0]
    assert [*batches.parts(full=False)] == []


def test_a_token_costs_more_without_a_cache() -> None:
    part = recompute.by_length(tiny_llama(hidden=64, heads=2), "tiny", 64, [1, 1], (8, 512))
    assert numbers(part, "tokens") == [8, 512]
    assert part.rows[1].values["ratio"] > 1  # type: ignore[operator]
    assert "n^" in part.notes[0]


@pytest.mark.slow
def test_drafting_gains_and_costs(model: Model) -> None:
    part = drafting.tokens_per_forward(model, "tiny", 30)
    assert [row.what for row in part.rows] == [*(task.name for task in drafting.editing_tasks()), "best"]
    rates = [row.values["tokens"] / row.values["forwards"] for row in part.rows[:-1]]  # type: ignore[operator]
    assert part.row("best").values["tokens per forward"] == max(rates)
    timed = drafting.wall_time(model, "tiny", "chat questions", drafting.chat_tasks()[:2], 10, 1)
    assert timed.rows[0].values["with"] > 0  # type: ignore[operator]
    costs = drafting.forward_costs(model, "tiny", 64)
    assert costs.row("1 tokens").values["of one token"] == 1.0


@pytest.mark.slow
def test_drafting_changes_no_token(model: Model) -> None:
    found = drafting_equality.compare(model.loaded.model, 64, CacheConfig(window=64, block=16), {"temperature": 0.0}, 2)
    assert found.replies == 2
    assert found.differing == 0
    assert 0 < found.accepted < found.drafted


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_growth_is_the_exponent(power: float) -> None:
    assert recompute._exponent([(n, 3 * n**power) for n in (64, 256, 1024)]) == pytest.approx(power)


def test_updates_on_a_full_window_copy_less_than_mlx_lm() -> None:
    part = full_window.updates(window=512, turn=16, num_turns=4, heads=2, dim=32)
    rise = part.rows[-1].values
    assert rise["mlx-lm"] >= 1 > rise["mlxkv"]  # type: ignore[operator]


def test_a_turn_on_a_full_window() -> None:
    part = full_window.turns(speed.few_layers(64, 64, 1), window=64, message=8, reply=3, rounds=1)
    assert [row.what for row in part.rows] == ["8 + 3 tokens", "decode, 3 tokens"]
    assert all(row.values["mlxkv"] > 0 for row in part.rows)  # type: ignore[operator]


def test_the_overhead_of_the_loop_is_the_time_of_one_thread() -> None:
    part = overhead.loops(layers=2, steps=4)
    assert [row.what for row in part.rows] == list(overhead.CASES)
    assert all(0 < seconds < 0.01 for side in ("mlxkv", "mlx-lm") for seconds in numbers(part, side))
    assert all(row.goal == Goal("ratio", at_least=0.99) for row in part.rows)


def test_quantized_rows_are_packed_where_that_is_exact() -> None:
    exact, rounded = (quantized.by_rows(dtype, (64,), steps=2, rounds=1) for dtype in (mx.float32, mx.bfloat16))
    assert [row.what for row in exact.rows] == ["8 bits, 64 rows", "8/4 bits, 64 rows", "4 bits, 64 rows"]
    assert numbers(exact, "rows") == ["packed", "decoded", "packed"]
    assert numbers(rounded, "rows") == ["decoded"] * 3
    assert [row.goal is not None for row in exact.rows] == [True, False, True]
    assert [row.values.get("mlx-lm") is not None for row in rounded.rows] == [True, False, True]


def test_a_long_chat_grows_on_one_side_alone() -> None:
    part = full_window.long_chat(SHAPE, window=64, message=24, reply=8, every=256, until=1024)
    assert numbers(part, "tokens") == [256, 512, 768, 1024]
    assert numbers(part, "KVCache rows") == [256, 512, 768, 1024]
    assert len({*numbers(part, "mlxkv held")}) == 1
    assert max(numbers(part, "RotatingKVCache rows")) <= 64 + 4 + 24
    for side in ("mlxkv", "KVCache", "RotatingKVCache"):
        for held, peak in zip(numbers(part, f"{side} held"), numbers(part, f"{side} peak"), strict=True):
            assert held <= peak


def test_a_stream_has_flat_memory() -> None:
    part = streaming.stream(tiny_llama(), "tiny", 64, tokens=600, window=32, part=200)
    assert [row.met for row in part.rows[1:]] == [True, None, None]
    assert part.rows[0].goal == Goal("ratio", 0.95, 1.05)


def test_saving_and_loading() -> None:
    with fresh_home() as folders:
        folders.cache.mkdir(parents=True, mode=0o700)
        part = saving.save_and_load(1 << 20, folders, SHAPE, rounds=1)
    again = part.row("save after 1 % more tokens; save_prompt_cache").values
    assert again["mlxkv bytes"] < again["other bytes"] / 20  # type: ignore[operator]
    assert part.rows[-1].met
    with fresh_home() as folders:
        written = saving.amplification(folders, SHAPE, turns=3, window=256)
    assert written.rows[0].met


@pytest.mark.slow
def test_first_tokens(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def in_this_process(what: str, path: Path, of: str, home: Path) -> Any:
        ran.append(what)
        return first_token.CHILDREN[what](str(path), of)

    monkeypatch.setattr(first_token, "child", in_this_process)
    part = first_token.chat_part(tiny_path, "tiny", (100,), rounds=1, cold_rounds=1)
    cached = dict(zip((row.what.partition(": ")[2] for row in part.rows), numbers(part, "cached"), strict=True))
    assert cached["cold, new process"] == 0
    history = part.rows[0].values["history"]
    assert cached["resumed, new process"] == cached["forked"] == history - 1  # type: ignore[operator]
    assert 0 < cached["edited in mid-history"] < history - 1  # type: ignore[operator]
    assert ran == ["resume", "resume"]
    files = first_token.file_part(tiny_path, "tiny", 100, rounds=1)
    assert ran[2:] == ["mlxkv", "mlx-lm"]
    assert files.rows[0].values["mlxkv"] > 0  # type: ignore[operator]


@pytest.mark.slow
def test_a_process_of_its_own_prints_its_figures(tiny_path: Path, tmp_path: Path) -> None:
    with fresh_home() as folders:
        first_token.make_files(tiny_path, folders.cache.parent, 50)
        found = first_token.child("mlxkv", tiny_path, str(folders.cache.parent), folders.cache.parent)
    assert found["seconds"] > 0
    with pytest.raises(RuntimeError, match="failed"):
        first_token.child("mlxkv", tmp_path / "missing", "", tmp_path)


@pytest.mark.slow
def test_bytes_of_a_hybrid() -> None:
    part = bytes_part(FAMILIES["nemotron_h"], 3, turns=2)
    assert part.row("notices of the first turn").met
    assert part.rows[0].values["measured"].endswith("MB")  # type: ignore[union-attr]


@pytest.mark.parametrize(("found", "met"), [(row("x", "", 3, most=2), False), (row("x", "", 3, least=3), True)])
def test_a_row_of_hybrids_has_a_goal(found: Row, met: bool) -> None:
    assert found.met is met
    assert row("x", "no number").met is None


# -- a run of all parts ------------------------------------------------------------------------------------------------


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite of two parts; one fails after its first table."""

    class Fine:
        @staticmethod
        def parts(full: bool) -> list[Part]:
            return [replace(PART, name="full" if full else "short")]

    monkeypatch.setattr(suite.importlib, "import_module", lambda _: Fine)


@pytest.mark.usefixtures("modules")
def test_a_part_is_printed_with_its_seconds_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    for full in (False, True):
        suite.run_part("anything", full, file)
    assert [part.name for part in read_report(file)] == ["short", "full"]
    out = capsys.readouterr().out
    assert "**missed**" in out
    assert "\n0 s\n" in out


def test_a_part_that_fails_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def ran(command: list[str], check: bool) -> Any:
        commands.append(command[1:])
        return subprocess.CompletedProcess(command, 1 if "recompute" in command else 0)

    monkeypatch.setattr(suite.subprocess, "run", ran)
    assert suite.run_all("short", tmp_path / "x.json") == 1
    assert [command[5] for command in commands] == list(suite.PARTS)
    assert "`python -m bench --set short --only recompute` runs it alone" in capsys.readouterr().out


def test_a_run_ends_with_the_goals_that_were_missed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(file)])
    monkeypatch.setattr(suite, "run_all", lambda size, json: suite.write_report(json, [PART]) or 0)
    with pytest.raises(SystemExit) as ended:
        suite.main()
    assert ended.value.code == 0
    assert "1 goals missed\n* Title: row\n" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_is_refused_before_measuring(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "run_all", lambda size, json: pytest.fail("it measured"))
    monkeypatch.setattr(perplexity, "study_parts", lambda *args: pytest.fail("it measured"))
    monkeypatch.setattr(sys, "argv", ["bench", "--json", str(tmp_path / "none" / "x.json")])
    for main in (suite.main, perplexity.main):
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert f"The folder {tmp_path / 'none'} does not exist; make it first." in capsys.readouterr().err


def test_ctrl_c_ends_in_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(size: str, json: Path) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["bench"])
    monkeypatch.setattr(suite, "run_all", interrupted)
    with pytest.raises(SystemExit) as ended:
        suite.main()
    assert ended.value.code == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_real_model_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLXKV_REAL_MODELS", str(tmp_path))
    for module in (recompute, first_token):
        assert list(module.parts(full=False)) == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all("smollm2" in line and "`make real-models`" in line for line in lines)


def test_a_fresh_home_is_removed(home: Path) -> None:
    with fresh_home() as folders:
        assert os.environ["MLXKV_HOME"] == str(folders.cache.parent)
        assert folders.cache.parent.is_dir()
    assert os.environ["MLXKV_HOME"] == str(home)
    assert not folders.cache.parent.exists()
