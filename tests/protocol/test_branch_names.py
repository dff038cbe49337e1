"""How branches are called."""

from __future__ import annotations

import pytest

from mlxkv.protocol.branch_names import Departure


@pytest.mark.parametrize(
    ("departure", "text", "own"),
    [
        (Departure("What about sinks?", "What is a cache?"), "What about sinks? · after “What is a cache?”", None),
        (Departure("Who?", ""), "Who? · from the start", "Who?"),
        (Departure("", "What is a cache?"), "after “What is a cache?”", "after “What is a cache?”"),
        (Departure(), "from the start", "from the start"),
        (Departure("Why?", "What?", True), "another reply to “Why?”", "another reply to “Why?”"),
        (Departure("", "What?", True), "another reply to “What?”", "another reply to “What?”"),
        (Departure("a", "b", changes_system=True), "with another system prompt", "with another system prompt"),
        (Departure("\n \x1b[31m two  spaces\nand more", "x" * 99), f"␛[31m two spaces · after “{'x' * 59}…”", None),
    ],
)
def test_a_branch_is_called_by_where_it_departs(departure: Departure, text: str, own: str | None) -> None:
    assert departure.text == text
    assert departure.own == (own or text.split(" · ")[0])
