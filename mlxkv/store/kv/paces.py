"""What was measured on this machine: how fast rows are restored, how fast models read. Kept in the table `meta`.

Engine thread.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from mlxkv.errors import StoreError
from mlxkv.store.db.database import Database
from mlxkv.store.db.history import to_json
from mlxkv.store.kv.pacing import Pace, mixed
from mlxkv.system.regular_file import parse_json

_KEY = "pace"
_SAME = 0.1  # a measurement this close to what is known is not worth a write


class Paces:
    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, model_id: str) -> Pace:
        """For one model."""
        known = self._known()
        return Pace(_speed(known.get("read_bps")), _speed(_table(known.get("prefill_tps")).get(model_id)))

    def measured(self, model_id: str, new: Pace) -> None:
        """Take the fields of `new` that are not None into account."""
        old = self.get(model_id)
        read, prefill = _news(old.read_bps, new.read_bps), _news(old.prefill_tps, new.prefill_tps)
        if read is None and prefill is None:
            return
        known = self._known()
        if read is not None:
            known["read_bps"] = read
        if prefill is not None:
            known["prefill_tps"] = _table(known.get("prefill_tps")) | {model_id: prefill}
        with suppress(StoreError), self._database.writing(lasting=False) as db:  # a read-only disk: measured again
            db.execute("INSERT OR REPLACE INTO meta VALUES(?, ?)", (_KEY, to_json(known)))

    def _known(self) -> dict[str, Any]:
        with self._database.reading() as db:
            row = db.execute("SELECT value FROM meta WHERE key = ?", (_KEY,)).fetchone()
        with suppress(ValueError):
            return _table(parse_json(row[0]) if row else {})
        return {}


def _news(old: float | None, new: float | None) -> float | None:
    if new is None or (old is not None and abs(new - old) <= _SAME * old):
        return None
    return mixed(old, new)


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _speed(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None
