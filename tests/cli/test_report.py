"""Benchmark reports: what goes to a file comes back, and a missed goal is seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mlxkv.cli.bench.report import (
    Environment,
    Goal,
    Part,
    Row,
    Unit,
    Value,
    command_line,
    read_report,
    write_report,
)
from mlxkv.errors import ConfigError

HERE = Environment("Linux x86_64, 2 cores; cpu", "mlxkv 0.1.0", "make bench", "2026-11-29")


def part(name: str = "decode", speed: float = 1.25) -> Part:
    return Part(
        name, "Decode", "tutor", "greedy", {"mlxkv": Unit.TOKENS_PER_SECOND, "ratio": Unit.RATIO},
        [
            Row("512 tokens", {"mlxkv": 1234.5, "ratio": speed}, Goal("ratio", at_least=1.0)),
            Row("4,096", {"ratio": None}),
        ],
        HERE, seconds=1.5, notes=["Greedy."],
    )  # fmt: skip


def test_markdown_shows_values_goals_and_a_gap() -> None:
    lines = part().markdown().splitlines()
    assert lines[0] == "### Decode"
    assert "|  | mlxkv | ratio | goal |  |" in lines
    assert "| 512 tokens | 1,234 | 1.250 | ≥ 1 | met |" in lines
    assert "| 4,096 | – | – |  |  |" in lines
    assert lines[-1] == "Greedy."


@pytest.mark.parametrize("speed", [0.999, None, "failed"])
def test_a_missed_goal_is_shown_as_missed(speed: Value) -> None:
    missed = Row("x", {"ratio": speed}, Goal("ratio", at_least=1.0))
    found = Part("p", "P", "m", "", {"ratio": Unit.RATIO}, [missed], HERE)
    assert found.missed == (missed,)
    assert "**missed**" in found.markdown()


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (Goal("x", at_least=1), 1, True),
        (Goal("x", at_most=1), 1.01, False),
        (Goal("x", 1, 2), 1.5, True),
        (Goal("x", 1, 2), 2.5, False),
    ],
)
def test_a_goal_has_limits(goal: Goal, value: float, met: bool) -> None:
    assert goal.is_met(value) is met


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    write_report(tmp_path / "r.json", [part()])
    assert read_report(tmp_path / "r.json") == [part()]


def test_parts_of_the_same_name_are_replaced_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_report(path, [part("decode", 1.0), part("prefill")])
    write_report(path, [part("decode", 2.0), part("memory")])
    assert {p.name: p.rows[0].values["ratio"] for p in read_report(path)} == {
        "decode": 2.0,
        "prefill": 1.25,
        "memory": 1.25,
    }
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *((text, "is not a benchmark report") for text in ("", "[]", "{}", '{"schema": 1, "parts": [{}]}', "[1")),
        ('{"schema": 2, "parts": []}', "is a report of schema 2, and this mlxkv reads 1"),
    ],
)
def test_another_file_is_refused_in_a_sentence_and_stays(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"other\.json {why}"):
        write_report(path, [part()])
    assert path.read_text() == text


def test_a_command_in_a_report_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "-m", "/private/models/smollm2", "--tokens", "8"])
    assert command_line().endswith(" -m smollm2 --tokens 8")


def test_a_report_is_plain_json(tmp_path: Path) -> None:
    write_report(tmp_path / "r.json", [part()])
    table = json.loads((tmp_path / "r.json").read_text())
    assert table["parts"][0]["columns"] == {"mlxkv": "tok/s", "ratio": "ratio"}
