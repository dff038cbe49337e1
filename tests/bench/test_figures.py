"""Figures of the documentation: the committed ones are what the committed reports give."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bench import figures
from bench.cache_study import FULL, RING, ROTATING_CALLS
from bench.figures import FIGURES, FOLDER, LOOKS, RESULTS, read_parts
from bench.measure import make_part
from mlxkv.cli.bench.report import Part, Row
from mlxkv.cli.bench.report_file import write_report

pytest.importorskip("matplotlib", reason="matplotlib is not installed: `make figures` installs it")


def made() -> dict[str, Part]:
    def part(name: str, *rows: dict[str, float], names: tuple[str, ...] = ()) -> Part:
        found = [Row(names[i] if names else f"row {i}", values) for i, values in enumerate(rows)]
        return make_part(name, "Title", "model", "", {}, found)

    sides = ("mlxkv", "KVCache", "RotatingKVCache")
    chat = [{"tokens": n, **{f"{side} peak": n * 1e4 for side in sides}} for n in (1024, 16_384)]
    token = [{"history": 512, "first token": seconds} for seconds in (34.0, 2.0)]
    by_length = [{"tokens": n, FULL: 10.0, RING: 11.0, ROTATING_CALLS: 20.0} for n in (256, 512)]
    return {
        "perplexity-smollm2": part("perplexity-smollm2", *by_length),
        "recompute": part("recompute", *({"tokens": n, "without": n / 10, "with": 0.2} for n in (64, 1024))),
        "long-chat": part("long-chat", *chat),
        "first-token": part("first-token", *token, names=("512 tokens: cold", "512 tokens: resumed")),
    }


def test_figures_are_text_in_a_generic_font_with_the_numbers() -> None:
    parts = made()
    svg = {name: content.decode() for name, content in figures.figures(parts)}
    assert {*svg} == {f"{name}-{look.name}.svg" for name in FIGURES for look in LOOKS}
    for text in svg.values():
        assert "sans-serif" in text
        assert "DejaVu" not in text
        assert "<text" in text
        assert "<dc:date>" not in text
    for look in LOOKS:
        assert look.ours in svg[f"memory-{look.name}.svg"]
    assert ">2 s<" in svg["first-token-light.svg"]
    assert "after 512 tokens" in svg["first-token-light.svg"]
    assert ">6.4 s<" in svg["recompute-light.svg"]
    again = figures.memory(parts, LOOKS[0]).decode()
    assert again == svg["memory-light.svg"]


def without(part: Part, *titles: str) -> Part:
    rows = [Row(row.what, {k: v for k, v in row.values.items() if k not in titles}) for row in part.rows]
    return replace(part, rows=rows)


def test_a_report_may_lack_mlx_lm_but_not_the_ring() -> None:
    part = made()["perplexity-smollm2"]
    short = {part.name: without(part, ROTATING_CALLS)}
    assert all("mlx-lm" not in svg.decode() for _, svg in figures.figures(short))
    assert list(figures.figures({part.name: without(part, RING)})) == []


def test_the_command_draws_what_it_has_and_names_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(tmp_path / "r.json", [made()["recompute"]])
    monkeypatch.setattr("sys.argv", ["figures", str(tmp_path / "r.json"), "--folder", str(tmp_path / "out")])
    figures.main()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["recompute-dark.svg", "recompute-light.svg"]
    assert "memory was left out: no file has the part `long-chat` with" in capsys.readouterr().out


def test_the_committed_figures_are_of_the_committed_reports() -> None:
    """Up to the last digits of positions, which differ between processors, and the ids that are made of them."""

    def rounded(svg: bytes) -> str:
        without_ids = re.sub(r"\b[mp][0-9a-f]{10}\b", "id", svg.decode())
        return re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.1f}", without_ids)

    drawn = {name: rounded(svg) for name, svg in figures.figures(read_parts(RESULTS))}
    assert drawn == {path.name: rounded(path.read_bytes()) for path in FOLDER.glob("*.svg")}, "run `make figures`"
