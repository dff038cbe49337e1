"""Tools: Python functions or JSON schemas for a chat template, and the calls that a reply contains.

A `Tool` is what the model is told of, and perhaps a function. `parse_calls` reads a call with the parser that mlx-lm
has for the tokenizer. Knows no chat. Pure; any thread.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxkv.arguments import shown, wrong_type
from mlxkv.errors import ConfigError, first_line
from mlxkv.events import ToolCall

_NAME = re.compile(r"[\w.-]{1,128}", re.ASCII)
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Tool:
    """A tool that a model may call.

    Attributes:
        schema: as chat templates take it: ``{"type": "function", "function": {"name": ..., "parameters": ...}}``.
        function: is called with the arguments; None if the caller runs the tool by other means.
    """

    schema: Mapping[str, Any]
    function: Callable[..., Any] | None = None

    @property
    def name(self) -> str:
        return self.schema["function"]["name"]

    @classmethod
    def of(cls, given: Any) -> Tool:
        """A tool from a function with annotated arguments, or a JSON schema of OpenAI's form, or of its inner object.

        Raises:
            ConfigError: it is neither, or cannot be described.
        """
        if isinstance(given, Tool):
            return given
        if callable(given):
            return cls(_schema_of(given), given)
        if not isinstance(given, Mapping):
            wrong_type("tools", given, "a list of functions and JSON schemas")
        table = dict(given)
        inner = table.get("function", {k: v for k, v in table.items() if k != "type"})
        name = inner.get("name") if isinstance(inner, Mapping) else None
        if table.get("type", "function") != "function" or not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"The tool {shown(given)} is no JSON schema of a function: it needs a `name` of letters, digits, `_`, "
                "`-` and `.`, and `parameters`."
            )
        try:  # a copy that nobody changes, of what JSON can hold
            function = json.loads(json.dumps(dict(inner)))
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"The schema of the tool {name!r} is no JSON ({first_line(error)}).") from None
        if not isinstance(function.setdefault("parameters", {"type": "object", "properties": {}}), dict):
            raise ConfigError(f"The `parameters` of the tool {name!r} are no JSON schema: they must be an object.")
        return cls({"type": "function", "function": function})

    def run(self, arguments: str) -> str:
        """Call the function with `arguments`, JSON text; its result as text, JSON unless it is text already.

        Arguments that do not fit are the model's mistake: the result then says so, in a sentence that begins with
        "Error:". What the function itself raises is raised.

        Raises:
            ConfigError: there is no function.
        """
        if self.function is None:
            raise ConfigError(f"The tool {self.name!r} is a JSON schema; run it yourself, or give a function.")
        try:
            given = json.loads(arguments or "{}")
            if not isinstance(given, dict):
                raise TypeError("they must be a JSON object")
            bound = inspect.signature(self.function).bind(**given)
        except (TypeError, ValueError, RecursionError) as error:
            return f"Error: these arguments do not fit {self.name} ({first_line(error)})."
        result = self.function(*bound.args, **bound.kwargs)
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)


def checked_tools(given: Any) -> tuple[Tool, ...]:
    """The tools of a list of functions and JSON schemas; None is an empty one.

    Raises:
        ConfigError: one of them is no tool, or two have one name.
    """
    if given is None:
        return ()
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        wrong_type("tools", given, "a list of functions and JSON schemas")
    tools = tuple(map(Tool.of, given))
    names = [tool.name for tool in tools]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"Two tools have the name {twice!r}; give each its own.")
    return tools


def parse_calls(tokenizer: Any, text: str, tools: Sequence[Tool] = (), first: int = 0) -> tuple[ToolCall, ...] | None:
    """The calls in `text`, which a model wrote between the markers of a tool call; None if there is none in it.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper; has the parser.
        tools: some parsers look up the types of arguments.
        first: the number of calls before these, for the ids of those that the model gave none: ``call00001``, ... (nine
            letters and digits, as Mistral's templates demand).
    """
    try:
        found = tokenizer.tool_parser(text, [dict(tool.schema) for tool in tools])
    except Exception:  # whatever a model wrote
        return None
    calls = []
    for n, call in enumerate(found if isinstance(found, list) else [found], first + 1):
        name, arguments = (call.get("name"), call.get("arguments", {})) if isinstance(call, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(arguments, str | dict):
            return None
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        given = call.get("id")
        calls.append(ToolCall(name, arguments, given if isinstance(given, str) and given else default_id(n)))
    return tuple(calls) or None


def default_id(number: int) -> str:
    """The id of call `number`, from 1 on."""
    return f"call{number:05d}"


def _schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The schema of a function: its annotations, and its docstring with a section `Args:`."""
    from transformers.utils import chat_template_utils as described

    name = getattr(function, "__name__", "")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"The tool {shown(function)} has no name; give a function made by `def`, or a JSON schema.")
    try:
        kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
        if inspect.iscoroutinefunction(function) or any(kind in _MANY for kind in kinds):
            raise TypeError("it is `async`, or takes `*args` or `**kwargs`")
        parameters = described._convert_type_hints_to_json_schema(function)
        text, about, _ = described.parse_google_format_docstring(inspect.getdoc(function) or "")
    except Exception as error:  # also those of the function's own annotations
        raise ConfigError(
            f"The tool {name!r} cannot be described from its signature ({first_line(error)}); annotate each argument "
            "with a plain type, or give a JSON schema."
        ) from None
    properties = {key: value for key, value in parameters["properties"].items() if key != "return"}
    for argument, description in (about or {}).items():
        if argument in properties:
            properties[argument]["description"] = description
    return {
        "type": "function",
        "function": {"name": name, "description": text or "", "parameters": {**parameters, "properties": properties}},
    }
