"""A word that is no command, as in `mlxkv modles`, `mlxkv ls` or `mlxkv chats delete`: recognized and answered with
what was meant, so that it is not sent to a model as a message. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mlxkv.errors import ConfigError

_LONG = 6  # letters; a word as long may have two mistakes
_MOST_WORDS = 2  # of a line that may be another tool's command; a longer one is a message
_SYNONYMS = {
    "list": ("ls",), "delete": ("rm",), "remove": ("rm",), "del": ("rm",), "show": ("info",), "mv": ("rename",),
    "download": ("pull",), "install": ("pull",), "add": ("create", "pull"), "help": ("--help",),
}  # fmt: skip
"""What other tools call the commands."""
_ELSEWHERE = {
    "run": "`mlxkv -m MODEL`", "ask": "`mlxkv -p QUESTION`", "continue": "`mlxkv -c`", "resume": "`mlxkv -r CHAT`",
    "batch": "`mlxkv --batch FILE`", **dict.fromkeys(("config", "settings", "set"), "`/set` in a chat"),
    **dict.fromkeys(("preset", "presets"), "`/preset` in a chat"),
}  # fmt: skip
"""What other tools have as a command, and where it is here."""


def mistyped(
    args: Sequence[str], commands: Collection[str], inner: Mapping[str, Sequence[str]] | None = None
) -> str | None:
    """A sentence about the first argument, if it is a single word close to one of `commands` or to an option's name, or
    a command of other tools.

    None for everything else that may be a message, and with -p, which says that it is one.

    Args:
        inner: commands of groups, such as `ls`, with all their paths, such as `chats ls`.
    """
    word = args[0] if args else ""
    prints = any(re.fullmatch(r"-[a-z]*p|--print", arg) for arg in args)
    if prints or word in commands or not re.fullmatch(r"[A-Za-z]+", word):
        return None
    words = args[: next((i for i, a in enumerate(args) if a.startswith("-")), len(args))]
    names = {name.lstrip("-"): name for name in commands if not re.fullmatch(r"-\w", name)}
    near = [name for plain, name in names.items() if is_close(word.lower(), plain)]
    if near:
        nearest = min(near, key=lambda name: abs(len(name) - len(word)))
        line = [*words[1:], nearest] if nearest == "--help" else [nearest, *words[1:]]
        meant = _or([shlex.join(["mlxkv", *line])])
    elif len(words) > _MOST_WORDS:
        return None
    elif word in _ELSEWHERE:
        meant = _ELSEWHERE[word]
    else:
        paths = [path for name in (word, *_SYNONYMS.get(word, ())) for path in (inner or {}).get(name, ())]
        if not paths:
            return None
        meant = _or([shlex.join(["mlxkv", *path.split(), *words[1:]]) for path in paths])
    message = shlex.quote(" ".join(words))
    return f"There is no command `{word}`; did you mean {meant}? To send it as a message: mlxkv -p {message}"


def no_command(path: str, word: str, commands: Collection[str]) -> str:
    """A sentence about a word that is none of the commands of the group `path`."""
    known = {*commands, "--help"}
    near = [name for name in _SYNONYMS.get(word, ()) if name in known] or [c for c in commands if is_close(word, c)]
    advice = f"did you mean {_or([f'{path} {name}' for name in near])}?" if near else f"`{path} --help` lists them."
    return f"There is no command `{path} {word}`; {advice}"


def question_of(words: Sequence[str], files: Collection[Path]) -> str | None:
    """The question among the arguments.

    Raises:
        ConfigError: there are several. They are not joined: they may be files of a `*` that the shell expanded.
    """
    if len(words) > 1:
        other = "; if some of them are files, each needs its own -f" if files else ""
        raise ConfigError(
            f"The question is {len(words)} arguments; put it in quotes: {shlex.quote(' '.join(words))}{other}."
        )
    return words[0] if words else None


def _or(names: Sequence[str]) -> str:
    *most, last = [f"`{name}`" for name in names]
    return f"{', '.join(most)} or {last}" if most else last


def is_close(word: str, name: str) -> bool:
    """Whether `word` is `name` with a mistake: a letter too many, too few, wrong or exchanged with the next one.

    A wrong first letter is none, as it makes another word (`what`, `chat`); long words may have two mistakes.
    """
    most = 2 if min(len(word), len(name)) >= _LONG else 1
    is_begun = word[:1] == name[:1] or word[:2] == name[1::-1]
    return is_begun and abs(len(word) - len(name)) <= most and _mistakes(word, name) <= most


def _mistakes(a: str, b: str) -> int:
    """The optimal string alignment distance."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, earlier, before = row, before, row
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[-1] = min(row[-1], earlier[j - 2] + 1)
    return row[-1]
