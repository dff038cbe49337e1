"""The endpoint under the official client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from mlxkv.scheduler import Scheduler
from mlxkv.server.errors import ApiError
from mlxkv.server.openai.fields import Fields
from mlxkv.server.openai.parameters import sampling_of
from tests.server.conftest import Running

ASK: list[Any] = [{"role": "user", "content": "what is a cache?"}]
IMAGE: dict[str, Any] = {"type": "image_url", "image_url": {"url": "x"}}
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=120) as made:
        yield made


def chat(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": ASK, **GREEDY, **more})


def test_a_stream_and_a_whole_reply_are_the_same(client: openai.OpenAI) -> None:
    whole = chat(client)
    assert whole.object == "chat.completion"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12
    assert whole.usage.prompt_tokens > 12
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens - 1
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[0].choices[0].delta.role == "assistant"


def test_parts_developer_n_seed_stop_and_scores(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "what is "}, {"type": "text", "text": "a cache?"}]
    system = {"role": "developer", "content": "it is a test"}
    a = chat(client, messages=[system, {"role": "user", "content": parts}])
    b = chat(client, messages=[{**system, "role": "system"}, *ASK])
    assert a.choices[0].message.content == b.choices[0].message.content
    several = [chat(client, n=3, seed=-5, temperature=1.0) for _ in range(2)]
    texts = [[choice.message.content for choice in one.choices] for one in several]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    text = chat(client).choices[0].message.content
    stopped = chat(client, stop=[text[3:5], "\N{SNOWMAN}"])
    assert stopped.choices[0].message.content == text[: text.index(text[3:5])]
    assert stopped.choices[0].finish_reason == "stop"
    scored = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(scored) == 12
    assert all(one.logprob == one.top_logprobs[0].logprob <= 0 for one in scored)  # greedy
    biased = chat(client, logit_bias={"20": 100}).choices[0].message.content
    assert len(set(biased)) == 1


def test_a_schema_is_followed(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    with pytest.raises(openai.APIError, match="schema"):
        chat(client, response_format=wanted)  # the tiny alphabet has no braces, so that nothing can come first


def test_raw_completions(client: openai.OpenAI) -> None:
    one = client.completions.create(model="tiny", prompt="a cache ", **GREEDY)
    two = client.completions.create(model="tiny", prompt=["a cache ", "the end"], n=2, echo=True, **GREEDY)
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    assert two.choices[0].text == two.choices[1].text == "a cache " + one.choices[0].text
    assert two.choices[2].text.startswith("the end")
    pieces = list(client.completions.create(model="tiny", prompt="a cache ", stream=True, **GREEDY))
    assert "".join(piece.choices[0].text for piece in pieces) == one.choices[0].text
    ids = client.completions.create(model="tiny", prompt=[5, 6, 7], logprobs=1, **GREEDY)
    assert len(ids.choices[0].logprobs.token_logprobs) == 12


def test_responses(client: openai.OpenAI) -> None:
    more: Any = {"model": "tiny", "max_output_tokens": 12, "temperature": 0}
    one = client.responses.create(input="what is a cache?", **more)
    assert one.status == "incomplete"
    assert one.usage.output_tokens == 12
    with client.responses.stream(input="what is a cache?", **more) as stream:
        kinds = [event.type for event in stream]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    assert stream._raw_stream is not None
    history: Any = [{"role": "user", "content": "what is a cache?"}, *one.output, {"role": "user", "content": "and?"}]
    two = client.responses.create(input=history, **more)
    assert two.usage.input_tokens_details.cached_tokens > one.usage.input_tokens  # the reply was not prefilled again


def test_models_and_another_one(client: openai.OpenAI, server: Running) -> None:
    names = [model.id for model in client.models.list()]
    assert len(names) == 2
    assert client.models.retrieve("other").id == names[1]
    first = chat(client)
    assert chat(client, model="other").model == names[1]
    assert chat(client).choices[0].message.content == first.choices[0].message.content
    assert server.opened[-2:] == ["other", "tiny"]
    with pytest.raises(openai.NotFoundError) as failed:
        chat(client, model="gpt-4o")
    assert failed.value.code == "model_not_found"


def test_a_long_prompt_is_refused_with_both_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"2,0\d\d tokens.* 1,028") as failed:
        chat(client, messages=[{"role": "user", "content": "a" * 2000}])
    assert failed.value.code == "context_length_exceeded"
    full = chat(client, messages=[{"role": "user", "content": "a" * 1000}], max_tokens=500)
    assert full.choices[0].finish_reason == "length"
    assert full.usage.total_tokens == 1028


def test_a_full_line_is_429_and_clients_that_leave_are_cancelled(
    client: openai.OpenAI, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, step = threading.Event(), Scheduler.step
    monkeypatch.setattr(Scheduler, "step", lambda self: step(self) if goes_on.is_set() else True)
    body: dict[str, Any] = {"messages": ASK, "max_tokens": 900, "stream": True}
    streams = [client.chat.completions.create(model="tiny", **body) for _ in range(3)]  # two have slots, one waits
    with httpx2.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as raw:
        lines = raw.iter_lines()  # the connection is closed with it
        assert next(lines) == ": keep-alive"  # the line is full now
        with pytest.raises(openai.RateLimitError) as failed:
            chat(client)
        assert failed.value.response.headers["retry-after"] == "1"
    for stream in streams:
        stream.close()
    while server.call(lambda served: served.num_running):
        pass
    goes_on.set()
    assert chat(client).usage.completion_tokens == 12  # the slots are free once the scheduler has ended the replies


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
        ({"messages": [*ASK, {"role": "system", "content": "late"}]}, "messages[1].role"),
        ({"messages": [*ASK, {"role": "tool", "content": "1", "tool_call_id": "x"}]}, "messages[1].tool_call_id"),
        ({"temperature": 200}, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"store": True}, "store"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"extra_body": {"tempurature": 1}}, "tempurature"),
        ({"extra_body": {"min_p": True}}, "min_p"),
        ({"n": 0}, "n"),
        ({"logit_bias": {"99999": 1}}, None),
    ],
)  # fmt: skip
def test_what_is_not_honoured_is_refused(client: openai.OpenAI, more: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as failed:
        chat(client, **more)
    assert failed.value.param == param
    assert failed.value.type == "invalid_request_error"
    assert failed.value.request_id


def test_a_thinking_budget_is_a_field() -> None:
    assert sampling_of(Fields({"thinking_budget": 500}), ("max_tokens",)) == {"thinking_budget": 500}
    with pytest.raises(ApiError, match="thinking_budget"):
        sampling_of(Fields({"thinking_budget": -1}), ("max_tokens",))
