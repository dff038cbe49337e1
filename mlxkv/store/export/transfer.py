"""Export a chat from the store to a file, and import one, with or without its KV rows.

Chunks are copied byte for byte. On import each is hashed again and its key computed from the ids, so that rows cannot
pass for those of other tokens. Whether their numbers are honest cannot be checked: hence the flag UNTRUSTED, which
stays with the session and its forks and keeps other chats from sharing the rows. On the thread that opened the store.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from mlxkv.errors import CorruptError, StoreError, shortened
from mlxkv.safetensors.header import read_header
from mlxkv.store.db.history import pack_ids, to_json
from mlxkv.store.db.imports import import_session, known_session
from mlxkv.store.db.sessions import Sessions
from mlxkv.store.export.archive import ArchiveFile, is_archive, read_archive, write_archive
from mlxkv.store.export.document import MAX_IDS, from_document, to_document
from mlxkv.store.files import pieces
from mlxkv.store.identity import digest_of
from mlxkv.store.kv.chunk_files import ChunkFiles
from mlxkv.store.kv.chunk_format import ChunkHead, EncodedChunk, prefix_keys, verify_chunk
from mlxkv.store.kv.commits import STATE, SavedChunk, saved_chunks, saved_commits, seed
from mlxkv.store.kv.save_plan import Plan
from mlxkv.store.kv.writer import Writer
from mlxkv.store.records import SessionRecord
from mlxkv.system.regular_file import opened, parse_json, read_bytes, reason

MAX_JSON = 256 << 20
_HEX = re.compile(r"[0-9a-f]{1,128}")
_GROUP = re.compile(r"[a-z0-9.]{1,64}")


@dataclass(frozen=True)
class Imported:
    """An imported chat: its new id, and in `notice` one sentence if its rows were requested but could not be used.

    `is_known`: nothing was imported, as this session has all of the chat's messages already.
    """

    session_id: str
    title: str
    model: str
    num_turns: int
    num_tokens: int
    kv_tokens: int = 0
    notice: str | None = None
    is_known: bool = False


def export_chat(sessions: Sessions, chunks: ChunkFiles, session_id: str, path: Path, with_kv: bool) -> int:
    """Write a session to `path` and return the file's size. Missing or damaged chunks are left out.

    Raises:
        StoreError: no such session, too large, or the disk refuses.
    """
    record = sessions.load(session_id)
    document = to_document(record)
    found: list[SavedChunk] = []
    if with_kv:
        document["kv"], found = _kv(sessions, chunks, session_id, record.model.model_id)
    parts = [(chunk.size, _bytes_of(chunks, chunk)) for chunk in found]
    return write_archive(path, to_json(document).encode(), parts)


def import_chat(sessions: Sessions, writer: Writer, path: Path, trust_kv: bool, skip_known: bool) -> Imported:
    """See SessionStore.import_chat."""
    chat, kv, file = read_chat(path)
    if skip_known and (known := known_session(sessions, chat)):
        return Imported(*known, chat.model.name, len(chat.turns), len(chat.log), is_known=True)
    session_id = import_session(sessions, chat)
    done = Imported(session_id, chat.title, chat.model.name, len(chat.turns), len(chat.log))
    if not trust_kv:
        return done
    try:
        if file is None:
            raise CorruptError(f"{path.name} holds no KV rows.")
        plan, heads = plan_of(replace(chat, id=session_id), kv, file)
        sessions.set_untrusted(session_id)  # before there are rows that others could share
        job = writer.submit(plan, encoded_of(file, heads))
        writer.wait(job)
        if job.failure is not None:
            raise job.failure
    except StoreError as error:
        return replace(done, notice=f"The chat was imported without its KV rows: {error}")
    return replace(done, kv_tokens=plan.pos)


def read_chat(path: Path) -> tuple[SessionRecord, Any, ArchiveFile | None]:
    """Read and validate a `.mlxkv` or `.json` file: the session, the description of its rows, and where those are.

    Raises:
        CorruptError: it breaks a rule. StoreError: it cannot be read.
    """
    if is_archive(path):
        file = read_archive(path)
        return *from_document(file.text, path.name), file
    try:
        return *from_document(read_bytes(path, MAX_JSON, follow=False), path.name), None
    except OSError as error:
        if error.errno == errno.EFBIG:
            text = f"{path.name} is over {MAX_JSON >> 20} MiB; a chat of text is not that large."
            raise CorruptError(text) from error
        raise StoreError(f"{shortened(path)} cannot be read ({reason(error)}); check the name.") from error


def plan_of(chat: SessionRecord, kv: Any, file: ArchiveFile) -> tuple[Plan, list[ChunkHead]]:
    """The save plan for the file's rows, described by `kv`, and which rows each of its chunks holds.

    Raises:
        CorruptError: the description does not fit the token ids, or breaks a rule.
    """
    refuse = f"The KV rows in {file.path.name} cannot be used"
    if not isinstance(kv, dict) or not isinstance(kv.get("spec"), dict) or not isinstance(kv.get("chunks"), list):
        raise CorruptError(f"{refuse}: there are none.")
    spec, rows = kv["spec"], kv["chunks"]
    if any(not isinstance(v, str) for v in spec.values()) or len(spec) > 1 << 16 or len(rows) != len(file.chunks):
        raise CorruptError(f"{refuse}: their description is malformed.")
    spec_id = digest_of("spec", spec)
    heads = []
    for row in rows:
        fits = isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and _GROUP.fullmatch(row[0])
        if not fits or any(type(n) is not int for n in row[1:]) or not 0 <= row[1] < row[2] <= len(chat.log):
            raise CorruptError(f"{refuse}: a chunk claims to hold {ascii(row)[:80]} of {len(chat.log):,} tokens.")
        heads.append(tuple(row))
    pos, rng = kv.get("pos"), kv.get("rng")
    if type(pos) is not int or not 0 < pos <= len(chat.log) or pos > MAX_IDS:
        raise CorruptError(f"{refuse}: they claim to end at {ascii(pos)[:80]} of {len(chat.log):,} tokens.")
    if rng is not None and not (isinstance(rng, str) and _HEX.fullmatch(rng) and len(rng) % 2 == 0):
        raise CorruptError(f"{refuse}: the sampler's state is {ascii(rng)[:80]}.")
    log, keyed = pack_ids(chat.log), {}
    for group in {group for group, _, _ in heads}:
        ranges = {(a, b) for g, a, b in heads if g == group}
        keyed[group] = prefix_keys(log, seed(chat.model.model_id, spec_id, group), ranges)
    found = [ChunkHead(group, a, b, keyed[group][a, b]) for group, a, b in heads]
    plan = Plan(chat.id, pos, chat.head, chat.model, spec_id, spec, bytes.fromhex(rng) if rng else None,
                tuple(found), {}, kept_states=frozenset(b for group, _, b in heads if group == STATE))  # fmt: skip
    return plan, found


def encoded_of(file: ArchiveFile, heads: list[ChunkHead]) -> Iterator[EncodedChunk]:
    """The file's chunks, each a strict safetensors file whose metadata are those of its head.

    Raises:
        CorruptError: one is not.
    """
    for n, head in enumerate(heads):
        data = file.chunk(n)
        header = read_header(data, name=f"Chunk {n} of {file.path.name}")
        if header.metadata != head.metadata():
            raise CorruptError(f"Chunk {n} of {file.path.name} holds rows of other tokens than this chat has.")
        yield EncodedChunk(head, data, xxhash.xxh3_128_hexdigest(data), len(data))


def _kv(
    sessions: Sessions, chunks: ChunkFiles, session_id: str, model_id: str
) -> tuple[dict[str, Any] | None, list[SavedChunk]]:
    """The description of the newest commit's rows, and every intact chunk of its spec that fits the history."""
    with sessions.database.reading() as db:
        history = sessions.history(db, session_id)
        commits = [c for c in saved_commits(db, session_id, history) if c.model_id == model_id and c.valid == c.pos]
        if not commits:
            return None, []
        newest = max(commits, key=lambda c: (c.pos, c.id))
        mine = [c for c in commits if c.spec_id == newest.spec_id]
        saved = saved_chunks(db, mine, history)
        spec = parse_json(db.execute("SELECT json FROM spec WHERE id = ?", (newest.spec_id,)).fetchone()[0])
    log = history.log
    found = [c for c in saved if c.head.b <= len(log) and _is_intact(chunks, c)]
    keys = {
        group: prefix_keys(log, seed(model_id, newest.spec_id, group), {(c.head.a, c.head.b) for c in found})
        for group in {c.head.group for c in found}
    }
    found = [c for c in found if keys[c.head.group][c.head.a, c.head.b] == c.head.prefix_key]
    found.sort(key=lambda c: (c.head.group, c.head.a, c.head.b, c.digest))  # the same bytes wherever it is exported
    rng = None if newest.rng is None else newest.rng.hex()
    rows = [[c.head.group, c.head.a, c.head.b] for c in found]
    return {"pos": newest.pos, "rng": rng, "spec": spec, "chunks": rows}, found


def _is_intact(chunks: ChunkFiles, chunk: SavedChunk) -> bool:
    try:
        verify_chunk(chunks.path(chunk.digest), chunk.digest, chunk.size)
    except CorruptError:
        return False
    return True


def _bytes_of(chunks: ChunkFiles, chunk: SavedChunk) -> Iterator[bytes]:
    left = chunk.size
    with opened(chunks.path(chunk.digest), follow=False) as file:
        for data in pieces(file, chunk.size):
            left -= len(data)
            yield data
    if left:
        raise StoreError("A file of the KV cache vanished while the chat was exported; try again.")
