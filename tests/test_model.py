"""Raw text, prompt caches and estimates, through the public API."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import mlxkv
from mlxkv.device import Device
from mlxkv.errors import (
    ConfigError,
    CorruptError,
    MismatchError,
    OutOfMemoryError,
    PromptError,
)
from mlxkv.events import TextDelta
from mlxkv.model import Model
from tests.chats import CONFIG, GREEDY
from tests.tokenizers import tiny_folder


def test_generate_equals_stream_and_counts(model: Model) -> None:
    result = model.generate("once upon", cache=CONFIG, **GREEDY)
    streamed = "".join(e.text for e in model.stream("once upon", cache=CONFIG, **GREEDY) if isinstance(e, TextDelta))
    assert result.text == streamed
    assert result.stats.generated_tokens == len(result.tokens)
    with pytest.raises(PromptError):
        model.generate("")
    with pytest.raises(ConfigError, match="temperature"):
        model.generate("x", temperature=-1.0)
    with pytest.raises(ConfigError, match="tempo"):
        model.generate("x", tempo=1)  # type: ignore[call-overload]


@pytest.mark.slow
@pytest.mark.parametrize("book", ["a long book. ", "a long book. " * 40], ids=["short", "past the window"])
def test_several_texts_continue_one_prompt_that_is_prefilled_once(model: Model, book: str) -> None:
    pc, ids = model.prefill(book, CONFIG), model.prefill(book + "who?", CONFIG).tokens
    one = model.generate("who?", cache=pc.fork(), **GREEDY)
    several = model.generate("who?", cache=pc, n=3, **GREEDY)
    assert [(c.text, c.tokens) for c in several] == [(one.text, one.tokens)] * 3
    assert pc.tokens == ids[:-1]
    counts = [(c.stats.prompt_tokens, c.stats.cached_tokens, c.stats.prefill_tokens) for c in several]
    first = (one.stats.prompt_tokens, one.stats.cached_tokens, one.stats.prefill_tokens)
    assert counts == [first, *[(len(ids), len(ids) - 1, 1)] * 2]


@pytest.mark.slow
def test_each_of_several_texts_has_its_own_seed(model: Model) -> None:
    warm = {"temperature": 2.0, "max_tokens": 12, "cache": CONFIG}
    several = model.generate("once upon", n=4, seed=7, **warm)
    assert [c.tokens for c in model.generate("once upon", n=4, seed=7, **warm)] == [c.tokens for c in several]
    assert model.generate("once upon", seed=7, **warm).tokens == several[0].tokens
    assert len({c.tokens for c in several}) == 4
    assert {c.tokens for c in model.generate("once upon", n=4, seed=8, **warm)}.isdisjoint(c.tokens for c in several)
    with pytest.raises(ConfigError, match=r"`n` is 0; it must be a whole number from 1 to 10,000\."):
        model.generate("once upon", n=0)


def test_a_prompt_cache_is_read_once_saved_and_loaded(model: Model, tiny_path: Path, tmp_path: Path) -> None:
    pc = model.prefill("a long book. " * 12, CONFIG)
    straight = model.generate("who?", cache=pc.fork(), **GREEDY)
    assert straight.stats.cached_tokens == pc.offset
    assert straight.stats.prefill_tokens == 4
    pc.save(tmp_path / "book.kv")
    other = mlxkv.load(str(tiny_path))
    loaded = other.load_cache(tmp_path / "book.kv")
    assert loaded.tokens == pc.tokens
    again = other.generate("who?", cache=loaded, **GREEDY)
    assert (again.text, again.stats.cached_tokens) == (straight.text, straight.stats.cached_tokens)
    other.close()


def test_a_prompt_cache_of_another_model_or_a_damaged_one_is_an_error(model: Model, tmp_path: Path) -> None:
    model.prefill("a long book. " * 12, CONFIG).save(tmp_path / "book.kv")
    other = mlxkv.load(str(tiny_folder(tmp_path / "other", seed=7)))
    with pytest.raises(MismatchError) as error:
        other.load_cache(tmp_path / "book.kv")
    assert error.value.field
    other.close()
    whole = (tmp_path / "book.kv").read_bytes()
    (tmp_path / "cut.kv").write_bytes(whole[:-100])
    flipped = bytearray(whole)
    flipped[-100] ^= 1
    (tmp_path / "flipped.kv").write_bytes(flipped)
    for name in ("cut.kv", "flipped.kv"):
        with pytest.raises(CorruptError):
            model.load_cache(tmp_path / name)


def test_a_window_that_does_not_fit_is_refused_before_anything_is_allocated(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Device("fake", False, 20_000_000, 20_000_000, False)
    monkeypatch.setattr("mlxkv.chat.runtime.current_device", lambda: small)

    with pytest.raises(OutOfMemoryError, match="would fit"):
        model.chat(cache=mlxkv.CacheConfig(window=2**16))


def test_the_estimate_is_what_is_then_allocated(model: Model, tiny_path: Path) -> None:
    e = mlxkv.estimate(str(tiny_path), CONFIG)
    result = model.generate("once upon", cache=CONFIG, **GREEDY)
    assert e.cache_bytes == result.stats.cache_bytes
    assert e.weight_bytes == model.loaded.weight_bytes
    assert e.fits


def test_rows_of_weights_replaced_while_loaded_fit_no_model(tiny_path: Path, tmp_path: Path, home: Path) -> None:
    """The file's hash names the new weights; the rows are of the old ones."""
    folder = shutil.copytree(tiny_path, tmp_path / "model")
    model = mlxkv.load(str(folder))
    weights = folder / "model.safetensors"
    info = weights.stat()
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    os.utime(weights, ns=(info.st_atime_ns, info.st_mtime_ns))
    models = [model, mlxkv.load(str(folder)), mlxkv.load(str(tiny_path))]
    assert [one.loaded.files_changed() for one in models] == [True, False, False]
    assert len({one.identity.model_id for one in models}) == 3
    for one in models:
        one.close()
