"""The welcome of an empty chat: what is suggested for this machine, at any width."""

from __future__ import annotations

import pytest

from mlxkv.protocol.events import ModelCard
from mlxkv.tui.widgets.welcome import how_to_begin, model_lines

SUGGESTED = (
    ModelCard("org/nine", 6_000_000_000, "MIT", "Strong.", reason="suggested for 16 GB or more"),
    ModelCard("org/four\x1b[2J", 3_000_000_000, "MIT", "Quick.", reason="quick choice for 16 GB or more"),
)


def test_below_tutor_stands_the_default_for_this_machine() -> None:
    lines = how_to_begin("tutor", SUGGESTED, 80)
    assert lines[1] == "Suggested for 16 GB or more: org/nine, 6.0 GB"
    assert how_to_begin("tutor", (), 80) == [lines[0], lines[2]]
    assert how_to_begin("org/nine", SUGGESTED, 80) == ["Ask anything. / for commands, ? for help."]


@pytest.mark.parametrize("width", [1, 12, 40, 120])
def test_a_line_is_no_wider_than_the_window(width: int) -> None:
    assert len(how_to_begin("tutor", SUGGESTED, width)[1]) <= max(width - 2, 1)


def test_without_a_model_both_are_listed_with_the_reason_if_it_fits() -> None:
    wide, narrow = (" ".join(row.plain for row in model_lines(SUGGESTED, width)) for width in (120, 40))
    assert "suggested for 16 GB or more MIT Strong." in " ".join(wide.split())
    assert "quick choice for 16 GB or more" in wide
    assert "org/nine" in narrow
    assert "suggested" not in narrow
    assert "\x1b" not in wide
