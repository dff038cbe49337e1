"""Slash commands: what a line means, what is offered while it is typed, and that nothing typed by accident is run."""

from __future__ import annotations

import pytest

from mlxkv.tui.state.commands.slash import BY_NAME, COMMANDS, Prompt, Run, Unknown, complete, help_rows, hint, parse
from mlxkv.tui.state.prompt.fuzzy import best, rank


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("hello", Prompt("hello")),
        ("/new", Run("new", "")),
        ("/NEW  ", Run("new", "")),
        ("/chats porto trip", Run("resume", "porto trip")),
        ("/regenerate", Run("retry", "")),
        ("/system You are\ntwo lines", Run("system", "You are\ntwo lines")),
        ("/?", Run("help", "")),
        ("//new is a command", Prompt("/new is a command")),
        ("/usr/bin/env python", Prompt("/usr/bin/env python")),
        ("/ what", Prompt("/ what")),
        ("/model org/My Model", Run("model", "org/My Model")),
        ("/bye", Run("quit", "")),
        ("\n/stats", Run("stats", "")),  # an Enter too many before it
        (" \n  /set ctx 64\n", Run("set", "ctx 64")),
        ("\n//new", Prompt("\n/new")),
        ("\n/usr/bin/env", Prompt("\n/usr/bin/env")),
        ("see\n/stats", Prompt("see\n/stats")),
        ("\n/foo", Unknown("No command /foo. Did you mean /fork?")),
        ("/hepl", Unknown("No command /hepl. Did you mean /help?")),
        ("/foo", Unknown("No command /foo. Did you mean /fork?")),
        ("/zzz x", Unknown("No command /zzz. /help lists them.")),
    ],
)
def test_what_a_line_means(line: str, meant: object) -> None:
    assert parse(line) == meant


def test_names_are_unique_and_words_are_plain() -> None:
    names = [name for c in COMMANDS for name in (c.name, *c.aliases)]
    assert len(names) == len(set(names)) == len(BY_NAME)
    assert all(name.islower() and parse(f"/{name}") == Run(BY_NAME[name].name, "") for name in names)
    assert all(c.help and not c.help.endswith(".") and len(c.help) <= 70 for c in COMMANDS)
    assert len(help_rows()) == len(COMMANDS)


def test_what_is_offered() -> None:
    assert [offer.insert for offer in complete("/re")][:4] == ["/retry ", "/resume ", "/rename ", "/rewind "]
    assert complete("/rgn")[0].insert == "/retry "  # letters of an alias
    assert not complete("/rgn")[0].is_prefix  # so Enter must not run it at once
    assert complete("/by")[0].label == "/quit"
    assert complete("/by")[0].note.endswith("(/bye)")
    assert len(complete("/")) == len(COMMANDS)
    assert complete("/zzz") == complete("text") == complete("//n") == complete("/usr/bin") == []


def test_arguments_are_offered_too() -> None:
    assert [offer.insert for offer in complete("/think ")] == ["/think on", "/think off"]
    assert [offer.label for offer in complete("/set t")][:3] == ["temp", "top-p", "top-k"]
    assert complete("/think on") == []  # nothing more to say
    assert complete("/new x") == []


def test_what_help_says_while_an_argument_is_typed() -> None:
    assert hint("/think o") == "/think [on|off] – reasoning on or off"
    assert hint("/think") == hint("text") == hint("/usr x") == ""


def test_ranks() -> None:
    words = ["reopen", "open", "op-en", "the open door", "orpheus enigma"]
    assert best("open", words, lambda word: (word,)) == [
        "open", "the open door", "reopen", "op-en", "orpheus enigma",
    ]  # fmt: skip
    assert best("", words, lambda word: (word,), limit=2) == words[:2]
    assert rank("xyz", "xzy") is None
    assert rank("main", "src/domain/main.rs") == (1, 11, 18)
