"""Figures of the documentation: the committed ones are what the committed reports give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import figures
from bench.cache_study import FULL, RING, ROTATING_CALLS
from bench.figures import FIGURES, FOLDER, LOOKS, RESULTS, read_parts
from bench.measure import make_part
from mlxkv.cli.bench.report import Part, Row, Unit, write_report

pytest.importorskip("matplotlib", reason="matplotlib is not installed: `make figures` installs it")

COUNT = Unit.COUNT


def made() -> dict[str, Part]:
    def part(name: str, *rows: dict[str, float], names: tuple[str, ...] = ()) -> Part:
        found = [Row(names[i] if names else f"row {i}", values) for i, values in enumerate(rows)]
        return make_part(name, "Title", "model", "", {}, found)

    sides = ("mlxkv", "KVCache", "RotatingKVCache")
    chat = [{"tokens": n, **{f"{side} peak": n * 1e4 for side in sides}} for n in (1024, 16_384)]
    token = [{"history": 512, "first token": seconds} for seconds in (34.0, 2.0)]
    by_length = [{"tokens": n, FULL: 10.0, RING: 11.0, ROTATING_CALLS: 20.0} for n in (256, 512)]
    columns = dict.fromkeys(by_length[0], Unit.PERPLEXITY)
    return {
        "perplexity-smollm2": replace(part("perplexity-smollm2", *by_length), columns=columns),
        "recompute": part("recompute", *({"tokens": n, "without": n / 10, "with": 0.2} for n in (64, 1024))),
        "long-chat": part("long-chat", *chat),
        "first-token": part("first-token", *token, names=("512 tokens: cold", "512 tokens: resumed")),
    }


def test_figures_are_text_in_a_generic_font_with_the_numbers() -> None:
    parts = made()
    svg = {name: content.decode() for name, content in figures.figures(parts)}
    assert {*svg} == {
        f"{name}-{look.name}.svg" for name, (needs, _) in FIGURES.items() if needs in parts for look in LOOKS
    }
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


def test_a_short_report_lacks_mlx_lm_in_the_figure_of_perplexity() -> None:
    part = made()["perplexity-smollm2"]
    columns = {title: unit for title, unit in part.columns.items() if "mlx-lm" not in title}
    svg = figures.perplexity({part.name: replace(part, columns=columns)}, LOOKS[0]).decode()
    assert "mlx-lm" not in svg


def test_the_command_draws_what_it_has_and_names_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(tmp_path / "r.json", [made()["recompute"]])
    monkeypatch.setattr("sys.argv", ["figures", str(tmp_path / "r.json"), "--folder", str(tmp_path / "out")])
    figures.main()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["recompute-dark.svg", "recompute-light.svg"]
    assert "memory was left out: no file has the part `long-chat`." in capsys.readouterr().out


def test_the_committed_figures_are_of_the_committed_reports() -> None:
    drawn = dict(figures.figures(read_parts(sorted(RESULTS.glob("*.json")))))
    assert drawn == {path.name: path.read_bytes() for path in FOLDER.glob("*.svg")}, "run `make figures`"
