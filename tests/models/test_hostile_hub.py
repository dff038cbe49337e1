"""A hub that lies, one row a case: what it does, and the sentence that comes of it; None where it does no harm.

After each: nothing outside the repository's folder, no more bytes than were announced, nothing that counts as ready,
and the honest hub's download goes through.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mlxkv.errors import ModelDownloadError, ModelError
from mlxkv.models import Hub, download, list_local, plan_download
from mlxkv.models.hub import fetch
from mlxkv.models.hub.blob import partial_path
from mlxkv.models.hub.fetch import redirected
from mlxkv.models.hub.hub import find_local
from tests.fakes_hub import COMMIT, FakeHub, Handler, serve
from tests.safetensors_files import encode

Rule = Callable[[Handler, str], bool]
REPO, WEIGHTS = "org/model", "model.safetensors"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    WEIGHTS: encode({"w": ("U8", (1000,), bytes(1000))}, {}),
}
EVIL = "../../../PWNED"


def send(part: str, body: bytes, status: int = 200, *, endless: bool = False, **headers: str) -> Rule:
    """Answer requests with `part` in their path; `endless`: the body again and again, its length unsaid."""

    def rule(handler: Handler, path: str) -> bool:
        if part not in path:
            return False
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        if endless:
            handler.close_connection = True
            handler.send_header("Connection", "close")
        else:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        with suppress(OSError):
            handler.wfile.write(body if handler.command == "GET" else b"")
            while endless and handler.command == "GET":
                handler.wfile.write(body)
        return True

    return rule


def info(**changes: object) -> Rule:
    return send("/api/models/org/model", json.dumps({"id": REPO, **changes}).encode())


def commit(value: object) -> Rule:
    answer = info(sha=value)
    return lambda handler, path: "/tree/" not in path and answer(handler, path)


def tree(change: Callable[[list[dict[str, Any]]], object]) -> Rule:
    """Send the list of files as `change` makes it, or as it leaves it."""

    def rule(handler: Handler, path: str) -> bool:
        files: Any = handler.fake.tree()
        changed = change(files)
        return send("/tree/", json.dumps(files if changed is None else changed).encode())(handler, path)

    return rule


def config(**changes: object) -> Rule:
    """Change what the list says of config.json."""
    return tree(lambda files: files[0].update(changes))


def called(*paths: str) -> Rule:
    """More files, whose content is right and whose paths are these."""
    return tree(lambda files: files.extend([{**files[1], "path": path} for path in paths]))


def header(part: str, **headers: str) -> Rule:
    return send(part, FILES[part], 200, endless=False, **headers)


def to(target: str) -> Rule:
    return send("config.json", b"", 302, Location=target)


def pages(body: bytes, url: Callable[[int], str]) -> Rule:
    """A list of pages of `body`; `url` is the next after so many."""
    seen: list[str] = []

    def rule(handler: Handler, path: str) -> bool:
        seen.append(path)
        return send("/tree/", body, Link=f'<{url(len(seen))}>; rel="next"')(handler, path)

    return rule


def silent(part: str, first: bytes = b"", drip: bytes = b"") -> Rule:
    """Send `first`, then nothing, or `drip` over and over."""

    def rule(handler: Handler, path: str) -> bool:
        if part not in path:
            return False
        with suppress(OSError):
            handler.wfile.write(first)
            while not handler.fake.over.wait(0.02 if drip else 60):
                handler.wfile.write(drip)
        handler.close_connection = True
        return True

    return rule


NONE, DEEP = "invalid", b"[" * 100_000
CASES: list[tuple[str, Rule, str | None]] = [
    # the commit
    ("a path for a commit", commit(EVIL), NONE),
    ("a path for a commit, everywhere", info(sha=EVIL), NONE),
    ("no commit", commit(""), NONE),
    ("null for a commit", commit(None), NONE),
    ("a number for a commit", commit(7), NONE),
    ("capitals in a commit", commit("C" * 40), NONE),
    ("a short commit", commit("c0ffee"), NONE),
    ("a commit that goes on", commit("c" * 65), NONE),
    ("a commit and a newline", commit("c" * 40 + "\n"), NONE),
    ("a list for an answer", send("/api/models/org/model", b"[]"), NONE),
    ("a path for a commit, with the file", header("config.json", X_Repo_Commit=EVIL, ETag='"a"'), None),
    # the hashes
    ("a path for an ETag", header("config.json", X_Repo_Commit=COMMIT, ETag=f'"{EVIL}"'), None),
    ("no ETag", header("config.json"), None),
    ("a path for a hash", config(oid=EVIL), NONE),
    ("no hash", config(oid=None), NONE),
    ("a hash of 41 digits", config(oid="a" * 41), NONE),
    ("a path for a large file's hash", config(lfs={"oid": EVIL, "size": 1}), NONE),
    ("git's hash for a large file", config(lfs={"oid": "a" * 40, "size": 1}), NONE),
    ("text for lfs", config(lfs=EVIL), NONE),
    ("the hash of something else", config(oid="a" * 40), "arrived damaged"),
    # sizes
    ("a negative size", config(size=-1), NONE),
    ("text for a size", config(size="7"), NONE),
    ("true for a size", config(size=True), NONE),
    ("a broken size", config(size=7.5), NONE),
    ("null for a size", config(size=None), NONE),
    ("a config of 50 GB", config(size=50_000_000_000), "too large for such a file"),
    ("weights larger than any disk", tree(lambda files: files[2].update(size=1 << 80)), "make room"),
    ("a small file longer than announced", send("config.json", bytes(5000)), "more bytes than it announced"),
    ("a small file without end", send("config.json", bytes(1 << 16), endless=True), "more bytes than it announced"),
    ("a large file without end", send(WEIGHTS, bytes(1 << 16), endless=True), "more bytes than it announced"),
    ("a small file shorter than announced", send("config.json", b"{}"), "breaks off at byte 2 of 23"),
    ("a small file of other content", send("config.json", b"x" * 23), "arrived damaged"),
    ("an answer packed", send("config.json", b"x" * 23, Content_Encoding="gzip"), "compresses answers"),
    # names
    ("a path up", called("../x.jinja"), "outside its folder"),
    ("a path up in the middle", called("tokenizer/../../x"), "outside its folder"),
    ("a path from the root", called("/etc/tokenizer.jinja"), "outside its folder"),
    ("a path from the root, made of nothing", called("//tokenizer.jinja"), "outside its folder"),
    ("a folder for a file", called("tokenizer/"), "outside its folder"),
    ("a dot", called("tokenizer/."), "outside its folder"),
    ("backslashes", called("..\\..\\x.json"), "outside its folder"),
    ("a drive", called("C:x.json"), "outside its folder"),
    ("a NUL", called("a\0.json"), "outside its folder"),
    ("an escape", called("\x1b[2J.json"), "outside its folder"),
    ("half a character", called("\ud800.json"), "outside its folder"),
    ("a name of 5,000 letters", called("a" * 5000 + ".json"), "outside its folder"),
    ("folders 1,000 deep", called("a/" * 1000 + "x.jinja"), "outside its folder"),
    ("the same name twice", called("config.json"), "same name on a Mac"),
    ("names that differ in case", called("Config.json"), "same name on a Mac"),
    ("names that differ in composition", called("\xe9.json", "e\u0301.json"), "same name on a Mac"),
    ("a file that is a folder too", called("tokenizer", "tokenizer/x"), "below a file"),
    ("a file that it lacks", tree(lambda f: f.append({**f[1], "path": "x.json", "oid": "a" * 40})), "that it lacks"),
    # lists and answers
    ("an object for the list", tree(lambda _: {}), "instead of a list"),
    ("text for the list", tree(lambda _: "x"), "instead of a list"),
    ("words for the files", tree(lambda _: ["config.json"]), "has no path"),
    ("a number for a path", config(path=7), "has no path"),
    ("a list for a path", config(path=["config.json"]), "has no path"),
    ("100,001 files", tree(lambda files: files + [{"path": "a"}] * 99_998), "more than 100,000 files"),
    ("pages without end", pages(b'[{"path": "a"}]', lambda n: f"?{n}"), "an endless one"),
    ("empty pages without end", pages(b"[]", lambda _: "?"), "an endless one"),
    ("a next page that is a file", pages(b"[]", lambda _: "file:///etc/passwd"), "not allowed"),
    ("a next page that is no address", pages(b"[]", lambda _: "http://[::1"), "."),
    ("lists in lists", send("/tree/", DEEP), "invalid JSON"),
    ("lists in lists for the commit", send("/api/models/org/model", DEEP), "invalid JSON"),
    ("no JSON", send("/tree/", b"<html>"), "invalid JSON"),
    ("no text", send("/tree/", b"\xff\xfe\x00"), "invalid JSON"),
    ("nothing", send("/tree/", b""), "invalid JSON"),
    ("a number of 5,000 digits", send("/tree/", b"[" + b"9" * 5000 + b"]"), "invalid JSON"),
    ("a list without end", send("/tree/", b" " * (1 << 20), endless=True), "more than 34 MB"),
    ("a commit without end", send("/api/models/org/model", b" " * (1 << 20), endless=True), "more than 34 MB"),
    ("words for HTTP", silent("/tree/", b"hello\r\n\r\n"), "cannot be reached"),
    ("a header without end", silent("/tree/", b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000), "cannot be reached"),
    ("an escape in the error", send("/tree/", b"", 500, X_Error_Message="\x1b[2J", X_HF_Warning="\x1b[2J"), "HTTP 500"),
    ("a status that is none", send("/tree/", b"", 999), "HTTP 999"),
    # redirects
    ("redirects in a circle", to(""), "redirects more than 10 times"),
    ("a redirect to a file", to("file:///etc/passwd"), "not allowed"),
    ("a redirect to gopher", to("gopher://x/"), "not allowed"),
    ("a redirect to no address", to("http://[::1"), "."),
    ("a redirect to nowhere", send("config.json", b"", 302), "HTTP 302"),
]  # fmt: skip
SILENT: list[tuple[str, Rule]] = [
    ("no answer about the commit", silent("/api/models/org/model")),
    ("no answer about the files", silent("/tree/")),
    ("no answer about a small file", silent("config.json")),
    ("no answer about a large file", silent(WEIGHTS)),
    ("headers that drip", silent(WEIGHTS, b"HTTP/1.1 200 OK\r\nX: ", b"a")),
    ("half a list", silent("/tree/", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[")),
    ("half a file", silent(WEIGHTS, b"HTTP/1.1 200 OK\r\nContent-Length: 1064\r\n\r\n12345")),
    ("continue, and continue, and continue", silent(WEIGHTS, b"", b"HTTP/1.1 100 Continue\r\n\r\n")),
]


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with serve(FakeHub(files=dict(FILES))) as hub:
        yield hub


@pytest.fixture
def hub(fake: FakeHub, online: None, tmp_path: Path) -> Hub:
    return Hub(endpoint=fake.endpoint, cache_dir=tmp_path / "a" / "b" / "hub")


def check_disk(hub: Hub, tmp_path: Path) -> None:
    files = [path for path in tmp_path.rglob("*") if not path.is_dir() or path.is_symlink()]
    root = hub.storage(REPO).resolve()
    assert [path for path in files if not path.resolve().is_relative_to(root)] == []
    assert sum(path.stat().st_size for path in files if not path.is_symlink()) <= 10_000


def check_refused(hub: Hub, tmp_path: Path, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        download(REPO, hub=hub)
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert sentence.endswith(".")
    assert len(sentence) < 400
    assert find_local(hub, REPO) is None
    assert list_local(hub) == ()
    check_disk(hub, tmp_path)


def check_honest(hub: Hub, fake: FakeHub, tmp_path: Path) -> None:
    fake.rules.clear()
    folder = download(REPO, hub=hub)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == fake.files
    assert find_local(hub, REPO) == folder
    check_disk(hub, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "says"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_a_lie_is_a_sentence(rule: Rule, says: str | None, fake: FakeHub, hub: Hub, tmp_path: Path) -> None:
    fake.rules.append(rule)
    if says is not None:
        check_refused(hub, tmp_path, says)
    check_honest(hub, fake, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [pytest.param(case[1], id=case[0]) for case in SILENT])
def test_silence_ends(rule: Rule, fake: FakeHub, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.rules.append(rule)
    with monkeypatch.context() as patch:
        patch.setattr(fetch, "TIMEOUT", 0.3)
        check_refused(hub, tmp_path, "sent nothing for 0.3 s")
    check_honest(hub, fake, tmp_path)


def test_a_redirect_to_another_host_carries_no_token(
    fake: FakeHub, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the next page of a list on another host; the hub itself is sent it, also after a way over another."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve(FakeHub(files=dict(FILES))) as other:
        link = f'<{other.endpoint}/api/models/{REPO}/tree/more>; rel="next"'
        first = json.dumps(fake.tree()[:1]).encode()
        other.rules.append(tree(lambda files: files[1:]))
        fake.rules.append(send("/tree/", first, Link=link))
        fake.rules.append(send(WEIGHTS, b"", 302, Location=f"{other.endpoint}/{REPO}/resolve/x/{WEIGHTS}"))
        download(REPO, hub=hub)
        assert other.count("GET", "") == 2
        assert other.tokens == []
    assert len(fake.tokens) == len(fake.requests) == 5
    check_honest(hub, fake, tmp_path)


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("https://hub/a/b", "/c", "https://hub/c"),
        ("https://hub/a/b", "https://cdn/c?sig=1", "https://cdn/c?sig=1"),
        ("http://hub/a", "https://hub/a", "https://hub/a"),
        ("https://hub/a", "//cdn/a", "https://cdn/a"),
        ("https://hub/a", "http://hub/a", None),
        ("https://hub/a", "file:///etc/passwd", None),
        ("https://hub/a", "data:,x", None),
        ("https://hub/a", "\\\\server\\share", "https://hub/\\\\server\\share"),
    ],
)
def test_where_a_redirect_may_lead(url: str, location: str, target: str | None) -> None:
    if target is not None:
        assert redirected(url, location) == target
        return
    with pytest.raises(ModelDownloadError, match="not allowed"):
        redirected(url, location)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["blobs", "refs", "snapshots", f"snapshots/{COMMIT}", f"snapshots/{COMMIT}/a"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_link_in_the_cache_leads_nowhere_else(
    place: str, exists: bool, fake: FakeHub, hub: Hub, tmp_path: Path
) -> None:
    fake.files["a/x.jinja"] = b"x"
    outside, link = tmp_path / "outside", hub.storage(REPO) / place
    if exists:
        outside.mkdir()
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(ModelDownloadError, match="by a link; remove the link"):
        download(REPO, hub=hub)
    assert outside.exists() == exists
    assert not exists or not list(outside.iterdir())
    assert find_local(hub, REPO) is None
    link.unlink()
    del fake.files["a/x.jinja"]
    check_honest(hub, fake, tmp_path)


@pytest.mark.parametrize("place", ["refs/main", f"snapshots/{COMMIT}/config.json", "blobs/partial"])
def test_a_file_outside_is_not_written_through_a_link(place: str, fake: FakeHub, hub: Hub, tmp_path: Path) -> None:
    blob = next(file for file in plan_download(REPO, hub=hub).files if file.path == "config.json").id
    link = hub.storage(REPO) / place.replace("partial", partial_path(Path(blob)).name)
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with suppress(ModelDownloadError):
        download(REPO, hub=hub)
    assert outside.read_bytes() == b"mine"
    outside.unlink()
    link.unlink(missing_ok=True)
    check_honest(hub, fake, tmp_path)


def test_the_cache_and_the_repositorys_folder_may_be_links(fake: FakeHub, hub: Hub, tmp_path: Path) -> None:
    """People move models to another disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    hub.cache().mkdir(parents=True)
    hub.storage(REPO).symlink_to(disk)
    check_honest(hub, fake, tmp_path)
    assert {path.name for path in disk.iterdir()} == {"blobs", "refs", "snapshots"}


