"""PartStore: where a process other than rank 0 keeps the rows of its part of the model.

A store like rank 0's, in a folder of this rank's own: it has the same sessions by id, of which it knows the token ids
and no text. Everything in it can be made again, so it has no backups, begins anew if its database is damaged, and its
errors are sentences for rank 0. On the MLX thread.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

from mlxkv.cache.peers import Agree
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.config import Folders
from mlxkv.distributed.split import Split
from mlxkv.errors import CorruptError, MlxkvError
from mlxkv.models import LoadedModel
from mlxkv.store.db.open import DATABASE
from mlxkv.store.identity import ModelIdentity, identity_of
from mlxkv.store.kv.state_saves import Occasion
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from mlxkv.token_ids import common_prefix


class PartStore:
    """The rows of one loaded part.

    Args:
        folders: of mlxkv on this machine.
    """

    def __init__(self, folders: Folders, loaded: LoadedModel, split: Split) -> None:
        rank = str(split.rank)  # several processes of one machine may have the same folders
        self._folders = replace(folders, data=folders.data / "ranks" / rank, cache=folders.cache / "ranks" / rank)
        self._loaded, self._part = loaded, split.part
        self._opened: SessionStore | None = None

    @property
    def _store(self) -> SessionStore:
        if self._opened is None:
            try:
                self._opened = SessionStore.open(self._folders, enforce=False, backs_up=False)
            except CorruptError:
                shutil.rmtree(self._folders.data, ignore_errors=True)
                self._opened = SessionStore.open(self._folders, enforce=False, backs_up=False)
        return self._opened

    @cached_property
    def _model(self) -> ModelIdentity:
        return identity_of(self._loaded, self._loaded.name, self._store.file_hashes).of_part(self._part)

    def save(self, cache: PromptCache, table: Mapping[str, Any]) -> str:
        """Save rows of the cache; a sentence if they could not be, or an earlier save failed, else "".

        `table`: the arguments of `Peers.saving`.
        """
        try:
            session_id = self._recorded(table["session"], cache.log[: table["tokens"]])
            occasion = Occasion(table["occasion"])
            commit = self._store.save_kv(session_id, cache, self._model, None, occasion, lambda: table["resume_at"])
        except (MlxkvError, OSError) as error:
            return str(error)
        return commit.notice or ""

    def restore(self, cache: PromptCache, table: Mapping[str, Any], ids: Sequence[int], agree: Agree) -> None:
        """Restore rows of `ids` as far as every process can. `table`: the arguments of `Peers.restoring`."""
        held, session_id = table["held"], None
        try:
            store, model = self._store, self._model
            if table["prefill_tps"] is not None:
                store.set_prefill_speed(model, table["prefill_tps"])
            if table["session"] is not None:
                session_id = self._recorded(table["session"], ids)
        except (MlxkvError, OSError):
            if not held:
                cache.reset()
            agree(0)
            return
        if session_id is None:
            store.borrow_kv(cache, model, ids, held, agree)
        else:
            store.restore_kv(session_id, cache, model, ids, held, agree)

    def _recorded(self, key: Mapping[str, Any], ids: Sequence[int]) -> str:
        """The session with this key, whose log begins with `ids`; it is made if there is none, as a fork if possible.

        Its title is the id of rank 0's store.
        """
        store, (session_id, *earlier) = self._store, key["lineage"]
        known = {*store.sessions.ids()}
        if session_id not in known:
            if parent := next((id for id in earlier if id in known), None):
                store.fork(parent, new_id=session_id)
            else:
                store.sessions.create(key["store"], self._model, id=session_id)
        log = store.sessions.load(session_id, fresh=False).log
        common = common_prefix(log, ids)
        if common < len(ids):  # its messages begin where rank 0's do
            store.sessions.add_turn(session_id, TurnRecord("user", "", ids=tuple(ids[common:]), start=common))
        return session_id

    def keep(self, table: Mapping[str, Any]) -> None:
        """Delete the rows of all sessions of a store but those it still has: `store` and `sessions` of the table."""
        if table["store"] is None or (self._opened is None and not (self._folders.data / DATABASE).exists()):
            return
        with suppress(MlxkvError, OSError):
            for session_id in {*self._store.sessions.ids()} - {*table["sessions"]}:
                if self._store.sessions.title_of(session_id) == table["store"]:
                    self._store.delete(session_id)

    def close(self) -> None:
        """Wait until all rows are on disk."""
        if self._opened is not None:
            self._opened.enforce_limit()  # not before: rows that are about to be restored must stay
            self._opened.close()
            self._opened = None
