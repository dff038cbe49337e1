"""Another machine that differs is named, in one process whose link gives its answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlxkv.cache.config import CacheConfig
from mlxkv.device import current_device
from mlxkv.distributed import machines, measure
from mlxkv.distributed.link import Link
from mlxkv.distributed.machines import load_split
from mlxkv.errors import MachineError
from tests.cache.architectures import ARCHITECTURES
from tests.distributed.test_messages import Recorder, lead


class Other(Recorder):
    """With a second machine, whose number of this index differs in what is compared; None: it is the same."""

    def __init__(self, index: int | None) -> None:
        super().__init__()
        self.index, self.names = index, ["here", "studio"]

    def texts(self, own: str) -> list[str]:
        return [own, ""]

    def compare(self, *numbers: int) -> list[list[int]]:
        return [list(numbers), [n + (i == self.index) for i, n in enumerate(numbers)]]


@pytest.mark.parametrize(("index", "what"), enumerate(machines._COMPARED))
def test_what_differs_in_loading_is_named(index: int, what: str, tiny_path: Path) -> None:
    loaded: Any = SimpleNamespace(config={}, path=tiny_path)
    with pytest.raises(MachineError, match=f"^studio has another {what} than here; make them equal.$"):
        load_split(Other(index), str(tiny_path), "auto", lambda _: loaded)
    assert load_split(Other(None), str(tiny_path), "auto", lambda _: loaded)[0] is loaded


def test_another_version_of_mlxkv_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Link, "_gathered", lambda _, numbers: [numbers, [numbers[0] + 1, 6, *b"studio", *[0] * 60]])
    with pytest.raises(MachineError, match=r"^studio has another version of mlxkv than .*; make them equal\.$"):
        Recorder()


def test_another_log_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    link, _, make = lead(ARCHITECTURES["llama"].build())
    cache = make(CacheConfig())
    link.names = ["here", "studio"]
    monkeypatch.setattr(link, "compare", lambda *numbers: [list(numbers), [numbers[0], numbers[1] + 1]])
    with pytest.raises(MachineError, match="The cache on studio holds other tokens than this one"):
        cache.peers.compare()


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (0, "studio has another version of mlx than this machine; make them equal."),
        (1, "studio has another version of mlx-lm than this machine; make them equal."),
        (2, "studio has other files of {name}; download it again there."),
    ],
)
def test_doctor_names_who_differs(index: int, text: str, tiny_path: Path) -> None:
    found = list(measure.examine(Other(index), str(tiny_path)))
    assert [said for ok, _, said in found if not ok] == [text.format(name=tiny_path)]


def test_doctor_says_what_each_machine_needs_and_has(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = replace(current_device(), memory_limit=1 << 20)
    monkeypatch.setattr(measure, "current_device", lambda: device)
    found = [(ok, text) for ok, subject, text in measure.examine(Other(None), str(tiny_path)) if subject == "memory"]
    assert [(ok, text.partition(" needs ")[0]) for ok, text in found] == [(False, "here"), (False, "studio")]
    assert found[0][1].endswith("and lets a process use 1.0 MB; use more machines.")


@pytest.mark.parametrize(
    ("size", "backend", "pairs"),
    [(2, "ring", [(0, 1)]), (3, "ring", [(0, 1), (1, 2), (2, 0)]), (3, "jaccl", [(0, 1), (0, 2), (1, 2)])],
)
def test_each_pair_that_is_connected_is_measured(size: int, backend: str, pairs: list[tuple[int, int]]) -> None:
    assert measure._pairs(size, backend) == pairs
