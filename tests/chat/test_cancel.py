"""A turn that is stopped before its reply begins: the message leaves the chat, its rows stay in the cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mlxkv
from mlxkv.chat.chat import Chat
from mlxkv.chat.prompts.prompt import PromptState
from mlxkv.errors import MessageTooLongError
from mlxkv.events import Notice, PrefillProgress, PromptEvicted, TextDelta, TurnEvent, TurnFinished
from mlxkv.inference.runner import ModelRunner
from mlxkv.model import Model
from mlxkv.store.export.markdown import to_markdown
from mlxkv.token_ids import TokenIds
from tests.chats import GREEDY, new, say
from tests.hybrids import hybrid_folder
from tests.tokenizers import tiny_tokenizer

LONG = " ".join(f"word {i}" for i in range(60))
CHUNK = 16


@pytest.fixture
def model(model: Model) -> Model:
    """The random chat model, prefilling in small chunks."""
    model._runtime.runner = ModelRunner(model.loaded.model, CHUNK)
    return model


def stopped(chat: Chat, events: Iterator[TurnEvent], after: int = 1) -> TurnFinished:
    """Cancel after so many chunks; the end of the turn."""
    last = None
    for event in events:
        last = event
        assert not isinstance(event, TextDelta)
        if isinstance(event, PrefillProgress) and (event.done >= after * CHUNK or event.total <= CHUNK):
            chat.cancel()
    assert isinstance(last, TurnFinished)
    assert (last.reason, last.text, last.unanswered) == ("stopped", "", True)
    return last


def walked_away(chat: Chat, events: Any) -> None:
    next(e for e in events if isinstance(e, PrefillProgress))
    events.close()


def interrupted(chat: Chat, events: Any) -> None:
    next(e for e in events if isinstance(e, PrefillProgress))
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt())


def stopped_before_the_first_event(chat: Chat, events: Any) -> None:
    chat.cancel()
    assert list(events)[-1].unanswered


ENDS: dict[str, Callable[[Chat, Any], object]] = {
    "cancelled in prefill": stopped,
    "cancelled before the first event": stopped_before_the_first_event,
    "walked away": walked_away,
    "interrupted": interrupted,
}
TURNS: dict[str, Callable[[Chat], Iterator[TurnEvent]]] = {
    "a message": lambda chat: chat.send(LONG),
    "a retry": lambda chat: chat.retry(),
    "a retry of an earlier reply": lambda chat: chat.retry(1),
    "an edit": lambda chat: chat.edit(0, LONG),
}


def everything(model: Model, chat: Chat) -> object:
    """All that a user could see of what is said and saved."""
    store = model.store
    found = sorted((c.id, c.title, c.num_turns) for c in store.list())
    exports = [to_markdown(store.load(c.id), joined=True) for c in store.list()]
    turns = [(t.role, t.text, t.ids, t.state) for t in chat.turns]
    return chat.session_id, chat.title, turns, chat.messages, chat.siblings(0), found, exports


CASES = [
    *(("a message", end, True) for end in ENDS),
    *((turn, "cancelled in prefill", True) for turn in TURNS if turn != "a message"),
    *((turn, "cancelled in prefill", False) for turn in TURNS),
    ("a retry", "cancelled before the first event", True),
    ("an edit", "walked away", True),
]


@pytest.mark.slow
@pytest.mark.parametrize(("turn", "end", "is_saved"), CASES)
def test_the_chat_is_as_it_was(model: Model, turn: str, end: str, is_saved: bool) -> None:
    chat = new(model, autosave=is_saved)
    for text in ("one", "two"):
        say(chat, text)
    before = everything(model, chat)
    ENDS[end](chat, TURNS[turn](chat))
    assert everything(model, chat) == before
    assert model.store.sessions.search("word") == ()
    again = say(chat, "three").text
    straight = new(model)
    assert [say(straight, text).text for text in ("one", "two", "three")][-1] == again
    if is_saved:
        chat.close()
        resumed = model.resume(str(chat.session_id))
        assert [m.text for m in resumed.messages] == [m.text for m in straight.messages]
        assert resumed.restored
        assert resumed.restored.tokens
        resumed.close()


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_a_chat_that_began_with_the_message_is_gone(model: Model, end: str) -> None:
    chat = new(model, autosave=True)
    ENDS[end](chat, chat.send(LONG))
    assert (chat.session_id, chat.title, chat.turns) == (None, "", ())
    assert model.store.list() == ()
    assert model.store.sessions.search("word") == ()
    say(chat, "another")
    assert [c.title for c in model.store.list()] == ["another"]
    chat.close()


def test_a_session_that_was_there_before_stays(model: Model) -> None:
    chat = new(model)
    session = chat.save("mine")
    stopped(chat, chat.send(LONG))
    assert (chat.session_id, chat.title) == (session, "mine")
    say(chat, "on")
    chat.close()
    assert [m.text for m in model.resume(session).messages][:1] == ["on"]


def test_what_is_returned_is_the_message_as_it_was_sent(model: Model) -> None:
    chat = new(model)
    assert stopped(chat, chat.send(LONG)).returned == LONG
    say(chat, "one")
    assert stopped(chat, chat.edit(0, LONG)).returned == LONG
    retry = chat.retry()  # that message is in the chat as before
    chat.cancel()
    assert next(e.returned for e in retry if isinstance(e, TurnFinished)) == ""


@pytest.mark.slow
def test_what_was_prefilled_stays_until_the_prompt_differs(model: Model) -> None:
    """People press Esc, fix a word and send again: only what follows the common beginning is prefilled."""
    chat = new(model)
    say(chat, "hello")
    in_chat = chat.cache.offset
    read = stopped(chat, chat.send(LONG), after=3).stats.prefill_tokens
    assert read == 3 * CHUNK
    same = stopped(chat, chat.send(LONG), after=1).stats
    assert same.cached_tokens == in_chat + read
    last = say(chat, LONG).stats
    assert last.cached_tokens == in_chat + read + CHUNK

    chat.undo()
    stopped(chat, chat.send(LONG), after=4)
    fixed = say(chat, LONG.replace("word 9 ", "world 9 ")).stats
    straight = new(model)
    say(straight, "hello")
    whole = say(straight, LONG.replace("word 9 ", "world 9 ")).stats
    assert fixed.prompt_tokens == whole.prompt_tokens
    assert in_chat < fixed.cached_tokens
    assert fixed.prefill_tokens < whole.prefill_tokens
    assert say(chat, "on").text == say(straight, "on").text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mamba2", "lfm2"])
def test_of_recurrent_layers_too(tmp_path: Path, kind: str) -> None:
    """Going on from where it was stopped needs no earlier state; another beginning goes back to a checkpoint."""
    model = mlxkv.load(str(hybrid_folder(tmp_path / kind, kind, tiny_tokenizer())))
    model._runtime.runner = ModelRunner(model.loaded.model, CHUNK)
    chat, straight = (model.chat(**GREEDY) for _ in range(2))
    for c in (chat, straight):
        say(c, "hello")
    in_chat = chat.cache.offset
    read = stopped(chat, chat.send(LONG), after=3).stats.prefill_tokens
    last = say(chat, LONG)
    assert last.stats.cached_tokens == in_chat + read
    assert last.text == say(straight, LONG).text
    model.close()


def test_a_message_can_stay_for_a_process_that_ends(model: Model) -> None:
    """The window is closed while the prompt is prefilled: nobody is there to be given the message back."""
    chat = new(model, autosave=True)
    for event in chat.send(LONG):
        if isinstance(event, PrefillProgress):
            chat.cancel(keep_message=True)
    assert [t.role for t in chat.turns] == ["user"]
    chat.close()
    again = model.resume(str(chat.session_id))
    assert [m.text for m in again.messages] == [LONG]
    sessions = len(model.store.list())
    *_, last = again.retry(**GREEDY)  # in place: nothing was answered that a fork would have to keep
    assert isinstance(last, TurnFinished)
    assert last.text
    assert [m.role for m in again.messages] == ["user", "assistant"]
    assert len(model.store.list()) == sessions
    again.close()


def test_an_unanswered_message_is_taken_back_in_place(model: Model) -> None:
    chat = new(model, autosave=True)
    say(chat, "one")
    for event in chat.send("two"):
        if isinstance(event, PrefillProgress):
            chat.cancel(keep_message=True)
    assert chat.undo() == "two"
    assert len(model.store.list()) == 1
    assert [m.text for m in chat.messages if m.role == "user"] == ["one"]
    chat.close()


@pytest.mark.slow
@pytest.mark.parametrize("title", [None, "a title of its own"])
@pytest.mark.parametrize("back", ["undo", "retry", "edit"])
def test_a_session_without_a_message_stays_where_it_was_named_alone(model: Model, back: str, title: str | None) -> None:
    chat = new(model, autosave=True)
    for event in chat.send(LONG):
        if isinstance(event, PrefillProgress):
            chat.cancel(keep_message=True)  # as it is after a quit
    session = str(chat.session_id)
    chat.save(title)
    chat.close()
    again = model.resume(session)
    if back == "undo":
        assert again.undo() == LONG
    else:
        stopped(again, again.retry() if back == "retry" else again.edit(0, LONG.upper()))
    kept = [session] if title else []
    assert [s.id for s in model.store.list()] == kept
    assert (again.title, again.messages) == (title or "", ())
    say(again, "anew")
    assert [s.num_turns for s in model.store.list()] == [2]
    again.close()


@pytest.mark.slow
def test_rows_that_were_saved_with_the_message_go_with_it(model: Model) -> None:
    chat = new(model, autosave=True)
    say(chat, "one")
    for event in chat.send(LONG):
        if isinstance(event, PrefillProgress) and event.done >= 2 * CHUNK:
            chat.cancel(keep_message=True)
    chat.save()  # at the head that is about to go
    chat.undo()
    say(chat, "three")
    chat.close()
    assert model.store.verify().ok
    again = model.resume(str(chat.session_id))
    assert again.restored
    assert again.restored.tokens == len(again.log) - 1
    again.close()


def test_what_is_cancelled_with_the_first_token_was_seen_by_nobody(model: Model, monkeypatch: Any) -> None:
    """Esc came while the last chunk was computed: what came of that is no reply."""
    chat = new(model)
    decode = model.runner.decode

    def late(*args: Any, **more: Any) -> Any:
        for token in decode(*args, **more):
            chat.cancel()
            yield token

    monkeypatch.setattr(model.runner, "decode", late)
    assert list(chat.send("hi"))[-1].unanswered  # type: ignore[union-attr]
    assert chat.turns == ()


# -- too long for the window -----------------------------------------------------------------------------------------

SMALL = mlxkv.CacheConfig(window=64, block=16, sinks=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("earlier", "text", "is_refused"),
    [
        ((), "short", False),
        ((), LONG, True),
        (("one", "two"), LONG, True),
        (("one " * 8, "two " * 8, "three " * 8), "four", False),  # older turns are evicted as ever
    ],
    ids=["a short one", "the first", "a later one", "one that fits into a full window"],
)
def test_a_message_of_which_the_window_holds_a_part_is_refused_where_that_is_asked_for(
    model: Model, earlier: tuple[str, ...], text: str, is_refused: bool
) -> None:
    chat = model.chat(cache=SMALL, autosave=True, **GREEDY)
    for message in earlier:
        say(chat, message)
    before = everything(model, chat)
    if not is_refused:
        assert not any(isinstance(e, PromptEvicted) for e in chat.send(text, whole=True))
        return
    with pytest.raises(MessageTooLongError, match=r"oldest [\d,]+ .*are evicted.*window=\d+\) holds all") as raised:
        list(chat.send(text, whole=True))
    assert everything(model, chat) == before
    overflow = raised.value.overflow
    assert overflow.tokens > overflow.capacity == 68
    assert overflow.evicted > 0
    assert bool(overflow.evicted_before) is bool(earlier)
    assert overflow.window >= overflow.tokens
    larger = model.chat(cache=mlxkv.CacheConfig(window=overflow.window), **GREEDY)
    assert not any(isinstance(e, PromptEvicted) for e in larger.send(LONG, whole=True))
    told = [e for e in chat.send(text) if isinstance(e, PromptEvicted)]
    assert [e.overflow.tokens for e in told] == [overflow.tokens]


@pytest.mark.slow
def test_a_chat_that_goes_on_with_another_model_is_not_what_is_too_long(model: Model) -> None:
    """All of it is read into the new cache; what is said now fits."""
    chat = model.chat(cache=SMALL, **GREEDY)
    for message in ("one " * 8, "two " * 8, "three " * 8):
        say(chat, message)
    chat._history.prompt_state, chat._conversation.log = PromptState(), TokenIds()
    chat.cache.reset()
    assert say(chat, "four", whole=True).text


def test_an_edit_that_is_too_long_leaves_the_chat_as_it_was(model: Model) -> None:
    chat = model.chat(cache=SMALL, autosave=True, **GREEDY)
    say(chat, "one")
    before = everything(model, chat)
    with pytest.raises(MessageTooLongError):
        list(chat.edit(0, LONG, whole=True))
    assert everything(model, chat) == before


def test_a_window_beyond_the_trained_length_is_said_to_be(model: Model) -> None:
    trained = model.loaded.trained_length
    assert trained
    for window, is_told in ((trained, False), (2 * trained, True)):
        chat = model.chat(cache=mlxkv.CacheConfig(window=window), **GREEDY)
        notices = [e.text for e in chat.send("hi") if isinstance(e, Notice)]
        assert any("was trained for" in text for text in notices) is is_told
        assert not any("was trained for" in e.text for e in chat.send("on") if isinstance(e, Notice))
