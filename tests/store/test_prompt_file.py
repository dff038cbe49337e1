"""One file, one prompt cache: round trips, every kind of damage, and what it says about itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlxkv.cache.interchange import PromptText
from mlxkv.errors import CorruptError, MismatchError, StoreError
from mlxkv.safetensors.header import read_header
from mlxkv.store.prompts.kv_file import describe_prompt_file, read_prompt_file, write_prompt_file
from tests.store.fake import FakeCache, FakeGroup, model


def saved(path: Path, window: int | None = None, n: int = 300) -> FakeCache:
    cache = FakeCache(window)
    cache.feed(range(1, n + 1))
    assert write_prompt_file(path, cache, model(), {"window": window, "sinks": "system"}) == path.stat().st_size
    return cache


@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 5, 64, 300])
def test_round_trip(tmp_path: Path, window: int | None, n: int) -> None:
    cache = saved(tmp_path / "book.kv", window, n)
    fresh = FakeCache(window, run=1)
    restored = read_prompt_file(tmp_path / "book.kv", fresh, model())
    assert (restored.tokens, restored.bytes) == (n, (tmp_path / "book.kv").stat().st_size)
    assert fresh.tokens == cache.log
    assert fresh.state() == cache.state()
    assert (tmp_path / "book.kv").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["book.kv"] or {*os.listdir(tmp_path)} == {"book.kv", "home"}


def test_it_says_what_cache_to_make(tmp_path: Path) -> None:
    cache = saved(tmp_path / "book.kv", 64)
    about = describe_prompt_file(tmp_path / "book.kv")
    assert about["num_tokens"] == 300
    assert about["layout"] == cache.layout()
    assert about["config"] == {"window": 64, "sinks": "system"}
    assert about["model"]["name"] == "fake"


def test_a_description_of_a_cache_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "book.kv"
    saved(path, 64)
    data = bytearray(path.read_bytes())
    start = data.index(b'"config":"') + len(b'"config":"')
    end = data.index(b'}"', start) + 1
    data[start:end] = b"[1]".ljust(end - start)
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="config"):
        describe_prompt_file(path)


def test_another_model_or_layout_is_named(tmp_path: Path) -> None:
    path = tmp_path / "book.kv"
    saved(path)
    fresh = FakeCache()
    for other, cache, field in (
        (model(**{"config.hidden": "9"}), fresh, "config.hidden"),
        (model(**{"file.model.safetensors": "2:ab"}), fresh, "file.model.safetensors"),
        (model(**{"code.llama": "1"}), fresh, "code.llama"),
        (model(), FakeCache(sinks=8), "sinks"),
    ):
        with pytest.raises(MismatchError, match=f"`{field}`") as caught:
            read_prompt_file(path, cache, other)
        assert caught.value.field == field
    assert read_prompt_file(path, fresh, model(**{"template.x": "1"})).tokens == 300


@pytest.mark.slow
def test_every_flipped_byte_is_an_error_and_leaves_the_cache_empty(tmp_path: Path) -> None:
    """Each byte of the header, and a sample of the ids, the rows and the checksum."""
    path = tmp_path / "book.kv"
    saved(path, 64, 90)
    good = path.read_bytes()
    start = read_header(path).data_start
    for offset in [*range(0, start, 7), *range(start, len(good), 997), *range(len(good) - 16, len(good))]:
        data = bytearray(good)
        data[offset] ^= 1
        path.write_bytes(data)
        fresh = FakeCache(64)
        with pytest.raises((CorruptError, MismatchError)):
            read_prompt_file(path, fresh, model())
        assert fresh.tokens == []
        assert not fresh.groups[0].rows


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_a_file_of_another_length_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "book.kv"
    saved(path)
    good = path.read_bytes()
    for data in (good[:size], good + b"\0"):
        path.write_bytes(data)
        with pytest.raises(CorruptError):
            read_prompt_file(path, FakeCache(), model())


def test_what_is_no_prompt_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=r"none\.kv"):
        read_prompt_file(tmp_path / "none.kv", FakeCache(), model())
    os.mkfifo(tmp_path / "pipe.kv")
    with pytest.raises(CorruptError, match="regular"):
        describe_prompt_file(tmp_path / "pipe.kv")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(CorruptError, match="not a prompt cache"):
        describe_prompt_file(other)
    with pytest.raises(StoreError, match="does not exist"):
        write_prompt_file(tmp_path / "no" / "book.kv", FakeCache(), model())


def test_a_failed_rewrite_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "book.kv"
    saved(path)
    good = path.read_bytes()
    cache = FakeCache()
    cache.feed(range(50))
    for step in ("create", "write", "fsync", "rename"):

        def before(found: str, step: str = step) -> None:
            if found == step:
                raise OSError(28, "No space left on device")

        with pytest.raises(StoreError, match="No space"):
            write_prompt_file(path, cache, model(), before=before)
        assert path.read_bytes() == good
        assert not list(tmp_path.glob(".mlxkv-*"))


@pytest.mark.slow
def test_a_cache_of_many_layers_fits_the_header(tmp_path: Path) -> None:
    """Every part names all layers' tensors; with chunks of the usual size their names would pass the limit of 1 MiB."""

    class Wide(FakeGroup):
        @property
        def row_bytes(self) -> int:
            return 20 << 20  # so wide that chunks would have 64 rows

        def shapes(self, rows: int) -> dict[str, tuple[tuple[int, ...], str]]:
            return {f"{i:03}.k": ((1, 1, rows, 1), "F32") for i in range(300)}

        def export_rows(self, a: int, b: int) -> dict[str, mx.array]:
            return {name: mx.zeros(shape) for name, (shape, _) in self.shapes(b - a).items()}

    cache = FakeCache()
    cache.groups = (Wide(cache, "full", None, 4, 16, 0, 1),)
    cache.log = list(range(4000))
    write_prompt_file(tmp_path / "book.kv", cache, model())
    about = describe_prompt_file(tmp_path / "book.kv")
    assert about["num_tokens"] == 4000
    assert 64 < max(b - a for _, a, b in about["parts"]) < 4000


def test_the_clock_of_the_prompt_is_kept(tmp_path: Path) -> None:
    cache = FakeCache()
    cache.feed(range(1, 40))
    clock = "2026-11-29T23:58:12+01:00"
    for kept in (clock, None):
        prompt = PromptText("be", "a book", "<s>be a book", 30, kept)
        write_prompt_file(tmp_path / "book.kv", cache, model(), prompt=prompt)
        assert read_prompt_file(tmp_path / "book.kv", FakeCache(), model()).prompt == prompt


@pytest.mark.parametrize("clock", ["yesterday", 7, "2026-11-29"])
def test_a_clock_that_is_none_is_refused(tmp_path: Path, clock: Any) -> None:
    cache = FakeCache()
    cache.feed(range(1, 40))
    write_prompt_file(tmp_path / "x.kv", cache, model(), prompt=PromptText("be", "a book", "<s>", 30, clock))
    with pytest.raises(CorruptError, match="clock"):
        read_prompt_file(tmp_path / "x.kv", FakeCache(), model())
