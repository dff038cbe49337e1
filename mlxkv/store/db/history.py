"""A session's history: the digest chain over its turns, and the token log that results from them. No SQL, no files.

`digest = blake2b-128(prev | i | len | body | len | ids)`; the chain starts with a digest of the system prompt and
omits the session id, so that a fork shares its prefix. Any thread.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlxkv.errors import CorruptError, StoreError
from mlxkv.store.records import Attachment, ToolCall, TurnRecord
from mlxkv.system.regular_file import parse_json
from mlxkv.text.encoding import well_formed

DIGEST_BYTES = 16


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False)


def pack_ids(ids: Iterable[int]) -> array[int]:
    """Token ids as int32. Raises StoreError for an id that is negative or too large."""
    try:
        packed = array("i", ids)
    except (OverflowError, TypeError) as error:
        raise StoreError(f"A turn has a token id that is not a 32-bit integer ({error}); this is a bug.") from error
    if packed and min(packed) < 0:
        raise StoreError(f"A turn has the negative token id {min(packed)}; this is a bug.")
    return packed


def unpack_ids(blob: bytes) -> array[int]:
    if len(blob) % 4:
        raise CorruptError(f"A turn's token ids take {len(blob)} bytes, not a multiple of 4; restore a backup.")
    ids = array("i")  # int32, little-endian on every machine MLX runs on
    ids.frombytes(blob)
    return ids


def genesis(system: str | None) -> str:
    """The head of a session without turns."""
    return hashlib.blake2b(to_json(["mlxkv session 1", system]).encode(), digest_size=DIGEST_BYTES).hexdigest()


def is_genesis(digest: str, system: object) -> bool:
    return isinstance(system, str | None) and digest == genesis(system)


def turn_digest(prev: str, i: int, fields: Sequence[str | int], ids: bytes) -> str:
    """The digest after turn `i`. `fields`: role, text, thinking, state, params, start, stats, extra as stored. An empty
    extra is left out, since earlier formats had none."""
    body = to_json(list(fields[:7] if fields[7] == "" else fields)).encode()
    h = hashlib.blake2b(bytes.fromhex(prev), digest_size=DIGEST_BYTES)
    for part in (i, len(body), body, len(ids), ids):
        h.update(part if isinstance(part, bytes) else part.to_bytes(8, "little"))
    return h.hexdigest()


def stored_fields(turn: TurnRecord, start: int) -> tuple[str, str, str, str, str, int, str, str]:
    """The fields that `turn_digest` covers and the table holds, in that order."""
    role, text, thinking, state = map(well_formed, (turn.role, turn.text, turn.thinking, turn.state))
    params, stats = to_json(dict(turn.params)), to_json(dict(turn.stats))
    extra = extra_fields(turn)
    return role, text, thinking, state, params, start, stats, to_json(extra) if extra else ""


def extra_fields(turn: TurnRecord) -> dict[str, Any]:
    """Tool calls and attachments as JSON values; those that are empty are left out."""
    table = {
        "tool_calls": [asdict(call) for call in turn.tool_calls],
        "attachments": [asdict(file) for file in turn.attachments],
        "tool_call_id": turn.tool_call_id,
    }
    return {name: value for name, value in table.items() if value}


def _from_extra(text: str) -> dict[str, Any]:
    """The fields of TurnRecord that `extra_fields` made."""
    table = parse_json(text) if text else {}
    makers = {"tool_calls": ToolCall, "attachments": Attachment}
    return {n: tuple(makers[n](**item) for item in value) if n in makers else value for n, value in table.items()}


@dataclass(frozen=True)
class History:
    """Verified turns, their digests (`digests[k]` is the head after k turns), and the token log."""

    turns: tuple[TurnRecord, ...]
    digests: tuple[str, ...]
    log: array[int]

    @property
    def head(self) -> str:
        return self.digests[-1]

    def log_after(self, k: int, shared: int = 0) -> array[int]:
        """The token log after the first `k` turns; its first `shared` tokens equal those of the current log."""
        first = next((i for i in range(k - 1, -1, -1) if (self.turns[i].start or 0) <= shared), k)
        return replay(self.turns[first:k], self.log[:shared])

    def shared_prefixes(self, heads: Collection[str] | None = None) -> dict[str, tuple[int, int]]:
        """For each head the history ever had: (k, the number of tokens that its log shares with the current one).

        A lower bound: a turn that rewrites history to the same ids counts as a change. With `heads` only these, and
        later ones, are included.
        """
        out: dict[str, tuple[int, int]] = {}
        lowest, left = len(self.log), None if heads is None else set(heads)
        for k in range(len(self.turns), -1, -1):
            if left is not None and not left:
                break
            length = _end(self.turns[k - 1]) if k else 0
            out[self.digests[k]] = (k, min(length, lowest))
            if left is not None:
                left.discard(self.digests[k])
            if k:
                lowest = min(lowest, self.turns[k - 1].start or 0)
        return out

    def first(self, k: int) -> History:
        """The history of the first `k` turns."""
        return History(self.turns[:k], self.digests[: k + 1], self.log_after(k, self._shared(k)))

    def with_turn(self, turn: TurnRecord, digest: str) -> History:
        """The history with one more turn, as stored, whose digest continues the chain."""
        log = self.log[: turn.start or 0] + pack_ids(turn.ids)
        return History((*self.turns, turn), (*self.digests, digest), log)

    def _shared(self, k: int) -> int:
        return min([_end(self.turns[k - 1]) if k else 0, *(turn.start or 0 for turn in self.turns[k:])])


def _end(turn: TurnRecord) -> int:
    return (turn.start or 0) + len(turn.ids)


def replay(turns: Iterable[TurnRecord], log: array[int] | None = None) -> array[int]:
    """Append `turns` to the token log `log`, in place, and return it."""
    log = array("i") if log is None else log
    for turn in turns:
        del log[turn.start or 0 :]
        log.extend(turn.ids)
    return log


def verify_rows(rows: Iterable[Sequence[Any]], system: str | None, head: str) -> History:
    """Verify rows (i, role, text, thinking, state, params, start, stats, extra, ids, prev, digest) as a history.

    Raises:
        CorruptError: names the turn that was changed.
    """
    if not isinstance(system, str | None):
        raise CorruptError("This chat's system prompt is damaged; restore a backup.")
    digests, turns, length = [genesis(system)], [], 0
    for i, row in enumerate(rows):
        number, start, (ids, prev, digest) = row[0], row[6], row[9:]
        try:
            found = turn_digest(digests[-1], i, row[1:9], ids)
        except (TypeError, AttributeError):  # a type that mlxkv never writes
            found = None
        if number != i or prev != digests[-1] or digest != found or not 0 <= start <= length:
            raise CorruptError(f"Turn {i + 1} of this chat was changed after it was written; restore a backup.")
        turn = as_record(row[1:9], ids)
        turns.append(turn)
        digests.append(digest)
        length = _end(turn)
    if digests[-1] != head:
        raise CorruptError(f"This chat's last turns are missing ({len(turns)} are left); restore a backup.")
    return History(tuple(turns), tuple(digests), replay(turns))


EMPTY_HISTORY = verify_rows((), None, genesis(None))
"""The history of a chat that is not saved."""


def as_record(fields: Sequence[Any], ids: bytes) -> TurnRecord:
    """A turn from its stored fields; the inverse of `stored_fields`."""
    role, text, thinking, state, params, start, stats, extra = fields
    return TurnRecord(
        role,
        text,
        tuple(unpack_ids(ids)),
        start,
        thinking,
        state,
        parse_json(params),
        parse_json(stats),
        **_from_extra(extra),
    )
