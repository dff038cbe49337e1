"""UnsavedChanges: changes of a session that a full disk refused; they are written with the next change that fits.

Conversation has the turns; this knows how far the session lags behind them. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from mlxkv.chat.runtime import ModelRuntime
from mlxkv.errors import DiskError, SessionChangedError, SessionLockedError, SessionNotFoundError
from mlxkv.events import MEANWHILE, Notice, NotSaved
from mlxkv.store.records import TurnRecord, TurnState


class UnsavedChanges:
    """Changes of one conversation's session that are only in memory.

    Attributes:
        is_behind: the session lacks something.
        notice: for the user, when that begins or ends; whoever shows it sets it to None.
    """

    def __init__(self, runtime: ModelRuntime) -> None:
        self._runtime = runtime
        self.is_behind = False
        self._cut_to: int | None = None  # turns that the session keeps, once it can be written
        self._to_delete: list[str] = []  # sessions to delete then
        self.notice: Notice | None = None

    def postpone(self, error: DiskError) -> None:
        """Keep the changes in memory until `catch_up`."""
        if not self.is_behind:
            self.is_behind = True
            self.notice = NotSaved(f"Not saved: {error}{MEANWHILE}")

    def finish(self) -> None:
        """Record that the session has everything."""
        if self.is_behind:
            self.is_behind, self.notice = False, Notice("The disk has space again: the whole chat is saved.")

    def catch_up(self, session_id: str, turns: Sequence[TurnRecord]) -> bool:
        """Write the turns that the session lacks; False while the disk refuses. Raises SessionChangedError."""
        try:
            self.delete_postponed()
            store = self._runtime.store
            if self._cut_to is not None:
                store.remove_last(session_id, self._cut_to)
                self._cut_to = None
            saved = store.load(session_id).turns
            pairs = enumerate(zip(saved, turns, strict=False))
            n = next((i for i, (there, here) in pairs if not _is_same(there, here)), min(len(saved), len(turns)))
            if n < len(saved) and (n < len(saved) - 1 or n == len(turns) or saved[n].state != TurnState.OPEN):
                raise SessionChangedError(
                    f"Session {session_id:.10} was changed by another process while its disk was full; fork it to "
                    "continue."
                )
            for i, turn in enumerate(turns[n:], n):
                write = store.update_open_turn if i < len(saved) else store.add_turn
                write(session_id, turn)
        except DiskError:
            return False
        self.finish()
        return True

    def remove_last(self, session_id: str, num_turns: int) -> None:
        """Keep only the first `num_turns` turns of the session."""
        try:
            self._runtime.store.remove_last(session_id, num_turns)
        except DiskError as error:
            self.cut(num_turns)
            self.postpone(error)

    def replace_last(self, session_id: str, num_turns: int, turn: TurnRecord) -> None:
        """Replace the last of the session's `num_turns` turns."""
        try:
            self._runtime.store.replace_last(session_id, turn)
        except DiskError as error:
            self.cut(num_turns - 1)
            self.postpone(error)

    def cut(self, num_turns: int) -> None:
        """Let the session keep only so many turns, once it can be written."""
        self._cut_to = num_turns if self._cut_to is None else min(self._cut_to, num_turns)

    def delete(self, session_id: str) -> None:
        """Delete a session, later if the disk refuses."""
        try:
            self._runtime.store.delete(session_id)
        except DiskError as error:
            self._to_delete.append(session_id)
            self.postpone(error)

    def delete_postponed(self) -> None:
        """Delete what `delete` could not. Raises DiskError: the disk still refuses."""
        while self._to_delete:
            with suppress(SessionNotFoundError, SessionLockedError):  # another process has it, or has deleted it
                self._runtime.store.delete(self._to_delete[0])
            del self._to_delete[0]


def _is_same(a: TurnRecord, b: TurnRecord) -> bool:
    return (a.role, a.text, a.thinking, a.state, tuple(a.ids)) == (b.role, b.text, b.thinking, b.state, tuple(b.ids))
