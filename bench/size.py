"""Lines, files, folders and layers of this repository: `python -m bench.size`.

Product code is all Python files in git below mlxkv/, tui/ and models/, except models/training, the recipe of the
built-in model. Lines are counted as `wc -l` does.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def tracked(*folders: str) -> list[Path]:
    """Python files below these folders that git does not ignore, relative to the repository, sorted."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *folders],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return sorted(
        path for name in listed.split("\0") if name.endswith(".py") and (ROOT / (path := Path(name))).is_file()
    )


def product_files() -> list[Path]:
    return [path for path in tracked("mlxkv", "tui", "models") if path.parts[:2] != ("models", "training")]


def num_lines(files: Iterable[Path]) -> int:
    return sum((ROOT / file).read_bytes().count(b"\n") for file in files)


def layers() -> list[list[str]]:
    """Import layers that `pyproject.toml` demands, topmost first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    demanded = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[name.strip() for name in layer.replace(":", "|").split("|")] for layer in demanded]


class Classes:
    """Classes of the product by name: files, bases and number of calls."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.file: dict[str, Path] = {}
        self.lines: dict[str, int] = {}
        self.children: dict[str, list[str]] = defaultdict(list)
        self.calls: Counter[str] = Counter()
        for file in files:
            for node in ast.walk(ast.parse((ROOT / file).read_text())):
                if isinstance(node, ast.ClassDef):
                    self.file[node.name] = file
                    self.lines[node.name] = (node.end_lineno or node.lineno) - node.lineno + 1
                    for base in filter(None, map(name_of, node.bases)):
                        self.children[base].append(node.name)
                if isinstance(node, ast.Call):
                    self.calls[name_of(node.func)] += 1

    def split(self) -> list[tuple[str, str]]:
        """(base, class): bases of ours with this one subclass, in another file, of which no object is made."""
        return [
            (base, names[0])
            for base, names in sorted(self.children.items())
            if base in self.file and len(names) == 1 and not self.calls[base] and self.file[base] != self.file[names[0]]
        ]


def name_of(expr: ast.expr) -> str:
    if isinstance(expr, ast.Subscript):
        return name_of(expr.value)
    return expr.id if isinstance(expr, ast.Name) else expr.attr if isinstance(expr, ast.Attribute) else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    product, tests = product_files(), tracked("tests")
    demanded, classes = layers(), Classes(product)
    flat = [path for path in product if path.parent == Path("mlxkv")]
    print(f"product lines        {num_lines(product):6,}")
    print(f"product files        {len(product):6,}")
    print(f"test lines           {num_lines(tests):6,}")
    print(f"test files           {len(tests):6,}")
    print(f"flat modules         {len(flat):6,}   in mlxkv/, {sum(p.name.startswith('__') for p in flat)} with dunders")
    print(f"import layers        {len(demanded):6,}")
    largest = max(product, key=lambda path: num_lines([path]))
    print(f"largest file         {num_lines([largest]):6,}   {largest}")
    print("\nfiles and lines by folder")
    for folder in sorted({path.parent for path in product}):
        inside = [path for path in product if path.parent == folder]
        print(f"  {folder!s:24} {len(inside):4} {num_lines(inside):7,}")
    print("\nclasses split by inheritance: bases with one subclass, in another file, of which no object is made")
    for base, child in classes.split():
        print(f"  {base:16} {classes.lines[base]:4} lines  {classes.file[base]!s:28} base of {child}, ", end="")
        print(f"{classes.lines[child]} lines, {classes.file[child]}")


if __name__ == "__main__":
    main()
