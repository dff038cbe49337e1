"""How the command reports an error: one sentence on stderr, or with `--output-format json` one object on stdout."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import cast

import typer

from mlxkv.errors import ConfigError, MlxkvError, PromptError
from mlxkv.text.clean import clean

UsageErrors = cast(type[typer.BadParameter], typer.BadParameter.__mro__[2])  # their base, which typer does not export
JSON_FORMATS = ("json", "stream-json")


def json_format(args: Sequence[str]) -> str | None:
    """The format that `--output-format` names among the arguments, if it is one of JSON; needs no valid arguments."""
    found = None
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        name, _, value = arg.partition("=")
        if arg == "--":
            break
        if name == "--output-format":
            found = value or following
    return found if found in JSON_FORMATS else None


def exit_code(error: MlxkvError) -> int:
    """2 for what the caller gave, else 1."""
    return 2 if isinstance(error, ConfigError | PromptError) else 1


def usage_text(error: typer.BadParameter) -> str:
    """What is wrong with the arguments, and where to look, in one sentence."""
    text, path = error.format_message().rstrip("."), error.ctx.command_path if error.ctx else "mlxkv"
    text = re.sub(r"Input should be (.+?)(, unable to parse .*)?$", r"it must be \1", text).replace("Value error, ", "")
    if near := getattr(error, "possibilities", None):
        text = f"{error.message}; did you mean {' or '.join(sorted(near))}?"
    if "--help`" in text or text.endswith("?"):
        return text if text.endswith("?") else f"{text}."
    return f"{text}; see `{path.removesuffix(' chat')} --help`."


def report(kind: str, message: str, code: int, form: str | None) -> None:
    """Print an error. It may quote foreign text.

    Args:
        kind: the name of its class.
        code: the exit code.
        form: of `json_format`.
    """
    if form is None:
        print(f"mlxkv: {clean(message)}", file=sys.stderr)
        return
    found = {"error": {"type": kind, "message": message, "exit_code": code}}
    print(json.dumps({"type": "error", **found} if form == "stream-json" else found), flush=True)
