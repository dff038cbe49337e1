"""Tools of a request, and the form of its reply: `tools`, `tool_choice`, `response_format`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxkv.server.errors import invalid, shown, unsupported
from mlxkv.server.openai.fields import Fields

ANY_JSON: Mapping[str, Any] = {"type": "object"}
"""The schema of `json_object`."""


def tools_of(table: Fields, *, is_flat: bool = False) -> tuple[Mapping[str, Any], ...]:
    """The tools that may be called, by `tools` and `tool_choice`, as chat templates take them.

    Args:
        is_flat: a function's fields are the tool's own, as in /v1/responses.

    Raises:
        ApiError: one cannot be honoured.
    """
    tools = [_tool(Fields(item, f"tools[{i}]"), is_flat) for i, item in enumerate(table.items("tools"))]
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise invalid("tools", "Two tools have the same name; rename one.")
    choice = table.any("tool_choice")
    if choice in (None, "auto"):
        return tuple(tools)
    if choice == "none":
        return ()
    raise unsupported(
        "tool_choice", f"{shown(choice)} was asked for, and a model decides itself whether it calls a tool"
    )


def _tool(table: Fields, is_flat: bool) -> dict[str, Any]:
    table.only("type", ("function",), "tools are functions here")
    function = table if is_flat else table.table("function")
    if function is None:
        raise table.wrong("function", None, "an object with `name` and `parameters`")
    if not (name := function.text("name", "")):
        raise function.wrong("name", name, "the function's name")
    parameters = function.any("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise function.wrong("parameters", parameters, "a JSON schema")
    found = {
        "name": name,
        "description": function.text("description", ""),
        "parameters": parameters or {"type": "object", "properties": {}},
    }
    function.only("strict", (False,), "calls are parsed, not constrained; leave it out")
    function.end()
    table.end()
    return {"type": "function", "function": found}


def schema_of(table: Fields | None) -> Any:
    """The JSON schema that `response_format` (or `text.format`) asks for; None for text.

    Raises:
        ApiError: it is none.
    """
    if table is None:
        return None
    kind = table.any("type")
    if kind not in ("text", "json_object", "json_schema"):
        raise table.wrong("type", kind, "text, json_object or json_schema")
    if kind != "json_schema":
        table.end()
        return None if kind == "text" else ANY_JSON
    inner = table.table("json_schema") if table.has("json_schema") else table
    assert inner is not None
    schema = inner.any("schema")
    if not isinstance(schema, dict):
        raise inner.wrong("schema", schema, "a JSON schema")
    inner.labels("name", "description")
    inner.flag("strict")  # every schema is followed strictly
    inner.end()
    table.end()
    return schema
