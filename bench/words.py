"""Words of the product, one item a line, for proofreading: `python -m bench.words [--section S] [--under PATH]`.

names: public names of modules with their parameters, public methods and fields of public classes.
docstrings: the first line of each docstring, with its owner.
strings: text that the screen may show: string literals of two words or more, f-strings with {…} for their fields, whole
docstrings of commands (they are their help), texts in *.toml. Left out by rules of thumb: what goes to a log, to a
regular expression, to SQL; CSS. A label of one word is not found.

An item is `file:line  text`; the order is that of files and lines.
"""

from __future__ import annotations

import argparse
import ast
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.size import ROOT, product_files

Item = tuple[int, str]  # line, text
Def = ast.FunctionDef | ast.AsyncFunctionDef

_WORD = re.compile(r"[^\W\d_]{2,}")
_FIELD = "{…}"
_SQL = re.compile(
    r"\s*(SELECT|INSERT|UPDATE \w+ SET|DELETE FROM|CREATE|PRAGMA|ALTER|DROP|BEGIN|VACUUM|ATTACH|WITH \w+ AS|WHERE)\b"
    r"|.*(= \?|\b(FROM|JOIN|ORDER BY) \w+\b)",
    re.S,
)
_REGEX = re.compile(r"\(\?|\\[swdbSWDB]|\[\^|\]\*|\]\+")
_CSS = re.compile(r"\{[^{}…]*:[^{}]*;", re.S)
_NOT_SHOWN = {  # functions whose arguments no screen shows
    *("execute", "executemany", "executescript", "compile", "fullmatch", "match", "search", "sub", "finditer", "split"),
    *("debug", "info", "warning", "exception", "getLogger", "cast", "TypeVar", "setattr", "getattr"),
}  # fmt: skip


def names(tree: ast.Module) -> Iterator[Item]:
    for node in tree.body:
        if isinstance(node, Def) and is_public(node.name):
            yield node.lineno, signature("def ", node.name, node)
        elif isinstance(node, ast.ClassDef) and is_public(node.name):
            yield from names_of_class(node)
        else:
            yield from ((line, f"{name} =") for line, name in assigned(node))


def names_of_class(node: ast.ClassDef) -> Iterator[Item]:
    bases = ", ".join(map(ast.unparse, node.bases))
    yield node.lineno, f"class {node.name}({bases})" if bases else f"class {node.name}"
    for part in node.body:
        yield from ((line, f"{node.name}.{name}") for line, name in assigned(part))
        if isinstance(part, Def) and is_public(part.name):
            is_property = any("property" in ast.unparse(mark) for mark in part.decorator_list)
            yield (
                part.lineno,
                f"{node.name}.{part.name}" if is_property else signature(f"{node.name}.", part.name, part),
            )
        if isinstance(part, Def) and part.name == "__init__":
            yield part.lineno, signature(f"{node.name}.", part.name, part)
            for inner in ast.walk(part):
                if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
                    owner, _, name = ast.unparse(inner).rpartition(".")
                    if owner == "self" and is_public(name):
                        yield inner.lineno, f"{node.name}.{name}"


def signature(start: str, name: str, node: Def) -> str:
    args = node.args
    rest = [f"{star}{arg.arg}" for star, arg in (("*", args.vararg), ("**", args.kwarg)) if arg]
    given = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs) if arg.arg not in ("self", "cls")]
    return f"{start}{name}({', '.join([*given, *rest])})"


def assigned(node: ast.stmt) -> Iterator[Item]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    for target in targets:
        for name in ast.walk(target):
            if isinstance(name, ast.Name) and is_public(name.id):
                yield name.lineno, name.id


def is_public(name: str) -> bool:
    return not name.startswith("_")


def docstrings(tree: ast.Module) -> Iterator[Item]:
    yield from docstrings_of(tree, "")


def docstrings_of(node: ast.AST, owner: str) -> Iterator[Item]:
    if isinstance(node, ast.Module | ast.ClassDef | Def) and (doc := ast.get_docstring(node)):
        yield node.body[0].lineno, f"{owner or '(module)'}: {doc.splitlines()[0]}"
    for child in ast.iter_child_nodes(node):
        inside = f"{owner}.{child.name}" if owner and isinstance(child, Def | ast.ClassDef) else owner
        if not owner and isinstance(child, Def | ast.ClassDef):
            inside = child.name
        yield from docstrings_of(child, inside)


def strings(tree: ast.Module) -> Iterator[Item]:
    for node, text in literals(tree):
        if is_shown(text):
            yield node.lineno, text


def literals(node: ast.AST) -> Iterator[tuple[ast.expr | Def, str]]:
    """String literals below `node` that may be shown, f-strings in one piece."""
    if isinstance(node, Def) and any(".command" in ast.unparse(mark) for mark in node.decorator_list):
        yield node, ast.get_docstring(node) or ""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.Assign | ast.AnnAssign) and any("CSS" in name for _, name in assigned(node)):
        return
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in _NOT_SHOWN:
            yield from literals(node.func)
            return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node, node.value
    elif isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else _FIELD for part in node.values]
        yield node, "".join(map(str, parts))
        for part in node.values:  # literals within its fields
            if isinstance(part, ast.FormattedValue):
                yield from literals(part.value)
    else:
        for child in ast.iter_child_nodes(node):  # annotations too: they hold the help of options
            yield from literals(child)


def is_shown(text: str) -> bool:
    words = _WORD.findall(text.replace(_FIELD, " "))
    enough = len(words) + text.count(_FIELD) >= 2 and bool(words) and " " in text.strip(" ")
    return enough and not (_SQL.match(text) or _REGEX.search(text) or _CSS.search(text))


def in_toml(text: str) -> Iterator[Item]:
    for i, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith("#"):
            yield from ((i, found) for found in re.findall(r'"((?:[^"\\]|\\.)*)"', line) if is_shown(found))


def on_one_line(text: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


SECTIONS: dict[str, Callable[[ast.Module], Iterator[Item]]] = {
    "names": names,
    "docstrings": docstrings,
    "strings": strings,
}


def items(section: str, under: Path) -> Iterator[str]:
    """Lines of one section, of files below `under`."""
    files = product_files()
    if section == "strings":
        folders = (ROOT / folder for folder in ("mlxkv", "tui", "models"))
        tables = [path.relative_to(ROOT) for folder in folders for path in folder.glob("*.toml")]
        files = sorted([*files, *tables])
    for file in (file for file in files if (ROOT / file).is_relative_to(under.resolve())):
        text = (ROOT / file).read_text()
        found = in_toml(text) if file.suffix == ".toml" else SECTIONS[section](ast.parse(text))
        for line, item in sorted(dict.fromkeys(found)):
            yield f"{file}:{line}  {on_one_line(item)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", choices=SECTIONS, help="this one alone")
    parser.add_argument("--under", type=Path, default=ROOT, metavar="PATH", help="files below this folder alone")
    args = parser.parse_args()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a pager or `head` may end first
    for section in [args.section] if args.section else SECTIONS:
        found = list(items(section, args.under))
        print(f"# {section}: {len(found):,}")
        print("\n".join(found), end="\n\n" if found else "\n")


if __name__ == "__main__":
    main()
