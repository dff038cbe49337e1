"""Actions of Esc and Ctrl+C, decided from the situation. Pure; UI thread."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

AGAIN = 1.0  # seconds within which a press counts as the second one


class Act(StrEnum):
    NOTHING = "nothing"
    STOP = "stop"
    PAUSE = "pause"  # the download
    STOP_EDITING = "stop editing"
    REWIND = "rewind"
    CLOSE = "close"
    CLEAR = "clear"
    COPY = "copy"
    QUIT = "quit"
    ARM = "arm"  # announce what a second press does


@dataclass
class Situation:
    generating: bool = False
    overlay: bool = False  # a list, a search or a dialog has the keys
    text: bool = False
    selection: bool = False
    editing: bool = False
    pulling: bool = False
    has_messages: bool = False
    pane: bool = False


@dataclass
class Presses:
    """Times of the last Esc and Ctrl+C."""

    _escape: float = float("-inf")
    _interrupt: float = float("-inf")

    def escape(self, here: Situation, now: float) -> Act:
        """Close the pane, stop a reply, close a list, leave editing, pause a download; else the second press clears or
        rewinds."""
        for condition, act in (
            (here.pane, Act.CLOSE),
            (here.generating, Act.STOP),
            (here.overlay, Act.CLOSE),
            (here.editing, Act.STOP_EDITING),
            (here.pulling, Act.PAUSE),
        ):
            if condition:
                self._escape = float("-inf")
                return act
        second, self._escape = now - self._escape <= AGAIN, now
        if not here.text and not here.has_messages:
            return Act.NOTHING
        if second:
            self._escape = float("-inf")
            return Act.CLEAR if here.text else Act.REWIND
        return Act.ARM

    def interrupt(self, here: Situation, now: float) -> Act:
        """Copy a selection, close a list, clear the prompt, stop the reply, close the pane; else the second quits."""
        for condition, act in (
            (here.selection, Act.COPY),
            (here.overlay, Act.CLOSE),
            (here.text, Act.CLEAR),
            (here.generating, Act.STOP),
            (here.pane, Act.CLOSE),
        ):
            if condition:
                self._interrupt = float("-inf")
                return act
        second, self._interrupt = now - self._interrupt <= AGAIN, now
        return Act.QUIT if second else Act.ARM
