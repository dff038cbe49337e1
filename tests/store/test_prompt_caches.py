"""Prompt caches through the public API: read once, asked many times, as raw text and as the beginning of a chat."""

from __future__ import annotations

from pathlib import Path

import pytest

import mlxkv
from mlxkv.config import private_folder
from mlxkv.errors import CacheError, ConfigError, PromptError, StoreError
from mlxkv.model import Model
from mlxkv.store.kv.quota import HEADROOM
from tests.chats import CONFIG, GREEDY, say
from tests.fixtures.mlx_lm.make import MODELS
from tests.hybrids import hybrid_folder
from tests.tokenizers import tiny_folder, tiny_tokenizer

BOOK = "a long book. " * 12
FIXTURES = Path(__file__).parents[1] / "fixtures" / "mlx_lm"


def asked_afresh(model: Model, question: str, system: str | None = "be brief") -> str:
    """The slow way: a new chat that reads everything."""
    chat = model.chat(system, CONFIG, **GREEDY)
    return say(chat, f"{BOOK}\n\n{question}").text


@pytest.mark.slow
def test_a_chat_goes_on_from_a_prompt_cache_without_reading_it(model: Model, tmp_path: Path) -> None:
    pc = model.prefill(BOOK, CONFIG, system="be brief")
    pc.save(tmp_path / "book.kv")
    for cache in (pc, model.load_cache(tmp_path / "book.kv")):
        for question in ("who?", "what now?"):
            chat = model.chat(cache=cache.fork(), **GREEDY)
            done = say(chat, question)
            assert done.stats.cached_tokens == pc.offset
            assert done.stats.prefill_tokens < 60
            assert done.text == asked_afresh(model, question)
    more = say(chat, "and then?")
    assert more.stats.prefill_tokens < 60


@pytest.mark.slow
def test_undo_retry_and_a_save_keep_the_document_once(model: Model) -> None:
    chat = model.chat(cache=model.prefill(BOOK, CONFIG, chat=True), **GREEDY)
    first = say(chat, "who?")
    assert chat.undo() == "who?"
    again = say(chat, "who?")
    assert (again.text, again.stats.prompt_tokens) == (first.text, first.stats.prompt_tokens)
    assert chat.messages[0].text == f"{BOOK}\n\nwho?"
    session = chat.save()
    chat.close()
    resumed = model.resume(session)
    assert resumed.messages == chat.messages
    assert say(resumed, "and?").stats.cached_tokens > len(BOOK)
    resumed.close()


def test_a_model_without_a_template_goes_on_too(tmp_path: Path) -> None:
    model = mlxkv.load(str(tiny_folder(tmp_path / "plain", template=None)))
    chat = model.chat(cache=model.prefill(BOOK, CONFIG, system="be brief"), **GREEDY)
    done = say(chat, "who?")
    assert done.stats.prefill_tokens == len("who?")
    assert done.text == asked_afresh(model, "who?")
    model.close()


def test_ids_are_read_as_they_are(model: Model) -> None:
    assert model.prefill([5, 6, 7], CONFIG).tokens == [5, 6, 7]
    for ids, what in (([5, 64], "Token 1 .* 64"), ([-1], "Token 0 .* -1"), ([True], "True"), ([], "no token ids")):
        with pytest.raises(PromptError, match=what):
            model.prefill(ids, CONFIG)
    with pytest.raises(ConfigError, match="template needs text"):
        model.prefill([5], CONFIG, system="x")  # type: ignore[call-overload]
    with pytest.raises(PromptError, match="empty"):
        model.prefill("", CONFIG)
    only = model.prefill("", CONFIG, system="only this").prompt
    assert only is not None
    assert (only.system, only.text) == ("only this", "")
    assert only.rendered.endswith("<|im_start|>user\n")


@pytest.mark.slow
def test_progress_is_told(model: Model) -> None:
    seen: list[tuple[int, int]] = []
    pc = model.prefill(
        "ab" * 600, mlxkv.CacheConfig(window=2048), progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (pc.offset, pc.offset)
    assert len(seen) > 1


def test_what_cannot_begin_a_chat_is_said(model: Model) -> None:
    raw = model.prefill(BOOK, CONFIG)
    with pytest.raises(ConfigError, match="holds raw text"):
        model.chat(cache=raw)
    with pytest.raises(ConfigError, match="leave `system` out"):
        model.chat("a system", model.prefill(BOOK, CONFIG, chat=True))


def test_what_the_disk_limit_has_no_room_for_is_said_before_it_is_read(
    tiny_path: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute of reading for a refusal would be a minute lost; a file elsewhere is nobody's business."""
    monkeypatch.setenv("MLXKV_DISK_LIMIT", "0.00006")
    model = mlxkv.load(str(tiny_path))
    prompts = private_folder(home / "cache" / "prompts")
    read: list[int] = []
    with pytest.raises(StoreError, match=r"The prompt cache 'book' takes .* disk limit of 60 kB"):
        model.prefill(BOOK, CONFIG, save_to=prompts / "book.kv", progress=lambda done, total: read.append(done))
    assert read == []
    pc = model.prefill(BOOK, CONFIG, save_to=tmp_path / "book.kv")
    for save in (pc.save, pc.export_mlx_lm):
        with pytest.raises(StoreError, match=r"The prompt cache 'book' takes .* disk limit of 60 kB"):
            save(prompts / "book.safetensors")
    assert list(prompts.iterdir()) == []
    assert pc.save(tmp_path / "book.kv") > 60_000 - HEADROOM  # some room is kept for folders
    model.close()


@pytest.mark.slow
def test_recurrent_layers_are_saved_and_cannot_go_to_mlx_lm(tmp_path: Path) -> None:
    model = mlxkv.load(str(hybrid_folder(tmp_path / "lfm2", "lfm2", tiny_tokenizer())))
    pc = model.prefill(BOOK, CONFIG, system="be brief")
    pc.save(tmp_path / "book.kv")
    again = model.load_cache(tmp_path / "book.kv")
    expected, found = (say(model.chat(cache=c.fork(), **GREEDY), "who?") for c in (pc, again))
    assert (found.text, found.stats.cached_tokens) == (expected.text, pc.offset)
    with pytest.raises(CacheError, match="Layer 0 is a ArraysCache"):
        pc.export_mlx_lm(tmp_path / "x.safetensors")
    with pytest.raises(CacheError, match="this model keeps ArraysCache"):
        model.import_mlx_lm(FIXTURES / "0.32.2" / "plain.safetensors")
    model.close()


def test_an_imported_cache_is_chatted_from_and_never_saved(tmp_path: Path) -> None:
    model = mlxkv.load(str(tiny_folder(tmp_path / "tiny", **MODELS["plain"])))
    pc = model.import_mlx_lm(FIXTURES / "0.31.3" / "plain.safetensors")
    chat = model.chat(cache=pc.fork(), repetition_penalty=1.3, **GREEDY)
    done = say(chat, "who?")
    assert done.stats.cached_tokens == 27
    assert say(chat, "and?").stats.cached_tokens > 27
    chat.rewind(2)
    assert say(chat, "or?").stats.cached_tokens > 27
    with pytest.raises(CacheError, match="cannot be saved"):
        chat.save()
    with pytest.raises(CacheError, match="unknown"):
        pc.save(tmp_path / "x.kv")
    model.close()
