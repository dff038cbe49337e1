"""How a model, a chat, a prompt cache and results look to someone who inspects them; their copies; a closed model."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlxkv
from mlxkv.errors import ArgumentError, ConfigError
from mlxkv.model import Completion, Model
from mlxkv.stats import TurnStats
from tests.chats import CONFIG, GREEDY, new, say

API = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
CLASSES = (mlxkv.Model, mlxkv.Chat, mlxkv.PromptCache)


def documented(cls: type) -> set[str]:
    """The members of a class in docs/api.md, by its directive and the rules of autodoc: those with a docstring."""
    options = re.findall(rf"^\.\. autoclass:: mlxkv\.{cls.__name__}\(\)\n((?:   :.*\n)+)", API, re.MULTILINE)[0]
    named = {key: {name.strip() for name in names.split(",")} for key, names in re.findall(r":([\w-]+): (.+)", options)}
    members = {n for n, value in inspect.getmembers(cls) if not n.startswith("_") and inspect.getdoc(value)}
    chosen = named.get("members", members) - named.get("exclude-members", set())
    attributes = (inspect.getdoc(cls) or "").partition("Attributes:")[2]
    return chosen | set(re.findall(r"^ {4}(\w+):", attributes, re.MULTILINE))


def named_by_dir(thing: object) -> set[str]:
    return {name for name in dir(thing) if not re.fullmatch("__.*__", name)}


def test_dir_lists_what_the_reference_documents(model: Model) -> None:
    for thing in (model, new(model), model.make_cache(CONFIG)):
        assert named_by_dir(thing) == documented(type(thing))


def test_reprs_are_one_short_line(model: Model) -> None:
    chat = new(model)
    assert repr(chat) == "<Chat 0 messages, 0 tokens, 0 B>"
    say(chat, "hello")
    chat.save(title="the\nsky")
    size = mlxkv.stats.bytes_text(chat.cache.nbytes)
    assert repr(chat) == f"<Chat 'the\\nsky' 2 messages, {len(chat.log)} tokens, {size}>"
    assert repr(chat.cache) == f"<PromptCache {chat.cache.offset} tokens, window {chat.cache.capacity}, {size}>"
    assert re.fullmatch(r"<Model '.*tiny' [\d.]+ [kM]B of weights>", repr(model))
    assert re.fullmatch(r"<TurnStats prompt \d+ \+ 0 cached, 12 tokens, .*, length>", repr(chat.stats))
    done = Completion("hello\n" * 9, (1,), TurnStats(finish_reason="stop"))
    assert re.fullmatch(r"<Completion 'hello\\n.*' 1 token, stop>", repr(done))
    assert str(done) == done.text
    assert repr(chat.send("hi")) == "<events of a reply; iterate over them>"
    with pytest.raises(ArgumentError, match=r"`Model.chat` .* `window`; give `cache=mlxkv.CacheConfig\(window=...\)`."):
        model.chat(window=64)  # type: ignore[call-arg]
    with pytest.raises(ArgumentError, match="did you mean `temperature`"):
        model.generate("hi", temp=0)  # type: ignore[call-overload]
    estimate = mlxkv.estimate("tutor")
    assert re.fullmatch(
        r"<Estimate 'tutor' \d+ MB \(weight .*, cache .*, prefill .*\), window .*, fits>", repr(estimate)
    )
    for thing in (chat, chat.cache, model, chat.stats, done, estimate):
        assert repr(thing).isprintable()
        assert len(repr(thing)) <= 140


def test_a_notebook_shows_figures_as_tables() -> None:
    stats = TurnStats(prompt_tokens=1200, cache_bytes=9_400_000, decode_tps=42.1, ttft_s=0.21, reuse_stopped_why="a|b")
    assert stats._repr_markdown_().splitlines() == [
        "| | |", "|---|--:|", "| prompt_tokens | 1,200 |", "| ttft_s | 0.21s |", "| decode_tps | 42.1 tok/s |",
        "| cache_bytes | 9.4 MB |", "| reuse_stopped_why | a\\|b |",
    ]  # fmt: skip
    assert "| fits | True |" in mlxkv.estimate("tutor")._repr_markdown_()


@pytest.mark.parametrize(
    ("text", "is_markdown"),
    [("# Sky\n\n* `blue`", True), ("1 < 2 **bold** `<b>`", True), ("a ![x](https://h/p)", False),
     ("<img src=x>", False), ("so <b>bold</b>", False), ("```\n<script>\n```", True),
     ("| a |\n|-|\n| ![x](y) |", False)],
)  # fmt: skip
def test_a_notebook_renders_text_but_loads_nothing(text: str, is_markdown: bool) -> None:
    shown = Completion(text, (), TurnStats())._repr_markdown_()
    assert shown == (text if is_markdown else f"```text\n{text}\n```")
    assert Completion("```\n<b>x</b>", (), TurnStats())._repr_markdown_().startswith("```")
    assert Completion("<b>`````", (), TurnStats())._repr_markdown_().startswith("``````text\n")


COPIES: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy]


def test_a_copy_of_a_prompt_cache_is_a_fork(model: Model) -> None:
    pc = model.prefill("a long book. ", CONFIG)
    expected = model.generate("who?", cache=pc.fork(), **GREEDY)
    for copied in [make(pc) for make in COPIES] + copy.deepcopy([pc]):
        assert model.generate("who?", cache=copied, **GREEDY).tokens == expected.tokens
    assert pc.tokens == model.prefill("a long book. ", CONFIG).tokens
    with pytest.raises(ArgumentError, match=r"A PromptCache cannot be pickled: .*`pc\.save\(path\)`"):
        pickle.dumps(pc)


@pytest.mark.parametrize("make", [*COPIES, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_models_and_chats_are_not_copied(model: Model, make: Callable[[Any], Any]) -> None:
    with pytest.raises(ArgumentError, match="A Model cannot be copied or pickled: use the same one"):
        make(model)
    with pytest.raises(ArgumentError, match=r"A Chat cannot be copied or pickled: .*`chat\.fork\(\)`"):
        make(new(model))


def test_the_end_of_a_with_block_saves_chats_and_frees_memory(tiny_path: Path) -> None:
    before = mx.get_active_memory()
    with mlxkv.load(tiny_path) as model:
        chat = new(model, autosave=True)
        say(chat, "hello")
        messages, fork, network = chat.messages, chat.fork(), model.loaded.model
        stream = model.stream("once", **GREEDY)
        next(stream)
        reply = fork.send("and")
        next(reply)
    assert mx.get_active_memory() - before < 1000  # of all that is still referred to here
    assert (repr(model).endswith(" closed>"), list(stream), list(reply)) == (True, [], [])
    assert chat.messages == messages
    for use in (lambda: list(chat.send("x")), lambda: model.generate("x"), model.chat, lambda: list(fork.retry())):
        with pytest.raises(ConfigError, match=r"The model '.*tiny' is closed; load it again with `mlxkv.load`\."):
            use()
    assert (chat.close(), model.close(), list(network)) == (None, None, [])
    with mlxkv.load(tiny_path) as again:  # its session is unlocked, and its rows are saved
        resumed = again.resume(str(chat.session_id))
        assert resumed.read_only is None
        assert resumed.restored is not None
        assert resumed.restored.tokens >= len(chat.log) - 1
