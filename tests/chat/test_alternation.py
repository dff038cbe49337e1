"""Templates that insist on user and model taking turns accept the next message, however the reply before it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mlxkv
from mlxkv.chat import compaction
from mlxkv.chat.chat import Chat
from mlxkv.chat.history import spans
from mlxkv.errors import OutOfMemoryError
from mlxkv.events import PrefillProgress, TextDelta, TurnFinished
from mlxkv.model import Model
from mlxkv.store.records import TurnRecord
from tests.chats import CONFIG, say, scripted
from tests.tokenizers import CHATML, THINK, tiny_folder, tiny_tokenizer

END = "<|im_end|>"
# As Gemma's and Mistral's; and nobody may say nothing.
STRICT = (
    "{% set own = messages[1:] if messages[0]['role'] == 'system' else messages %}{% for m in own %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if not m['content'] %}{{ raise_exception('an empty message') }}{% endif %}{% endfor %}"
) + CHATML


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_folder(tmp_path_factory.mktemp("strict") / "m")
    tiny_tokenizer(STRICT, marks=THINK)._tokenizer.save_pretrained(made)
    return made


@pytest.fixture
def model(folder: Path) -> Iterator[Model]:
    loaded = mlxkv.load(str(folder))
    scripted(loaded, [])
    yield loaded
    loaded.close()


def told(model: Model, *tokens: str | BaseException) -> None:
    vocab = model.tokenizer.get_vocab()
    scripted(model, [t if isinstance(t, BaseException) else vocab[t] for t in tokens])


def answered(model: Model, chat: Chat, text: str) -> None:
    told(model, "o", "k", END, END)
    assert say(chat, text).text == "ok"


def before_the_first_event(model: Model, chat: Chat) -> None:
    events = chat.send("two")
    chat.cancel()
    list(events)


def during_prefill(model: Model, chat: Chat) -> None:
    for event in chat.send("two"):
        if isinstance(event, PrefillProgress):
            chat.cancel()


def walked_away_before_the_first_token(model: Model, chat: Chat) -> None:
    events: Any = chat.send("two")
    next(e for e in events if isinstance(e, PrefillProgress))
    events.close()


def out_of_memory_before_the_first_token(model: Model, chat: Chat) -> None:
    told(model, OutOfMemoryError("no room"))
    with pytest.raises(OutOfMemoryError):
        list(chat.send("two"))


def out_of_memory_in_the_middle(model: Model, chat: Chat) -> None:
    told(model, "h", "e", "y", "y", OutOfMemoryError("no room"))
    with pytest.raises(OutOfMemoryError):
        list(chat.send("two"))


def while_thinking(model: Model, chat: Chat) -> None:
    told(model, "<think>", "h", "m", "m", "m")
    for event in chat.send("two"):
        if isinstance(event, TextDelta) and event.num_tokens == 3:
            chat.cancel()


def nothing_but_an_end(model: Model, chat: Chat) -> None:
    told(model, END, END)
    list(chat.send("two"))


def killed_before_the_reply(model: Model, chat: Chat) -> None:
    """What is on disk then: the user's turn alone."""
    prompt = chat._history.prompts.prompt(
        chat._history.messages([*chat.turns, TurnRecord("user", "two")]), chat._history.prompt_state
    )
    chat._conversation.append(TurnRecord("user", "two", tuple(prompt.ids[len(chat.log) :]), len(chat.log)))


def killed_in_the_reply(model: Model, chat: Chat) -> None:
    """What is on disk then: an open reply."""
    killed_before_the_reply(model, chat)
    vocab = model.tokenizer.get_vocab()
    open_reply = TurnRecord("assistant", "", (vocab["<think>"], vocab["h"]), thinking="h", state="open")
    chat._conversation.write_reply(open_reply)


WAYS: dict[str, Callable[[Model, Chat], None]] = {
    f.__name__: f
    for f in (
        before_the_first_event,
        during_prefill,
        walked_away_before_the_first_token,
        out_of_memory_before_the_first_token,
        out_of_memory_in_the_middle,
        while_thinking,
        nothing_but_an_end,
        killed_before_the_reply,
        killed_in_the_reply,
    )
}


LEAVES = ("before_the_first_event", "during_prefill", "walked_away_before_the_first_token")  # the message with it


def prompt_of(model: Model, chat: Chat) -> str:
    return model.tokenizer.decode(chat.cache.tokens).rpartition("assistant\nok")[0]


