"""`/retry MODEL`, `/retry temp=1 top-p=0.9`: what to ask the same again with; and the label of each version. Pure.

`slash_actions.py` sends it; the engine has the replies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxkv.errors import ConfigError, shortened
from mlxkv.events import Sibling
from mlxkv.models import resolve
from mlxkv.settings.schema import SAMPLING_SETTINGS, Setting, Settings, change, find, schema
from mlxkv.text.clean import clean
from mlxkv.tui.state.labels import short_name

CHANGEABLE = (*SAMPLING_SETTINGS, "think")
_PAIR = re.compile(r"(?P<rest>.*?)(?:^|\s)(?P<name>[A-Za-z][A-Za-z_-]*)=(?P<value>\S*)$", re.DOTALL)


@dataclass(frozen=True)
class RetryWith:
    """`model`: another one, "" for the loaded one. `changes`: settings for one reply, by name."""

    model: str = ""
    changes: tuple[tuple[str, Any], ...] = ()


def parse_retry(argument: str) -> RetryWith:
    """Read the argument of /retry: a model, whose name may have blanks, then settings as `name=value`.

    Raises:
        ConfigError: no such setting, or it cannot have this value. ModelNotFoundError: no such model or folder.
    """
    rest, given = argument.strip(), {}
    while (match := _PAIR.fullmatch(rest)) and (_changeable(match["name"]) or not match["rest"].strip()):
        setting = _changeable(match["name"])
        if setting is None:
            raise ConfigError(f"/retry cannot change {shortened(match['name'])} for a reply; it can change {_names()}.")
        given[setting.name] = match["value"]
        rest = match["rest"].strip()
    settings = change(Settings(), given, lambda name: f"/retry {_slash(name)}")
    values = {**settings.sampling, "think": settings.think}
    word, _, value = rest.partition(" ")
    if value and _changeable(word):
        raise ConfigError(
            f"A setting for a reply is written with =, as in /retry {word}={shortened(value.split()[0])}."
        )
    model = model_argument(rest)
    if "/" in model:
        resolve(model)  # of others, the engine knows whether one here is called that
    return RetryWith(model, tuple((name, values[name]) for name in reversed(given)))


def model_argument(text: str) -> str:
    r"""The name of a model as it may be typed or dropped on a terminal: in quotes, or with `\ ` for a blank."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return re.sub(r"\\(?=[ ()\[\]&'])", "", text)


def _changeable(name: str) -> Setting | None:
    setting = find(name)
    return setting if setting is not None and setting.name in CHANGEABLE else None


def _slash(name: str) -> str:
    setting = find(name)
    return setting.slash or setting.name if setting else name


def _names() -> str:
    return ", ".join(s.slash or s.name for s in schema() if s.name in CHANGEABLE)


def version_labels(versions: Sequence[Sibling]) -> list[str]:
    """For each version of a reply, in what it differs from the others: the model, settings. "" where nothing does."""
    found = [version.params for version in versions]
    models = [clean(short_name(str(params.get("model_name", "")))) for params in found]
    parts: list[list[str]] = [[model] if len(set(models)) > 1 and model else [] for model in models]
    for setting in (s for s in schema() if s.name in CHANGEABLE):
        values = [_value(setting, params) for params in found]
        if len(set(values)) > 1:
            for words, value in zip(parts, values, strict=True):
                words += [value] if value else []
    return [" ".join(words) for words in parts]


def _value(setting: Setting, params: Mapping[str, Any]) -> str:
    """`temp 0.7`; "" for a setting that a reply did not have."""
    value = params.get(setting.name)
    if isinstance(value, dict | list):
        return setting.slash if value else ""
    if isinstance(value, bool):
        return f"{setting.slash} {'on' if value else 'off'}"
    return clean(f"{setting.slash} {setting.shown(value)}") if isinstance(value, int | float | str) else ""
