"""One reply at a time on one chat and on one cache: what may begin, what a cancel stops, who is refused."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlx_lm import stream_generate

import mlxkv
from mlxkv.chat.chat import Chat
from mlxkv.errors import CacheError, ConfigError, MismatchError, SessionChangedError, SessionLockedError
from mlxkv.events import PrefillProgress, TextDelta, TurnFinished
from mlxkv.model import Model
from tests.chats import CONFIG, GREEDY, new, say
from tests.hybrids import hybrid_folder
from tests.tokenizers import tiny_folder, tiny_tokenizer

# -- cancel ----------------------------------------------------------------------------------------------------------


def begin(chat: Chat, how: str) -> Any:
    say(chat, "hi")
    match how:
        case "send":
            return chat.send("and you?")
        case "retry":
            return chat.retry()
        case "edit":
            return chat.edit(0, "ho")
        case "continue_reply":
            return chat.continue_reply()
        case "aside":
            return chat.aside("what was that?")
        case _:
            chat.forget()
            return chat.read()


WAYS = ("send", "retry", "edit", "continue_reply", "aside", "prefill")


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
def test_a_cancel_before_the_first_event_holds(model: Model, how: str) -> None:
    chat = new(model)
    events = begin(chat, how)
    chat.cancel()
    seen = list(events)
    assert not any(isinstance(e, TextDelta) for e in seen)
    if how == "prefill":
        assert not chat.cache.tokens
    else:
        assert isinstance(seen[-1], TurnFinished)
        assert seen[-1].reason == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
def test_a_cancel_that_came_before_does_not_stop_the_next(model: Model, how: str) -> None:
    chat = new(model)
    chat.cancel()
    events = begin(chat, how)
    seen = list(events)
    assert isinstance(seen[-1], TurnFinished | PrefillProgress)
    assert not isinstance(seen[-1], TurnFinished) or seen[-1].reason != "stopped"
    chat.send("never iterated")
    chat.cancel()
    assert say(chat, "on").reason != "stopped"


# -- one at a time ---------------------------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[Chat], object]] = {
    "send": lambda chat: chat.send("x"),
    "retry": lambda chat: chat.retry(),
    "edit": lambda chat: chat.edit(0, "x"),
    "continue_reply": lambda chat: chat.continue_reply(),
    "aside": lambda chat: chat.aside("x"),
    "read": lambda chat: chat.read(),
    "undo": lambda chat: chat.undo(),
    "rewind": lambda chat: chat.rewind(0),
    "fork": lambda chat: chat.fork(),
    "abridge": lambda chat: chat.abridge(chat.turns[:2]),
    "save": lambda chat: chat.save(),
    "detach": lambda chat: chat.detach(),
    "forget": lambda chat: chat.forget(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("saved", [False, True])
def test_what_changes_a_chat_is_refused_while_a_reply_is_generated(model: Model, name: str, saved: bool) -> None:
    """The history was corrupt afterwards: two user messages, or the reply of one after the other's."""
    chat, straight = new(model), new(model)
    if saved:
        chat.save()
    for c in (chat, straight):
        say(c, "hi")
    events = chat.send("and you?")
    for event in events:
        if isinstance(event, TextDelta) and event.num_tokens == 3:
            with pytest.raises(ConfigError, match="still being generated"):
                REFUSED[name](chat)
    assert chat.messages[-1].text == say(straight, "and you?").text
    assert [m.role for m in chat.messages] == ["user", "assistant"] * 2
    assert say(chat, "on").text == say(straight, "on").text
    chat.close()


def test_an_iterator_that_began_too_late_is_refused(model: Model) -> None:
    chat = new(model)
    first, second = chat.send("one"), chat.send("two")
    next(first)
    with pytest.raises(ConfigError, match="still being generated"):
        next(second)
    list(first)
    assert [m.text for m in chat.messages if m.role == "user"] == ["one"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["never started", "closed", "let go of", "in a cycle", "ended", "raised"])
def test_no_iterator_blocks_the_chat_for_ever(model: Model, how: str) -> None:
    chat = new(model)
    events: Any = chat.send("one")
    if how != "never started":
        next(events)
    match how:
        case "closed":
            events.close()
        case "let go of":
            del events
        case "in a cycle":
            cycle: list[Any] = [events]
            cycle.append(cycle)
            del cycle, events
            gc.collect()
        case "ended":
            list(events)
        case "raised":
            with pytest.raises(KeyError):
                events.throw(KeyError("x"))
    assert say(chat, "two").reason != "stopped"


