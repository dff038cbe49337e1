"""`mlxkv bench`: what is refused before it measures, what it says meanwhile, and what it prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import mlxkv.models
from mlxkv.cli.app import main
from mlxkv.cli.bench import parts as parts_module
from mlxkv.cli.bench.command import contexts, explained, public_name, show_progress
from mlxkv.cli.bench.measure import Ratio, Speeds
from mlxkv.cli.bench.parts import speed_row
from mlxkv.cli.bench.report import Part
from mlxkv.cli.bench.report_file import read_report
from mlxkv.errors import ConfigError
from tests.cli.test_report import part


class Ended(NamedTuple):
    code: object
    out: str
    err: str


@pytest.fixture
def bench(home: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*args: object) -> Ended:
        code: object = 0
        try:
            main(["bench", *map(str, args)])
        except SystemExit as ended:
            code = ended.code
        shown = capsys.readouterr()
        return Ended(code or 0, shown.out, shown.err)

    return call


@pytest.fixture
def loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlxkv.models, "load_model", lambda name: pytest.fail(f"{name} was loaded"))


@pytest.mark.usefixtures("loads_nothing")
def test_a_report_that_cannot_be_written_is_refused_before_measuring(bench: Any, tmp_path: Path) -> None:
    for name, why in (("none/x.json", "does not exist; make it first."), (".", "check the path and the disk.")):
        done = bench("--json", tmp_path / name)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("mlxkv: ")
        assert done.err.endswith(f"{why}\n")
        assert done.err.count("\n") == 1


def test_a_report_that_cannot_be_written_afterwards_is_a_sentence(
    bench: Any, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "reports"
    folder.mkdir()

    def measured(*args: object) -> list[Part]:
        folder.rmdir()
        return [part()]

    monkeypatch.setattr(parts_module, "measure", measured)
    done = bench("-m", tiny_path, "--json", folder / "x.json")
    assert done.code == 1
    assert "### Decode" in done.out
    assert done.err.splitlines() == [f"mlxkv: The folder {folder} does not exist; make it first."]


@pytest.mark.usefixtures("loads_nothing")
@pytest.mark.parametrize("context", ["99999999", "8,many", "1", "", "8,,8", "-8", "8.5", "²", "9" * 5000])
def test_a_context_names_its_limits(bench: Any, context: str) -> None:
    done = bench(f"--context={context}")
    assert (done.code, done.out) == (2, "")
    assert f"--context is {context[:20]!r}"[:-1] in done.err
    assert "from 2 to 16,777,216" in done.err


@pytest.mark.usefixtures("loads_nothing")
@pytest.mark.parametrize(("option", "least"), [("--prompt", 2), ("--tokens", 1), ("--window", 1)])
def test_other_numbers_have_limits_too(bench: Any, option: str, least: int) -> None:
    for count in (least - 1, 99999999):
        done = bench(option, count)
        assert done.code == 2
        assert done.err == f"mlxkv: {option} is {count}; it must be a number from {least} to 16,777,216.\n"


def test_contexts() -> None:
    assert contexts(None, " 2, 0512,16777216,512") == (2, 512, 1 << 24)
    assert contexts(7, None) == (7,)
    assert contexts(None, None) == ()
    with pytest.raises(ConfigError, match="leave out one"):
        contexts(7, "7")


@pytest.mark.slow
def test_runs_add_up_and_name_no_folder(
    bench: Any, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "_COPIED", 1 << 16)
    file = tmp_path / "bench.json"
    for context in (8, 16):
        done = bench("-m", tiny_path, "--context", context, "--tokens", 2, "--json", file)
        assert done.code == 0
        assert [line for line in done.err.splitlines() if line.startswith("measuring ")] == [
            "measuring the bandwidth of a copy ...",
            f"measuring prefill of {context} tokens ...",
            f"measuring decode after {context} tokens ...",
        ]
        assert str(tiny_path.parent) not in done.out
        assert "at least as fast as mlx-lm" in done.out
    speed, cache, bandwidth = read_report(file)
    assert [row.values["context"] for row in speed.rows] == [8, 8, 16, 16]
    assert [row.values["context"] for row in cache.rows] == [8, 8, 16, 16]
    assert [row.what for row in bandwidth.rows[1:]] == ["decode after 8 tokens", "decode after 16 tokens"]
    assert str(tiny_path.parent) not in file.read_text()
    assert speed.model.startswith(f"{tiny_path.name}, ")


def test_a_model_keeps_its_name_and_a_folder_its_last_part(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [public_name(name) for name in ("tutor", "org/name@main")] == ["tutor", "org/name@main"]
    monkeypatch.chdir(tiny_path)
    assert {public_name(name) for name in (str(tiny_path), ".", f"../{tiny_path.name}/")} == {tiny_path.name}


@pytest.mark.parametrize(
    ("is_terminal", "shown"), [(True, "\r\033[Kmeasuring x ...\r\033[K"), (False, "measuring x ...\n")]
)
def test_progress(
    is_terminal: bool, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    show_progress("x")
    show_progress("")
    assert capsys.readouterr().err == shown


@pytest.mark.parametrize(("worst", "is_busy"), [(0.7, True), (0.79, True), (0.81, False), (1.0, False)])
def test_a_busy_machine_is_said(worst: float, is_busy: bool) -> None:
    rows = [speed_row("decode, 8 tokens", Speeds("decode", 8, Ratio(1.0, 1.0, worst)), 8)]
    found = explained(replace(part(), rows=rows))
    text = (
        "The worst pair is more than 20% below the median (decode, 8 tokens): the machine was busy, so measure again."
    )
    assert (text in found.notes) is is_busy
    assert "goal: at least as fast as mlx-lm (ratio ≥ 0.99: 1, less a little for noise)." in found.notes


def test_a_table_without_goals_is_not_explained() -> None:
    plain = replace(part(), rows=[replace(row, goal=None) for row in part().rows])
    assert explained(plain).notes == plain.notes


def test_the_help_says_what_becomes_of_a_report(bench: Any) -> None:
    done = bench("--help")
    assert done.code == 0
    assert "adds to a report that is there" in " ".join(done.out.split())
