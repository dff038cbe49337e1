"""Conversation: the turns of a chat, their token log, and the session that saves both and the cache's rows.

Every change is saved before it counts, unless the disk is full: then `UnsavedChanges` postpones it. Knows no prompts
and generates nothing. On the MLX thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.chat.runtime import ModelRuntime
from mlxkv.chat.unsaved import UnsavedChanges
from mlxkv.errors import (
    CacheError,
    DiskError,
    SessionChangedError,
    SessionLockedError,
    SessionNotFoundError,
    StoreError,
)
from mlxkv.events import Message, Notice
from mlxkv.inference.sampling import random_state, set_random_state
from mlxkv.settings.setting_sources import ChatSettings
from mlxkv.stats import TurnStats
from mlxkv.store.borrow import MIN_NEW_TOKENS
from mlxkv.store.db.database import IS_FORK, IS_NAMED, IS_VERSION
from mlxkv.store.kv.state_saves import Occasion
from mlxkv.store.records import Kind, Restored, SessionRecord, TurnRecord, TurnState
from mlxkv.store.session_store import SessionStore
from mlxkv.token_ids import TokenIds, TokenLog, common_prefix

_TITLE_LENGTH = 60


@dataclass(frozen=True)
class Snapshot:
    """A conversation that `Conversation.return_to` restores."""

    session_id: str | None = None
    title: str = ""
    turns: tuple[TurnRecord, ...] = ()
    empty_fork_of: str | None = None


class Conversation:
    """Turns in order, with or without a session.

    Attributes:
        session_id: None while nothing is saved.
        read_only: a sentence naming the process that has the session open; then no turn can be added.
        kind: of a session that is begun; a run of print mode that is continued as a chat becomes one.
        log: the ids of the turns, as the model was given them.
    """

    def __init__(self, runtime: ModelRuntime) -> None:
        self._runtime = runtime
        self.unsaved = UnsavedChanges(runtime)
        self._lock = ExitStack()
        self._locked_store: SessionStore | None = None
        self._reply_is_open = self._is_closed = False
        self._empty_fork_of: str | None = None  # the session this one was forked from, until a turn is added
        self.session_id: str | None = None
        self.kind = Kind.CHAT  # of a session that is begun, or continued
        self._saved_kind = Kind.CHAT
        self.read_only: str | None = None
        self.title = ""
        self.turns: tuple[TurnRecord, ...] = ()
        self.log = TokenIds()
        self._messages: list[Message] = []  # of the first turns, for display

    @property
    def _store(self) -> SessionStore:
        return self._runtime.store

    # -- turns -------------------------------------------------------------------------------------------------------

    def append(self, turn: TurnRecord) -> None:
        """Add a turn.

        Raises:
            StoreError: it cannot be saved, so it does not count. SessionLockedError: read-only.
        """
        self.check_writable()
        if self._saved_kind == Kind.RUN and self.kind == Kind.CHAT:
            self._write(lambda store, session: store.sessions.set_kind(session, Kind.CHAT))
            self._saved_kind = Kind.CHAT
        self._write(lambda store, session: store.add_turn(session, turn))
        self._empty_fork_of = None
        self._replace_from(len(self.turns), turn)

    def write_reply(self, reply: TurnRecord) -> None:
        """Add the reply, or replace the open one that is still being written; see `append`."""
        if not self._reply_is_open:
            self.append(reply)
        else:
            self._write(lambda store, session: store.update_open_turn(session, reply))
            self._replace_from(len(self.turns) - 1, reply)
        self._reply_is_open = reply.state == TurnState.OPEN

    def replace_last(self, turn: TurnRecord) -> None:
        """Replace the last turn, which has no reply yet, by one with other ids; see `append`."""
        self.check_writable()
        if self.session_id is not None and self._is_saved():
            self.unsaved.replace_last(self.session_id, len(self.turns), turn)
        elif self.session_id is not None:
            self.unsaved.cut(len(self.turns) - 1)
        self._replace_from(len(self.turns) - 1, turn)
        self._messages, self._empty_fork_of = [], None

    def reopen_reply(self) -> None:
        """Reopen the last turn, a reply: `write_reply` then replaces it by longer ones."""
        self.check_writable()
        reply = replace(self.turns[-1], state=TurnState.OPEN)
        self._write(lambda store, session: store.update_open_turn(session, reply, reopen=True))
        self._empty_fork_of = None
        self._replace_from(len(self.turns) - 1, reply)
        self._reply_is_open = True

    def _write(self, change: Callable[[SessionStore, str], object]) -> None:
        """Change the session, if there is one; postponed if the disk is full."""
        if self.session_id is None or not self._is_saved():
            return
        try:
            change(self._store, self.session_id)
        except DiskError as error:
            self.unsaved.postpone(error)

    def _is_saved(self) -> bool:
        """Whether the session has all turns; postponed changes are tried again first."""
        if self.session_id is None or not self.unsaved.is_behind:
            return True
        return self.unsaved.catch_up(self.session_id, self.turns)

    def pop_notice(self) -> Notice | None:
        """The notice about saving, if one is due."""
        notice, self.unsaved.notice = self.unsaved.notice, None
        return notice

    def _check_saved(self) -> None:
        """Raises DiskError: the end of this chat is not saved, so no fork can begin there."""
        if not self._is_saved():
            raise DiskError("The end of this chat is not saved yet: free space on the disk, then go back or fork.")

    def check_writable(self) -> None:
        """Raises SessionLockedError: another process has the session open. SessionChangedError: it has changed since it
        was closed here."""
        if self.read_only is not None:
            raise SessionLockedError(self.read_only)
        if self._is_closed and self.session_id is not None:
            self._open_again(self.session_id)

    def snapshot(self) -> Snapshot:
        return Snapshot(self.session_id, self.title, self.turns, self._empty_fork_of)

    def return_to(self, before: Snapshot) -> None:
        """Undo every change since `before`, in place: a session or a fork begun since is deleted.

        Raises:
            StoreError: it cannot be undone on disk, so nothing is.
        """
        now = self.session_id
        if now == before.session_id:
            if now is not None:
                self.unsaved.remove_last(now, len(before.turns))
            self._set_turns(before.turns)
        elif before.session_id is None:
            self.unsaved.delete(str(now))
            self._lock.close()
            self._lock, self.session_id, self._locked_store = ExitStack(), None, None
            self._set_turns(before.turns)
        else:
            self._leave_fork(str(now), before.session_id, before)
        self._reply_is_open = False
        self.title, self._empty_fork_of = before.title, before.empty_fork_of

    def _leave_fork(self, fork: str, left: str, before: Snapshot) -> None:
        """Go back from a fork to the session it was made from, and delete the fork."""
        try:
            self.resume(self._store.load(left))
        except SessionNotFoundError:  # an empty fork was deleted when it was left
            self._enter_fork(str(before.empty_fork_of), len(before.turns), like=fork)
        self.unsaved.delete(fork)

    def branch(self, num_turns: int) -> None:
        """Continue from the first `num_turns` turns; a session stays unchanged and is continued in a fork."""
        if self.session_id is None:
            self._set_turns(self.turns[:num_turns])
            return
        self._check_saved()
        left, empty_fork_of = self.session_id, self._empty_fork_of
        if empty_fork_of is not None:
            with suppress(SessionNotFoundError):
                self._enter_fork(empty_fork_of, num_turns, like=left)
                self.unsaved.delete(left)  # an empty fork is of no use
                return
        self._enter_fork(left, num_turns, is_version=True)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns for display."""
        shown = self._messages
        shown += [
            Message(
                t.role,
                t.text,
                _stats_of(t),
                t.thinking,
                t.params.get("think") is not False,
                t.tool_calls,
                t.tool_call_id,
            )
            for t in self.turns[len(shown) :]
        ]
        return tuple(shown)

    # -- the session -------------------------------------------------------------------------------------------------

    def begin(
        self,
        title: str | None,
        system: str | None,
        params: Mapping[str, Any],
        parent: str | None = None,
        began: datetime | None = None,
        own: ChatSettings | None = None,
        is_version: bool = False,
    ) -> None:
        """Make a session of the turns so far; without `title` it gets the first line of the first message.

        `parent`: the session that it is a fork of, before its first message. `own`: its settings. `is_version`: it is a
        version of the parent's chat.
        """
        title = title or title_of(self.turns[0].text if self.turns else "")
        self.title = self.title or title  # even if the session cannot be made
        self._store.check_writable()  # before gigabytes of weights are hashed
        self.unsaved.delete_postponed()
        self.title = title
        forked_at = None if parent is None else 0
        self._enter(
            self._store.sessions.create(
                title,
                self._runtime.identity,
                system=system,
                params=params,
                parent=parent,
                forked_at=forked_at,
                clock=None if began is None else began.isoformat(),
                settings=own.stored if own else {},
                preset=(own and own.preset) or None,
                kind=self.kind,
                flags=0 if parent is None else IS_VERSION if is_version else IS_FORK | IS_NAMED,
            )
        )
        for turn in self.turns:
            self._store.add_turn(str(self.session_id), turn)
        self.unsaved.finish()

    def rename(self, title: str) -> None:
        self._store.sessions.rename(str(self.session_id), title)
        self.title = title

    def set_settings(self, own: ChatSettings) -> None:
        """Store the chat's own settings, if it has a session here."""
        if self.is_open_here:
            self._store.sessions.set_settings(str(self.session_id), own.stored, own.preset or None)

    def suggest_title(self, title: str) -> bool:
        """Give the session a title unless the user gave it one; whether that was done."""
        done = self._store.sessions.suggest_title(str(self.session_id), title)
        self.title = title if done else self.title
        return done

    def resume(self, record: SessionRecord) -> bool:
        """Load a stored session and make it this model's; whether it was already.

        A session that another process has open is read-only. If nothing can be saved, only the turns are loaded.
        """
        self.title, turns, self._saved_kind = record.title, record.turns, record.kind
        if self._store.read_only:
            self._set_turns(_closed(turns))
            return record.model.model_id == self._runtime.model_id
        try:
            self._enter(record.id)
        except SessionLockedError as error:
            self.read_only, self.session_id = str(error), record.id
            self._set_turns(turns)
            return record.model.model_id == self._runtime.model_id
        if record.forked_at == len(turns):
            self._empty_fork_of = record.parent
        closed = _closed(turns)
        if closed is not turns:  # the process crashed during the reply
            self._write(lambda store, session: store.update_open_turn(session, closed[-1]))
        self._set_turns(closed)
        mine = self._runtime.identity
        if record.model.model_id != mine.model_id:
            with suppress(DiskError):
                self._store.sessions.set_model(record.id, mine)
            return False
        if record.model.name != mine.name:  # the same weights under another name
            is_gone = os.path.isabs(record.model.name) and not os.path.exists(record.model.name)
            with suppress(StoreError):
                self._store.sessions.rename_model(record.id, mine.name, everywhere=is_gone)
        return True

    def with_turns(self, turns: tuple[TurnRecord, ...]) -> Conversation:
        """A new conversation of these turns, not saved yet."""
        twin = Conversation(self._runtime)
        twin.title = self.title
        twin._set_turns(turns)
        return twin

    def fork(self, num_turns: int) -> Conversation:
        """A new conversation with the same first turns; its session shares the rows on disk."""
        if self.session_id is None:
            return self.with_turns(self.turns[:num_turns])
        self._check_saved()
        twin = Conversation(self._runtime)
        twin._enter_fork(self.session_id, num_turns)
        return twin

    def close(self) -> str | None:
        """Save all rows and unlock the session; one sentence if something could not be saved."""
        notice = None
        if self.session_id is not None and self._locked_store is not None:
            if not self._is_saved():
                notice = "The end of this chat is not saved: the disk is full."
            notice = notice or self._locked_store.flush(self.session_id)
        else:
            with suppress(StoreError):
                self.unsaved.delete_postponed()
        self._lock.close()
        self._is_closed = self.read_only is None
        return notice

    @property
    def is_open_here(self) -> bool:
        """Whether this process has the session open to write it."""
        return self.session_id is not None and self.read_only is None and not self._is_closed

    def detach(self) -> None:
        """Continue without the session: later turns are not saved."""
        self.close()
        self.session_id = self.read_only = None

    # -- rows --------------------------------------------------------------------------------------------------------

    def save_rows(
        self,
        cache: PromptCache,
        wait: bool = False,
        occasion: Occasion = Occasion.TURN,
        resume_at: Callable[[], int] | None = None,
    ) -> tuple[int, str | None]:
        """Save the cache's new rows: bytes written, and a notice if that failed (the turns are saved already).

        Without `wait` the store writes them in the background and reports a failure the next time or at `close`.
        `occasion` and `resume_at`: see SessionStore.save_kv.
        """
        if not cache.can_save or self.unsaved.is_behind:
            return 0, None
        store, args = self._store, (str(self.session_id), cache, self._runtime.row_identity, random_state())
        try:
            commit = store.commit_kv(*args) if wait else store.save_kv(*args, occasion, resume_at)
        except (OSError, StoreError, CacheError) as error:
            return 0, f"{error} The chat itself is saved."
        return commit.bytes_written, commit.notice

    def restore_rows(self, cache: PromptCache) -> Restored | None:
        """Restore the longest saved prefix into the cache, and the random state; None where nothing can be saved."""
        cache.reset()
        if self.session_id is None or not cache.can_save or not self.log:
            return None
        restored = self._store.restore_kv(self.session_id, cache, self._runtime.row_identity, self.log)
        if restored.rng is not None:
            set_random_state(restored.rng)  # sampling continues as if the process had not ended
        return replace(restored, evicted=cache.num_unattended(restored.tokens - 1, restored.tokens))

    def restore_rows_for(self, cache: PromptCache, ids: Sequence[int]) -> Restored | None:
        """Restore rows of the prompt `ids` that the cache lacks: this session's, or those of another chat with the same
        prefix. None if the store was not asked."""
        common = min(common_prefix(cache.log, ids), len(ids) - 1)
        held = cache.rewind_target(common)
        if self.session_id is None:
            return self._runtime.borrower.borrow(cache, ids, held)
        if not cache.can_save or len(ids) - held <= (MIN_NEW_TOKENS if held else 1):
            return None
        with suppress(DiskError):
            return self._store.restore_kv(self.session_id, cache, self._runtime.row_identity, ids, held)
        return None

    @property
    def model(self) -> str | None:
        """A short id of the model that generates the replies; None while nothing is saved."""
        return self._runtime.model_id[:16] if self.session_id is not None else None

    @property
    def model_name(self) -> str:
        """The user's name of the model, and its adapter."""
        tuned = self._runtime.loaded.adapter
        return self._runtime.name if tuned is None else f"{self._runtime.name} + {tuned.name}"

    def record_prefill_speed(self, tokens_per_second: float) -> None:
        """Tell the store how fast prefill is, which decides whether rows are worth restoring."""
        with suppress(DiskError):
            self._store.set_prefill_speed(self._runtime.row_identity, tokens_per_second)

    def disk_bytes(self) -> int:
        """Bytes of the session's rows on disk."""
        with suppress(DiskError):
            return self._store.disk_bytes(str(self.session_id))
        return 0

    # ----------------------------------------------------------------------------------------------------------------

    def _enter(self, session_id: str) -> None:
        self._lock.close()
        self._lock = ExitStack()
        self._locked_store = self._store
        self._lock.enter_context(self._locked_store.lock(session_id))
        self.session_id, self._reply_is_open, self._is_closed = session_id, False, False
        self.read_only = self._empty_fork_of = None

    def _open_again(self, session_id: str) -> None:
        empty_fork_of = self._empty_fork_of
        self._enter(session_id)
        self._empty_fork_of = empty_fork_of
        if [turn.ids for turn in self._store.load(session_id).turns] != [turn.ids for turn in self.turns]:
            self.close()
            raise SessionChangedError(
                f"Session {session_id:.10} was closed here and has changed since; resume it to continue."
            )

    def _enter_fork(
        self, session_id: str, num_turns: int, *, like: str | None = None, is_version: bool = False
    ) -> None:
        store = self._store
        fork = store.fork(session_id, num_turns, like=like, is_version=is_version)
        self._enter(fork)
        self._empty_fork_of = session_id
        record = store.load(fork)  # it may have grown since this process read it
        self.title, turns, self._saved_kind = record.title, _closed(record.turns), record.kind
        if turns is not record.turns:  # the reply is still being generated in the session it was forked from
            store.update_open_turn(fork, turns[-1])
        self._set_turns(turns)

    def _set_turns(self, turns: tuple[TurnRecord, ...]) -> None:
        self.turns, self.log, self._messages = turns, replayed(turns), []

    def _replace_from(self, i: int, turn: TurnRecord) -> None:
        """Make `turn` the last one, after the first `i`; its ids end the log."""
        start = len(self.log) - sum(len(t.ids) for t in self.turns[i:]) if turn.start is None else turn.start
        self.turns, self.log = (*self.turns[:i], turn), self.log[:start] + turn.ids
        del self._messages[i:]


def replayed(turns: Sequence[TurnRecord]) -> TokenIds:
    """The token log of `turns`."""
    log = TokenLog()
    for turn in turns:
        log.cut(len(log) if turn.start is None else turn.start)
        log.extend(turn.ids)
    return TokenIds(log)


def _closed(turns: tuple[TurnRecord, ...]) -> tuple[TurnRecord, ...]:
    """`turns`, with an open reply at their end marked as stopped."""
    if not turns or turns[-1].state != TurnState.OPEN:
        return turns
    return (*turns[:-1], replace(turns[-1], state=TurnState.STOPPED))


def title_of(text: str) -> str:
    """The first line, cut to a title's length."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "Untitled")
    return line if len(line) <= _TITLE_LENGTH else line[: _TITLE_LENGTH - 1].rstrip() + "…"


def _stats_of(turn: TurnRecord) -> TurnStats | None:
    known = TurnStats.__dataclass_fields__
    stats: Mapping[str, Any] = {k: v for k, v in turn.stats.items() if k in known}
    return TurnStats(**stats) if stats else None
