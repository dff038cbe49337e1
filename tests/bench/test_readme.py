"""README's figures are those of the committed reports."""

from __future__ import annotations

from dataclasses import replace

from bench.readme import README, all_parts, differences, section


def test_readme_says_what_was_measured() -> None:
    assert differences(README.read_text(encoding="utf-8"), all_parts()) == []


def test_another_figure_is_noticed() -> None:
    text, parts = README.read_text(encoding="utf-8"), all_parts()
    slower = [replace(row, values={**row.values, "first token": 1.0}) for row in parts["first-token"].rows]
    changed = parts | {"first-token": replace(parts["first-token"], rows=slower)}
    assert section(changed) != section(parts)
    assert len(differences(text, changed)) == 2
