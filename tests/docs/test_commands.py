"""Commands that a sentence names exist, with the options it names. (Those in blocks run: `test_blocks`.)"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

import pytest
import typer

from mlxkv.cli.app import app
from mlxkv.tui.state.commands.slash import COMMANDS, Slash
from mlxkv.tui.state.reports.help import KEYS
from tests.docs.pages import PAGES, ROOT, blocks, inline, name_of

COMPLETION = "--install-completion"  # of the group, which typer adds
SLASH = {name for command in COMMANDS for name in (command.name, *command.aliases)}
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = {*re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE)}


def unknown_in(line: str) -> list[str]:
    """The words after `mlxkv` that are options it does not have."""
    words = shlex.split(re.split(r"[|;<>]", line)[0], comments=True)[1:]
    command = typer.main.get_command(app)
    default = getattr(command, "commands", {})["chat"]
    while words and words[0] in (inner := getattr(command, "commands", {})):
        command = inner[words.pop(0)]
    command = default if hasattr(command, "commands") and words and not words[0].startswith("--help") else command
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {
        "-h",
        "--help",
        "--version",
        COMPLETION,
    }
    return [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_sentences_exist(page: Path) -> None:
    for token in inline(page):
        if token.type != "code_inline":
            continue
        code = token.content
        if code.startswith("mlxkv ") and not code.startswith("mlxkv stopped"):
            assert not unknown_in(code), code
        elif found := re.match(r"/([a-z]+)(?![\w/])", code):
            assert found[1] in SLASH, code
        elif found := re.match(r"make ([\w-]+)", code):
            assert found[1] in TARGETS, code


def test_make_help_and_contributing_name_every_target_and_no_other() -> None:
    page = ROOT / "CONTRIBUTING.md"
    code = [*(block.code for block in blocks(page)), *(t.content for t in inline(page) if t.type == "code_inline")]
    assert {*re.findall(r"^make ([\w-]+)", "\n".join(code), re.MULTILINE)} == TARGETS - {"help"}
    (recipe,) = re.findall(r"^help:\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert {*re.findall(r"\bmake ([\w-]+)", recipe)} == TARGETS - {"help"}


def test_an_option_that_is_not_there_is_found() -> None:
    assert unknown_in("mlxkv cache rm --nope book | head -1") == ["--nope"]
    assert unknown_in("mlxkv --windoww 3") == ["--windoww"]
    assert unknown_in("mlxkv models estimate --window 8192 tutor") == []


def table(head: str, rows: Iterable[tuple[str, str]]) -> str:
    """A Markdown table; a `|` within a cell is escaped, also in code."""
    lines = (f"| `{name.replace('|', chr(92) + '|')}` | {meaning} |" for name, meaning in rows)
    return "\n".join([f"| {head} | |", "|---|---|", *lines])


def test_the_chat_page_lists_all_keys_and_commands() -> None:
    """To renew it: put what this prints into docs/chat.md."""

    def meaning(command: Slash) -> str:
        others = ", ".join(f"`/{alias}`" for alias in command.aliases)
        return f"{command.help} (also {others})" if others else command.help

    keys = table("key", ((key.strip(), what) for key, what in KEYS if "`" not in key))  # fences are no key
    commands = table("command", ((command.usage, meaning(command)) for command in COMMANDS))
    page = (ROOT / "docs" / "chat.md").read_text(encoding="utf-8")
    assert keys in page, keys
    assert commands in page, commands