@pytest.mark.parametrize("text", [b"../../../x", b"", b"\xff", b"a" * 1000, b"main"])
def test_a_ref_that_is_no_commit_is_none(text: bytes, fake: FakeHub, hub: Hub, tmp_path: Path) -> None:
    download(REPO, hub=hub)
    (hub.storage(REPO) / "refs" / "main").write_bytes(text)
    assert find_local(hub, REPO) is None
    check_honest(hub, fake, tmp_path)


@pytest.mark.parametrize(
    ("repo", "revision"), [("../x", None), ("a/../b", None), (REPO, "../../x"), ("org/model@v1", None)]
)
def test_a_name_from_a_program_is_checked_too(repo: str, revision: str | None, fake: FakeHub, hub: Hub) -> None:
    with pytest.raises(ModelError, match="not a repository id"):
        download(repo, revision, hub=hub)
    assert not hub.cache().exists()


def test_a_cancel_does_not_wait_for_a_silent_hub(fake: FakeHub, hub: Hub) -> None:
    fake.rules.append(silent(WEIGHTS))
    cancel = threading.Event()

    def look(handler: Handler, path: str) -> bool:
        if WEIGHTS in path:
            cancel.set()
        return False

    fake.rules.insert(0, look)
    with pytest.raises(ModelDownloadError, match="was stopped"):
        download(REPO, hub=hub, cancel=cancel)
