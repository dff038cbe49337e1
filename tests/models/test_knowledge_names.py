"""What tutor says of commands, options, keys and settings must exist; what exists, tutor must have been told of."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import typer.main

import mlxkv
from mlxkv.cli.app import app
from mlxkv.config import Settings
from mlxkv.models.training.knowledge import HERE
from mlxkv.tui.state.commands.slash import BY_NAME

TOPICS = [
    topic
    for path in sorted((HERE / "knowledge").glob("*.toml"))
    for topic in tomllib.loads(path.read_text(encoding="utf-8"))["topic"]
]
NAMED = {name for topic in TOPICS for name in topic.get("names", ())}
NAMED_TOGETHER = {" ".join(topic.get("names", ())) for topic in TOPICS}
TOLD = " ".join(topic["answer"] for topic in TOPICS)


def _commands(group: Any, path: str = "mlxkv") -> dict[str, Any]:
    found = {path: group}
    for name, command in getattr(group, "commands", {}).items():
        found |= _commands(command, f"{path} {name}")
    return found


COMMANDS = _commands(typer.main.get_command(app))
OPTIONS = {o for command in COMMANDS.values() for parameter in command.params for o in parameter.opts if o[0] == "-"}
OPTIONS |= {"--help", "--version"}  # looked at before the parser is made, so that they are quick
OPTIONS |= {"--default"}  # of `/set`


@pytest.mark.slow
@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic["id"])
def test_an_answer_names_only_what_there_is(topic: dict[str, str]) -> None:
    answer = topic["answer"]
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", answer)) <= OPTIONS
    slashes = {word[1:] for word in re.findall(r"(?<![\w/.~])/[a-z]{3,}(?![\w/])", answer)}
    assert slashes <= BY_NAME.keys() | {"text", "usr"}
    for words in re.findall(r"mlxkv ((?:chats|models|cache|doctor|path|bench)(?: [a-z][a-z-]+)?)", answer):
        first, *rest = words.split()
        group = COMMANDS[f"mlxkv {first}"]
        assert not rest or not hasattr(group, "commands") or f"mlxkv {words}" in COMMANDS, words


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_every_slash_command_has_a_topic(name: str) -> None:
    assert f"/{name}" in NAMED or f"/{name}" in TOLD


def test_every_command_and_option_of_the_chat_has_a_topic() -> None:
    """Options of the chat itself; the subcommands' small ones are told by their own help."""
    for path, command in COMMANDS.items():
        words = path.split()[1:]
        if words and not hasattr(command, "commands"):
            assert path in NAMED or " ".join(words) in NAMED_TOGETHER or path in TOLD, path
    for parameter in COMMANDS["mlxkv chat"].params:
        told = {o for o in parameter.opts if o.startswith("--")}
        assert not told or told & (NAMED | set(TOLD.split())), parameter.opts


def test_every_setting_is_told() -> None:
    told = TOLD + " ".join(NAMED)
    assert [name for name in Settings.__dataclass_fields__ if name not in told] == []


def test_every_public_name_is_told() -> None:
    told = TOLD + " ".join(NAMED)
    assert [name for name in mlxkv.__all__ if name not in told] == []
