"""Whatever stands where a file should: one sentence that names it, and nothing hangs. A row a file, a row an oddity."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest

import mlxkv
from mlxkv.cli.input_files import question_with, text_or_file
from mlxkv.cli.start import _log_to_file
from mlxkv.config import Folders, load_settings, save_setting
from mlxkv.errors import ConfigError, MlxkvError, ModelError, StoreError
from mlxkv.models import Hub, list_local, remove
from mlxkv.models.hub.hub import find_local
from mlxkv.models.resolve import resolve
from mlxkv.store.db.backup import list_backups
from mlxkv.store.files import Files
from mlxkv.store.prompts.kv_file import describe_prompt_file
from mlxkv.store.session_store import SessionStore
from mlxkv.system import regular_file
from mlxkv.tui.state.chat_state import ChatState
from mlxkv.tui.state.commands.slash_actions import run
from mlxkv.tui.state.prompt.attachments import AttachError, read
from mlxkv.tui.state.prompt.prompt_history import History
from tests.tokenizers import tiny_folder

Spoil = Callable[[Path], object]
Use = Callable[[Path], object]
Odd = Mapping[str, tuple[Spoil, str]]


def a_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may have some hundred bytes
    try:
        with closing(socket.socket(socket.AF_UNIX)) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def a_link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.parents[1] / "pipe")
    path.symlink_to(path.parents[1] / "pipe")


def endless(path: Path) -> None:
    """A terabyte that takes no room."""
    with path.open("wb") as file:
        file.truncate(1 << 40)


NOT_FILES: dict[str, tuple[Spoil, str]] = {
    "a pipe": (os.mkfifo, "it is a pipe"),
    "a folder": (os.mkdir, "it is a folder"),
    "a socket": (a_socket, "it is a socket"),
    "a link to an endless device": (lambda path: path.symlink_to("/dev/zero"), "it is a device|it is a link"),
    "a link to a pipe": (a_link_to_a_pipe, "it is a pipe|it is a link"),
}  # fmt: skip
TOO_LARGE: dict[str, tuple[Spoil, str]] = {"endless": (endless, "over .* MiB|over .* bytes|at most")}
NO_JSON: dict[str, tuple[Spoil, str]] = {
    "no JSON": (lambda path: path.write_text("{"), ""),
    "not UTF-8": (lambda path: path.write_bytes(b'{"a": "\xff"}'), "UTF-8"),
    "nested 100,000 deep": (lambda path: path.write_text("[" * 100_000), "nested too deeply"),
    "a number of 5,000 digits": (lambda path: path.write_text(f'{{"a": {"9" * 5000}}}'), "hundreds of digits"),
    "a number of 400 digits": (lambda path: path.write_text(f'{{"a": {"9" * 400}}}'), "hundreds of digits"),
    "a list": (lambda path: path.write_text("[]"), ""),
}
NO_CHARACTER: dict[str, tuple[Spoil, str]] = {
    "half a character": (lambda path: path.write_text('{"a": ["\\ud800"]}'), "half a character"),
}
NO_TOML: dict[str, tuple[Spoil, str]] = {
    "no TOML": (lambda path: path.write_text("["), ""),
    "not UTF-8": (lambda path: path.write_bytes(b'system = "\xff"'), "UTF-8"),
    "nested 10,000 deep": (lambda path: path.write_text(f"model = {'[' * 10_000}"), "nested too deeply"),
    "a number of 5,000 digits": (lambda path: path.write_text(f"window = {'9' * 5000}"), "hundreds of digits"),
    "a key of 100,000 parts": (lambda path: path.write_text(f"{'a.' * 100_000}b = 1"), "hundreds of parts"),
    "a long value": (lambda path: path.write_text(f'window = "{"x" * 900_000}"'), "900,000 characters"),
}
NO_TEXT = {"not UTF-8": NO_JSON["not UTF-8"]}
LINKS = {name: (spoil, "") for name, (spoil, _) in NOT_FILES.items()}  # said in the system's words


def open_store(path: Path) -> None:
    SessionStore.open(Folders.from_env()).close()


def lock_a_chat(path: Path) -> None:
    with SessionStore.open(Folders.from_env()) as store, store.lock(path.name):
        pass


def import_a_chat(path: Path) -> None:
    with SessionStore.open(Folders.from_env()) as store:
        store.import_chat(path)


def set_a_setting(path: Path) -> None:
    save_setting(Folders.from_env(), "temperature", 1.0)


def set_the_system_prompt(path: Path) -> None:
    """In the window, where it is shown instead of raised."""
    state = ChatState(lambda: 0.0)
    run(state, "system", f"@{path}")
    raise ConfigError(state.transcript.take_change().settled[-1].text)


def load(path: Path) -> None:
    mlxkv.load(str(path.parent))


HOME_FILES: dict[str, tuple[Use, Odd]] = {
    "config/config.toml": (lambda path: load_settings(Folders.from_env()), NOT_FILES | TOO_LARGE | NO_TOML),
    "data/store.json": (open_store, NOT_FILES | TOO_LARGE | NO_JSON),
    "data/mlxkv.db": (open_store, NOT_FILES),
    "data/mlxkv.db-wal": (open_store, NOT_FILES),
    "data/mlxkv.db-shm": (open_store, NOT_FILES),
    "data/locks/store": (open_store, LINKS),
    "data/locks/01JD0000000000000000000000": (lock_a_chat, LINKS),
    "notes.kv": (describe_prompt_file, LINKS | {"endless": (endless, "header length")}),
    "chat.json": (import_a_chat, NOT_FILES | TOO_LARGE | NO_JSON),
    "notes.txt": (lambda path: question_with("", [path]), NOT_FILES | TOO_LARGE | NO_TEXT),
    "system.txt": (lambda path: text_or_file(f"@{path}"), NOT_FILES | TOO_LARGE | NO_TEXT),
    "said.txt": (set_the_system_prompt, NOT_FILES | TOO_LARGE | NO_TEXT),
    "attached.txt": (lambda path: read(path.name, path.parent), NOT_FILES | TOO_LARGE | NO_TEXT),
}
MODEL_FILES: dict[str, Odd] = {
    "config.json": NOT_FILES | TOO_LARGE | NO_JSON | NO_CHARACTER,
    "generation_config.json": NOT_FILES | TOO_LARGE | NO_JSON | NO_CHARACTER,
    "tokenizer_config.json": NOT_FILES | TOO_LARGE | NO_JSON | NO_CHARACTER,
    "special_tokens_map.json": NOT_FILES | TOO_LARGE | NO_JSON | NO_CHARACTER,
    "added_tokens.json": NOT_FILES | TOO_LARGE | NO_JSON | NO_CHARACTER,
    "chat_template.json": NOT_FILES | TOO_LARGE | NO_JSON | NO_CHARACTER,
    "processor_config.json": NOT_FILES | TOO_LARGE | NO_JSON | NO_CHARACTER,
    "chat_template.jinja": NOT_FILES | TOO_LARGE | NO_TEXT,
    "tokenizer.json": NOT_FILES | TOO_LARGE,
    "tokenizer.model": NOT_FILES | TOO_LARGE,
    "vocab.json": NOT_FILES | TOO_LARGE,
    "merges.txt": NOT_FILES | TOO_LARGE,
    "model.safetensors.index.json": NOT_FILES | TOO_LARGE,
    "preprocessor_config.json": NOT_FILES | TOO_LARGE,
    "model.safetensors": LINKS,
    "model-00002-of-00002.safetensors": LINKS,
}


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("odd") / "tiny")


@pytest.fixture
def folder(small_model: Path, tmp_path: Path) -> Path:
    """A model whose files may be replaced."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in small_model.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def refused(use: Use, path: Path, text: str) -> None:
    """One printable sentence that names the file."""
    with pytest.raises((MlxkvError, AttachError)) as caught:
        use(path)
    sentence = str(caught.value)
    assert re.search(text, sentence)
    assert path.name.removesuffix("-wal").removesuffix("-shm") in sentence
    assert sentence.isprintable()
    assert sentence.endswith(".")
    assert len(sentence) < 1000


