"""The chat window. `run` shows it; Textual is imported when it is called, not before."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Sequence
from functools import partial

from mlxkv.config import Folders, Settings
from mlxkv.protocol.commands import Command
from mlxkv.protocol.engine import EnginePort
from mlxkv.protocol.events import ModelCard
from mlxkv.settings.setting_sources import SettingSources
from mlxkv.system.supervisor_link import SupervisorLink
from mlxkv.system.terminal import close_before_ending

__all__ = ["EnginePort", "run"]


def run(
    engine: EnginePort,
    suggestions: tuple[ModelCard, ...],
    settings: Settings | SettingSources,
    folders: Folders,
    start: Sequence[Command] = (),
    ask: str | None = None,
    supervisor: SupervisorLink | None = None,
    closed: Callable[[str], None] | None = None,
) -> int:
    """Show the window until the user quits or the terminal is closed; returns the exit code (0, 1 if the window or the
    engine failed, 129 without a terminal).

    `suggestions` are listed until a model is chosen. The engine starts after the first frame, gets `start` and then
    `ask`, and is always closed. `closed` is called after that if the user quit a saved chat, with its session id.
    """
    from mlxkv.tui.app import ChatApp
    from mlxkv.tui.terminal_driver import WindowDriver

    accept_any_bytes()
    # A token must not wait 5 ms for the window to release the interpreter lock.
    sys.setswitchinterval(0.0005)
    app = ChatApp(engine, suggestions, settings, folders, start, ask, driver_class=WindowDriver, supervisor=supervisor)
    with close_before_ending(lambda: app.call_later(app.exit, 0)):
        try:
            code = app.run(mouse=SettingSources.of(settings).settings.mouse)
            code = code if code is not None else (app.return_code or 0)
        finally:
            if supervisor is not None:
                supervisor.quit()
            engine.close()
    if closed is not None and code == 0 and (session := app.state.saved_session):
        closed(session)
    return code


def accept_any_bytes() -> None:
    """Decode typed and pasted bytes that are not UTF-8 as U+FFFD: Textual's decoder raises at the first one."""
    from textual.drivers import linux_driver

    def decoder(name: str) -> partial[codecs.IncrementalDecoder]:
        return partial(codecs.getincrementaldecoder(name), "replace")

    linux_driver.getincrementaldecoder = decoder  # type: ignore[assignment]
