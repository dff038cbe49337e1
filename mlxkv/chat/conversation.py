"""Conversation: the turns of a chat, their token log, and the session that keeps both and the cache's rows on disk.

Every change reaches the disk before it counts, unless the disk refuses: then it is kept in mind, told once, and made up
for with the next change that finds room. Knows no model and generates nothing: `chat/chat.py` does. On the MLX thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.errors import (
    CacheError,
    DiskError,
    SessionChangedError,
    SessionLockedError,
    SessionNotFoundError,
    StoreError,
)
from mlxkv.events import MEANWHILE, Branch, Message, Sibling
from mlxkv.inference.sampling import random_state
from mlxkv.stats import TurnStats
from mlxkv.store import ModelIdentity, Restored, SessionRecord, SessionStore, TurnRecord
from mlxkv.store.borrow import MIN_NEW_TOKENS, Borrower
from mlxkv.token_ids import TokenIds, TokenLog, common_prefix

_TITLE_LENGTH = 60


@dataclass(frozen=True)
class Snapshot:
    """A conversation as it was at one moment; see `Conversation.mark`."""

    session_id: str | None
    title: str
    turns: tuple[TurnRecord, ...]
    bare_fork_of: str | None


class Conversation:
    """Turns in order, with or without a session.

    Args:
        store: the sessions of this machine, opened when first needed.
        identity: the model that the rows belong to.
        borrower: of KV rows while there is no session.
    """

    def __init__(
        self, store: Callable[[], SessionStore], identity: Callable[[], ModelIdentity], borrower: Borrower
    ) -> None:
        self._store, self._identity, self._borrower = store, identity, borrower
        self._lock = ExitStack()
        self._holds: SessionStore | None = None  # the store that the lock is of
        self._reply_is_open = self._is_closed = False
        self.is_behind = False  # the disk has refused what was said last
        self._cut_to: int | None = None  # turns that the session keeps, once the disk takes that
        self._unwanted: list[str] = []  # sessions that are deleted then
        self._news: str | None = None  # about that, to be told
        self._bare_fork_of: str | None = None  # the session this one was forked from, while nothing was said in it
        self.session_id: str | None = None
        self.read_only: str | None = None  # who has the session open, in one sentence; then nothing can be said in it
        self.title = ""
        self.turns: tuple[TurnRecord, ...] = ()
        self.log = TokenIds()  # the replay of the turns' ids: what the model has been fed
        self._messages: list[Message] = []  # of the first turns, as they are shown

    # -- turns -------------------------------------------------------------------------------------------------------

    def append(self, turn: TurnRecord) -> None:
        """Add a turn.

        Raises:
            StoreError: it cannot be saved, so it does not count. SessionLockedError: read-only.
        """
        self.check_writable()
        self._write(lambda store, session: store.add_turn(session, turn))
        self._bare_fork_of = None
        self._replace_from(len(self.turns), turn)

    def write_reply(self, reply: TurnRecord) -> None:
        """Add the reply, or replace the open one that is still being written; see `append`."""
        if not self._reply_is_open:
            self.append(reply)
        else:
            self._write(lambda store, session: store.update_open_turn(session, reply))
            self._replace_from(len(self.turns) - 1, reply)
        self._reply_is_open = reply.state == "open"

    def reopen_reply(self) -> None:
        """The last turn, a reply, goes on: `write_reply` then replaces it by longer ones."""
        self.check_writable()
        reply = replace(self.turns[-1], state="open")
        self._write(lambda store, session: store.update_open_turn(session, reply, reopen=True))
        self._bare_fork_of = None
        self._replace_from(len(self.turns) - 1, reply)
        self._reply_is_open = True

    def _write(self, change: Callable[[SessionStore, str], object]) -> None:
        """Change the session, if there is one and the disk takes it."""
        if self.session_id is None or not self._has_caught_up():
            return
        try:
            change(self._store(), self.session_id)
        except DiskError as error:
            self.fall_behind(error)

    def fall_behind(self, error: DiskError) -> None:
        """What is said now is in memory alone, until `_has_caught_up`."""
        if not self.is_behind:
            self.is_behind = True
            self._news = f"Not saved: {error}{MEANWHILE}"

    def _has_caught_up(self) -> bool:
        """Write the turns that the session lacks, if it does. Raises SessionChangedError."""
        if not self.is_behind or self.session_id is None:
            return True
        try:
            self._delete_unwanted()
            store, session = self._store(), self.session_id
            if self._cut_to is not None:
                store.remove_last(session, self._cut_to)
                self._cut_to = None
            saved = store.load(session).turns
            pairs = enumerate(zip(saved, self.turns, strict=False))
            n = next((i for i, (there, here) in pairs if not _is_same(there, here)), min(len(saved), len(self.turns)))
            if n < len(saved) and (n < len(saved) - 1 or n == len(self.turns) or saved[n].state != "open"):
                raise SessionChangedError(
                    f"Session {session} was changed by another process while its disk was full; fork it to continue."
                )
            for i, turn in enumerate(self.turns[n:], n):
                write = store.update_open_turn if i < len(saved) else store.add_turn
                write(session, turn)
        except DiskError:
            return False
        self._catch_up()
        return True

    def _delete(self, session_id: str) -> None:
        """Delete a session that nothing came of; where the disk refuses, with the next change that finds room."""
        try:
            self._store().delete(session_id)
        except DiskError as error:
            self._unwanted.append(session_id)
            self.fall_behind(error)

    def _delete_unwanted(self) -> None:
        """Raises DiskError."""
        while self._unwanted:
            with suppress(SessionNotFoundError, SessionLockedError):  # it is somebody else's affair by now
                self._store().delete(self._unwanted[0])
            del self._unwanted[0]

    def _catch_up(self) -> None:
        if self.is_behind:
            self.is_behind, self._news = False, "There is room on the disk again: all that was said is saved."

    def _check_saved(self) -> None:
        """Raises DiskError: the end of this chat is not saved, so no fork can begin there."""
        if not self._has_caught_up():
            raise DiskError("The end of this chat is not saved yet: make room on the disk, then go back or fork.")

    def pop_notice(self) -> str | None:
        """What is to be told of saving, once."""
        news, self._news = self._news, None
        return news

    def check_writable(self) -> None:
        """Raises SessionLockedError: another process has the session open. SessionChangedError: since it was closed
        here, something else was said in it."""
        if self.read_only is not None:
            raise SessionLockedError(self.read_only)
        if self._is_closed and self.session_id is not None:
            self._open_again(self.session_id)

    def mark(self) -> Snapshot:
        """What `return_to` leads back to."""
        return Snapshot(self.session_id, self.title, self.turns, self._bare_fork_of)

    def return_to(self, mark: Snapshot) -> None:
        """Undo all that was said since `mark` was made, in place: a session or a fork that was begun since is removed.

        Raises:
            StoreError: it cannot be undone on disk, so nothing is.
        """
        now = self.session_id
        if now == mark.session_id:
            if now is not None:
                try:
                    self._store().remove_last(now, len(mark.turns))
                except DiskError as error:
                    self._cut_to = len(mark.turns) if self._cut_to is None else min(self._cut_to, len(mark.turns))
                    self.fall_behind(error)
            self._take(mark.turns)
        elif mark.session_id is None:
            self._delete(str(now))
            self._lock.close()
            self._lock, self.session_id, self._holds = ExitStack(), None, None
            self._take(mark.turns)
        else:
            self._leave_fork(str(now), mark)
        self._reply_is_open = False
        self.title, self._bare_fork_of = mark.title, mark.bare_fork_of

    def _leave_fork(self, fork: str, mark: Snapshot) -> None:
        """Go back from a fork to the session it was made from, and delete the fork."""
        store, left = self._store(), str(mark.session_id)
        try:
            self.resume(store.load(left))
        except SessionNotFoundError:  # a fork in which nothing was said did not stay when it was left
            self._enter_fork(str(mark.bare_fork_of), len(mark.turns))
        self._delete(fork)

    def branch(self, num_turns: int) -> None:
        """Go on from the first `num_turns` turns; a session is left as it is and goes on in a fork."""
        if self.session_id is None:
            self._take(self.turns[:num_turns])
            return
        self._check_saved()
        left, bare_fork_of = self.session_id, self._bare_fork_of
        if bare_fork_of is not None:
            with suppress(SessionNotFoundError):
                self._enter_fork(bare_fork_of, num_turns)
                self._delete(left)  # a fork in which nothing was said need not stay
                return
        self._enter_fork(left, num_turns)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns as they are shown."""
        shown = self._messages
        shown += [
            Message(t.role, t.text, _stats_of(t), t.thinking, t.params.get("think") is not False)
            for t in self.turns[len(shown) :]
        ]
        return tuple(shown)

    def last(self, role: str) -> int | None:
        """The number of the last turn of `role`."""
        return next((i for i in range(len(self.turns) - 1, -1, -1) if self.turns[i].role == role), None)

    # -- the session -------------------------------------------------------------------------------------------------

    def begin(
        self,
        title: str | None,
        system: str | None,
        params: Mapping[str, Any],
        parent: str | None = None,
        began: datetime | None = None,
    ) -> None:
        """Make a session of what has been said so far; without `title` it is called by its first line.

        `parent`: the session that it is another beginning of.
        """
        title = title or title_of(self.turns[0].text if self.turns else "")
        self.title = self.title or title  # its title also where it cannot be saved
        self._store().check_writable()  # before gigabytes of weights are hashed
        self._delete_unwanted()
        self.title = title
        forked_at = None if parent is None else 0
        self._enter(
            self._store().sessions.create(
                title,
                self._identity(),
                system=system,
                params=params,
                parent=parent,
                forked_at=forked_at,
                clock=None if began is None else began.isoformat(),
            )
        )
        for turn in self.turns:
            self._store().add_turn(str(self.session_id), turn)
        self._catch_up()

    def rename(self, title: str) -> None:
        self._store().sessions.rename(str(self.session_id), title)
        self.title = title

    def resume(self, record: SessionRecord) -> bool:
        """Take over a stored session; whether it was this model's. From now on it is.

        One that another process has open is only read (`read_only` says who). Where nothing can be saved the turns are
        taken over without the session.
        """
        self.title, turns = record.title, record.turns
        if self._store().read_only:
            last = (replace(turns[-1], state="stopped"),) if turns and turns[-1].state == "open" else turns[-1:]
            self._take((*turns[:-1], *last))
            return record.model.model_id == self._identity().model_id
        try:
            self._enter(record.id)
        except SessionLockedError as error:
            self.read_only, self.session_id = str(error), record.id
            self._take(turns)
            return record.model.model_id == self._identity().model_id
        if record.forked_at == len(turns):
            self._bare_fork_of = record.parent
        if turns and turns[-1].state == "open":  # a crash came while it streamed
            turns = (*turns[:-1], replace(turns[-1], state="stopped"))
            self._write(lambda store, session: store.update_open_turn(session, turns[-1]))
        self._take(turns)
        mine = self._identity()
        if record.model.model_id != mine.model_id:
            with suppress(DiskError):
                self._store().sessions.set_model(record.id, mine)
            return False
        if record.model.name != mine.name:  # the same weights under another name: that is asked for from now on
            with suppress(StoreError):
                self._store().sessions.rename_model(record.id, mine.name, everywhere=_is_gone(record.model.name))
        return True

    def apart(self, turns: tuple[TurnRecord, ...]) -> Conversation:
        """A second conversation in which `turns` were said; without a session yet."""
        twin = Conversation(self._store, self._identity, self._borrower)
        twin.title = self.title
        twin._take(turns)
        return twin

    def fork(self, num_turns: int) -> Conversation:
        """A second conversation with the same first turns; its session shares the rows on disk."""
        if self.session_id is None:
            return self.apart(self.turns[:num_turns])
        self._check_saved()
        twin = Conversation(self._store, self._identity, self._borrower)
        twin._enter_fork(self.session_id, num_turns)
        return twin

    def siblings(self) -> tuple[tuple[Sibling, ...], ...]:
        """For each message its versions in the order they were made; () where nothing is saved."""
        return self._store().siblings(self.session_id) if self.session_id is not None else ()

    def tree(self) -> tuple[Branch, ...]:
        """The family of forks this session belongs to; () where nothing is saved."""
        return self._store().tree(self.session_id) if self.session_id is not None else ()

    def close(self) -> str | None:
        """Let another process open the session, once its rows are on disk; one sentence if they could not be saved."""
        notice = None
        if self.session_id is not None and self._holds is not None:
            if not self._has_caught_up():
                notice = "The end of this chat is not saved: the disk has no room for it."
            notice = notice or self._holds.flush(self.session_id)
        elif self._unwanted:
            with suppress(StoreError):
                self._delete_unwanted()
        self._lock.close()
        self._is_closed = self.read_only is None
        return notice

    def detach(self) -> None:
        """Go on without the session: nothing of what follows is saved."""
        self.close()
        self.session_id = self.read_only = None

    # -- rows --------------------------------------------------------------------------------------------------------

    def save_rows(self, cache: PromptCache, wait: bool = False) -> tuple[int, str | None]:
        """Save the cache's new rows: bytes written, and a notice if that failed (the turns are safe already).

        Without `wait` the store writes them while the chat goes on, and tells of a failure the next time or at `close`.
        """
        if not cache.can_save or self.is_behind:
            return 0, None
        store = self._store()
        try:
            save = store.commit_kv if wait else store.save_kv
            commit = save(str(self.session_id), cache, self._identity(), random_state())
        except (OSError, StoreError, CacheError) as error:
            return 0, f"{error} The chat itself is saved."
        return commit.bytes_written, commit.notice

    def restore_rows(self, cache: PromptCache, ids: Sequence[int]) -> Restored | None:
        """Fill the cache from disk with the longest saved beginning of `ids`; None where nothing can be saved."""
        cache.reset()
        if self.session_id is None or not cache.can_save or not ids:
            return None
        return self._store().restore_kv(self.session_id, cache, self._identity(), ids)

    def restore_rows_for(self, cache: PromptCache, ids: Sequence[int]) -> Restored | None:
        """Where `ids` need rows that the cache does not hold (any more), the disk may have them: this session's, or
        those of another chat that began alike, where nothing is saved too. None where it was not asked."""
        common = min(common_prefix(cache.log, ids), len(ids) - 1)
        held = cache.landing(common)
        if self.session_id is None:
            return self._borrower.borrow(cache, ids, held)
        is_all_there = 0 < held == common
        if not cache.can_save or len(ids) - held <= (MIN_NEW_TOKENS if is_all_there else 1):
            return None
        with suppress(DiskError):
            return self._store().restore_kv(self.session_id, cache, self._identity(), ids, held)
        return None

    @property
    def model(self) -> str | None:
        """A short name of the model that replies are made with; None while nothing is saved."""
        return self._identity().model_id[:16] if self.session_id is not None else None

    def measured_prefill(self, tokens_per_second: float) -> None:
        """What reading took this time: whether rows are worth restoring is decided by it."""
        if self.session_id is not None:
            with suppress(DiskError):
                self._store().measured_prefill(self._identity(), tokens_per_second)

    def disk_bytes(self) -> int:
        """Bytes of rows that the session keeps on disk."""
        if self.session_id is not None:
            with suppress(DiskError):
                return self._store().disk_bytes(self.session_id)
        return 0

    # ----------------------------------------------------------------------------------------------------------------

    def _enter(self, session_id: str) -> None:
        self._lock.close()
        self._lock = ExitStack()
        self._holds = self._store()
        self._lock.enter_context(self._holds.lock(session_id))
        self.session_id, self._reply_is_open, self._is_closed = session_id, False, False
        self.read_only = self._bare_fork_of = None

    def _open_again(self, session_id: str) -> None:
        bare_fork_of = self._bare_fork_of
        self._enter(session_id)
        self._bare_fork_of = bare_fork_of
        if [turn.ids for turn in self._store().load(session_id).turns] != [turn.ids for turn in self.turns]:
            self.close()
            raise SessionChangedError(
                f"Session {session_id} was closed here, and something else was said in it since; resume it to continue."
            )

    def _enter_fork(self, session_id: str, num_turns: int) -> None:
        store = self._store()
        fork = store.fork(session_id, num_turns)
        self._enter(fork)
        self._bare_fork_of = session_id
        record = store.load(fork)  # what was said may have grown since this process read it
        self.title, turns = record.title, record.turns
        if turns and turns[-1].state == "open":  # it goes on growing where it is: this is another one
            turns = (*turns[:-1], replace(turns[-1], state="stopped"))
            store.update_open_turn(fork, turns[-1])
        self._take(turns)

    def _take(self, turns: tuple[TurnRecord, ...]) -> None:
        self.turns, self.log, self._messages = turns, replayed(turns), []

    def _replace_from(self, i: int, turn: TurnRecord) -> None:
        """`turn` is the last one now: it comes after, or instead of, the last one, which ends the log."""
        start = len(self.log) - sum(len(t.ids) for t in self.turns[i:]) if turn.start is None else turn.start
        self.turns, self.log = (*self.turns[:i], turn), self.log[:start] + turn.ids
        del self._messages[i:]


def replayed(turns: Sequence[TurnRecord]) -> TokenIds:
    """The token log that `turns` come to."""
    log = TokenLog()
    for turn in turns:
        log.cut(len(log) if turn.start is None else turn.start)
        log.extend(turn.ids)
    return TokenIds(log)


def _is_same(a: TurnRecord, b: TurnRecord) -> bool:
    return (a.role, a.text, a.thinking, a.state, tuple(a.ids)) == (b.role, b.text, b.thinking, b.state, tuple(b.ids))


def _is_gone(name: str) -> bool:
    """Whether this is the path of a folder that is not there, as after it was moved."""
    return os.path.isabs(name) and not os.path.exists(name)


def title_of(text: str) -> str:
    """The first line, cut to a title's length."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "Untitled")
    return line if len(line) <= _TITLE_LENGTH else line[: _TITLE_LENGTH - 1].rstrip() + "…"


def _stats_of(turn: TurnRecord) -> TurnStats | None:
    known = TurnStats.__dataclass_fields__
    stats: Mapping[str, Any] = {k: v for k, v in turn.stats.items() if k in known}
    return TurnStats(**stats) if stats else None
