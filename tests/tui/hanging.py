"""`python -m tests.tui.hanging`: the command with a chat template that never ends for a message that ends in "hold".

It holds the interpreter all the while, as a tokenizer's Rust may. Run by a test.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any


def main() -> None:
    if sys.argv[1:2] != ["--child"]:
        from mlxkv.system.supervisor import supervise

        sys.exit(supervise([sys.executable, "-m", "tests.tui.hanging", "--child", *sys.argv[1:]]))
    from mlxkv.cli.app import main as cli
    from mlxkv.tokenizer import chat_template as templates

    class Hanging:
        """A compiled template."""

        def __init__(self, real: Any) -> None:
            self._real = real

        def render(self, messages: Any, **more: Any) -> str:
            if messages[-1]["content"].endswith("hold"):
                # One call, which holds the interpreter: between two the window might read a key, and lose it here.
                ctypes.PyDLL(None).system(b"printf 'it hangs'; exec sleep 1000")  # SIGHUP ends it with the terminal
            return self._real.render(messages=messages, **more)

    compiled = templates.ChatTemplate._compiled.func  # type: ignore[attr-defined]
    templates.ChatTemplate._compiled = property(lambda self: Hanging(compiled(self)))  # type: ignore[assignment]
    cli(sys.argv[2:])


if __name__ == "__main__":
    main()
