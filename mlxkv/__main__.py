"""The `mlxkv` command. Where a window will open, it opens in a child under `supervisor`; everything else runs here.

Guessing wrong costs nothing but a process, so the arguments are only glanced at: parsing them imports too much.
"""

from __future__ import annotations

import os
import sys

from mlxkv.system.streams import run
from mlxkv.system.supervisor import TYPE_CHECKING, is_terminal, supervise

if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_WINDOW = {"-p", "--print", "--plain", "-h", "--help", "-V", "--version", "--output-format"}
_NO_WINDOW |= {"--install-completion", "--show-completion"}
COMMANDS = ("chats", "models", "cache", "serve", "bench", "doctor", "path")


def opens_window(args: Sequence[str]) -> bool:
    if args[:1] and args[0] in COMMANDS:
        return False
    return _NO_WINDOW.isdisjoint(args) and "_MLXKV_COMPLETE" not in os.environ


def main() -> None:
    """The entry point."""
    run(_main)


def _main() -> None:
    args = sys.argv[1:]
    if is_terminal() and opens_window(args):
        # -P: a folder the user happens to be in must not be imported from.
        sys.exit(supervise([sys.executable, "-P", "-m", "mlxkv.cli.app", *args], saves="--no-save" not in args))
    from mlxkv.cli.app import main as cli

    cli()


if __name__ == "__main__":
    main()
