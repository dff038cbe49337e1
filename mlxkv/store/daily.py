"""The daily copy of the chat database: when it is due while the store is open, on a thread of its own.

What a copy is, and how it is made whole or not at all, is backup.py's. Engine thread.
"""

from __future__ import annotations

import datetime
import logging
import threading
from contextlib import closing

from mlxkv.errors import ConfigError, StoreError
from mlxkv.store import backup
from mlxkv.store.files import Files
from mlxkv.store.schema import Database

_log = logging.getLogger("mlxkv.store")


class DailyBackup:
    """Copies of an open database. `today` is the day on which it was last asked whether one is due."""

    def __init__(self, database: Database, files: Files) -> None:
        self._database, self._files = database, files
        self._thread: threading.Thread | None = None
        self.today = datetime.date.today()

    def make_if_due(self) -> None:
        """To be called now and then: a window may be left open overnight."""
        if self.today != (today := datetime.date.today()):
            self.today = today
            if backup.is_due(self._database.path.parent, today):
                self.make()

    def make(self) -> None:
        """Start to copy, if there are chats; what goes wrong is tried again when the store is opened next."""
        with self._database.reading() as db:
            if not db.execute("SELECT 1 FROM session LIMIT 1").fetchone():
                return
        self.wait()
        self._thread = threading.Thread(target=self._copy, name="mlxkv-backup")
        self._thread.start()

    def wait(self) -> None:
        """Until the copy that was started is done."""
        if self._thread is not None:
            self._thread.join()

    def _copy(self) -> None:
        try:
            with closing(self._database.again()) as own:
                backup.make(own.db, own.path.parent, self._files)
        except (StoreError, ConfigError):
            _log.exception("the daily backup failed")
