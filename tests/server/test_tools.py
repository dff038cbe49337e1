"""Tools of the endpoint: what the model is told, the calls in a reply, and the conversation with their results."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlxkv
from mlxkv.inference.hooks import Hooks
from mlxkv.server.endpoint import Endpoint
from mlxkv.server.jobs import ChatMessage, Ended, Job, JobEvent, Piece
from mlxkv.server.openai.chat_completions import chat_chunks, chat_request, chat_response
from mlxkv.server.openai.fields import Fields
from mlxkv.server.openai.responses import response_events, response_request, whole_response
from tests.server.local import Local
from tests.tokenizers import real_tokenizer, tiny_folder

TEMPLATE = (  # Qwen's form; mlx-lm finds its parser by these words: tool_call.name
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% for tool_call in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ tool_call.function.name }}", "arguments": {{ tool_call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{# tool_call.name #}"
)
FUNCTION: dict[str, Any] = {"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Bonn"}}\n</tool_call>'


def told(model: mlxkv.Model, monkeypatch: pytest.MonkeyPatch, *replies: str) -> None:
    """Let the model say these replies."""
    end, left = min(model.tokenizer.eos_token_ids), list(replies)

    def hooks(self: Endpoint, job: Job) -> Hooks:
        ids = model.tokenizer.encode(left.pop(0), add_special_tokens=False)
        return Hooks(sampler=lambda logprobs: mx.array([ids.pop(0) if ids else end]))

    monkeypatch.setattr(Endpoint, "_hooks", hooks)


def test_a_call_its_result_and_the_next_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlxkv.load(tiny_folder(tmp_path / "m", tokenizer=real_tokenizer("bytes", TEMPLATE)))
    told(model, monkeypatch, f"let me see {CALL}", "it is warm")
    local = Local(model, saves=False)
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "weather in Bonn?"}], "tools": TOOLS}
    first = ended(local, chat_request(Fields(body)).job)
    assert (first.reason, first.text) == ("tool_calls", "let me see")
    (call,) = first.calls
    assert (call.name, json.loads(call.arguments)) == ("weather", {"place": "Bonn"})
    reply = {"role": "assistant", "content": first.text, "tool_calls": [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}},
    ]}  # fmt: skip
    body["messages"] += [reply, {"role": "tool", "tool_call_id": call.id, "content": "20 degrees"}]
    second = ended(local, chat_request(Fields(body)).job)
    assert (second.reason, second.text) == ("stop", "it is warm")
    assert second.stats.cached_tokens >= first.stats.prompt_tokens
    model.close()


def ended(local: Local, job: Job) -> Ended:
    return local.run(job)[0][0]


async def _of(*events: Piece | Ended) -> AsyncGenerator[JobEvent]:
    for event in events:
        yield event


def _end() -> Ended:
    from mlxkv.server.jobs import Call
    from mlxkv.stats import TurnStats

    calls = (Call("weather", '{"place": "Bonn"}', "call00001"), Call("weather", "{}", "call00002"))
    return Ended(
        0, "tool_calls", "let me see", "hm", TurnStats(prompt_tokens=9, cached_tokens=4, generated_tokens=3), calls
    )


async def test_shapes_of_calls_and_reasoning_whole_and_streamed() -> None:
    pieces = (Piece(0, "hm", thinking=True), Piece(0, "let me see"), _end())
    chat = chat_request(Fields({"messages": [{"role": "user", "content": "a"}], "stream": True}))
    whole = await chat_response(_of(*pieces), chat, "id", 1, "m")
    message = whole["choices"][0]["message"]
    assert message["reasoning_content"] == "hm"
    assert [call["id"] for call in message["tool_calls"]] == ["call00001", "call00002"]
    sent = [
        json.loads(text[6:]) async for text in chat_chunks(_of(*pieces), chat, "id", 1, "m", 9) if "[DONE]" not in text
    ]
    deltas = [chunk["choices"][0]["delta"] for chunk in sent]
    assert [d["tool_calls"][0]["index"] for d in deltas if "tool_calls" in d] == [0, 1]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "hm"
    one = chat_request(Fields({"messages": [{"role": "user", "content": "a"}], "parallel_tool_calls": False}))
    assert len((await chat_response(_of(*pieces), one, "id", 1, "m"))["choices"][0]["message"]["tool_calls"]) == 1

    asked = response_request(Fields({"input": "a"}))
    response = await whole_response(_of(*pieces), asked, "1", 1, "m")
    kinds = [item["type"] for item in response["output"]]
    assert kinds == ["reasoning", "message", "function_call", "function_call"]
    events = [
        json.loads(text.split("data: ")[1]) async for text in response_events(_of(*pieces), asked, "1", 1, "m", 9)
    ]
    assert events[-1]["response"]["output"] == response["output"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    again = response_request(Fields({"input": [
        {"role": "user", "content": "a"}, *response["output"],
        *({"type": "function_call_output", "call_id": f"call0000{i}", "output": "20"} for i in (1, 2)),
    ]}))  # fmt: skip
    assert again.job.messages[1] == ChatMessage("assistant", "let me see", "hm", _end().calls)
    assert [m.role for m in again.job.messages] == ["user", "assistant", "tool", "tool"]


def test_texts_of(tmp_path: Path) -> None:
    texts: Sequence[str] = [m.text for m in chat_request(Fields({"messages": [
        {"role": "system", "content": "a"}, {"role": "developer", "content": [{"type": "text", "text": "b"}]},
        {"role": "user", "content": "c\ud800"},
    ]})).job.messages]  # fmt: skip
    assert texts == ["a\n\nb", "c\N{REPLACEMENT CHARACTER}"]
