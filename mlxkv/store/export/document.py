"""A session as a JSON document and back; validates documents from elsewhere. No files, no SQL. Any thread.

Every violation raises CorruptError with the rule and the value found. Digests are computed, never trusted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NoReturn

from mlxkv.cache.config import CacheConfig
from mlxkv.errors import ConfigError, CorruptError, escaped
from mlxkv.inference.sampling import SamplingParams
from mlxkv.store.db.history import extra_fields, genesis, pack_ids, stored_fields, turn_digest
from mlxkv.store.identity import ModelIdentity
from mlxkv.store.records import (
    KINDS,
    MAX_TITLE,
    Attachment,
    Kind,
    SessionRecord,
    ToolCall,
    TurnRecord,
    TurnState,
    as_time,
    is_clock,
    is_seed,
)
from mlxkv.system.regular_file import parse_integer, reason
from mlxkv.text.clean import MARK, clean

FORMAT = "mlxkv chat 2"
_AS_STORED = ("title", "kind", "created", "updated", "system", "clock", "seed", "preset", "head")
_FORMATS = ("mlxkv chat 1", FORMAT)
_NEWER = re.compile(r"mlxkv chat [0-9]{1,9}")
MAX_TURNS = 100_000
MAX_IDS = 1 << 26
_MAX_NAME = 1024
_MAX_PARTS = 4096
_SURROGATE = re.compile("[\ud800-\udfff]")
_STATES = tuple(TurnState)
_ROLES = ("user", "assistant", "tool")
_SETTING = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MAX_SETTINGS = 256
_MAX_EXTRA = 1024  # tool calls or attachments of one turn


def to_document(record: SessionRecord) -> dict[str, Any]:
    """Everything about a session as JSON values; times are UNIX seconds. `origin` identifies a chat that is imported
    twice: its source, else this session."""
    return {
        "format": FORMAT,
        **{name: getattr(record, name) for name in _AS_STORED},
        "origin": record.origin or f"mlxkv:{record.id}",
        "model": asdict(record.model) | {"name": _printable(record.model.name)},
        "params": dict(record.params),
        "settings": dict(record.settings),
        "turns": [
            {
                "role": t.role, "text": t.text, "thinking": t.thinking, "state": t.state, "start": t.start,
                "ids": list(t.ids), "params": dict(t.params), "stats": dict(t.stats),
                **extra_fields(t),
            }
            for t in record.turns
        ],
    }  # fmt: skip


def _printable(name: str) -> str:
    """A model's name as documents allow it: an importing mlxkv shows it and looks it up."""
    return "".join(c if c.isprintable() else MARK for c in clean(name))[-_MAX_NAME:]


def from_document(data: bytes, file: str) -> tuple[SessionRecord, Any]:
    """Parse and validate a document: a session without an id, and the unchecked description of its KV rows.

    Raises:
        CorruptError: one sentence with the rule that it breaks.
    """
    return _Reader(file).chat(data)


