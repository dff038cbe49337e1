"""A mistyped command, as in `mlxkv modles`: recognized, so that it is not sent to a model as a message. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Sequence

_LONG = 6  # letters; a word as long may have two mistakes


def mistyped(args: Sequence[str], commands: Collection[str]) -> str | None:
    """A sentence about the first argument, if it is a single word close to one of `commands` or to an option's name.

    None for everything else that may be a message, and with -p, which says that it is one.
    """
    word = args[0] if args else ""
    prints = any(re.fullmatch(r"-[a-z]*p|--print", arg) for arg in args)
    if prints or word in commands or not re.fullmatch(r"[A-Za-z]+", word):
        return None
    names = {name.lstrip("-"): name for name in commands if not re.fullmatch(r"-\w", name)}
    near = [name for plain, name in names.items() if is_close(word.lower(), plain)]
    if not near:
        return None
    words = args[: next((i for i, a in enumerate(args) if a.startswith("-")), len(args))]
    meant = shlex.join(["mlxkv", min(near, key=lambda name: abs(len(name) - len(word))), *words[1:]])
    message = shlex.quote(" ".join(words))
    return f"There is no command `{word}`; did you mean `{meant}`? To send it as a message: mlxkv -p {message}"


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
