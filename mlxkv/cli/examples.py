"""Examples in `--help`: the commands that users type most, under each command's options. Pure."""

from __future__ import annotations

import re
import sys
from typing import Any

from typer.core import TyperCommand, TyperGroup

from mlxkv.cli.close_command import no_command

EXAMPLES: dict[str, tuple[str, ...]] = {
    "mlxkv": (
        "mlxkv -m mlx-community/Qwen3.5-4B-MLX-4bit",
        'mlxkv -p "Why is the sky blue?" --max-tokens 80',
        'git diff | mlxkv -p "Write a commit message."',
        'mlxkv -c -p "Shorter."',
    ),
    "mlxkv doctor": ("mlxkv doctor", "mlxkv doctor --device"),
    "mlxkv serve": ("mlxkv serve -m tutor", "mlxkv serve --models mlx-community/Qwen3.5-4B-MLX-4bit"),
    "mlxkv bench": ("mlxkv bench -m tutor", "mlxkv bench --context 512,4096"),
    "mlxkv path": ("mlxkv path",),
    "mlxkv chats ls": ("mlxkv chats ls", "mlxkv chats ls --json | jq '.[0].title'"),
    "mlxkv chats tree": ("mlxkv chats tree sky",),
    "mlxkv chats show": ("mlxkv chats show sky",),
    "mlxkv chats search": ("mlxkv chats search 'Rayleigh scattering'",),
    "mlxkv chats rename": ("mlxkv chats rename sky 'Why it is blue'",),
    "mlxkv chats rm": ("mlxkv chats rm sky",),
    "mlxkv chats export": ("mlxkv chats export sky -o sky.md", "mlxkv chats export sky -o sky.mlxkv"),
    "mlxkv chats import": ("mlxkv chats import sky.mlxkv", "mlxkv chats import conversations.json"),
    "mlxkv chats backups": ("mlxkv chats backups",),
    "mlxkv chats restore-backup": ("mlxkv chats restore-backup store-2026-11-30",),
    "mlxkv cache create": ("mlxkv cache create book -f book.txt", "mlxkv cache create rules -s @rules.txt"),
    "mlxkv cache ls": ("mlxkv cache ls",),
    "mlxkv cache show": ("mlxkv cache show book",),
    "mlxkv cache verify": ("mlxkv cache verify", "mlxkv cache verify book --repair"),
    "mlxkv cache gc": ("mlxkv cache gc",),
    "mlxkv cache rename": ("mlxkv cache rename book novel",),
    "mlxkv cache rm": ("mlxkv cache rm book", "mlxkv cache rm book -y"),
    "mlxkv cache export": ("mlxkv cache export book -o book.safetensors",),
    "mlxkv cache import": ("mlxkv cache import book book.safetensors",),
    "mlxkv models ls": ("mlxkv models ls",),
    "mlxkv models pull": ("mlxkv models pull mlx-community/Qwen3.5-4B-MLX-4bit",),
    "mlxkv models info": ("mlxkv models info tutor",),
    "mlxkv models estimate": ("mlxkv models estimate tutor --window 8192 --kv-bits 8",),
    "mlxkv models check": ("mlxkv models check",),
    "mlxkv models rm": ("mlxkv models rm mlx-community/Qwen3.5-4B-MLX-4bit",),
}
"""By the path of the command; those of `mlxkv` are of the default command `chat`."""

COMMANDS_OF: dict[str, list[str]] = {}
"""The commands of groups, such as `ls`, with all their paths, such as `chats ls`."""
for _path in EXAMPLES:
    if len(_words := _path.split()) > 2:  # mlxkv, the group, the command
        COMMANDS_OF.setdefault(_words[-1], []).append(" ".join(_words[1:]))

_WHOLE = 1000  # characters: the first sentence of a help is never cut, but wrapped
COMPLETION = "mlxkv --install-completion"


def write_examples(path: str, formatter: Any) -> None:
    """Write the examples of a command, if it has any, each on a line of its own."""
    if lines := EXAMPLES.get(path):
        with formatter.section("Examples"):
            for line in lines:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Command(TyperCommand):
    """A command whose help ends with examples, and names the type of one value where an option or argument repeats."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        param: Any  # Typer's own kinds, which say what their help calls their type
        for param in self.params:
            if one := re.fullmatch(r"<list\[(\w+)\]>", param.display_type(ctx) or ""):
                shown = f"<{one[1].lower()}>"
                param.display_type = lambda _, shown=shown: shown
        super().format_options(ctx, formatter)

    def get_short_help_str(self, limit: int = 0) -> str:
        return super().get_short_help_str(_WHOLE)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        write_examples("mlxkv" if ctx.command_path == "mlxkv chat" else ctx.command_path, formatter)


class Group(TyperGroup):
    """A group of commands: alone it shows its help, and an unknown command is answered with what was meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            print(ctx.get_help(), file=sys.stderr)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in self.commands and not ctx.resilient_parsing and not args[0].startswith("-"):
            ctx.fail(no_command(ctx.command_path, args[0], self.commands))
        return super().resolve_command(ctx, args)


class Root(TyperGroup):
    """Lists the options of `chat` in `mlxkv --help`, since `chat` is the default command."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        formatter.write_usage("mlxkv", "[OPTIONS] [QUESTION]  |  mlxkv COMMAND ...")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.commands["chat"].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        write_examples("mlxkv", formatter)
        formatter.write(f"\n`{COMPLETION}` makes Tab complete commands, options, models and chats.\n")