class _Reader:
    def __init__(self, file: str) -> None:
        self.file = file

    def refuse(self, rule: str, found: object) -> NoReturn:
        raise CorruptError(f"{self.file} is not a chat that can be imported: {rule}, found {escaped(found)}.")

    def changed(self, what: str) -> NoReturn:
        raise CorruptError(
            f"{self.file} was changed after it was exported: {what} does not fit its checksum; import the file as it "
            "was exported."
        )

    def chat(self, data: bytes) -> tuple[SessionRecord, Any]:
        table = self.parse(data)
        form = table.get("format")
        if form not in _FORMATS:
            if isinstance(form, str) and _NEWER.fullmatch(form):
                raise CorruptError(
                    f"{self.file} was written by a newer mlxkv ({form}, this one knows {FORMAT}); update mlxkv."
                )
            self.refuse(f"`format` must be {FORMAT!r}", form)
        title, system = self.text(table, "title", MAX_TITLE), table.get("system")
        if system is not None:
            system = self.text(table, "system")
        turns = self.turns(table.get("turns"))
        log, head = self.replayed(turns, system)
        if table.get("head") != head:
            self.changed("its conversation")
        params = self.params(table)
        model = self.model(table.get("model"))
        times = self.time(table, "created"), self.time(table, "updated")
        more = self.fields_of_2(table) if form == FORMAT else {}
        record = SessionRecord("", title, *times, model, system, params, None, None, turns, log, head, **more)
        return record, table.get("kv")

    def fields_of_2(self, table: dict[str, Any]) -> dict[str, Any]:
        """The fields that "mlxkv chat 1" lacks."""
        kind, clock, seed = (table.get(key) for key in ("kind", "clock", "seed"))
        if kind not in KINDS:
            self.refuse(f"`kind` must be {' or '.join(KINDS)}", kind)
        if not (clock is None or is_clock(clock)):
            self.refuse("`clock` must be a local time with its offset, to the second, or null", clock)
        if not (seed is None or is_seed(seed)):
            self.refuse("`seed` must be a whole number below 2^63 or null", seed)
        names = {
            key: self.text(table, key, _MAX_NAME) or None for key in ("preset", "origin") if table.get(key) is not None
        }
        return {"kind": Kind(kind), "clock": clock, "seed": seed, "settings": self.settings(table), **names}

    def settings(self, table: dict[str, Any]) -> dict[str, Any]:
        settings = self.table(table, "settings", "the chat")
        if len(settings) > _MAX_SETTINGS:
            self.refuse(f"`settings` must have at most {_MAX_SETTINGS} entries", len(settings))
        for name, value in settings.items():
            if not _SETTING.fullmatch(name):
                self.refuse("the names of `settings` must be lower-case letters, digits and _", name)
            items = value if isinstance(value, list) else [value]
            if any(not isinstance(item, str | int | float | None) for item in items):
                self.refuse(f"the setting {name} must be text, a number, true, false, null or a list of these", value)
        return settings

    def parse(self, data: bytes) -> dict[str, Any]:
        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            table = dict(pairs)
            if len(table) != len(pairs):
                self.refuse("no name may be repeated", [key for key, _ in pairs][:8])
            if broken := [text for pair in pairs for text in pair if isinstance(text, str) and _SURROGATE.search(text)]:
                self.refuse("text must be valid Unicode", broken[0])
            return table

        try:
            table = json.loads(
                data.decode("utf-8-sig"),
                object_pairs_hook=unique,
                parse_int=parse_integer,
                parse_constant=lambda text: self.refuse("numbers must be finite", text),
            )
        except (ValueError, RecursionError) as error:
            self.refuse("it must be one JSON object in UTF-8", reason(error))
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
                self.refuse(f"`role` of turn {i + 1} must be {' or '.join(_ROLES)}, and `state` {' or '.join(_STATES)}",
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
            params, stats = (self.table(turn, key, f"turn {i + 1}") for key in ("params", "stats"))
            text, thinking = (self.text(turn, key) for key in ("text", "thinking"))
            extra = self.extra(turn, f"turn {i + 1}", len(text))
            out.append(
                TurnRecord(turn["role"], text, tuple(ids), start, thinking, turn["state"], params, stats, **extra)
            )
        return tuple(out)

    def extra(self, turn: dict[str, Any], where: str, length: int) -> dict[str, Any]:
        """Tool calls and attachments of a turn of `length` characters."""
        out: dict[str, Any] = {}
        if "tool_call_id" in turn:
            out["tool_call_id"] = self.text(turn, "tool_call_id", _MAX_NAME)
        if "tool_calls" in turn:
            calls = self.items(turn, "tool_calls", {"id", "name", "arguments"}, where)
            for call in calls:
                self.text(call, "arguments")
                self.check_names(call, "name", "id")
            out["tool_calls"] = tuple(ToolCall(**call) for call in calls)
        if "attachments" in turn:
            files = self.items(turn, "attachments", {"name", "media_type", "start", "end"}, where)
            for file in files:
                start, end = file["start"], file["end"]
                if type(start) is not int or type(end) is not int or not 0 <= start <= end <= length:
                    self.refuse(f"an attachment of {where} must be within its {length:,} characters", (start, end))
                self.check_names(file, "name", "media_type")
            out["attachments"] = tuple(Attachment(**file) for file in files)
        return out

    def check_names(self, table: Mapping[str, Any], *keys: str) -> None:
        for key in keys:
            self.text(table, key, _MAX_NAME)

    def items(self, turn: dict[str, Any], key: str, names: set[str], where: str) -> list[dict[str, Any]]:
        found = turn[key]
        if not isinstance(found, list) or not 0 < len(found) <= _MAX_EXTRA:
            self.refuse(f"`{key}` of {where} must be a list of up to {_MAX_EXTRA:,}", found)
        for item in found:
            if not isinstance(item, dict) or item.keys() != names:
                self.refuse(f"each of `{key}` of {where} must have {', '.join(sorted(names))}", item)
        return found

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
        """The parameters of the cache and the sampler, as a resume needs them."""
        params = self.table(table, "params", "the chat")
        if unknown := params.keys() - {"cache", "sampling", "think", "pinned", "tools"}:
            self.refuse("`params` must hold cache, sampling, think, pinned and tools", sorted(unknown)[:8])
        tools = params.get("tools", [])
        if not isinstance(tools, list) or len(tools) > _MAX_EXTRA or not all(isinstance(t, dict) for t in tools):
            self.refuse(f"`tools` must be a list of up to {_MAX_EXTRA:,} objects", tools)
        if params.get("think") not in (None, True, False):
            self.refuse("`think` must be true, false or null", params["think"])
        if type(pinned := params.get("pinned", 0)) is not int or not 0 <= pinned <= MAX_IDS:
            self.refuse("`pinned` must be a number of tokens", pinned)
        cache, sampling = ({} if params.get(k) is None else params[k] for k in ("cache", "sampling"))
        try:
            CacheConfig.from_table(cache)
            SamplingParams.for_model({}, **sampling)
        except (ConfigError, TypeError, ValueError, AttributeError) as error:
            self.refuse("`params` must be valid for a cache and a sampler", str(error))
        return params

    def model(self, found: Any) -> ModelIdentity:
        if not isinstance(found, dict) or not isinstance(found.get("parts"), dict) or len(found["parts"]) > _MAX_PARTS:
            num_parts = (
                len(found["parts"]) if isinstance(found, dict) and isinstance(found.get("parts"), dict) else None
            )
            self.refuse(f"`model` must have a name and up to {_MAX_PARTS:,} parts", num_parts)
        parts, name = found["parts"], self.text(found, "name", _MAX_NAME)
        if any(not isinstance(v, str) or max(len(k), len(v)) > _MAX_NAME for k, v in parts.items()):
            self.refuse("the model's parts must be short texts", list(parts)[:4])
        if clean(name) != name or not name.isprintable():
            self.refuse("the model's name must be printable", name)
        identity = ModelIdentity.of(name, parts)
        if (found.get("model_id"), found.get("template_id")) != (identity.model_id, identity.template_id):
            self.changed("the description of its model")
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
        if type(value) not in (int, float) or as_time(value) != value:
            self.refuse(f"`{key}` must be UNIX seconds", value)
        return as_time(value)