@pytest.mark.slow
@pytest.mark.parametrize(("name", "odd"), [(name, odd) for name, (_, odds) in HOME_FILES.items() for odd in odds])
def test_a_file_of_ours_or_the_users(name: str, odd: str, home: Path) -> None:
    use, odds = HOME_FILES[name]
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    odds[odd][0](path)
    refused(use, path, odds[odd][1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "odd"), [(name, odd) for name, odds in MODEL_FILES.items() for odd in odds])
def test_a_file_of_a_model(name: str, odd: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    MODEL_FILES[name][odd][0](folder / name)
    refused(load, folder / name, MODEL_FILES[name][odd][1])


@pytest.mark.parametrize("odd", sorted({*NOT_FILES, *TOO_LARGE, *NO_TOML} - {"a long value"}))
def test_a_setting_is_not_written_over_it(odd: str, home: Path) -> None:
    path = home / "config/config.toml"
    path.parent.mkdir(parents=True, mode=0o700)
    (NOT_FILES | TOO_LARGE | NO_TOML)[odd][0](path)
    before = os.lstat(path)
    refused(set_a_setting, path, "")
    assert os.lstat(path) == before


@pytest.mark.parametrize("odd", NOT_FILES | TOO_LARGE)
@pytest.mark.parametrize("name", ["refs/main", "model.safetensors.index.json"])
def test_a_repository_in_the_cache_is_passed_over(name: str, odd: str, tmp_path: Path) -> None:
    """In lists; deleting says so, where huggingface_hub would read it."""
    hub, storage = Hub(cache_dir=tmp_path), tmp_path / "models--org--name"
    snapshot = storage / "snapshots" / "main"
    path = (snapshot if name.endswith(".json") else storage) / name
    for folder in (snapshot, path.parent, storage / "blobs"):
        folder.mkdir(parents=True, exist_ok=True)
    (snapshot / "config.json").write_text('{"model_type": "llama"}')
    (NOT_FILES | TOO_LARGE)[odd][0](path)
    assert find_local(hub, "org/name") in (None, snapshot)
    list_local(hub, with_broken=True)
    if path.name == "main" and odd != "a folder":
        refused(lambda _: remove("org/name", hub=hub), path, "")


NO_DEVICES = [odd for odd in NOT_FILES if "device" not in odd]  # root would lose the machine's own where this fails


@pytest.mark.parametrize("odd", NO_DEVICES)
def test_what_is_no_file_is_not_replaced(odd: str, home: Path) -> None:
    home.mkdir(mode=0o700)
    path = home / "saved.kv"
    NOT_FILES[odd][0](path)
    before = os.stat(path)
    with pytest.raises(StoreError, match=NOT_FILES[odd][1]):
        Files().overwrite(path, [b"new"])
    assert (os.stat(path).st_ino, os.stat(path).st_mode) == (before.st_ino, before.st_mode)


def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    """The file may lie on another disk."""
    (tmp_path / "large").mkdir()
    link, target = tmp_path / "saved.kv", tmp_path / "large" / "saved.kv"
    target.write_bytes(b"old")
    link.symlink_to(target)
    Files().overwrite(link, [b"new"])
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_exports_go_over_no_pipe(small_model: Path, tmp_path: Path, home: Path) -> None:
    pipe, model = tmp_path / "pipe.safetensors", mlxkv.load(str(small_model))
    os.mkfifo(pipe)
    pc = model.prefill([1, 2, 3])
    chat = model.chat(autosave=True, max_tokens=1)
    list(chat.send("hello"))
    for use in (pc.save, pc.export_mlx_lm, lambda path: model.store.export_chat(chat.save(), path)):
        refused(use, pipe, "it is a pipe")
        assert pipe.is_fifo()
    model.close()


@pytest.mark.parametrize("odd", NOT_FILES | TOO_LARGE)
def test_a_history_of_prompts_is_left_alone(odd: str, home: Path) -> None:
    home.mkdir(mode=0o700)
    path = home / "prompts.jsonl"
    (NOT_FILES | TOO_LARGE)[odd][0](path)
    before = os.lstat(path)
    history = History(home)
    assert history.entries == []
    history.add("hello")
    history.save()
    assert os.lstat(path) == before


def test_a_spoilt_line_of_the_history_costs_that_line(home: Path) -> None:
    home.mkdir(mode=0o700)
    lines = [b'{"text": "one"}', b"\xff", b"[" * 100_000, b'{"text": ' + b"9" * 5000 + b"}", b'{"text": "two"}']
    (home / "prompts.jsonl").write_bytes(b"\n".join(lines))
    assert History(home).entries == ["one", "two"]


@pytest.mark.parametrize("odd", NOT_FILES)
def test_a_backup_and_a_log_that_are_none(odd: str, home: Path) -> None:
    folders = Folders.from_env()
    for path in (folders.data / "backups" / "mlxkv-20260101.db", folders.state / "mlxkv.log"):
        path.parent.mkdir(parents=True, mode=0o700)
        NOT_FILES[odd][0](path)
    assert list_backups(folders.data) == ()
    _log_to_file(folders)


@pytest.mark.parametrize("name", ["config/config.toml", "data/store.json", "chat.json", "notes.txt", "attached.txt"])
def test_a_file_that_may_not_be_read(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for root, who may read everything."""
    path, opens = home / name, os.open
    path.parent.mkdir(parents=True, mode=0o700)
    path.write_text("{}")

    def refuse(asked: str | Path, flags: int, *more: int) -> int:
        if os.fspath(asked) == str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opens(asked, flags, *more)

    monkeypatch.setattr(regular_file.os, "open", refuse)
    refused(HOME_FILES[name][0], path, "Permission denied")


READS = re.compile(
    r"(?<![\w.])(?<!def )open\(|\.open\((\"r|encoding|\))|\.read_(text|bytes)\(|json\.load\("
    r"|sqlite3\.connect\(|O_RDONLY"
)
OWN = {  # of the package, a terminal, or made here a moment ago
    "mlxkv/device.py", "mlxkv/system/regular_file.py", "mlxkv/store/identity.py", "mlxkv/store/db/backup.py",
    "mlxkv/store/files.py", "mlxkv/store/kv/chunk_format.py", "mlxkv/store/db/database.py",
    "mlxkv/store/db/read_only.py", "mlxkv/store/db/search.py", "mlxkv/system/streams.py",
    "mlxkv/system/supervisor.py", "models/files/architecture.py", "models/catalogue.py",
}  # fmt: skip


def test_nothing_else_opens_files_to_read() -> None:
    """What is not listed goes through `mlxkv.system.regular_file`."""
    root = Path(__file__).parents[2]
    sources = [path for top in ("mlxkv", "models", "tui") for path in (root / top).rglob("*.py")]
    found = {str(path.relative_to(root)) for path in sources if READS.search(path.read_text(encoding="utf-8"))}
    assert {name for name in found if "/training/" not in name} - OWN == set()


LONG = "m" * 5000
NAMES = {
    "long": LONG,
    "long and a path": f"/{LONG}",
    "NUL": "a\0b",
    "nobody's home": "~no-such-user/x",
    "surrogate": "\ud800",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_file_can_have(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uses: list[tuple[type[Exception], Callable[[str], object]]] = [
        (ModelError, resolve),
        (MlxkvError, lambda name: question_with("", [Path(name)])),
        (MlxkvError, lambda name: import_a_chat(Path(name))),
    ]
    for kind, use in uses:
        with pytest.raises(kind) as caught:
            use(NAMES[name])
        assert len(str(caught.value)) < 500


HOMES = {
    "MLXKV_HOME of nobody": ({"MLXKV_HOME": "~no-such-user/x"}, "set MLXKV_HOME"),
    "MLXKV_HOME is long": ({"MLXKV_HOME": f"/tmp/{LONG}"}, "File name too long"),
    "MLXKV_HOME is a file": ({"MLXKV_HOME": __file__}, "Not a directory"),
    "HOME is a file": ({"MLXKV_HOME": "", "HOME": __file__}, "Not a directory"),
    "HOME is long": ({"MLXKV_HOME": "", "HOME": f"/tmp/{LONG}"}, "File name too long"),
    "XDG_CONFIG_HOME is long": ({"MLXKV_HOME": "", "XDG_CONFIG_HOME": f"/tmp/{LONG}"}, "File name too long"),
    "XDG_DATA_HOME is a file": ({"MLXKV_HOME": "", "XDG_DATA_HOME": __file__}, "Not a directory"),
}


@pytest.mark.parametrize("name", HOMES)
def test_a_home_that_cannot_be_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables, text = HOMES[name]
    for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    if "HOME" in variables:
        for variable in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
            monkeypatch.delenv(variable)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=text) as caught:
        SessionStore.open(Folders.from_env())
    assert len(str(caught.value)) < 500


def test_a_relative_home_is_below_the_current_folder() -> None:
    assert Folders.from_env({"MLXKV_HOME": "here"}).data == Path.cwd() / "here" / "data"


def test_a_pipe_that_the_shell_opened_is_read() -> None:
    """`mlxkv -f <(git diff)`."""
    end, write = os.pipe()
    os.write(write, b"a diff")
    os.close(write)
    try:
        assert "a diff" in question_with("", [Path(f"/dev/fd/{end}")])
    finally:
        os.close(end)


def test_the_mark_that_windows_puts_first_is_no_text(tmp_path: Path, home: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert text_or_file(f"@{tmp_path}/notes.txt") == "hello"
    (home / "config").mkdir(parents=True, mode=0o700)
    (home / "config" / "config.toml").write_bytes(b"\xef\xbb\xbftop_k = 7")
    assert load_settings(Folders.from_env()).top_k == 7


def test_of_a_model_it_is_said(folder: Path) -> None:
    """mlx-lm and transformers do not read it."""
    text = (folder / "config.json").read_bytes()
    (folder / "config.json").unlink()
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + text)
    refused(load, folder / "config.json", "byte order mark")
