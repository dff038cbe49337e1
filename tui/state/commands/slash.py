"""The table of slash commands; parsing, completion and help. Pure; UI thread.

`slash_actions.py` runs them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from mlxkv.protocol.export_format import CHAT_FORMATS
from mlxkv.tui.state.prompt.fuzzy import best


@dataclass(frozen=True)
class Slash:
    """A slash command. `words` are completions of its argument."""

    name: str
    argument: str  # "" | "name" | "[text]": brackets if it is optional
    help: str
    aliases: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    @property
    def needs_argument(self) -> bool:
        return bool(self.argument) and not self.argument.startswith("[")

    @property
    def usage(self) -> str:
        return f"/{self.name} {self.argument}".rstrip()


SETTABLE = ("temp", "top-p", "top-k", "min-p", "max-tokens", "ctx", "kv-bits", "seed")

COMMANDS = (
    Slash("help", "", "keys and commands"),
    # chats
    Slash("new", "", "start a new chat", ("clear",)),
    Slash("resume", "[text]", "open an earlier chat, by title or from a list", ("chats",)),
    Slash("rename", "[title]", "rename this chat"),
    Slash("save", "", "where this chat is saved; that happens by itself"),
    Slash("delete", "", "delete this chat, after confirmation"),
    Slash("export", "[format] [path]", "export this chat: md, json or mlxkv, by the suffix", words=CHAT_FORMATS),
    Slash("find", "[text]", "search in this chat"),
    # turns
    Slash("fork", "[question]", "continue in a copy, from here or from a question"),
    Slash("tree", "", "the branches of this chat"),
    Slash("rewind", "[question]", "go back to before a question, by number or from a list"),
    Slash("undo", "", "undo the last turn; the old branch stays"),
    Slash(
        "retry",
        "[model|name=value ...]",
        "reply again, also with another model or settings; the old one stays",
        ("regenerate",),
        words=("temp=", "top-p=", "max-tokens=", "seed=", "think=on", "think=off"),
    ),
    Slash("edit", "[question]", "edit the last question, or one by number, and ask again"),
    Slash("continue", "", "continue a reply that was stopped or cut off"),
    Slash(
        "compact",
        "[summary|last]",
        "continue from a summary or the last messages",
        words=("summary", "last"),
    ),
    Slash("copy", "[n] [code [k]]", "copy the last reply, the n-th last, or its code", words=("code",)),
    Slash("paste", "", "paste from the clipboard"),
    # the model
    Slash("model", "[name]", "choose a model, or load one by name, folder or repository"),
    Slash("unload", "", "give the model's memory back until the next message"),
    Slash("adapter", "[folder|none]", "load the model with a LoRA adapter, or without", words=("none",)),
    Slash("pull", "repository", "download a model"),
    Slash("system", "[text|@file|off]", "show or change the system prompt of this chat", words=("off",)),
    Slash(
        "set",
        "[name] [value]",
        "show or change a setting of this chat; --default of all",
        ("settings",),
        words=SETTABLE,
    ),
    Slash(
        "preset",
        "[name]",
        "list the presets, or take one; save, rename or delete NAME",
        words=("save", "rename", "delete"),
    ),
    Slash("think", "[on|off]", "reasoning on or off", words=("on", "off")),
    # figures
    Slash("context", "", "what fills the window"),
    Slash("stats", "", "statistics of this chat"),
    Slash("memory", "", "what uses how much memory"),
    Slash("cache", "[ls|gc|pin]", "KV on disk: list it, clean it up, pin this chat's", words=("ls", "gc", "pin")),
    # the program
    Slash("theme", "[name]", "choose a colour theme"),
    Slash("keys", "", "list all key bindings"),
    Slash("quit", "", "quit mlxkv", ("exit", "bye")),
)

BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}
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
    """Parse the input; blank lines and spaces before a command are ignored.

    A path such as `/usr/bin/env` is not a command; `//text` sends `/text`.
    """
    line = text.lstrip()
    if line.startswith("//"):
        return Prompt(text.replace("/", "", 1))
    match = _COMMAND.match(line)
    if match is None:
        return Prompt(text)
    word = match[1].lower()
    if word == "?" or word in BY_NAME:
        return Run("help" if word == "?" else BY_NAME[word].name, (match[2] or "").strip())
    close = get_close_matches(word, BY_NAME, n=1, cutoff=0.5)
    close = close or [name for name in BY_NAME if name.startswith(word[:2])][:1]
    return Unknown(f"No command /{match[1]}. " + (f"Did you mean /{close[0]}?" if close else "/help lists them."))


def as_typed(text: str) -> str:
    """The input that sends `text`: `/text` becomes `//text` if it would be a command."""
    return text if parse(text) == Prompt(text) else text.replace("/", "//", 1)


@dataclass(frozen=True)
class Completion:
    """`insert` replaces the typed text. `is_prefix`: it begins with that text."""

    insert: str
    label: str
    note: str = ""
    is_prefix: bool = False


def complete(text: str, presets: Sequence[str] = ()) -> list[Completion]:
    """Completions of a command or of its argument, best first."""
    if match := re.fullmatch(r"/([A-Za-z-]*)", text):
        typed = match[1].lower()
        return [
            Completion(
                f"/{c.name}" + (" " if c.argument else ""), c.usage, _help(c, typed),
                any(name.startswith(typed) for name in (c.name, *c.aliases)),
            )
            for c in best(typed, COMMANDS, lambda command: (command.name, *command.aliases))
        ]  # fmt: skip
    match = re.fullmatch(r"/([A-Za-z-]+) +(\S*)", text)
    if match and (command := BY_NAME.get(match[1].lower())) is not None:
        words = (*presets, *command.words) if command.name == "preset" else command.words
    elif match := re.fullmatch(r"/(preset +(?:save|rename|delete)) +(\S*)", text, re.IGNORECASE):
        words = tuple(presets)
    else:
        return []
    return [
        Completion(f"/{match[1]} {word}", word, is_prefix=word.startswith(match[2]))
        for word in best(match[2], words, lambda word: (word,))
        if word != match[2]
    ]


def _help(command: Slash, typed: str) -> str:
    """Help text, with the alias that matched."""
    if command.name.startswith(typed):
        return command.help
    alias = next((alias for alias in command.aliases if alias.startswith(typed)), "")
    return f"{command.help} (/{alias})" if alias else command.help


def hint(text: str) -> str:
    """Usage and help of a command while its argument is typed."""
    match = re.match(r"/([A-Za-z-]+)\s", text)
    command = BY_NAME.get(match[1].lower()) if match else None
    return f"{command.usage} – {command.help}" if command else ""


def help_rows() -> list[tuple[str, str]]:
    return [(c.usage, c.help + (f" (/{', /'.join(c.aliases)})" if c.aliases else "")) for c in COMMANDS]
