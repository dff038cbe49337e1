"""Conversation: the turns of a chat, their token log, and the session that keeps both and the cache's rows on disk.

Every change reaches the disk before it counts. Knows no model and generates nothing: `chat.py` does. On the MLX thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from mlxkv.cache.prompt_cache import PromptCache, common_prefix
from mlxkv.errors import StoreError
from mlxkv.sampling import random_state
from mlxkv.store import ModelIdentity, Restored, SessionRecord, SessionStore, TurnRecord


class Conversation:
    """Turns in order, with or without a session.

    Args:
        store: the sessions of this machine, opened when first needed.
        identity: the model that the rows belong to.
    """

    def __init__(self, store: Callable[[], SessionStore], identity: Callable[[], ModelIdentity]) -> None:
        self._store, self._identity = store, identity
        self._lock = ExitStack()
        self._reply_is_open = False
        self.session_id: str | None = None
        self.title = ""
        self.turns: tuple[TurnRecord, ...] = ()
        self.log: tuple[int, ...] = ()  # the replay of the turns' ids: what the model has been fed

    # -- turns -------------------------------------------------------------------------------------------------------

    def append(self, turn: TurnRecord) -> None:
        """Add a turn.

        Raises:
            StoreError: it cannot be saved, so it does not count.
        """
        if self.session_id is not None:
            self._store().add_turn(self.session_id, turn)
        self._take((*self.turns, turn))

    def write_reply(self, reply: TurnRecord) -> None:
        """Add the reply, or replace the open one that is still being written; see `append`."""
        if not self._reply_is_open:
            self.append(reply)
        else:
            if self.session_id is not None:
                self._store().update_open_turn(self.session_id, reply)
            self._take((*self.turns[:-1], reply))
        self._reply_is_open = reply.state == "open"

    def branch(self, num_turns: int) -> None:
        """Go on from the first `num_turns` turns; a session is left as it is and goes on in a fork."""
        if self.session_id is not None:
            self._enter(self._store().fork(self.session_id, num_turns))
        self._take(self.turns[:num_turns])

    def last(self, role: str) -> int | None:
        """The number of the last turn of `role`."""
        return max((i for i, turn in enumerate(self.turns) if turn.role == role), default=None)

    # -- the session -------------------------------------------------------------------------------------------------

    def begin(self, title: str, system: str | None, params: Mapping[str, Any]) -> None:
        """Make a session of what has been said so far."""
        self.title = title
        self._enter(self._store().create(title, self._identity(), system=system, params=params))
        for turn in self.turns:
            self._store().add_turn(str(self.session_id), turn)

    def rename(self, title: str) -> None:
        self._store().rename(str(self.session_id), title)
        self.title = title

    def resume(self, record: SessionRecord) -> bool:
        """Take over a stored session; whether it was this model's. From now on it is.

        Raises:
            SessionLockedError: it is open in another process.
        """
        self._enter(record.id)
        self.title, turns = record.title, record.turns
        if turns and turns[-1].state == "open":  # a crash came while it streamed
            turns = (*turns[:-1], replace(turns[-1], state="stopped"))
            self._store().update_open_turn(record.id, turns[-1])
        self._take(turns)
        mine = self._identity()
        if record.model.model_id == mine.model_id:
            return True
        self._store().set_model(record.id, mine)
        return False

    def fork(self) -> Conversation:
        """A second conversation with the same past; its session shares the rows on disk."""
        twin = Conversation(self._store, self._identity)
        twin.title, twin.turns, twin.log = self.title, self.turns, self.log
        if self.session_id is not None:
            twin._enter(self._store().fork(self.session_id, len(self.turns)))
        return twin

    def close(self) -> None:
        """Let another process open the session."""
        self._lock.close()

    def detach(self) -> None:
        """Go on without the session: nothing of what follows is saved."""
        self.close()
        self.session_id = None

    # -- rows --------------------------------------------------------------------------------------------------------

    def save_rows(self, cache: PromptCache) -> tuple[int, str | None]:
        """Save the cache's new rows: bytes written, and a notice if that failed (the turns are safe already)."""
        if not cache.can_save:
            return 0, None
        try:
            commit = self._store().commit_kv(str(self.session_id), cache, self._identity(), random_state())
        except (OSError, StoreError) as error:
            return 0, f"The KV cache could not be saved, the chat is ({error})"
        return commit.bytes_written, commit.notice

    def restore_rows(self, cache: PromptCache, ids: Sequence[int]) -> Restored | None:
        """Fill the cache from disk with the longest saved beginning of `ids`; None where nothing can be saved."""
        cache.reset()
        if self.session_id is None or not cache.can_save or not ids:
            return None
        return self._store().restore_kv(self.session_id, cache, self._identity(), ids)

    def bring_back(self, cache: PromptCache, ids: Sequence[int]) -> None:
        """Where `ids` need rows that have rotated out of the cache, the session's chunks may still have them."""
        back = cache.offset - common_prefix(cache.tokens, ids)
        if back > cache.rewindable and self.session_id is not None:
            self.restore_rows(cache, ids)

    def disk_bytes(self) -> int:
        """Bytes of rows that the session keeps on disk."""
        return self._store().disk_bytes(self.session_id) if self.session_id is not None else 0

    # ----------------------------------------------------------------------------------------------------------------

    def _enter(self, session_id: str) -> None:
        self._lock.close()
        self._lock = ExitStack()
        self._lock.enter_context(self._store().lock(session_id))
        self.session_id, self._reply_is_open = session_id, False

    def _take(self, turns: tuple[TurnRecord, ...]) -> None:
        log: list[int] = []
        for turn in turns:
            del log[len(log) if turn.start is None else turn.start :]
            log += turn.ids
        self.turns, self.log = turns, tuple(log)
