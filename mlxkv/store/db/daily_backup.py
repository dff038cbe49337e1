"""The daily copy of the chat database: when it is due while the store is open, on a thread of its own.

What a copy is, and how it is made whole or not at all, is backup.py's. Engine thread.
"""

from __future__ import annotations

import logging
import threading
from contextlib import closing

from mlxkv.errors import ConfigError, StoreError
from mlxkv.store.db import backup
from mlxkv.store.db.database import Database
from mlxkv.store.files import Files

_log = logging.getLogger("mlxkv.store")


class DailyBackup:
    """Copies of an open database. `today` is the day on which it was last asked whether one is due."""

    def __init__(self, database: Database, files: Files) -> None:
        self._database, self._files = database, files
        self._thread: threading.Thread | None = None
        self.today = backup.today_here()

    def make_if_due(self) -> None:
        """To be called now and then: a window may be left open overnight."""
        if self.today != (today := backup.today_here()):
            self.today = today
            self.start_if_due()

    def start_if_due(self) -> None:
        """Start to copy what the newest copy lacks; what goes wrong is tried again when the store is opened next."""
        try:
            with self._database.reading() as db:
                if not backup.is_due(db, self._database.path.parent, self.today):
                    return
        except StoreError:  # damage is told where it is met, not here
            _log.exception("whether a daily backup is due is not known")
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
