"""Options that are settings, too: their names, help and type are those of the schema, and the value is text that the
settings check, so that an option, a variable and config.toml take the same values and report the same errors."""

from __future__ import annotations

from typing import Any

import typer

from mlxkv.settings.schema import schema


def option_of(name: str, **more: Any) -> Any:
    """The option of a setting. `more`: arguments of `typer.Option`."""
    setting = next(s for s in schema() if s.name == name)
    kind = setting.kind if " number " in setting.rule else "str"
    return typer.Option(*setting.option.split(", "), help=setting.help, metavar=f"<{kind}>", **more)
