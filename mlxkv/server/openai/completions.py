"""/v1/completions: raw text or token ids continued, without a chat template. No HTTP, no MLX."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlxkv.server.errors import invalid
from mlxkv.server.jobs import Ended, Job, JobEvent, Piece, TokenScore
from mlxkv.server.openai.fields import Fields
from mlxkv.server.openai.head import Head
from mlxkv.server.openai.parameters import MAX_REPLIES, check_model, refuse_the_rest, sampling_of, stream_of
from mlxkv.server.openai.usage import usage
from mlxkv.server.sse import COMMENT, DONE, data, with_keep_alives

MAX_PROMPTS = 64
_KIND = "text_completion"
_DEFAULT_TOKENS = 16  # OpenAI's
_MAX_LOGPROBS = 20


@dataclass(frozen=True)
class TextRequest:
    """A parsed request: a job for each prompt; see ChatRequest. `echo`: the prompt comes before each text."""

    jobs: tuple[Job, ...]
    model: str | None
    stream: bool = False
    has_usage: bool = False
    echo: bool = False


def text_request(table: Fields) -> TextRequest:
    """Parse the request.

    Raises:
        ApiError: a field that cannot be honoured.
    """
    model, prompts = check_model(table), _prompts(table)
    sampling = {"max_tokens": _DEFAULT_TOKENS, **sampling_of(table, ("max_tokens",))}
    n = table.whole("n", 1, MAX_REPLIES, 1)
    table.only("best_of", (n,), "all texts are returned, so it must equal `n`")
    table.refuse("suffix", why="a text is continued at its end")
    logprobs = table.whole("logprobs", 0, _MAX_LOGPROBS)
    echo = table.flag("echo", False)
    if echo and not all(isinstance(prompt, str) for prompt in prompts):
        raise invalid("echo", "`echo` needs a prompt of text; token ids are not decoded.")
    if echo and logprobs is not None:
        raise invalid(
            "echo", "`echo` with `logprobs` needs scores of the prompt, which are not computed; leave out one."
        )
    stream, has_usage = stream_of(table)
    refuse_the_rest(table)
    jobs = tuple(Job(prompt=prompt, sampling=sampling, n=n, logprobs=logprobs) for prompt in prompts)
    return TextRequest(jobs, model, stream, has_usage, echo)


def _prompts(table: Fields) -> list[str | tuple[int, ...]]:
    """A text, several, token ids, or several lists of them."""
    value = table.any("prompt")
    found = value if isinstance(value, list) and value and not _is_ids(value) else [value]
    if len(found) > MAX_PROMPTS:
        raise invalid("prompt", f"There are {len(found):,} prompts; at most {MAX_PROMPTS} may be sent at once.")
    prompts: list[str | tuple[int, ...]] = []
    for prompt in found:
        if isinstance(prompt, str) and prompt:
            prompts.append(prompt)
        elif _is_ids(prompt) and prompt:
            prompts.append(tuple(prompt))
        else:
            raise table.wrong("prompt", prompt, "text that is not empty, token ids, or a list of either")
    return prompts


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def indexed(event: JobEvent, number: int, n: int) -> JobEvent:
    """An event of prompt `number` with the index that its reply has among all choices."""
    return replace(event, index=number * n + event.index) if isinstance(event, Piece | Ended) else event


async def text_response(
    events: AsyncIterator[JobEvent], asked: TextRequest, reply_id: str, created: int, model: str
) -> dict[str, Any]:
    """The whole response."""
    ends = [event async for event in events if isinstance(event, Ended)]
    choices = [
        {
            "index": end.index,
            "text": _echoed(asked, end.index) + end.text,
            "logprobs": _scores(end.scores) if asked.jobs[0].logprobs is not None else None,
            "finish_reason": end.reason,
        }
        for end in sorted(ends, key=lambda end: end.index)
    ]
    return Head(reply_id, created, model).table(_KIND, choices, usage=_usage(ends, asked))


async def text_chunks(
    events: AsyncGenerator[JobEvent], asked: TextRequest, reply_id: str, created: int, model: str, keep_alive: float
) -> AsyncGenerator[str]:
    """The stream; see `chat_chunks`."""
    usual: dict[str, Any] = {"usage": None} if asked.has_usage else {}
    head, ends = Head(reply_id, created, model), list[Ended]()
    has_begun: set[int] = set()

    def chunk(index: int, text: str, reason: str | None = None, scores: Sequence[TokenScore] = ()) -> str:
        if index not in has_begun:
            has_begun.add(index)
            text = _echoed(asked, index) + text
        logprobs = _scores(scores) if scores else None
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return data(head.table(_KIND, [choice], **usual))

    async for event in with_keep_alives(events, keep_alive):
        match event:
            case None:
                yield COMMENT
            case Piece(index, text):
                yield chunk(index, text, None, event.scores)
            case Ended(index, reason):
                ends.append(event)
                yield chunk(index, "", reason)
            case _:
                pass
    if asked.has_usage:
        yield data(head.table(_KIND, [], usage=_usage(ends, asked)))
    yield DONE


def _echoed(asked: TextRequest, index: int) -> str:
    prompt = asked.jobs[index // asked.jobs[0].n].prompt
    return prompt if asked.echo and isinstance(prompt, str) else ""


def _usage(ends: Sequence[Ended], asked: TextRequest) -> dict[str, Any]:
    n = asked.jobs[0].n
    return usage([replace(end, index=end.index % n) for end in ends])


def _scores(scores: Sequence[TokenScore]) -> dict[str, Any]:
    offsets, at = [], 0
    for score in scores:
        offsets.append(at)
        at += len(score.text)
    return {
        "tokens": [score.text for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [{text: logprob for text, _, logprob in score.top} for score in scores],
        "text_offset": offsets,
    }
