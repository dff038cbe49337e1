"""The chat window. `run` is all that the command line needs; textual is imported when it is called, not before."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mlxkv.commands import Command
from mlxkv.config import Folders, Settings
from mlxkv.events import FirstScreen
from mlxkv.tui.port import EnginePort

__all__ = ["EnginePort", "run"]


def run(
    engine: EnginePort,
    first: FirstScreen,
    settings: Settings,
    folders: Folders,
    start: Sequence[Command] = (),
    ask: str | None = None,
) -> int:
    """Show the window until the user leaves; returns the exit code (0, or 1 if the window or the engine failed).

    The engine is started once the first frame is painted, is given `start` and then `ask`, and closed whatever happens.
    """
    from mlxkv.tui.app import ChatApp

    # A token must not wait 5 ms for the window to let go of the interpreter.
    sys.setswitchinterval(0.0005)
    try:
        app = ChatApp(engine, first, settings, folders, start, ask)
        code = app.run(mouse=settings.mouse)
        return code if code is not None else (app.return_code or 0)
    finally:
        engine.stop()
        engine.close()
