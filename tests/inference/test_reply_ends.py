"""Every way a reply can end: what was shown, what the message, the cache and the next prompt hold, and why it ended.

One row a case, each run raw on a prompt cache, in a chat, and in a saved chat that is resumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mlxkv
from mlxkv.chat.chat import Chat
from mlxkv.errors import OutOfMemoryError, PromptError
from mlxkv.events import TextDelta, TurnEvent, TurnFinished
from mlxkv.model import Model
from tests.chats import CONFIG, say, scripted
from tests.reference import largest
from tests.tokenizers import CHATML, THINK, VOCAB, tiny_folder, tiny_tokenizer

END = "<|im_end|>"
STOP = "CUB"
MORE = ("CUB", "hiCU", "aCUBb", "<0xC3>", "<0xA9>")


@dataclass(frozen=True)
class End:
    """The model samples `tokens` (a word is one token for each character, unless it is in MORE or a mark).

    leave: the caller stops at the event of token number `at`: by `cancel`, by `break`, by `close` or, where the model
        raises at the next token, by that.
    held: so many sampled tokens a raw prompt cache has at the end; None where the prompt cache is not looked at.
    then: the whole text once a reply that can be continued was, with `rest` sampled; "" where it cannot.
    """

    name: str
    tokens: str
    reason: str
    text: str
    held: int | None
    thinking: str = ""
    stop: str | None = None
    max_tokens: int = 40
    leave: str = ""
    at: int = 0
    unseen: str = ""  # of the text, by a caller who left
    rest: str = f"z {END}"
    then: str = ""
    then_stop: str | None = None
    then_reason: str = "stop"


ENDS = [
    End("end of turn", f"h e y {END}", "stop", "hey", 4),
    End("end of turn at once", f"{END}", "stop", "", 1),
    End("length", "h e y", "length", "hey", 3, max_tokens=3, then="heyz"),
    End("length of one", "h", "length", "h", 1, max_tokens=1, then="hz"),
    End("stop string in one token", "h i CUB z", "stop_string", "hi", 2, stop=STOP),
    End("stop string over tokens", "h i C U B z", "stop_string", "hi", 2, stop=STOP),
    End("stop string begins inside a token", "h hiCU B z", "stop_string", "hhi", 1, stop=STOP),
    End("stop string inside a token", "h aCUBb z", "stop_string", "ha", 1, stop=STOP),
    End("stop string at once", "CUB z", "stop_string", "", 0, stop=STOP),
    End("stop string as the last token allowed", "h i CUB", "stop_string", "hi", 2, stop=STOP, max_tokens=3),
    End("stop string that the prompt begins", f"B y {END}", "stop", "By", 3, stop=STOP),
    End("held back at the end", f"h i C U {END}", "stop", "hiCU", 5, stop=STOP),
    End("held back at the length", "h i C U", "length", "hiCU", 4, stop=STOP, max_tokens=4, then="hiCUz"),
    End("held back, and the rest comes", "h i C U", "length", "hiCU", 4, stop=STOP, max_tokens=4, rest=f"B y {END}",
        then="hiCUBy", then_stop=STOP),
    End("said before it was a stop string", "a CUB b", "length", "aCUBb", 3, max_tokens=3, rest="d C U B e",
        then="aCUBbd", then_stop=STOP, then_reason="stop_string"),
    End("cancelled", "h e y y", "stopped", "hey", None, leave="cancel", at=3, then="heyz"),
    End("cancelled while held back", "h e hiCU y", "stopped", "hehiCU", None, stop=STOP, leave="cancel", at=3,
        then="hehiCUz"),
    End("the caller breaks", "h e y y", "stopped", "hey", 3, leave="break", at=3, then="heyz"),
    End("the caller breaks while held back", "h e hiCU y", "stopped", "hehiCU", 3, stop=STOP, leave="break", at=3,
        unseen="CU", then="hehiCUz"),
    End("the caller breaks at a stop string", "h aCUBb y", "stop_string", "ha", 1, stop=STOP, leave="break", at=2),
    End("closed", "h e hiCU y", "stopped", "hehiCU", 3, stop=STOP, leave="close", at=3, unseen="CU", then="hehiCUz"),
    End("the model raises", "h e hiCU y", "stopped", "hehiCU", None, stop=STOP, leave="raise", unseen="CU",
        then="hehiCUz"),
    End("length while thinking", "<think> h m", "length", "", None, thinking="hm", max_tokens=3,
        rest=f"</think> y {END}", then="y"),
    End("cancelled while thinking", "<think> h m m", "stopped", "", None, thinking="hm", leave="cancel", at=3,
        rest=f"m </think> y {END}", then="y"),
    End("end of turn while thinking", f"<think> h m {END}", "stop", "", None, thinking="hm"),
    End("stop string after thinking", "<think> CUB </think> h CUB z", "stop_string", "h", None, thinking="CUB",
        stop=STOP),
    End("half a character at the length", "c a <0xC3>", "length", "ca", 3, max_tokens=3, rest=f"<0xA9> z {END}",
        then="caéz"),
    End("half a character, cancelled", "c a <0xC3> y", "stopped", "ca", None, leave="cancel", at=2,
        rest=f"<0xC3> <0xA9> {END}", then="caé"),
    End("half a character at the end of turn", f"c a <0xC3> {END}", "stop", "ca\ufffd", 4),
]  # fmt: skip


def named(case: End) -> str:
    return case.name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_folder(tmp_path_factory.mktemp("ends") / "m")
    tiny_tokenizer(CHATML, marks=THINK, more=MORE)._tokenizer.save_pretrained(made)
    return made


@pytest.fixture
def model(folder: Path) -> Iterator[Model]:
    loaded = mlxkv.load(str(folder))
    scripted(loaded, [])
    yield loaded
    loaded.close()


def ids_of(model: Model, tokens: str) -> list[int]:
    vocab = model.tokenizer.get_vocab()
    return [vocab[token] for token in tokens.split()]


def run(model: Model, events: Iterator[TurnEvent], case: End, chat: Chat | None = None) -> str:
    """Iterate as the case says; the text that its caller was shown."""
    shown, last = "", None
    try:
        for event in events:
            last = event
            if not isinstance(event, TextDelta):
                continue
            shown += "" if event.thinking else event.text
            if event.num_tokens == case.at:
                if case.leave == "cancel":
                    assert chat is not None
                    chat.cancel()
                elif case.leave == "close":
                    events.close()  # type: ignore[attr-defined]
                elif case.leave == "break":
                    break
    except OutOfMemoryError:
        assert case.leave == "raise"
    if not case.leave or case.leave == "cancel":
        assert isinstance(last, TurnFinished)
        assert (last.reason, last.text, last.thinking) == (case.reason, case.text, case.thinking)
        assert last.stats.finish_reason == case.reason
    return shown


def given(model: Model, case: End) -> dict[str, Any]:
    script: list[Any] = ids_of(model, case.tokens)
    scripted(model, [*script, OutOfMemoryError("no room")] if case.leave == "raise" else script)
    return {"max_tokens": case.max_tokens, "temperature": 0.0, **({"stop": case.stop} if case.stop else {})}


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in ENDS if not c.thinking and c.leave != "cancel"], ids=named)
def test_raw_text(model: Model, case: End) -> None:
    pc = model.prefill("once upon")
    how = given(model, case)
    shown = run(model, model.stream(" a CU", cache=pc, **how), case)
    assert shown + case.unseen == case.text
    prompt, sampled = model.tokenizer.encode("once upon a CU"), ids_of(model, case.tokens)
    pc.check_log()
    if case.held is None:
        assert pc.tokens == [*prompt, *sampled][: pc.offset]
        return
    assert pc.tokens == [*prompt, *sampled[: case.held]]
    # What follows has the logits of a cache that read just this.
    fresh = mlxkv.load(str(model.loaded.path)).prefill(pc.tokens)
    ids = list(range(4, 20))
    assert largest(model.runner.score(pc, ids) - model.runner.score(fresh, ids)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("saved", [False, True], ids=["in memory", "saved and resumed"])
@pytest.mark.parametrize("case", ENDS, ids=named)
def test_chats(model: Model, case: End, saved: bool) -> None:
    chat = model.chat(cache=CONFIG)
    if saved:
        chat.save()
    how = given(model, case)
    shown = run(model, chat.send("CU", **how), case, chat)
    assert shown + case.unseen == case.text
    if saved:
        chat.close()
        chat = model.resume(str(chat.session_id))
    reply = chat.messages[-1]
    assert (reply.role, reply.text, reply.thinking) == ("assistant", case.text, case.thinking)
    assert reply.stats is not None
    assert reply.stats.finish_reason == case.reason
    assert chat.turns[-1].state == ("stopped" if case.reason == "stopped" else "done")

    twin = chat.fork()
    scripted(model, ids_of(model, case.rest))
    more: dict[str, Any] = {"stop": case.then_stop} if case.then_stop else {}
    if case.then:
        new = list(twin.continue_reply(max_tokens=40, temperature=0.0, **more))
        last = new[-1]
        assert isinstance(last, TurnFinished)
        assert (last.text, last.reason, twin.messages[-1].text) == (case.then, case.then_reason, case.then)
        assert case.text + "".join(e.text for e in new if isinstance(e, TextDelta) and not e.thinking) == case.then
    else:
        with pytest.raises(PromptError, match="is complete"):
            twin.continue_reply()

    for each, text in ((twin, case.then or case.text), (chat, case.text)):
        scripted(model, ids_of(model, f"o k {END}"))
        assert say(each, "on").text == "ok"
        prompt = model.tokenizer.decode(each.cache.tokens).partition("assistant\nok")[0]
        if text:
            assert f"assistant\n{text}" in prompt.replace("\ufffd", "" if "\ufffd" not in text else "\ufffd")
        else:
            assert "<|im_start|>assistant\n<|im_end|>" not in prompt
            assert "<|im_start|>user\nCU\n\non<|im_end|>" in prompt
        each.close()


@pytest.mark.slow
def test_without_a_template_the_stop_string_is_not_in_the_next_prompt(tmp_path: Path) -> None:
    """Texts continue each other there, and so did the tokens of the stop string."""
    made = tiny_folder(tmp_path / "m", template=None)
    tiny_tokenizer(None, more=MORE)._tokenizer.save_pretrained(made)
    model = mlxkv.load(str(made))
    scripted(model, [])
    chat = model.chat(cache=CONFIG)
    session = chat.save()
    for tokens, text in (("h i CUB z", "hi"), ("h hiCU B z", "hhi")):
        scripted(model, ids_of(model, tokens))
        assert say(chat, "so ", stop=STOP).text == text
    chat.close()
    for take in (lambda: chat, lambda: model.resume(session)):
        each = take()
        scripted(model, ids_of(model, f"o k {END}"))
        say(each, " on ", max_tokens=2)
        assert model.tokenizer.decode(each.cache.tokens).startswith("so hiso hhi on ")
        each.close()
    model.close()


def test_the_tiny_vocabulary_has_room() -> None:
    assert len(tiny_tokenizer(CHATML, marks=THINK, more=MORE).get_vocab()) == VOCAB
