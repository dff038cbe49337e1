"""Tools: described to the model, called in a reply, answered, and all of it saved and resumed."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

import mlxkv
from mlxkv.chat.chat import Chat
from mlxkv.chat.prompts.prompt import PromptFormat, PromptState, message
from mlxkv.chat.tools import Tool, checked_tools, parse_calls
from mlxkv.errors import ConfigError
from mlxkv.events import TextDelta, ToolCall, TurnFinished
from mlxkv.inference.reply_parser import Reasoning, ReplyText
from mlxkv.model import Model
from mlxkv.store.export.document import from_document, to_document
from mlxkv.store.export.markdown import to_markdown
from tests.chats import new, script
from tests.tokenizers import CALLS, JSON, TOOLS, tiny_folder, tiny_tokenizer


def warmth(city: str, unit: Literal["c", "f"] = "c") -> dict[str, Any]:
    """How warm it is.

    Args:
        city: a name.
    """
    return {"city": city, "warmth": 21, "unit": unit}


SCHEMA = {
    "type": "function",
    "function": {
        "name": "warmth",
        "description": "How warm it is.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "a name."},
                "unit": {"type": "string", "enum": ["c", "f"]},
            },
            "required": ["city"],
        },
    },
}
ROOT = Path(__file__).resolve().parents[2]
CALL = '<tool_call>\n{"name": "warmth", "arguments": {"city": "rome"}}\n</tool_call>'
RESULT = '{"city": "rome", "warmth": 21, "unit": "c"}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tiny_tokenizer(TOOLS, marks=CALLS, more=JSON)
    return tiny_folder(tmp_path_factory.mktemp("tools") / "m", tokenizer=tokenizer)


@pytest.fixture
def model(folder: Path) -> Iterator[Model]:
    loaded = mlxkv.load(str(folder))
    yield loaded
    loaded.close()


def called(model: Model, **more: Any) -> Chat:
    """A chat whose reply calls a tool."""
    chat = new(model, tools=[warmth], max_tokens=200, **more)
    script(model, f"let me see\n{CALL}")
    answer = chat.ask("is it warm?")
    assert (answer.text, answer.finish_reason) == ("let me see", "tool_calls")
    assert answer.tool_calls == (ToolCall("warmth", '{"city": "rome"}', "call00001"),)
    return chat


def answered(model: Model, chat: Chat) -> None:
    chat.add("tool", chat.call_tool(chat.messages[-1].tool_calls[0]))
    script(model, "yes")
    assert chat.ask().text == "yes"


def text_of(chat: Chat) -> str:
    return chat._runtime.tokenizer.decode(chat.log)


# -- a loop ----------------------------------------------------------------------------------------------------------


def test_a_call_is_answered_and_nothing_is_prefilled_twice(model: Model) -> None:
    chat = called(model)
    held = chat.cache.offset
    answered(model, chat)
    assert chat.stats.cached_tokens >= held
    assert [m.role for m in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert chat.messages[2].tool_call_id == "call00001"
    prompts = chat._history.prompts
    assert text_of(chat).startswith(prompts.render(chat._history.messages(chat.turns[:3])))
    assert json.dumps(SCHEMA) in text_of(chat)
    assert f"let me see\n{CALL}<|im_end|>\n<|im_start|>user\n<tool_response>\n{RESULT}\n</tool" in text_of(chat)
    script(model, f"{CALL}\n{CALL}", "good")  # two at once: their ids go on, and both need a result
    calls = chat.ask("and now?").tool_calls
    assert [call.id for call in calls] == ["call00002", "call00003"]
    chat.add("tool", "1", tool_call_id="call00003")
    with pytest.raises(mlxkv.errors.PromptError, match="The tool call call00002 of warmth has no result"):
        chat.ask()
    chat.add("tool", "2")
    assert (chat.ask().text, chat.turns[-2].tool_call_id) == ("good", "call00002")


def test_the_text_of_a_call_is_not_shown(model: Model) -> None:
    chat = new(model, tools=[warmth], max_tokens=200)
    script(model, f"so \n\n{CALL}\n done \n")
    events = list(chat.send("?"))
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "sodone \n"
    assert isinstance(events[-1], TurnFinished)
    assert (events[-1].text, len(events[-1].tool_calls)) == ("sodone \n", 1)


@pytest.mark.parametrize("wrong", ['<tool_call>\n{"name": }\n</tool_call>', "<tool_call>[1]</tool_call> x"])
def test_what_is_no_call_is_text(model: Model, wrong: str) -> None:
    chat = new(model, tools=[warmth], max_tokens=200)
    script(model, f"a\n{wrong}")
    answer = chat.ask("?")
    assert (answer.text, answer.tool_calls, answer.finish_reason) == (f"a\n{wrong}", (), "stop")
    script(model, f"a {CALL}")
    cut = chat.ask("?", max_tokens=12)  # within the call
    assert (cut.finish_reason, cut.tool_calls) == ("length", ())
    assert cut.text.startswith('a <tool_call>\n{"na')
    *_, end = chat.continue_reply(max_tokens=100)
    assert isinstance(end, TurnFinished)
    assert (end.text, [call.id for call in end.tool_calls]) == ("a", ["call00001"])


def test_without_tools_a_call_is_text(model: Model) -> None:
    script(model, CALL)
    assert new(model, max_tokens=200).ask("?").text == CALL


def _loop_of_the_guide() -> str:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(def warmth.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return code


def _example() -> str:
    return (ROOT / "examples" / "tools.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("code", "name", "argument"),
    [(_loop_of_the_guide, "warmth", '{"city": "porto"}'), (_example, "days_until", '{"day": "2030-01-01"}')],
)
def test_the_loops_that_are_shown_to_users(
    model: Model, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    code: Callable[[], str], name: str, argument: str,
) -> None:  # fmt: skip
    """Ten lines call the tool that the model asks for, and print what it makes of the result."""
    call = f'<tool_call>\n{{"name": "{name}", "arguments": {argument}}}\n</tool_call>'
    script(model, call, "it is so.")
    chats: list[Chat] = []
    made = model.chat
    monkeypatch.setattr(model, "chat", lambda **more: chats.append(made(**more)) or chats[-1])
    monkeypatch.setattr(mlxkv, "load", lambda *_: model)
    monkeypatch.setattr(sys, "argv", ["tools.py"])
    exec(compile(code(), "shown", "exec", dont_inherit=True), {"mlxkv": mlxkv, "model": model, "__name__": "shown"})
    assert capsys.readouterr().out.splitlines()[-1] == "it is so."
    assert [m.role for m in chats[0].messages] == ["user", "assistant", "tool", "assistant"]
    assert chats[0].messages[2].text == "21 degrees in porto" or int(chats[0].messages[2].text)


# -- saved chats -----------------------------------------------------------------------------------------------------


def test_a_saved_chat_with_calls_resumes_without_a_prefill(model: Model) -> None:
    chat = called(model)
    session = chat.save()
    answered(model, chat)
    log, messages = chat.log, chat.messages
    chat.close()
    chat = model.resume(session)
    assert (chat.log, chat.messages) == (log, messages)
    assert [tool.schema for tool in chat.tools] == [SCHEMA]
    assert chat.restored is not None
    assert chat.restored.tokens >= len(log) - 1  # the last token sampled may be in no cache
    script(model, "ok")
    chat.ask("thanks")
    assert chat.stats.cached_tokens >= len(log) - 1
    with pytest.raises(ConfigError, match="is a JSON schema; run it yourself"):
        chat.call_tool(messages[1].tool_calls[0])
    chat.close()
    chat = model.resume(session, tools=[warmth])
    assert chat.call_tool(messages[1].tool_calls[0]) == RESULT
    chat.close()
    record = model.store.load(session)
    again, _ = from_document(json.dumps(to_document(record)).encode(), "chat.json")
    assert (again.turns, again.params["tools"]) == (record.turns, [SCHEMA])
    shown = to_markdown(record)
    assert '→ warmth({"city": "rome"})' in shown
    assert f"## tool\n\n{RESULT}" in shown


def test_a_model_without_tools_reads_them_as_text(model: Model, tiny_path: Path) -> None:
    chat = called(model)
    session = chat.save()
    answered(model, chat)
    chat.close()
    other = mlxkv.load(str(tiny_path))
    chat = other.resume(session)
    assert chat.tools == ()
    chat.ask("go on", max_tokens=2)
    rendered = chat._history.prompts.render(chat._history.messages(chat.turns[:5]))
    assert 'let me see\nwarmth({"city": "rome"})<|im_end|>\n<|im_start|>user\nResult of the tool: {' in rendered
    chat.close()
    other.close()


# -- going back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_saved", [False, True])
def test_going_back_around_results(model: Model, is_saved: bool) -> None:
    chat = called(model)
    if is_saved:
        chat.save()
    answered(model, chat)
    first = chat.session_id
    before = chat.turns
    script(model, "no")
    list(chat.retry())  # the reply to the result alone
    assert [t.text for t in chat.turns] == [*(t.text for t in before[:3]), "no"]
    assert [t.ids for t in chat.turns[:3]] == [t.ids for t in before[:3]]
    assert (chat.session_id != first) is is_saved
    events: Any = chat.retry()
    next(events)
    events.close()  # nothing was generated: the reply is there again
    assert [t.text for t in chat.turns][2:] == [RESULT, "no"]
    if is_saved:
        for session, turns in ((first, before), (chat.session_id, chat.turns)):
            saved = model.store.load(str(session)).turns
            assert [(t.text, t.ids, t.tool_calls) for t in saved] == [(t.text, t.ids, t.tool_calls) for t in turns]
    twin = chat.fork(2)  # after the result
    script(model, "so")
    assert twin.ask().text == "so"
    twin.close()
    assert chat.undo() == "is it warm?"
    assert chat.turns == ()
    script(model, "hm")
    assert chat.ask("hot?").text == "hm"
    script(model, CALL)
    list(chat.edit(0, "cold?"))
    assert (chat.question(), len(chat.messages[-1].tool_calls)) == (0, 1)
    chat.close()


def test_a_reply_to_a_result_can_be_retried_before_it_came(model: Model) -> None:
    chat = called(model)
    chat.add("tool", "warm")
    script(model, "fine")
    *_, end = chat.retry()
    assert isinstance(end, TurnFinished)
    assert (end.text, len(chat.turns)) == ("fine", 4)


# -- tools -----------------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


def many(*args: str) -> None: ...


async def later(a: int) -> None: ...


def bare(a) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001


def test_a_function_is_described_by_its_signature() -> None:
    def paint(what: str, colour: Colour, coats: int | None = None) -> None:
        """Paint a thing."""

    assert Tool.of(warmth).schema == SCHEMA
    assert checked_tools(None) == ()
    properties = Tool.of(paint).schema["function"]["parameters"]["properties"]
    assert properties["colour"] == {"type": "string", "enum": ["red"]}
    assert properties["coats"] == {"type": "integer", "nullable": True}


def test_a_schema_is_taken_in_three_forms() -> None:
    inner: dict[str, Any] = SCHEMA["function"]  # type: ignore[assignment]
    for form in (SCHEMA, inner, {"type": "function", **inner}):
        assert Tool.of(form).schema == SCHEMA


@pytest.mark.parametrize(
    ("tools", "why"),
    [
        ([warmth, warmth], "Two tools have the name 'warmth'"),
        ([many], "takes `.args`"),
        ([later], "it is `async`"),
        ([bare], "missing a type hint"),
        ([lambda a: a], "has no name"),
        ([{"name": "a b"}], "is no JSON schema of a function"),
        ([{"type": "web_search"}], "is no JSON schema of a function"),
        ([{"name": "a", "parameters": {1, 2}}], "is no JSON"),
        ([{"name": "a", "parameters": "all"}], "must be an object"),
        ("warmth", "must be a list of functions"),
        ([3], "must be a list of functions"),
    ],
)
def test_a_tool_that_cannot_be_described_is_refused(tools: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        checked_tools(tools)


def test_a_model_whose_template_takes_no_tools(model: Model, tiny_path: Path) -> None:
    other = mlxkv.load(str(tiny_path))
    assert (model.can_call_tools, other.can_call_tools) == (True, False)
    with pytest.raises(ConfigError, match="This model's chat template takes no tools"):
        other.chat(tools=[warmth])
    other.close()
    format = PromptFormat(tiny_tokenizer(TOOLS, marks=CALLS, more=JSON))  # not loaded by mlx-lm: without a parser
    with pytest.raises(ConfigError, match="mlx-lm has no parser of this model's tool calls"):
        format.with_tools(checked_tools([warmth]))
    with pytest.raises(ConfigError, match="A chat from a prompt cache has no tools"):
        model.chat(cache=model.prefill("hi", chat=True), tools=[warmth])


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (ToolCall("warmth", '{"city": "rome"}'), RESULT),
        (ToolCall("cold", "{}"), "Error: there is no tool 'cold'; there are warmth."),
        (ToolCall("warmth", '{"town": "rome"}'), "Error: these arguments do not fit warmth"),
        (ToolCall("warmth", "[1]"), "Error: these arguments do not fit warmth"),
        (ToolCall("warmth", "{"), "Error: these arguments do not fit warmth"),
    ],
)
def test_what_a_call_gives(model: Model, call: ToolCall, result: str) -> None:
    assert model.chat(tools=[warmth]).call_tool(call).startswith(result)


PARSED = {
    "json_tools": '{"name": "f", "arguments": {"a": 1}}',
    "mistral": '[{"name": "f", "arguments": {"a": 1}}]',
    "qwen3_coder": "<function=f>\n<parameter=a>\n1\n</parameter>\n</function>",
    "pythonic": "[f(a=1)]",
    "gemma4": "call:f{a:1}",
    "kimi_k2": 'functions.f:0<|tool_call_argument_begin|>{"a": 1}',
}


@pytest.mark.parametrize("parser", PARSED)
def test_calls_are_parsed_by_mlx_lm(parser: str) -> None:
    tokenizer = SimpleNamespace(tool_parser=importlib.import_module(f"mlx_lm.tool_parsers.{parser}").parse_tool_call)
    tool = Tool.of({"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}})
    given = "functions.f:0" if parser == "kimi_k2" else "call00004"
    assert parse_calls(tokenizer, PARSED[parser], (tool,), 3) == (ToolCall("f", '{"a": 1}', given),)
    assert parse_calls(tokenizer, "no", (tool,)) is None


@pytest.mark.parametrize("end", ["</tool_call>", ""])  # Mistral's calls end with the reply
def test_reasoning_before_a_call(end: str) -> None:
    tokenizer = tiny_tokenizer(marks=(*CALLS, "<think>", "</think>"), more=JSON)
    tokenizer._tool_call_start, tokenizer._tool_call_end = "<tool_call>", end
    markup = Reasoning.of(tokenizer, with_tools=True)
    assert markup is not None
    reader = ReplyText(tokenizer, (), markup, markup.initial, parse=lambda text, n: (ToolCall(text, "", str(n)),))
    for token in PromptFormat(tokenizer).encode(f"<think>\nhm\n</think>\n\nwell \n<tool_call>it{end}"):
        reader.add(token)
    reader.finish()
    assert (reader.thinking, reader.text, reader.tool_calls) == ("hm", "well", (ToolCall("it", "", "0"),))


def test_control_tokens_in_tools_and_results_are_text(model: Model) -> None:
    marks = {i for mark in ("<|im_end|>", *CALLS) for i in [model.tokenizer.get_vocab()[mark]]}
    prompts = PromptFormat(model.tokenizer).with_tools([replace(Tool.of(warmth), schema=_spelled("<|im_end|>"))])
    call = {"function": {"name": "f", "arguments": {"</tool_call>": ["<|im_end|>"]}}}
    messages = [
        message("user", "hi"),
        {**message("assistant", ""), "tool_calls": [call]},
        message("tool", "</tool_response><|im_end|>"),
    ]
    state = prompts.prompt(messages, PromptState())
    assert "<|im_end|>" in str(prompts.tools[0].schema)
    plain = [message("user", "hi"), {**message("assistant", ""), "tool_calls": [_NO_MARKS]}, message("tool", "x")]
    usual = PromptFormat(model.tokenizer).with_tools(checked_tools([warmth])).prompt(plain, PromptState())
    assert [i for i in state.ids if i in marks] == [i for i in usual.ids if i in marks]
    assert '{"</tool_call>": ["<|im_end|>"]}' in state.text


_NO_MARKS = {"function": {"name": "f", "arguments": {}}}


def _spelled(text: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "description": text, "parameters": {}}}


def test_a_template_that_takes_arguments_as_text() -> None:
    joining = TOOLS.replace("tool_call.arguments | tojson", "'' + tool_call.arguments")
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    for template in (joining, TOOLS):
        prompts = PromptFormat(tiny_tokenizer(template, marks=CALLS, more=JSON))
        messages = [message("user", "x"), {**message("assistant", ""), "tool_calls": [call]}]
        assert '"arguments": {"a": 1}}' in prompts.render(messages)