def test_closing_a_chat_ends_its_reply_as_walking_away_does(model: Model) -> None:
    chat = new(model, max_tokens=400)
    session = chat.save()
    events = chat.send("hi")
    shown = next(e.text for e in events if isinstance(e, TextDelta))
    chat.close()
    assert list(events) == []
    record = model.store.load(session)
    assert [(t.role, t.state, t.text) for t in record.turns][1:] == [("assistant", "stopped", shown)]


def test_a_cache_serves_one_reply_at_a_time(model: Model) -> None:
    pc = model.prefill("once upon a time")
    events = model.stream(" there was", cache=pc, max_tokens=8)
    next(events)
    with pytest.raises(CacheError, match="being generated on this prompt cache"):
        model.generate(" there is", cache=pc, max_tokens=2)
    rest = [e for e in events if isinstance(e, TextDelta)]
    assert rest
    assert model.generate(" there is", cache=pc, max_tokens=2).tokens


# -- a cache that something else has fed -----------------------------------------------------------------------------

FED: dict[str, Callable[[Model, Any, Path], object]] = {
    "generate": lambda model, pc, path: model.generate(" and", cache=pc, max_tokens=2),
    "save": lambda model, pc, path: pc.save(path / "a.kv"),
    "export": lambda model, pc, path: pc.export_mlx_lm(path / "a.safetensors"),
    "fork": lambda model, pc, path: pc.fork(),
    "rewind": lambda model, pc, path: pc.rewind(3),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "mamba2", "qwen3_next"])
@pytest.mark.parametrize("name", FED)
def test_what_another_loop_fed_is_noticed(model: Model, tmp_path: Path, kind: str, name: str) -> None:
    """mlx-lm's own loop writes rows and no log; going on from it gave the wrong text."""
    if kind != "llama":
        model = mlxkv.load(str(hybrid_folder(tmp_path / kind, kind, tiny_tokenizer())))
    pc = model.prefill("once upon a time")
    for _ in stream_generate(model.loaded.model, model.tokenizer, "hi", max_tokens=3, prompt_cache=pc.layers):
        pass
    with pytest.raises(CacheError, match="fed by another loop"):
        FED[name](model, pc, tmp_path)
    pc.reset()
    assert model.generate("once", cache=pc, max_tokens=2).tokens


@pytest.mark.slow
def test_a_chat_notices_too_and_is_left_as_it_was(model: Model) -> None:
    chat = new(model)
    say(chat, "hi")
    for _ in stream_generate(model.loaded.model, model.tokenizer, "x", max_tokens=3, prompt_cache=chat.cache.layers):
        pass
    for act in (lambda: say(chat, "on"), chat.save, chat.fork, lambda: list(chat.continue_reply())):
        with pytest.raises(CacheError, match="fed by another loop"):
            act()
    assert [m.role for m in chat.messages] == ["user", "assistant"]
    chat.forget()
    straight = new(model)
    say(straight, "hi")
    assert say(chat, "on").text == say(straight, "on").text


