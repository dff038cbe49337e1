"""The header that every benchmark prints. `mlxkv.cli.bench.measure` measures."""

from __future__ import annotations

from mlxkv.cli.bench.report import Environment, command_line


def header(title: str) -> None:
    """Machine, versions and command."""
    print(f"# {title}", *Environment.here(command_line()).lines(), sep="\n", end="\n\n")
