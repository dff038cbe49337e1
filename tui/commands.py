"""Slash commands: what a line of input means, and what help says about it. Pure; UI thread."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True)
class Slash:
    """A command as the user may type it."""

    name: str
    argument: str  # "" | "name" | "[text]"
    help: str
    aliases: tuple[str, ...] = ()


COMMANDS = (
    Slash("help", "", "keys and commands"),
    Slash("new", "", "start a new chat"),
    Slash("resume", "[text]", "open an earlier chat, by title or from a list", ("chats",)),
    Slash("model", "[name]", "load a built-in name, a folder or a repository"),
    Slash("quit", "", "leave; the chat is kept", ("exit", "bye")),
)

_COMMAND = re.compile(r"/([A-Za-z][A-Za-z-]*|\?)(?:\s+(.*))?\s*$", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    text: str


@dataclass(frozen=True)
class Run:
    name: str
    argument: str


@dataclass(frozen=True)
class Unknown:
    message: str


def parse(text: str) -> Prompt | Run | Unknown:
    """A path such as `/usr/bin/env` is no command, and `//text` sends `/text`."""
    if text.startswith("//"):
        return Prompt(text[1:])
    match = _COMMAND.match(text)
    if match is None:
        return Prompt(text)
    word = match[1].lower()
    names = {name: command.name for command in COMMANDS for name in (command.name, *command.aliases)}
    names["?"] = "help"
    if word in names:
        return Run(names[word], (match[2] or "").strip())
    close = get_close_matches(word, names, n=1, cutoff=0.5)
    close = close or [name for name in names if name.startswith(word[:2])][:1]
    return Unknown(f"No command /{match[1]}. " + (f"Did you mean /{close[0]}?" if close else "/help lists them."))


def hint(text: str) -> str:
    """While a command is typed: the commands it may become."""
    if not re.fullmatch(r"/[A-Za-z-]*", text):
        return ""
    found = [c for c in COMMANDS if any(n.startswith(text[1:].lower()) for n in (c.name, *c.aliases))]
    if len(found) == 1:
        return f"{_usage(found[0])} – {found[0].help}"
    return "  ".join(_usage(command) for command in found)


def _usage(command: Slash) -> str:
    return f"/{command.name} {command.argument}".rstrip()


def help_rows() -> list[tuple[str, str]]:
    return [(_usage(c), c.help + (f" (/{', /'.join(c.aliases)})" if c.aliases else "")) for c in COMMANDS]
