"""Messages that a caller adds, replies to them, replies with a given beginning, and another system prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mlxkv
from mlxkv.chat.prompts.messages import checked, template_messages
from mlxkv.chat.prompts.prompt import PromptFormat, PromptState
from mlxkv.errors import ConfigError, ModelError, PromptError
from mlxkv.events import PrefillProgress, TextDelta, ToolCall, TurnFinished
from mlxkv.model import Model
from mlxkv.store.records import TurnRecord
from tests.chat.test_alternation import STRICT
from tests.chats import CONFIG, new, say, script
from tests.tokenizers import CHATML, OPENING, THINK, tiny_folder, tiny_tokenizer


@pytest.fixture(scope="module")
def strict_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("strict") / "m", template=STRICT)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


# -- one call --------------------------------------------------------------------------------------------------------


def test_ask_is_what_send_gives(model: Model) -> None:
    asked, sent = new(model), new(model)
    answer = asked.ask("hi", temperature=0)
    last = say(sent, "hi", temperature=0)
    assert (answer.text, answer.thinking, answer.tool_calls) == (last.text, "", ())
    assert answer.tokens == sent.turns[-1].ids
    assert answer.finish_reason == last.reason == answer.stats.finish_reason
    assert answer.stats.generated_tokens == len(answer.tokens)
    asked.cancel()
    assert asked.ask("more").text == say(sent, "more").text  # `cancel` was for the reply before


# -- messages to begin with ------------------------------------------------------------------------------------------


def test_a_chat_from_messages_is_the_chat_that_was_sent(model: Model) -> None:
    """Same prompt, same reply, and the same when it is resumed."""
    sent = new(model, system="be kind")
    say(sent, "one")
    told = [{"role": "system", "content": "be kind"}, user("one"), assistant(sent.messages[1].text), user("two")]
    say(sent, "two")
    for autosave in (False, True):
        chat = new(model, messages=told, autosave=autosave)
        assert (chat.system, chat.num_messages, chat.title) == ("be kind", 3, "one" if autosave else "")
        assert chat.ask().text == sent.messages[-1].text
        assert chat.stats.prompt_tokens == sent.stats.prompt_tokens
    session, messages, log = str(chat.session_id), chat.messages, chat.log
    chat.close()
    again = model.resume(session)
    assert (again.messages, again.log) == (messages, log)
    say(again, "three")
    assert again.stats.cached_tokens == len(log) - 1
    again.close()
    copied = new(model, system="be kind", messages=messages)
    assert [m.text for m in copied.messages] == [m.text for m in messages]


def test_added_messages_count_from_the_next_reply_on(model: Model) -> None:
    chat = new(model)
    chat.save("talk")
    chat.add("user", "one")
    chat.add("user", "two")
    chat.add("assistant", "ok")
    chat.add("user", "three")
    assert chat.cache.offset == 0
    for one in (chat, chat.fork(), _resumed(model, chat)):
        one.ask()
        rendered = one._history.prompts.render(
            [*map(dict, (user("one\n\ntwo"), assistant("ok"), user("three")))],  # type: ignore[list-item]
        )
        assert model.tokenizer.decode(one.log[: one.stats.prompt_tokens]) == rendered
        one.close()


def _resumed(model: Model, chat: mlxkv.Chat) -> mlxkv.Chat:
    chat.close()
    return model.resume("talk", fork=True)


@pytest.mark.parametrize(
    ("first", "then"), [("assistant", "user"), ("assistant", "assistant"), ("user", "assistant"), ("user", "user")]
)
def test_any_order_of_roles_is_rendered_and_undone(model: Model, first: str, then: str) -> None:
    chat = new(model)
    chat.save()
    chat.add(first, "one")
    chat.add(then, "two")
    script(model, "ok")
    list(chat.send("three"))
    expected = [user("one") if first == "user" else assistant("one")]
    for role, text in ((then, "two"), ("user", "three")):
        new_one = user(text) if role == "user" else assistant(text)
        if expected[-1]["role"] == role:
            expected[-1] = {"role": role, "content": f"{expected[-1]['content']}\n\n{text}"}
        else:
            expected.append(new_one)
    prompts = chat._history.prompts
    assert model.tokenizer.decode(chat.log[: chat.stats.prompt_tokens]) == prompts.render(expected)
    assert chat.undo() == "three"
    script(model, "ok")
    list(chat.send("four"))
    expected[-1] = {"role": "user", "content": expected[-1]["content"].replace("three", "four")}
    assert model.tokenizer.decode(chat.log[: chat.stats.prompt_tokens]) == prompts.render(expected)
    chat.close()
    assert _saved(model, chat) == _kept(chat)


def _kept(chat: mlxkv.Chat) -> list[Any]:
    return [(turn.role, turn.text, turn.ids, turn.tool_calls) for turn in chat.turns]


def _saved(model: Model, chat: mlxkv.Chat) -> list[Any]:
    turns = model.store.load(str(chat.session_id)).turns
    return [(turn.role, turn.text, turn.ids, turn.tool_calls) for turn in turns]


def test_a_model_without_a_template(tmp_path: Path) -> None:
    model = mlxkv.load(str(tiny_folder(tmp_path / "raw", template=None)))
    chat = new(model)
    for role, text in (("user", "one "), ("assistant", "two "), ("user", "three ")):
        chat.add(role, text)
    script(model, "and more")
    assert chat.ask(begin="four ").text == "four and more"
    assert model.tokenizer.decode(chat.log[: chat.stats.prompt_tokens]).endswith("one two three four ")
    with pytest.raises(ConfigError, match="takes no tools"):
        model.chat(tools=[{"name": "f"}])
    model.close()


# -- what is refused -------------------------------------------------------------------------------------------------

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def test_openai_messages_are_taken(model: Model) -> None:
    system, turns = checked(
        [
            {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "kind"}]},
            {"role": "user", "content": "hi", "name": None},
            {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm", "refusal": None},
            {"role": "tool", "content": [{"type": "text", "text": "1"}], "tool_call_id": "a"},
        ]
    )
    assert system == "be\nkind"
    assert turns == (
        TurnRecord("user", "hi"),
        TurnRecord("assistant", "", thinking="hm", tool_calls=(ToolCall("f", '{"x": 1}', "a"),)),
        TurnRecord("tool", "1", tool_call_id="a"),
    )
    shown = template_messages(system, turns)
    assert shown[2]["tool_calls"] == [CALL | {"function": {"name": "f", "arguments": {"x": 1}}}]
    assert shown[3] == {"role": "tool", "content": "1", "tool_call_id": "a", "name": "f"}
    bare = {"role": "assistant", "tool_calls": [{"name": "g", "arguments": {"x": 1}}]}
    assert checked([user("x"), bare])[1][1].tool_calls == (ToolCall("g", '{"x": 1}', "call00001"),)


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ("hi", "it must be a list of messages"),
        ([user("a"), {"role": "robot", "content": "b"}], "Message 1 is .*; it must have a `role`, which is system"),
        ([user("a"), 3], "Message 1 is 3"),
        ([user("a"), {"role": "system", "content": "b"}], "Message 1 is a system prompt; only the first"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "Message 0 has the `content` a part of the type 'image",
        ),
        ([{"role": "user", "content": None}], "Message 0 has the `content` None; it must be text"),
        ([{**user("a"), "tool_calls": [CALL]}], "Message 0, of the role user, has 'tool_calls'"),
        ([{**assistant("a"), "function_call": {"name": "f"}}], "has 'function_call', which it cannot have"),
        ([{**assistant("a"), "tool_calls": [{"type": "custom"}]}], "Message 0 has the tool call"),
        ([user("a"), {"role": "tool", "content": "b"}], "Message 1 answers the tool call None, and no call waits"),
        (
            [user("a"), {**assistant(""), "tool_calls": [CALL]}, {"role": "tool", "content": "", "tool_call_id": "b"}],
            "Message 2 answers the tool call 'b', and waiting are 'a'",
        ),
    ],
)
def test_a_wrong_message_is_named(model: Model, messages: Any, why: str) -> None:
    with pytest.raises(PromptError, match=why):
        model.chat(messages=messages, cache=CONFIG)
    if isinstance(messages, list):
        with pytest.raises(PromptError, match=why):
            model.generate_batch([messages])


@pytest.mark.parametrize(
    ("role", "text", "id", "why"),
    [
        ("system", "x", None, "`role` is 'system'; set `chat.system`"),
        ("robot", "x", None, "it must be one of user, assistant, tool"),
        ("user", " ", None, "is empty"),
        ("user", "x", "call00001", "is no result of a tool"),
        ("tool", "x", None, "and no call waits for one"),
    ],
)
def test_a_message_that_cannot_be_added(model: Model, role: str, text: str, id: str | None, why: str) -> None:
    chat = new(model)
    with pytest.raises(PromptError, match=why):
        chat.add(role, text, tool_call_id=id)
    with pytest.raises(PromptError, match="this chat has no messages"):
        chat.ask()
    say(chat, "hi")
    with pytest.raises(PromptError, match="this chat ends with a reply"):
        list(chat.reply())
    assert chat.num_messages == 2


def test_the_message_that_a_template_refuses_is_named(strict_folder: Path) -> None:
    model = mlxkv.load(str(strict_folder))
    told = [user("a"), assistant("b"), assistant("c"), user("d")]
    with pytest.raises(ModelError, match=r"^prompts.0.: Message 2, of the role assistant, does not fit there"):
        model.generate_batch([told])
    chat = model.chat(messages=told, cache=CONFIG, max_tokens=2)  # joined, as in any chat
    assert chat.ask().tokens
    with pytest.raises(ModelError, match=r"^Message 1, of the role assistant, does not fit there: The chat template"):
        model.chat(messages=[{"role": "system", "content": "s"}, assistant("b")], cache=CONFIG, autosave=True)
    assert not list(model.store.list())
    before = chat.turns
    with pytest.raises(ModelError, match="refuses this chat"):
        new(model).add("assistant", "b")
    assert chat.turns == before
    model.close()


# -- replies ---------------------------------------------------------------------------------------------------------


def test_a_reply_that_is_stopped_before_it_begins_changes_nothing(model: Model) -> None:
    chat = new(model)
    chat.save()
    chat.add("user", "one")
    turns = chat.turns
    events = []
    for event in chat.reply(begin="1."):
        events.append(event)
        if isinstance(event, PrefillProgress):
            chat.cancel()
    assert isinstance(events[-1], TurnFinished)
    assert (events[-1].unanswered, events[-1].returned, chat.turns) == (True, "", turns)
    assert not [event for event in events if isinstance(event, TextDelta)]
    script(model, "ok")
    assert chat.ask().text == "ok"
    assert _saved(model, chat) == _kept(chat)
    chat.close()


@pytest.mark.parametrize("how", ["send", "reply", "saved"])
def test_a_reply_begins_with_a_text(model: Model, how: str) -> None:
    chat = new(model)
    if how != "send":
        chat.add("user", "count")
    if how == "saved":
        chat.save()
    script(model, " two. 3.")
    events = list(chat.send("count", begin="1. one. 2.") if how == "send" else chat.reply(begin="1. one. 2."))
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "1. one. 2. two. 3."
    (prompt, reply) = (turn.ids for turn in chat.turns)
    assert model.tokenizer.decode(prompt + reply).endswith("assistant\n1. one. 2. two. 3.<|im_end|>")
    script(model, "ok")
    assert chat.ask("more").text == "ok"
    assert chat.stats.cached_tokens >= len(prompt + reply) - 1
    if how == "saved":
        log = chat.log
        chat.close()
        chat = model.resume(str(chat.session_id))
        script(model, "ok")
        list(chat.retry(2))
        assert chat.log == log
    chat.close()


def test_a_given_beginning_ends_the_reasoning(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "m", tokenizer=tiny_tokenizer(OPENING, marks=THINK))
    model = mlxkv.load(str(folder))
    chat = new(model, max_tokens=40)
    script(model, "2.")
    answer = chat.ask("count", begin="1. ")
    assert (answer.text, answer.thinking) == ("1. 2.", "")
    assert "<think>\n\n</think>\n\n1. 2." in model.tokenizer.decode(chat.log)
    chat.save()
    chat.add("user", "more")  # recorded with the beginning of a reply that reasons
    script(model, "2.")
    assert chat.ask(begin="1. ").text == "1. 2."
    assert model.tokenizer.decode(chat.log).endswith("<think>\n\n</think>\n\n1. 2.<|im_end|>")
    assert chat.log == tuple(chat.cache.tokens[: len(chat.log)])
    assert _saved(model, chat) == _kept(chat)
    chat.close()
    model.close()
    no_switch = PromptFormat(tiny_tokenizer(CHATML.replace("assistant\n{% e", "assistant\n<think>\n{% e"), marks=THINK))
    state = no_switch.prompt([{"role": "user", "content": "hi"}], PromptState())
    ids = no_switch.begun(state, "1.<think>")  # what the caller writes is text
    assert no_switch.tokenizer.decode(ids).startswith("</think>\n\n1.")
    assert ids.count(no_switch.tokenizer.get_vocab()["<think>"]) == 0


# -- another system prompt -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize("second", ["be kind and brief", "be kind to all who ask you something, and to the others too"])
def test_another_system_prompt(model: Model, second: str, is_saved: bool) -> None:
    """The next reply is that of a chat with this system prompt; the common beginning is not prefilled again."""
    chat, runner = new(model, system="be kind"), model.runner
    if is_saved:
        chat.save("talk")
    script(model, "ok")
    list(chat.send("one"))
    model._runtime.runner = runner  # what follows is the model's own
    session, log = chat.session_id, chat.log
    chat.system = second
    for text in ("x", second):  # changes without a turn between them leave no sessions
        chat.system = text
    answer = chat.ask("two")
    expected = new(model, system=second, messages=[user("one"), assistant("ok"), user("two")]).ask()
    assert answer.text == expected.text
    assert chat.system == second
    shared = next(i for i, (a, b) in enumerate(zip(log, chat.log, strict=False)) if a != b)
    assert chat.stats.cached_tokens == shared
    assert chat.cache.plan.geometry is not None
    fresh = new(model, system=second)
    assert fresh.cache.plan.geometry == chat.cache.plan.geometry  # it pins all of the system prompt
    if is_saved:
        assert chat.session_id != session
        assert len(list(model.store.list())) == 2
        old, now = (model.store.load(str(s)) for s in (session, chat.session_id))
        assert (old.system, old.log, now.system, now.parent) == ("be kind", log, second, session)
        assert _saved(model, chat) == _kept(chat)
        chat.close()
        again = model.resume(str(chat.session_id))
        assert again.restored is not None
        assert again.restored.tokens == len(chat.log) - 1
        again.close()


def test_a_system_prompt_before_any_message(model: Model) -> None:
    chat = new(model, system="be kind")
    chat.save("talk")
    chat.system = None
    chat.system = "be brief"
    assert [chat.session_id] == [summary.id for summary in model.store.list()]
    chat.ask("hi")
    assert "be brief" in model.tokenizer.decode(chat.log)
    events: Any = chat.send("x")
    next(events)
    with pytest.raises(ConfigError, match="still being generated"):
        chat.system = "x"
    events.close()
    chat.close()
    cached = model.chat(cache=model.prefill("hi", system="be kind"))
    with pytest.raises(ConfigError, match="The system prompt of a chat from a prompt cache cannot change"):
        cached.system = "x"