class Failing:
    """A layer that raises at its call number `at`, from 1."""

    def __init__(self, layer: Any, at: int) -> None:
        self._layer, self._left = layer, at

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt
        return self._layer(*args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3_next", "lfm2"])
@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_a_call_that_raised_in_the_middle_leaves_log_and_layers_equal(tmp_path: Path, kind: str, fails_at: int) -> None:
    """Some layers have the token and others not: the cache goes back to what all of them have."""
    folder = tmp_path / kind
    made = tiny_folder(folder) if kind == "llama" else hybrid_folder(folder, kind, tiny_tokenizer())
    model = mlxkv.load(str(made))
    inner: Any = model.loaded.model.model
    layers, pc = inner.layers, model.prefill("once upon a time")
    held, whole = pc.offset, layers[-1]
    layers[-1] = Failing(whole, fails_at)
    try:
        with pytest.raises(KeyboardInterrupt):
            model.generate(" there was", cache=pc, max_tokens=12, temperature=1.5, seed=1)
    finally:
        layers[-1] = whole
    pc.check_log()
    assert pc.offset >= held or kind != "llama"
    ids = model.tokenizer.encode("once upon a time there was", add_special_tokens=False)
    assert pc.tokens[: len(ids)] == ids[: pc.offset]
    fresh, prompt = model.prefill("once upon a time"), "once upon a time so"
    expected = model.generate(prompt, cache=fresh, max_tokens=8, temperature=0.0)
    assert model.generate(prompt, cache=pc, max_tokens=8, temperature=0.0).tokens == expected.tokens


# -- a cache of another model ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [32, 64], ids=["of the same shapes", "of other shapes"])
def test_a_cache_of_another_model_is_refused(model: Model, tmp_path: Path, hidden: int) -> None:
    other = mlxkv.load(str(tiny_folder(tmp_path / "other", seed=7, hidden=hidden)))
    raw, chatty = other.prefill("once"), other.prefill("once", system="be")
    with pytest.raises(MismatchError, match="another model") as error:
        model.generate(" upon", cache=raw)
    assert error.value.field == "model"
    with pytest.raises(MismatchError, match="another model"):
        model.chat(cache=chatty)
    chat = new(model)
    say(chat, "hi")
    chat.cache = chatty
    with pytest.raises(MismatchError, match="another model"):
        say(chat, "on")
    assert len(chat.messages) == 2
    other.close()


def test_the_same_weights_loaded_twice_are_one_model(model: Model, tiny_path: Path) -> None:
    again = mlxkv.load(str(tiny_path))
    pc = again.prefill("once upon")
    expected = model.generate("once upon a", max_tokens=4, temperature=0.0)
    assert model.generate(" a", cache=pc, max_tokens=4, temperature=0.0).tokens == expected.tokens
    again.close()


# -- the whole text, or what follows ---------------------------------------------------------------------------------


def test_the_whole_text_is_not_fed_twice(model: Model) -> None:
    start, rest = "once upon a time", " there was"
    expected = model.generate(start + rest, max_tokens=6, temperature=0.0)
    num = len(model.tokenizer.encode(start + rest))
    for text in (start + rest, rest):
        pc = model.prefill(start)
        held = pc.offset
        found = model.generate(text, cache=pc, max_tokens=6, temperature=0.0)
        assert found.tokens == expected.tokens
        assert (found.stats.prompt_tokens, found.stats.cached_tokens) == (num, held)
    whole = start + rest + expected.text + " and"
    again = model.generate(whole, cache=pc, max_tokens=2)
    assert again.stats.prompt_tokens == len(model.tokenizer.encode(whole))
    assert again.stats.prefill_tokens <= 4


@pytest.mark.slow
@pytest.mark.parametrize("text", ["there", "o", "once upon a tim", "Once upon a time"])
def test_what_does_not_begin_with_all_that_is_held_goes_on_from_it(model: Model, text: str) -> None:
    pc = model.prefill("once upon a time")
    held = list(pc.tokens)
    model.generate(text, cache=pc, max_tokens=1)
    assert pc.tokens[: len(held) + len(text)] == [*held, *model.tokenizer.encode(text)]


@pytest.mark.slow
def test_a_stop_string_is_one_string(model: Model) -> None:
    free = model.generate("once", max_tokens=30, temperature=1.5, seed=2)
    stop = free.text[7:10]
    for given in (stop, [stop], (stop,)):
        found = model.generate("once", max_tokens=30, temperature=1.5, seed=2, stop=given)
        assert found.text == free.text[: free.text.index(stop)]
        assert found.stats.finish_reason == "stop_string"
    with pytest.raises(ConfigError, match="`stop`"):
        model.generate("once", stop="")
    chat = model.chat(cache=CONFIG, **GREEDY, stop="END")
    session = chat.save()
    chat.close()
    assert model.resume(session)._params.stop == ("END",)


def test_wrong_sampling_takes_nothing_back(model: Model) -> None:
    chat = new(model)
    say(chat, "hi")
    for act in (lambda: chat.retry(temperature=-1), lambda: chat.edit(0, "x", nonsense=1)):  # type: ignore[call-arg]
        with pytest.raises(ConfigError):
            act()
    assert len(chat.messages) == 2


@pytest.mark.slow
def test_a_closed_chat_goes_on_where_nobody_else_has_the_session(model: Model) -> None:
    """What it says after `close` would otherwise be written between the messages of whoever opened the session."""
    chat = new(model)
    session = chat.save()
    say(chat, "one")
    chat.close()
    say(chat, "two")  # still the only one
    chat.close()
    other = model.resume(session)
    with pytest.raises(SessionLockedError, match="is open in process"):
        say(chat, "lost")
    say(other, "three")
    other.close()
    with pytest.raises(SessionChangedError, match="has changed since"):
        say(chat, "lost")
    again = model.resume(session)
    assert [m.text for m in again.messages if m.role == "user"] == ["one", "two", "three"]
    again.close()
