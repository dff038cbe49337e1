"""Chats that leave and come back: exactly what they were, and nothing of what a hostile file would like."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash

from mlxkv.config import Folders
from mlxkv.errors import CorruptError, StoreError
from mlxkv.safetensors.header import read_header
from mlxkv.safetensors.writer import encode_header
from mlxkv.store.export.archive import read_archive, write_archive
from mlxkv.store.export.document import from_document, to_document
from mlxkv.store.export.markdown import to_markdown
from mlxkv.store.records import SessionRecord, TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.store.fake import FakeCache, model
from tests.thorough import THOROUGH

SAID = [
    TurnRecord("user", "Why is the sky blue?", tuple(range(1, 21)), params={}, stats={}),
    TurnRecord("assistant", "Rayleigh.\n\n\x1b[31m|*é漢🦊", tuple(range(21, 51)), thinking="so\nlong",
               params={"temperature": 0.5}, stats={"ttft_s": 0.25, "finish_reason": "stop"}),
    TurnRecord("user", "more", (9, 8, 7), start=45),
    TurnRecord("assistant", "cut", tuple(range(100, 190)), state="stopped"),
]  # fmt: skip
PARAMS = {"cache": {"window": 64, "sinks": 4, "bits": None}, "sampling": {"temperature": 0.0}, "think": None}


def other(tmp_path: Path) -> Folders:
    """Another machine."""
    return Folders(*(tmp_path / "elsewhere" / name for name in ("config", "data", "cache", "state")))


@pytest.fixture
def store() -> Any:
    with SessionStore.open(Folders.from_env()) as opened:
        yield opened


def said(store: SessionStore, *, kv: bool = False) -> str:
    session_id = store.sessions.create("the sky", model(), system="be brief", params=PARAMS)
    cache = FakeCache(64)
    for turn in SAID:
        store.add_turn(session_id, turn)
    if kv:
        cache.feed(store.load(session_id).log)
        store.commit_kv(session_id, cache, model(), b"random")
    return session_id


def truth(record: SessionRecord) -> SessionRecord:
    """What must be the same everywhere."""
    return replace(record, id="", parent=None, forked_at=None, origin=None)


@pytest.mark.parametrize("form", ["json", "mlxkv"])
def test_a_chat_comes_back_exactly(store: SessionStore, tmp_path: Path, form: str) -> None:
    session_id, path = said(store, kv=True), tmp_path / f"chat.{form}"
    if form == "json":
        path.write_text(json.dumps(to_document(store.load(session_id))))
    else:
        assert store.export_chat(session_id, path) == path.stat().st_size
        assert path.stat().st_mode & 0o777 == 0o600
    with SessionStore.open(other(tmp_path)) as there:
        done = there.import_chat(path)
        found = there.load(done.session_id)
        assert truth(found) == truth(store.load(session_id))
        assert (done.num_turns, done.num_tokens, done.kv_tokens, done.notice) == (4, 138, 0, None)
        assert not there.list()[0].untrusted
        assert there.restore_kv(done.session_id, FakeCache(64), model(), found.log).tokens == 0
        again = there.import_chat(path)
        assert again.session_id != done.session_id


def test_what_is_here_already_is_skipped_and_what_differs_is_not(store: SessionStore, tmp_path: Path) -> None:
    """In the store that a chat comes from and in another one: only a chat whose messages are all there is known."""
    session_id, old, grown, empty = said(store), tmp_path / "old.mlxkv", tmp_path / "grown.mlxkv", tmp_path / "0.mlxkv"

    def known(there: SessionStore, path: Path) -> str | None:
        done = there.import_chat(path, skip_known=True)
        return done.session_id if done.is_known else None

    store.export_chat(session_id, old)
    store.add_turn(session_id, TurnRecord("user", "and now?", (7,)))
    store.export_chat(session_id, grown)
    store.export_chat(store.sessions.create("empty", model()), empty)
    assert [known(store, path) for path in (old, grown)] == [session_id] * 2
    with SessionStore.open(other(tmp_path)) as there:
        first = there.import_chat(old, skip_known=True)
        assert (first.is_known, known(there, old)) == (False, first.session_id)
        assert known(there, grown) is None  # it ends later: both are kept
        assert sorted(c.num_turns for c in there.list()) == [4, 5]
        assert known(there, old) in {c.id for c in there.list()}
        there.add_turn(first.session_id, TurnRecord("user", "another way", (8,)))
        assert known(there, grown) is not None
        assert known(there, old) is not None  # what was added here is none of its business
        for c in there.list():
            there.delete(c.id)
        assert known(there, old) is None
        assert known(there, empty) is None
        assert known(there, empty) is not None
        assert there.verify().problems == ()


def test_trusted_rows_come_along_with_a_badge_that_stays(store: SessionStore, tmp_path: Path) -> None:
    session_id, path = said(store, kv=True), tmp_path / "chat.mlxkv"
    store.export_chat(session_id, path)
    expected = FakeCache(64)
    log = store.load(session_id).log
    assert store.restore_kv(session_id, expected, model(), log).tokens == len(log)
    with SessionStore.open(other(tmp_path)) as there:
        done = there.import_chat(path, trust_kv=True)
        assert (done.kv_tokens, done.notice) == (len(log), None)
        cache = FakeCache(64)
        back = there.restore_kv(done.session_id, cache, model(), log)
        assert (back.tokens, back.rng, back.notice) == (len(log), b"random", None)
        assert cache.state() == expected.state()
        fork = there.fork(done.session_id, 2)
        there.sessions.rename(done.session_id, "mine")
        assert {c.id: c.untrusted for c in there.list()} == {done.session_id: True, fork: True}
    with SessionStore.open(other(tmp_path)) as there:
        assert all(c.untrusted for c in there.list())


def test_untrusted_rows_are_not_shared_with_other_chats(store: SessionStore, tmp_path: Path) -> None:
    """Rows made by somebody else must not reach a chat that did not ask for them; the same rows of our own do."""
    path = tmp_path / "chat.mlxkv"
    store.export_chat(said(store, kv=True), path)
    log = [*store.load(store.list()[0].id).log]
    for trust_own, folder in ((False, "a"), (True, "b")):
        with SessionStore.open(other(tmp_path / folder)) as there:
            there.import_chat(path, trust_kv=True)
            if trust_own:
                said(there, kv=True)
            mine = there.sessions.create("new", model())
            there.add_turn(mine, TurnRecord("user", "same words", tuple(log)))
            found = there.restore_kv(mine, FakeCache(64), model(), log).tokens
            assert (found > 0) is trust_own


def test_markdown_is_for_people(store: SessionStore) -> None:
    assert to_markdown(store.load(said(store))) == (
        "# the sky\n\nfake · 138 tokens\n\n## system\n\nbe brief\n\n## user\n\nWhy is the sky blue?\n\n## assistant\n\n"
        "> so\n> long\n\nRayleigh.\n\n␛[31m|*é漢🦊\n\n## user\n\nmore\n\n## assistant\n\ncut …\n"
    )


def test_emoji_stay_joined_in_a_file_and_nothing_else_hides_in_it(store: SessionStore) -> None:
    """A family came out of an exported file as four people."""
    family, heart = "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u2764\ufe0f\u200d\U0001f525"
    hidden = ["a\u200db", "\u202eright to left", "\U0001f468\u200d\u200dx", "\u2066\ufeff\U000e0041", "\x1b[2J"]
    chat = store.sessions.create(family, model(), system=heart)
    store.add_turn(chat, TurnRecord("user", " ".join([family, heart, *hidden]), (1,), thinking=family))
    file, screen = (to_markdown(store.load(chat), joined=joined) for joined in (True, False))
    assert (file.count(family), file.count(heart)) == (3, 2)
    assert file.count("\u200d") == 3 * 2 + 2 + 1  # the first joiner after the man, and none more
    assert not set(file) & set("\x1b\u202e\u2066\ufeff\U000e0041")
    assert "\u200d" not in screen


def test_a_damaged_chunk_stays_behind_and_the_rest_goes(store: SessionStore, tmp_path: Path) -> None:
    session_id, path = said(store, kv=True), tmp_path / "chat.mlxkv"
    store.export_chat(session_id, path)
    whole = len(read_archive(path).chunks)
    assert whole > 1
    chunk = next((Folders.from_env().cache / "kv").glob("??/*.safetensors"))
    chunk.write_bytes(b"\0" * chunk.stat().st_size)
    store.export_chat(session_id, path)
    assert len(read_archive(path).chunks) == whole - 1
    with SessionStore.open(other(tmp_path)) as there:
        done = there.import_chat(path, trust_kv=True)
        assert there.load(done.session_id).log == store.load(session_id).log


# -- hostile files ---------------------------------------------------------------------------------------------------


def put(path: tuple[Any, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        at: Any = document
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return change


DOCUMENTS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (
        put(("format",), "mlxkv chat 3"),
        "was written by a newer mlxkv .mlxkv chat 3, this one knows mlxkv chat 2.; update",
    ),
    (put(("format",), "mlxkv chat x"), "`format` must be"),
    (put(("format",), None), "`format` must be"),
    (put(("title",), "x" * 70_000), "`title` must be text"),
    (put(("title",), None), "`title` must be text"),
    (put(("system",), 7), "`system` must be text"),
    (put(("created",), float("1e300")), "UNIX seconds"),
    (put(("updated",), True), "UNIX seconds"),
    (put(("head",), "0" * 32), "changed after it was exported: its conversation"),
    (put(("turns",), {}), "`turns` must be a list"),
    (put(("turns", 0), "hi"), "turn 1 must be an object"),
    (put(("turns", 0, "text"), "another text"), "changed after it was exported: its conversation"),
    (put(("turns", 0, "ids", 3), 99), "changed after it was exported: its conversation"),
    (put(("turns", 1, "role"), "system"), "of turn 2 must be user or assistant or tool"),
    (put(("turns", 1, "state"), "later"), "of turn 2 must be user or assistant or tool"),
    (put(("turns", 1, "ids"), [1, -1]), "whole numbers below"),
    (put(("turns", 1, "ids"), [1 << 31]), "whole numbers below"),
    (put(("turns", 1, "ids"), [1.0]), "whole numbers below"),
    (put(("turns", 1, "ids"), [True]), "whole numbers below"),
    (put(("turns", 1, "ids"), "123"), "whole numbers below"),
    (put(("turns", 1, "start"), -1), "within the 20 tokens"),
    (put(("turns", 1, "start"), 1 << 40), "within the 20 tokens"),
    (put(("turns", 1, "start"), None), "must be a whole number"),
    (put(("turns", 1, "stats"), []), "must be an object"),
    (put(("turns", 1, "thinking"), 3), "`thinking` must be text"),
    (put(("params", "cache", "window"), 1 << 60), "cache and a sampler"),
    (put(("params", "cache"), "x"), "cache and a sampler"),
    (put(("params", "sampling", "temperature"), "hot"), "cache and a sampler"),
    (put(("params", "sampling"), {"no_such": 1}), "cache and a sampler"),
    (put(("params", "think"), "yes"), "true, false or null"),
    (put(("params", "evil"), 1), "must hold cache, sampling, think, pinned and tools"),
    (put(("params", "pinned"), -1), "number of tokens"),
    (put(("params", "pinned"), True), "number of tokens"),
    (put(("params", "pinned"), 1 << 40), "number of tokens"),
    (put(("kind",), "file"), "`kind` must be chat or run or endpoint"),
    (put(("kind",), []), "`kind` must be chat or run or endpoint"),
    (put(("clock",), "yesterday"), "`clock` must be a local time"),
    (put(("clock",), "2026-13-29T23:58:12+01:00"), "`clock` must be a local time"),
    (put(("clock",), "0001-01-01T00:00:00+23:59"), "`clock` must be a local time"),
    (put(("clock",), "2026-11-29T23:58:12+01:00\n"), "`clock` must be a local time"),
    (put(("clock",), 7), "`clock` must be a local time"),
    (put(("seed",), -1), "`seed` must be a whole number"),
    (put(("seed",), 1 << 63), "`seed` must be a whole number"),
    (put(("seed",), True), "`seed` must be a whole number"),
    (put(("settings",), []), "`settings` of the chat must be an object"),
    (put(("settings",), {"../x": 1}), "lower-case letters, digits and _"),
    (put(("settings",), {"temp": {"a": 1}}), "the setting temp must be"),
    (put(("settings",), {"temp": [[1]]}), "the setting temp must be"),
    (put(("settings",), {f"s{n}": 1 for n in range(300)}), "at most 256"),
    (put(("preset",), 3), "`preset` must be text"),
    (put(("origin",), "x" * 2000), "`origin` must be text"),
    (put(("turns", 1, "tool_calls"), []), "`tool_calls` of turn 2 must be a list"),
    (put(("turns", 1, "tool_calls"), "x"), "`tool_calls` of turn 2 must be a list"),
    (put(("turns", 1, "tool_calls"), [{"name": "f"}]), "must have arguments, id, name"),
    (put(("turns", 1, "tool_calls"), [{"name": 1, "arguments": "", "id": ""}]), "`name` must be text"),
    (put(("turns", 1, "tool_calls"), [{"name": "f", "arguments": {}, "id": ""}]), "`arguments` must be text"),
    (
        put(("turns", 1, "tool_calls"), [{"name": "f", "arguments": "{}", "id": "1"}]),
        "changed after it was exported: its conversation",
    ),
    (put(("turns", 1, "tool_call_id"), 7), "`tool_call_id` must be text"),
    (put(("turns", 0, "attachments"), [{"name": "a", "media_type": "b", "start": 0, "end": 21}]), "within its 20"),
    (put(("turns", 0, "attachments"), [{"name": "a", "media_type": "b", "start": 3, "end": 2}]), "within its 20"),
    (put(("turns", 0, "attachments"), [{"name": "a", "media_type": "b", "start": 0.0, "end": 2}]), "within its 20"),
    (
        put(("turns", 0, "attachments"), [{"name": None, "media_type": "b", "start": 0, "end": 2}]),
        "`name` must be text",
    ),
    (
        put(("turns", 0, "attachments"), [{"name": "a", "media_type": "b", "start": 0, "end": 2}]),
        "changed after it was exported: its conversation",
    ),
    (put(("model", "name"), "evil\x1b[2J"), "must be printable"),
    (put(("model", "model_id"), "0" * 64), "changed after it was exported: the description of its model"),
    (put(("model", "parts", "config.hidden"), "9"), "changed after it was exported: the description of its model"),
    (put(("model", "parts"), {str(i): "" for i in range(5000)}), "up to 4,096 parts"),
    (put(("model",), None), "`model` must have"),
    (put(("system",), "\ud800"), "valid Unicode"),
    (put(("model", "parts", "config.hidden"), "\ud800"), "valid Unicode"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "why"), DOCUMENTS)
def test_hostile_documents_are_refused_in_one_sentence(store: SessionStore, change: Any, why: str) -> None:
    document = json.loads(json.dumps(to_document(store.load(said(store)))))
    change(document)
    with pytest.raises(CorruptError, match=why) as caught:
        from_document(json.dumps(document).encode(), "chat.json")
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 300
    assert re.search("[0-9a-f]{32}", text) is None, "a digest says nothing to anyone"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"null", b"{", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff\xfe{}", b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptError):
        from_document(data, "chat.json")


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in _places(item, (*path, key)))]


@pytest.mark.slow
def test_documents_with_any_value_changed_are_refused_or_harmless(store: SessionStore) -> None:
    rng, count = random.Random(7), 100_000 if THOROUGH else 500
    text = json.dumps(to_document(store.load(said(store))))
    values: list[Any] = [None, True, 0, -1, 1 << 70, 1.5, "x", [], {}, [[]], {"a": 1}, "\ud800"]
    refused, sentences = 0, list[str]()
    for _ in range(count):
        document = json.loads(text)
        put(rng.choice(_places(document)[1:]), rng.choice(values))(document)
        try:
            from_document(json.dumps(document).encode(), "chat.json")
        except CorruptError as error:
            refused += 1
            sentences.append(str(error))
    print(f"{refused} of {count} changed documents refused, the others equal or dated otherwise")
    assert refused > count * 0.8
    assert not any("\n" in text for text in sentences)


def archives(folder: Path) -> list[Path]:
    """Archives of other kinds, with all they can do: paths upwards, links, bombs, a thousand entries."""
    tar, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        for name, kind in (("../../evil", tarfile.REGTYPE), ("/etc/evil", tarfile.REGTYPE), ("l", tarfile.SYMTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../evil", b"\0" * 10_000_000)
        for n in range(1000):
            file.writestr(str(n), b"")
    files = {"a.tar": tar.getvalue(), "b.zip": zipped.getvalue(), "c.gz": gzip.compress(b"\0" * 10_000_000)}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


def rebuilt(
    path: Path, names: list[str], text: bytes, chunk: bytes = b"", metadata: dict[str, str] | None = None
) -> Path:
    """A file with these tensors and a checksum that is right."""
    parts = {name: {"chat": text, "xxh3": b"\0" * 16}.get(name, chunk) for name in names}
    head = encode_header([(n, "U8", (len(d),), len(d)) for n, d in parts.items()], metadata or {"mlxkv": "chat 1"})
    data = head + b"".join(parts[n] for n in sorted(parts))
    path.write_bytes(data[:-16] + xxhash.xxh3_128_digest(data[:-16]))
    return path


@pytest.mark.slow
def test_hostile_files_are_refused_and_leave_nothing(store: SessionStore, tmp_path: Path) -> None:
    good = tmp_path / "good.mlxkv"
    session_id = said(store, kv=True)
    store.export_chat(session_id, good)
    raw, text = good.read_bytes(), read_archive(good).text
    start = read_header(good).data_start
    hostile = archives(tmp_path)
    for name, data in {
        "flipped-text": raw[: start + 40] + b"!" + raw[start + 41 :],
        "flipped-chunk": raw[:-400] + bytes([raw[-400] ^ 1]) + raw[-399:],
        "flipped-sum": raw[:-1] + bytes([raw[-1] ^ 1]),
        "cut": raw[:-1],
        "longer": raw + b"\0",
        "header": (1 << 40).to_bytes(8, "little") + raw[8:],
        "empty": b"",
        "pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix.",
    }.items():
        (tmp_path / name).write_bytes(data)
        hostile.append(tmp_path / name)
    hostile += [
        rebuilt(tmp_path / "names", ["chat", "chunk.00001", "xxh3"], text),
        rebuilt(tmp_path / "path", ["chat", "etc.passwd", "xxh3"], text),
        rebuilt(tmp_path / "nochat", ["chunk.00000", "xxh3"], text),
        rebuilt(tmp_path / "other", ["chat", "xxh3"], text, metadata={"mlxkv": "chat 2"}),
        rebuilt(tmp_path / "none", ["chat", "xxh3"], text, metadata={"mlxkv": "x"}),
        rebuilt(tmp_path / "json", ["chat", "xxh3"], b'{"format": 1}'),
    ]
    (tmp_path / "link").symlink_to(good)
    os.mkfifo(tmp_path / "pipe")
    hostile += [tmp_path / "link", tmp_path / "pipe", tmp_path / "nothing", tmp_path]
    before = store.list()
    for path in hostile:
        for trust in (False, True):
            with pytest.raises(StoreError) as caught:
                store.import_chat(path, trust_kv=trust)
            assert "\n" not in str(caught.value), path
    assert store.list() == before
    assert not (tmp_path.parent / "evil").exists()
    print(f"{len(hostile)} hostile files and {len(DOCUMENTS) + 9} hostile documents refused")


def kv(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda found: found.update(changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (kv(pos=1 << 40), "claim to end"),
        (kv(pos=0), "claim to end"),
        (kv(rng="zz"), "sampler's state"),
        (kv(rng=7), "sampler's state"),
        (kv(spec=[]), "there are none"),
        (kv(spec={"a": 1}), "malformed"),
        (kv(chunks=[]), "malformed"),
        (lambda found: found["chunks"].__setitem__(0, ["../x", 0, 4]), "claims to hold"),
        (lambda found: found["chunks"].__setitem__(0, ["full", 4, 4]), "claims to hold"),
        (lambda found: found["chunks"].__setitem__(0, ["full", 0, 1 << 40]), "claims to hold"),
        (lambda found: found["chunks"].reverse(), "rows of other tokens"),
        (lambda found: found["spec"].update(sinks="9"), "rows of other tokens"),
    ],
)
def test_rows_that_are_not_what_they_are_said_to_be_are_left_out(
    store: SessionStore, tmp_path: Path, change: Any, why: str
) -> None:
    """The chat itself is sound, so it comes in, and one sentence says what did not."""
    path = tmp_path / "chat.mlxkv"
    store.export_chat(said(store, kv=True), path)
    file = read_archive(path)
    document = json.loads(file.text)
    change(document["kv"])
    chunks = [file.chunk(n) for n in range(len(file.chunks))]
    write_archive(tmp_path / "hostile.mlxkv", json.dumps(document).encode(), [(len(c), [c]) for c in chunks])
    with SessionStore.open(other(tmp_path)) as there:
        done = there.import_chat(tmp_path / "hostile.mlxkv", trust_kv=True)
        assert done.notice is not None
        assert why in done.notice
        assert done.kv_tokens == 0
        log = there.load(done.session_id).log
        assert there.restore_kv(done.session_id, FakeCache(64), model(), log).tokens == 0


def test_a_failed_export_keeps_the_old_file(store: SessionStore, tmp_path: Path) -> None:
    path = tmp_path / "chat.mlxkv"
    store.export_chat(said(store), path)
    good = path.read_bytes()

    def full(step: str) -> None:
        if step == "fsync":
            raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space"):
        write_archive(path, b"{}", [], full)
    assert path.read_bytes() == good
    with pytest.raises(StoreError, match="does not exist"):
        write_archive(tmp_path / "no" / "x", b"{}", [])
