"""Benchmark reports: what goes to a file comes back, and a missed goal is seen."""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlxkv.cli.bench import report_file
from mlxkv.cli.bench.report import (
    Environment,
    Goal,
    Part,
    Row,
    Unit,
    Value,
    command_line,
)
from mlxkv.cli.bench.report_file import check_report_file, read_report, write_report
from mlxkv.errors import ConfigError, StoreError

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


def test_rows_join_those_that_were_measured_alike(tmp_path: Path) -> None:
    path, first = tmp_path / "r.json", part()
    again = Row("512 tokens", {"ratio": 2.0})
    more = Row("8,192", {"ratio": 3.0})
    second = replace(
        first,
        rows=[again, more],
        notes=["Greedy.", "New."],
        environment=replace(HERE, command="again", date="2026-12-01"),
    )
    write_report(path, [first], keep_rows=True)
    for _ in range(2):  # measured once more, it changes nothing but the seconds
        write_report(path, [second], keep_rows=True)
        (found,) = read_report(path)
        assert found.rows == [again, first.rows[1], more]
        assert found.environment == replace(HERE, command="make bench; again", date="2026-12-01")
        assert found.notes == ["Greedy.", "New."]
    assert read_report(path)[0].seconds == 4.5


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"settings": "sampled"},
        {"columns": {"ratio": Unit.RATIO}},
        {"environment": replace(HERE, machine="another")},
        {"environment": replace(HERE, versions="mlxkv 0.2.0")},
    ],
)
def test_rows_measured_otherwise_are_replaced(tmp_path: Path, change: dict[str, Any]) -> None:
    path, new = tmp_path / "r.json", replace(part(), rows=[Row("8,192", {"ratio": 3.0})], **change)
    write_report(path, [part()], keep_rows=True)
    write_report(path, [new], keep_rows=True)
    assert read_report(path) == [new]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("none/r.json", r"The folder .*none does not exist; make it first\."),
        ("file/r.json", r"The folder .*file does not exist; make it first\."),
        (".", "it is a folder, not a regular file"),
        ("pipe", "it is a pipe, not a regular file"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_in_a_sentence(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for use in (check_report_file, lambda path: write_report(path, [part()])):
        with pytest.raises(StoreError, match=why):
            use(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


def test_a_folder_that_takes_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(dir: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(report_file.tempfile, "TemporaryFile", full)
    with pytest.raises(StoreError, match=r"r\.json cannot be written \(Read-only file system\); check the path"):
        check_report_file(tmp_path / "r.json")


def test_a_check_leaves_a_report_and_no_file(tmp_path: Path) -> None:
    check_report_file(tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []
    write_report(tmp_path / "r.json", [part()])
    check_report_file(tmp_path / "r.json")
    assert read_report(tmp_path / "r.json") == [part()]


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
    for use in (check_report_file, lambda path: write_report(path, [part()])):
        with pytest.raises(ConfigError, match=rf"other\.json {why}"):
            use(path)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["-m", "/private/models/smollm2", "--tokens", "8"], "-m smollm2 --tokens 8"),
        (["--model=/private/smollm2", "-m/private/smollm2"], "--model=smollm2 -msmollm2"),
        (["../private/smollm2/", "~someone/smollm2", "private/smollm2"], "smollm2 smollm2 smollm2"),
        (["-m", ".", "--json=private"], "-m mine --json=private"),
        (["-m", "org/smollm2", "--context", "512,4096", "-p"], "-m org/smollm2 --context 512,4096 -p"),
    ],
)
def test_a_command_in_a_report_names_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: list[str], shown: str
) -> None:
    (tmp_path / "mine" / "private" / "smollm2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mine")
    monkeypatch.setattr(sys, "argv", ["bench", *given])
    assert command_line().endswith(f" {shown}")
    assert len(command_line().split()) <= len(given) + 3


def test_a_report_is_plain_json(tmp_path: Path) -> None:
    write_report(tmp_path / "r.json", [part()])
    table = json.loads((tmp_path / "r.json").read_text())
    assert table["parts"][0]["columns"] == {"mlxkv": "tok/s", "ratio": "ratio"}
