"""A session as JSON and back: the document, and every rule that one from elsewhere must keep. No files, no SQL.

Whatever is wrong raises CorruptError with the rule and the value. Digests are computed, never taken. Any thread.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from mlxkv.cache.config import CacheConfig
from mlxkv.errors import ConfigError, CorruptError
from mlxkv.sampling import SamplingParams
from mlxkv.store.history import genesis, pack_ids, stored_fields, turn_digest
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.records import SessionRecord, TurnRecord
from mlxkv.text import clean

FORMAT = "mlxkv chat 1"
MAX_TURNS = 100_000
MAX_IDS = 1 << 26
_MAX_NAME = 1024
_MAX_PARTS = 4096
_SURROGATE = re.compile("[\ud800-\udfff]")
_STATES = ("done", "open", "stopped")
_ROLES = ("user", "assistant")


@dataclass(frozen=True)
class PortableChat:
    """A session that is not in a store yet. `head` is the digest of its chain; `kv` what the document says of rows."""

    title: str
    created: float
    updated: float
    model: ModelIdentity
    system: str | None
    params: Mapping[str, Any]
    turns: tuple[TurnRecord, ...]
    log: tuple[int, ...]
    head: str
    kv: Any = None


def to_document(record: SessionRecord) -> dict[str, Any]:
    """Everything that is true of a session, JSON-able; times are UNIX seconds."""
    return {
        "format": FORMAT,
        "title": record.title,
        "created": record.created,
        "updated": record.updated,
        "model": {
            "name": record.model.name,
            "model_id": record.model.model_id,
            "template_id": record.model.template_id,
            "parts": dict(record.model.parts),
        },
        "system": record.system,
        "params": dict(record.params),
        "turns": [
            {
                "role": t.role, "text": t.text, "thinking": t.thinking, "state": t.state, "start": t.start,
                "ids": list(t.ids), "params": dict(t.params), "stats": dict(t.stats),
            }
            for t in record.turns
        ],
        "head": record.head,
    }  # fmt: skip


def to_markdown(record: SessionRecord, *, joined: bool = False) -> str:
    """For people: what was said. Characters that steer terminals are made visible.

    `joined`: for a file, where emoji that are joined into one stay so; see `clean`.
    """
    safe = partial(clean, joined=joined)
    out = [f"# {' '.join(safe(record.title).split())}", f"{safe(record.model.name)} · {len(record.log):,} tokens"]
    if record.system is not None:
        out += ["## system", safe(record.system)]
    for turn in record.turns:
        out.append(f"## {safe(turn.role)}")
        if turn.thinking:
            out.append("\n".join(f"> {line}".rstrip() for line in safe(turn.thinking).split("\n")))
        out.append(safe(turn.text) + (" …" if turn.state != "done" else ""))
    return "\n\n".join(out) + "\n"


def from_document(data: bytes, file: str) -> PortableChat:
    """Read and check a document.

    Raises:
        CorruptError: one sentence with the rule that it breaks.
    """
    return _Reader(file).chat(data)


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file

    def refuse(self, rule: str, found: object) -> NoReturn:
        text = ascii(found)
        text = text if len(text) <= 80 else f"{text[:76]} ..."
        raise CorruptError(f"{self.file} is not a chat that can be imported: {rule}, found {text}.")

    def chat(self, data: bytes) -> PortableChat:
        table = self.parse(data)
        if table.get("format") != FORMAT:
            self.refuse(f"`format` must be {FORMAT!r}", table.get("format"))
        title, system = self.text(table, "title", _MAX_NAME), table.get("system")
        if system is not None:
            system = self.text(table, "system")
        turns = self.turns(table.get("turns"))
        log, head = self.replayed(turns, system)
        if table.get("head") != head:
            self.refuse("`head` must be the digest of the turns", table.get("head"))
        params = self.params(table)
        model = self.model(table.get("model"))
        times = self.time(table, "created"), self.time(table, "updated")
        title = " ".join(clean(title).split()) or "Untitled"
        return PortableChat(title, *times, model, system, params, turns, log, head, table.get("kv"))

    def parse(self, data: bytes) -> dict[str, Any]:
        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            table = dict(pairs)
            if len(table) != len(pairs):
                self.refuse("no name may be repeated", [key for key, _ in pairs][:8])
            if broken := [text for pair in pairs for text in pair if isinstance(text, str) and _SURROGATE.search(text)]:
                self.refuse("text must be whole characters", broken[0])
            return table

        try:
            table = json.loads(
                data.decode("utf-8"),
                object_pairs_hook=unique,
                parse_constant=lambda text: self.refuse("numbers must be finite", text),
            )
        except (ValueError, RecursionError) as error:
            self.refuse("it must be one JSON object in UTF-8", str(error))
        if not isinstance(table, dict):
            self.refuse("it must be one JSON object", type(table).__name__)
        return table

    def turns(self, found: Any) -> tuple[TurnRecord, ...]:
        if not isinstance(found, list) or len(found) > MAX_TURNS:
            count = len(found) if isinstance(found, list) else type(found).__name__
            self.refuse(f"`turns` must be a list of at most {MAX_TURNS:,}", count)
        out, num_ids = [], 0
        for i, turn in enumerate(found):
            if not isinstance(turn, dict):
                self.refuse(f"turn {i + 1} must be an object", turn)
            if turn.get("role") not in _ROLES or turn.get("state") not in _STATES:
                self.refuse(f"turn {i + 1} must be of {' or '.join(_ROLES)}, and {', '.join(_STATES)}",
                            (turn.get("role"), turn.get("state")))  # fmt: skip
            ids = turn.get("ids")
            if not isinstance(ids, list) or any(type(t) is not int or not 0 <= t < 1 << 31 for t in ids):
                self.refuse(f"the ids of turn {i + 1} must be whole numbers below 2^31", ids)
            num_ids += len(ids)
            if num_ids > MAX_IDS:
                self.refuse(f"there must be at most {MAX_IDS:,} ids", num_ids)
            start = turn.get("start")
            if type(start) is not int:
                self.refuse(f"`start` of turn {i + 1} must be a whole number", start)
            tables = [self.table(turn, key, f"turn {i + 1}") for key in ("params", "stats")]
            texts = [self.text(turn, key) for key in ("text", "thinking")]
            out.append(TurnRecord(turn["role"], texts[0], tuple(ids), start, texts[1], turn["state"], *tables))
        return tuple(out)

    def replayed(self, turns: tuple[TurnRecord, ...], system: str | None) -> tuple[tuple[int, ...], str]:
        """The token log and the head of the chain."""
        log: list[int] = []
        head = genesis(system)
        for i, turn in enumerate(turns):
            assert turn.start is not None
            if not 0 <= turn.start <= len(log):
                self.refuse(f"`start` of turn {i + 1} must be within the {len(log):,} tokens before it", turn.start)
            head = turn_digest(head, i, stored_fields(turn, turn.start), pack_ids(turn.ids).tobytes())
            del log[turn.start :]
            log += turn.ids
        return tuple(log), head

    def params(self, table: dict[str, Any]) -> dict[str, Any]:
        """What a resume will make a cache and a sampler of."""
        params = self.table(table, "params", "the chat")
        if unknown := params.keys() - {"cache", "sampling", "think"}:
            self.refuse("`params` must hold cache, sampling and think", sorted(unknown)[:8])
        if params.get("think") not in (None, True, False):
            self.refuse("`think` must be true, false or null", params["think"])
        cache, sampling = ({} if params.get(k) is None else params[k] for k in ("cache", "sampling"))
        try:
            CacheConfig.from_table(cache)
            SamplingParams.for_model({}, **sampling)
        except (ConfigError, TypeError, ValueError, AttributeError) as error:
            self.refuse("`params` must be what a cache and a sampler can be made of", str(error))
        return params

    def model(self, found: Any) -> ModelIdentity:
        if not isinstance(found, dict) or not isinstance(found.get("parts"), dict) or len(found["parts"]) > _MAX_PARTS:
            self.refuse(f"`model` must have a name and up to {_MAX_PARTS:,} parts", found)
        parts, name = found["parts"], self.text(found, "name", _MAX_NAME)
        if any(not isinstance(v, str) or max(len(k), len(v)) > _MAX_NAME for k, v in parts.items()):
            self.refuse("the model's parts must be short texts", list(parts)[:4])
        if clean(name) != name or not name.isprintable():
            self.refuse("the model's name must be printable", name)
        identity = ModelIdentity.of(name, parts)
        if (found.get("model_id"), found.get("template_id")) != (identity.model_id, identity.template_id):
            self.refuse("the model's ids must be the digests of its parts", found.get("model_id"))
        return identity

    def text(self, table: Mapping[str, Any], key: str, most: int | None = None) -> str:
        value = table.get(key)
        if not isinstance(value, str) or (most is not None and len(value) > most):
            self.refuse(f"`{key}` must be text" + (f" of at most {most:,} characters" if most else ""), value)
        return value

    def table(self, table: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
        value = table.get(key)
        if not isinstance(value, dict):
            self.refuse(f"`{key}` of {where} must be an object", value)
        return value

    def time(self, table: Mapping[str, Any], key: str) -> float:
        value = table.get(key)
        if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value < 1e11:  # type: ignore[arg-type]
            self.refuse(f"`{key}` must be UNIX seconds", value)
        return float(value)  # type: ignore[arg-type]
