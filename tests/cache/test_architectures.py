"""Every architecture of mlx-lm on our caches: the logits of its own, and never more rows than were asked for.

What is compared stands in architecture_checks.py. CI runs parity and bounds of all, and every check of some, those with
MLX's compiled functions; MLXKV_THOROUGH=1 runs every check of all, as `python -m bench.architectures` does.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cache.architecture_checks import parity, planned
from tests.cache.architecture_table import check_parity, make_row, plan_cells, read_rows
from tests.cache.architectures import ARCHITECTURES, CHECKED, NOT_BUILT, module_names
from tests.thorough import part


def test_every_model_of_mlx_lm_is_here_or_says_why_not() -> None:
    assert set(ARCHITECTURES) | set(NOT_BUILT) == set(module_names())
    assert len(ARCHITECTURES) >= 100


@pytest.mark.slow
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_mlx_lm_and_rows_are_bounded(name: str) -> None:
    model = ARCHITECTURES[name].build()
    plan = planned(model)
    found = parity(model, plan)
    check_parity(name, plan, found)
    native, becomes, bounded = plan_cells(model, plan)
    assert f"| `{name}` | {native} | {becomes} | {bounded} |" in read_rows()[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", part(CHECKED, 2))
def test_the_row_in_the_documentation_is_what_checks_show(name: str, tmp_path: Path) -> None:
    assert str(make_row(name, tmp_path / "cache.kv")) == read_rows()[name]


def test_the_documentation_has_a_row_for_each() -> None:
    assert list(read_rows()) == list(ARCHITECTURES)
