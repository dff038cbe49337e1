"""Parameters that all three kinds of requests share: sampling, reasoning, and what can only be refused. Pure."""

from __future__ import annotations

from typing import Any

from mlxkv.server.errors import invalid, unsupported
from mlxkv.server.openai.fields import Fields

MAX_REPLIES = 16
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")


def sampling_of(table: Fields, max_tokens: tuple[str, ...]) -> dict[str, Any]:
    """SamplingParams fields that a request names, OpenAI's and ours.

    Args:
        max_tokens: the names that this kind of request has for it; two that are given must agree.
    """
    found: dict[str, Any] = {
        "temperature": table.number("temperature", 0, 100),
        "top_p": table.number("top_p", 0, 1),
        "top_k": _top_k(table),
        "min_p": table.number("min_p", 0, 1),
        "presence_penalty": table.number("presence_penalty", -100, 100),
        "frequency_penalty": table.number("frequency_penalty", -100, 100),
        "repetition_penalty": table.number("repetition_penalty", 0, 100),
        "xtc_probability": table.number("xtc_probability", 0, 1),
        "xtc_threshold": table.number("xtc_threshold", 0, 0.5),
        "thinking_budget": table.whole("thinking_budget", 0, 10_000_000),
        "seed": _seed(table),
        "stop": _stops(table),
        "logit_bias": _bias(table),
    }
    most = {name: table.whole(name, 1, 10_000_000) for name in max_tokens if table.has(name)}
    for name in max_tokens:
        table.labels(name)
    if len(set(most.values())) > 1:
        raise invalid(max_tokens[-1], f"{' and '.join(f'`{name}`' for name in most)} differ; give one of them.")
    found["max_tokens"] = next(iter(most.values()), None)
    return {name: value for name, value in found.items() if value is not None}


def _top_k(table: Fields) -> int | None:
    value = table.whole("top_k", -1, 10_000_000)
    return 0 if value == -1 else value  # some clients write -1 for "off"


def _seed(table: Fields) -> int | None:
    value = table.whole("seed", -(2**63), 2**64 - 1)
    return None if value is None else value % 2**64


def _stops(table: Fields) -> tuple[str, ...] | None:
    value = table.any("stop")
    found = [value] if isinstance(value, str) else value
    if found is None or found == []:
        return None
    is_valid = isinstance(found, list) and all(isinstance(text, str) and text for text in found)
    if not is_valid or len(found) > MAX_STOPS:
        raise table.wrong("stop", value, f"a string or a list of up to {MAX_STOPS} strings, none of them empty")
    return tuple(found)


def _bias(table: Fields) -> dict[int, float] | None:
    value = table.any("logit_bias")
    if value is None or value == {}:
        return None
    wrong = table.wrong("logit_bias", value, "an object of numbers from -100 to 100 by token id")
    if not isinstance(value, dict):
        raise wrong
    found = {}
    for token, bias in value.items():
        if not token.isdecimal() or isinstance(bias, bool) or not isinstance(bias, int | float) or abs(bias) > 100:
            raise wrong
        found[int(token)] = bias
    return found


def thinking_of(table: Fields) -> bool | None:
    """`reasoning_effort`, or `enable_thinking` of the chat template: whether to reason; None: the model's default."""
    effort = table.any("reasoning_effort")
    if effort is not None and effort not in _EFFORTS:
        raise table.wrong("reasoning_effort", effort, f"one of {', '.join(_EFFORTS)}")
    think = None if effort is None else effort != "none"
    if (template := table.table("chat_template_kwargs")) is not None:
        think = template.flag("enable_thinking", think)
        template.end()
    return think


def refuse_the_rest(table: Fields) -> None:
    """What only OpenAI's own service can do is refused, unless the value asks for nothing; then unknown fields are."""
    table.only("store", (False,), "nothing is stored for retrieval")
    table.only("service_tier", ("auto", "default"), "there is one tier")
    table.only("verbosity", ("medium",), "models have no such switch")
    table.only("moderation", (), "nothing is moderated")
    table.labels("user", "safety_identifier", "metadata", "prompt_cache_key", "prompt_cache_retention")
    table.end()


def check_model(table: Fields) -> str | None:
    """The name of the model; None where it is left out: the one that is loaded."""
    name = table.text("model")
    if name == "":
        raise unsupported("model", "it is empty; GET /v1/models lists the models")
    return name


def stream_of(table: Fields) -> tuple[bool, bool]:
    """Whether the reply is streamed, and whether the stream ends with the usage."""
    stream, options = table.flag("stream", False), table.table("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise invalid("stream_options", "`stream_options` needs `stream: true`.")
    has_usage = options.flag("include_usage", False)
    options.only("include_obfuscation", (False,), "no padding is sent")
    options.end()
    return stream, has_usage