def resumed(model: Model, chat: Chat) -> Chat:
    chat.close()
    return model.resume(str(chat.session_id))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "how"),
    [(w, h) for w in WAYS for h in ("in memory", "saved", "resumed") if h == "resumed" or "killed" not in w],
)
def test_the_next_message_is_accepted(model: Model, way: str, how: str) -> None:
    chat = model.chat("be good", cache=CONFIG, temperature=0.0, max_tokens=40)
    if how != "in memory":
        chat.save()
    answered(model, chat, "one")
    kept = len(chat.cache.tokens)
    WAYS[way](model, chat)
    before = [(t.role, t.text, t.thinking, t.ids) for t in chat.turns]
    if how == "resumed":
        chat = resumed(model, chat)
        assert [(t.role, t.text, t.thinking, t.ids) for t in chat.turns] == before  # stored turns stay as they were
    answered(model, chat, "three")
    stats = chat.stats
    said = "hey" if way == "out_of_memory_in_the_middle" else ""
    middle = f"user\ntwo{END}\n<|im_start|>assistant\n{said}{END}\n<|im_start|>user\nthree" if said else (
        "user\ntwo\n\nthree"
    )  # fmt: skip
    if way in LEAVES:
        middle = "user\nthree"
        assert "two" not in prompt_of(model, chat)
    assert f"{middle}{END}" in prompt_of(model, chat)
    assert stats.cached_tokens >= kept  # what came before is reused by its ids
    for _ in range(2):  # and so it goes on
        answered(model, chat, "four")
    assert [m.role for m in chat.messages[-6:]] == ["user", "assistant"] * 3
    chat.close()


@pytest.mark.slow
@pytest.mark.parametrize("way", [w for w in WAYS if w not in ("out_of_memory_in_the_middle", *LEAVES)])
def test_going_back_and_on_in_such_a_chat(model: Model, way: str) -> None:
    chat = model.chat(cache=CONFIG, temperature=0.0, max_tokens=40)
    chat.save()
    for text in ("one", "and"):
        answered(model, chat, text)
    for _ in range(2):  # in a row
        WAYS[way](model, chat)
        chat = resumed(model, chat) if "killed" in way else chat
    answered(model, chat, "three")
    joined = f"user\ntwo\n\ntwo\n\nthree{END}"
    assert joined in prompt_of(model, chat)

    def retried(it: Chat) -> None:
        told(model, "o", "k", END, END)
        list(it.retry())

    def edited(it: Chat) -> None:
        told(model, "o", "k", END, END)
        mine = [i for i, m in enumerate(it.messages) if m.role == "user"]
        list(it.edit(mine[-1], "three"))

    def undone(it: Chat) -> None:
        assert it.undo() == "three"
        answered(model, it, "three")

    def asked_aside(it: Chat) -> None:
        told(model, "n", "o", END, END)
        before = it.cache.tokens
        asked = [model.tokenizer.decode(it.cache.tokens) for _ in it.aside("what?")]
        assert any(f"{END}\n<|im_start|>user\nwhat?" in text for text in asked)
        assert it.cache.tokens == before[: it.cache.offset]  # its rows leave with it

    for act in (retried, edited, undone, asked_aside):
        act(chat)
        if act is not asked_aside:
            assert joined in prompt_of(model, chat)
    twin = chat.fork()
    answered(model, twin, "four")
    assert joined in prompt_of(model, twin)
    twin.close()

    short = chat.abridge(chat.turns[2:], num_pinned=0)
    list(short.read())
    answered(model, short, "four")
    assert joined in prompt_of(model, short)
    short.close()
    plan = compaction.plan(chat, "m", can_summarise=False)
    compacted = compaction.branch(chat, plan, None)
    answered(model, compacted, "four")
    compacted.close()
    chat.close()


def test_ids_that_were_sampled_stay_as_they_were(model: Model) -> None:
    """The tokenizer would never make this reply's ids of its text: reuse is by ids, also past a joined message."""
    chat = model.chat(cache=CONFIG, temperature=0.0, max_tokens=40)
    chat.save()
    told(model, "o", "<s>", "k", END, END)  # shown as text, and made of other ids when tokenized
    say(chat, "one")
    sampled = chat.turns[1].ids
    for again in (False, True):
        during_prefill(model, chat)
        if again:
            chat = resumed(model, chat)
        answered(model, chat, "three")
        start = spans(chat.turns)[1][0]
        assert tuple(chat.cache.tokens[start : start + len(sampled)]) == sampled
        assert chat.stats.cached_tokens >= start + len(sampled)
    chat.close()


@pytest.mark.parametrize("way", ["out_of_memory_before_the_first_token"])
def test_a_reply_that_had_not_begun_can_be_continued(model: Model, way: str) -> None:
    chat = model.chat(cache=CONFIG, temperature=0.0, max_tokens=40)
    chat.save()
    answered(model, chat, "one")
    WAYS[way](model, chat)
    for each in (chat.fork(), resumed(model, chat)):
        told(model, "o", "k", END, END)
        *_, last = each.continue_reply()
        assert isinstance(last, TurnFinished)
        assert last.text == "ok"
        assert prompt_of(model, each).endswith(f"user\ntwo{END}\n<|im_start|>")
        each.close()
