"""Before a model is loaded that does not fit: what it needs is said, and what the user chooses then is done."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mlxkv
from mlxkv.cache.config import CacheConfig
from mlxkv.cli.app import main
from mlxkv.engine.handlers.status import cache_view
from mlxkv.errors import OutOfMemoryError
from mlxkv.memory.preflight import check_fit
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.protocol.status import ModelTooLarge
from mlxkv.settings.setting_sources import SettingSources
from tests.engine.test_engine_chats import SETTINGS, Said
from tests.tokenizers import tiny_folder

# Its KV cache is much larger than its weights.
WIDE: dict[str, Any] = {"layers": 2, "heads": 8, "kv_heads": 8, "head_dim": 64}
CONFIG = CacheConfig(window=4096)


@pytest.fixture
def large(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model whose cache fits with 8/4 and 4 bits alone, by a limit that MLXKV_MEMORY_LIMIT sets."""
    name = str(tiny_folder(tmp_path / "large", **WIDE))
    monkeypatch.setenv("MLXKV_MEMORY_LIMIT", "1MB")
    found = [check_fit(name, replace(CONFIG, bits=bits)) for bits in (None, 8, "8/4", 4)]
    needs = [too_large.need for too_large in found if too_large]
    assert len(needs) == 4
    assert needs == sorted(needs, reverse=True)
    monkeypatch.setenv("MLXKV_MEMORY_LIMIT", str((needs[1] + needs[2]) // 2))
    return name


@pytest.fixture
def said(home: Path) -> Iterator[Said]:
    said = Said(replace(SETTINGS, window=4096))
    yield said
    said.context.close()


@pytest.mark.slow
def test_what_is_needed_is_what_loading_and_its_cache_come_to(large: str) -> None:
    found = check_fit(large, CONFIG)
    assert found is not None
    assert found.usable < found.need < 2 * found.usable
    assert found.text.startswith("large needs ~")
    assert found.kv_bits == "8/4"
    assert check_fit(large, replace(CONFIG, bits=8)) is not None
    assert check_fit(large, replace(CONFIG, bits="8/4")) is None
    assert check_fit(large, replace(CONFIG, bits=4)) is None
    assert check_fit(large, replace(CONFIG, window=64)) is None
    assert (
        check_fit(large, CacheConfig()) is None or check_fit(large, CacheConfig()) == found
    )  # as far as it was trained
    assert check_fit("nothing/there", CONFIG) is None  # loading says so


@pytest.mark.slow
def test_a_model_that_does_not_fit_is_not_loaded_before_somebody_says_so(said: Said, large: str) -> None:
    (found,) = said.ask(cmd.LoadModel(large))
    assert isinstance(found, ModelTooLarge)
    assert said.context.model is None
    said.one(cmd.LoadModel(large, anyway=True), ev.ModelReady)
    assert said.one(cmd.Send("hi", 0.0), ev.TurnFinished).text
    chat = said.context.current_chat
    assert chat.cache.plan.config.bits is None
    assert chat.cache.plan.config.window == 4096
    careful = mlxkv.load(large)
    with pytest.raises(OutOfMemoryError):  # it was really tried
        careful.make_cache(CONFIG)
    careful.close()


@pytest.mark.parametrize("bits", ["8/4", 4])
def test_fewer_bits_are_planned_and_fit(said: Said, large: str, bits: int | str) -> None:
    said.one(cmd.LoadModel(large, kv_bits=bits), ev.ModelReady)
    assert said.one(cmd.Send("hi", 0.0), ev.TurnFinished).stats.cache_bits == bits
    view = cache_view(cache := said.context.current_chat.cache, cache.offset)
    assert view is not None
    assert view.bits == bits
    assert said.context.current_chat.cache.plan.config.window == 4096


@pytest.mark.slow
def test_the_old_model_and_chat_stay_until_it_is_decided(said: Said, large: str, tiny_path: Path) -> None:
    said.context.sources = SettingSources.of(SETTINGS)
    said.one(cmd.LoadModel(str(tiny_path)), ev.ModelReady)
    said.one(cmd.Send("hi", 0.0), ev.TurnFinished)
    said.context.sources = SettingSources.of(replace(SETTINGS, window=4096))
    assert said.one(cmd.LoadModel(large), ModelTooLarge)
    assert said.one(cmd.Send("still there", 0.0), ev.TurnFinished).stats.cached_tokens > 0
    opened = said.one(cmd.LoadModel(large, kv_bits=4), ev.ChatOpened)
    assert [m.text for m in opened.messages if m.role == "user"] == ["hi", "still there"]
    assert said.context.current_chat.cache.plan.config.bits == 4


def test_weights_alone_can_be_too_much_and_are_tried(
    said: Said, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLXKV_MEMORY_LIMIT", "10KB")
    found = said.one(cmd.LoadModel(str(tiny_path)), ModelTooLarge)
    assert found.kv_bits is None
    said.context.sources = SettingSources.of(replace(SETTINGS, window=None))
    said.one(cmd.LoadModel(str(tiny_path), anyway=True), ev.ModelReady)
    assert said.one(cmd.Send("hi", 0.0), ev.TurnFinished).text
    assert said.context.current_chat.cache.capacity <= 4096 + 64


def test_the_list_of_smaller_ones_has_only_those_that_fit(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXKV_MEMORY_LIMIT", "2GB")
    listed = said.one(cmd.ListModels(fitting=True), ev.ModelList)
    assert listed.only_fitting
    assert listed.models
    assert all(card.fits for card in listed.models)
    assert any(not card.fits for card in said.one(cmd.ListModels(), ev.ModelList).models)


def test_a_download_that_could_not_fit_is_asked_about_first(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlxkv.models import catalogue

    large = catalogue()[-1]
    monkeypatch.setenv("MLXKV_MEMORY_LIMIT", "1GB")
    asked: list[tuple[str, int]] = []
    start = "mlxkv.engine.downloads.Downloads.start"
    monkeypatch.setattr(start, lambda _, name, device, then_load: asked.append((name, device.memory_limit)))
    found = said.one(cmd.LoadModel(large.id), ModelTooLarge)
    assert (found.need, found.usable) == (large.size_bytes, 10**9)
    assert asked == []
    said.ask(cmd.LoadModel(large.id, anyway=True))
    assert asked == [(large.id, 1 << 62)]


@pytest.mark.slow
def test_print_mode_says_it_in_a_sentence_with_the_options(
    large: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    options = ["-p", "hi", "-m", large, "--window", "4096", "--no-save", "--max-tokens", "2"]
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("mlxkv: large needs ~")
    assert "--kv-bits 8/4 makes it fit" in told
    assert "--load-anyway tries it" in told
    assert told.count("\n") == 1
    for more in (["--kv-bits", "8/4"], ["--load-anyway"]):
        with pytest.raises(SystemExit) as ended:
            main([*options, *more])
        assert ended.value.code == 0, capsys.readouterr().err
