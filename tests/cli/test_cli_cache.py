"""`mlxkv cache ...` and `-p --cache`, as a script uses them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlx_lm.models.cache import load_prompt_cache

from mlxkv.cli.cache import cache_ls, cache_rename, cache_show
from mlxkv.cli.doctor import examine
from mlxkv.config import Folders, private_folder
from mlxkv.errors import MlxkvError
from mlxkv.stats import bytes_text
from mlxkv.store.prompts.folder import PromptFolder
from mlxkv.store.prompts.kv_file import write_prompt_file
from mlxkv.store.session_store import SessionStore
from tests.cli.test_cli import Run, run  # noqa: F401  # a fixture
from tests.fixtures.mlx_lm.make import MODELS
from tests.store.fake import FakeCache, model
from tests.store.test_states import Hybrid
from tests.tokenizers import tiny_folder

pytestmark = pytest.mark.slow

FIXTURES = Path(__file__).parents[1] / "fixtures" / "mlx_lm"
ASK = ["--temp", "0", "--max-tokens", "8"]


@pytest.fixture
def book(run: Run, tiny_path: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A text, read into the prompt cache "book"."""
    path = tmp_path / "book.txt"
    path.write_text("there was a fox. \x1b[31m" * 12)
    done = run("cache", "create", "book", "-f", path, "-s", "be brief", "-m", tiny_path, "--window", "1024")
    assert done.code == 0, done.err
    assert done.out.startswith("book  ")
    return path


def asked(run: Run, *args: str | Path) -> dict[str, object]:  # noqa: F811
    done = run("-p", "who?", *args, *ASK, "--output-format", "json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_named_cache_is_asked_without_being_read(run: Run, book: Path, tiny_path: Path, home: Path) -> None:  # noqa: F811
    """The same reply as with -f and -s, and only the question is read; nothing but the cache is left behind."""
    size = json.loads(run("cache", "show", "book", "--json").out)["num_tokens"]
    quick = asked(run, "--cache", "book")
    assert quick["usage"]["cached_tokens"] == size  # type: ignore[index]
    assert quick["usage"]["prompt_tokens"] - size < 40  # type: ignore[index]
    slow = asked(run, "-f", book, "-s", "be brief", "-m", tiny_path, "--no-save", "--window", "1024")
    assert (slow["text"], slow["usage"]) == (
        quick["text"],
        {**quick["usage"], "cached_tokens": 0},  # type: ignore[dict-item]
    )
    assert run("chats", "ls").out == ""
    assert [p.name for p in (home / "cache" / "prompts").iterdir()] == ["book.kv"]
    assert (home / "cache" / "prompts" / "book.kv").stat().st_mode & 0o777 == 0o600


def test_they_are_listed_shown_verified_and_removed(run: Run, book: Path, tiny_path: Path, home: Path) -> None:  # noqa: F811
    assert run("cache", "create", "alone", "-s", "only a system prompt", "-m", tiny_path).code == 0
    lines = run("cache", "ls").out.splitlines()
    assert [line.split()[0] for line in lines] == ["alone", "book"]
    assert "there was a fox" in lines[1]
    assert "\x1b" not in lines[1]
    shown = run("cache", "show", "book").out
    for part in ("model", tiny_path.name, "tokens", "be brief", "there was a fox"):
        assert part in shown
    assert run("cache", "verify").code == 0
    path = home / "cache" / "prompts" / "book.kv"
    good = path.read_bytes()
    for at in (200, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        damaged = run("cache", "verify", "book")
        assert damaged.code == 1, at
        assert damaged.out.startswith("!!  book")
    assert run("cache", "verify", "--repair").code == 0
    assert not path.exists()
    assert run("cache", "verify").code == 0
    freed = run("cache", "gc").out
    assert freed.startswith("freed ")
    assert not freed.startswith("freed 0")
    assert not list((home / "cache" / "prompts" / "damaged").iterdir())
    assert run("cache", "rm", "alone").err == "mlxkv: There is no terminal to ask on; give --yes to delete.\n"
    assert run("cache", "ls").out != ""
    assert run("cache", "rm", "alone", "--yes").out == "deleted alone\n"
    assert run("cache", "ls").out == ""


def test_a_cache_is_renamed_and_never_replaces_another(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = private_folder(Folders.from_env().cache / "prompts")
    write_prompt_file(prompts / "book.kv", FakeCache(), model())
    (prompts / "theirs.safetensors").write_bytes(b"of mlx-lm")
    before = (prompts / "book.kv").read_bytes()
    cache_rename("book", "novel")
    assert (prompts / "novel.kv").read_bytes() == before
    cache_rename("theirs", "book")  # its kind is kept
    for old, new, why in (
        ("novel", "book", r"There is a prompt cache 'book' already \(.*\.safetensors\); choose another name"),
        ("novel", "novel", "There is a prompt cache 'novel' already"),
        ("theirs", "x", "No prompt cache is called 'theirs'; there are book, novel."),
        ("novel", "../x", "cannot be called '../x'"),
    ):
        with pytest.raises(MlxkvError, match=why):
            cache_rename(old, new)
    assert sorted(path.name for path in prompts.iterdir()) == ["book.safetensors", "novel.kv"]


def test_rows_and_recurrent_states_are_told_apart(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = Folders.from_env()
    prompts = private_folder(folders.cache / "prompts")
    with SessionStore.open(folders) as store:
        hybrid = Hybrid(store)
        hybrid.turn(0)
        states = bytes_text(store.state_bytes())
    for name, cache in (("hybrid", hybrid.cache), ("other", FakeCache())):
        write_prompt_file(prompts / f"{name}.kv", cache, model())
    about = PromptFolder(folders).describe(prompts / "hybrid.kv")
    cache_show("hybrid")
    lines = capsys.readouterr().out.splitlines()
    assert f"rows     {bytes_text(about.row_bytes)}" in lines
    assert f"state    {bytes_text(about.state_bytes)}, of the recurrent layers" in lines
    cache_show("hybrid", as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["row_bytes"], shown["state_bytes"]) == (about.row_bytes, about.state_bytes)
    cache_ls()
    assert capsys.readouterr().err.endswith(f", {states} of it recurrent states\n")
    cache_show("other")
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith(("rows", "state"))]
    cache_show("other", as_json=True)
    assert not {"row_bytes", "state_bytes"} & json.loads(capsys.readouterr().out).keys()
    (usage,) = (finding.text for finding in examine(folders) if finding.subject == "KV on disk")
    assert f"{states} of it recurrent states; " in usage


def test_what_cannot_be_is_said_in_one_sentence(run: Run, book: Path, tiny_path: Path, tmp_path: Path) -> None:  # noqa: F811
    other = tiny_folder(tmp_path / "other", seed=5)
    for args, code, why in (
        (["cache", "create", "book", "-f", book, "-m", tiny_path], 1, "There is a prompt cache 'book' already"),
        (["cache", "create", "../evil", "-f", book], 2, "cannot be called '../evil'"),
        (["cache", "create", "Big Book", "-f", book], 2, "cannot be called 'Big Book'"),
        (["cache", "create", "new"], 2, "nothing to prefill"),
        (["cache", "create", "new", "-f", tmp_path / "none"], 2, "cannot be read"),
        (["cache", "show", "nothing"], 1, "there are book"),
        (["cache", "show", "../book"], 1, "No prompt cache is called '../book'"),
        (["cache", "export", "book", "-o", book, "--format", "mlx-lm"], 1, "--force"),
        (["cache", "export", "book", "-o", tmp_path / "x", "--format", "gguf"], 2, "'gguf'"),
        (["cache", "export", "book", "-o", tmp_path / "x"], 2, "must end in .safetensors"),
        (["cache", "export", "book", "-o", tmp_path / "x.gguf"], 2, "end it in .safetensors or .kv"),
        (["cache", "import", "x", book], 1, "not a valid safetensors file"),
        (["-p", "who?", "--cache", "nothing"], 1, "No prompt cache is called 'nothing'"),
        (["-p", "who?", "--cache", "book", "-s", "x"], 2, "leave out -s"),
        (["-p", "who?", "--cache", "book", "-c"], 2, "leave out -c or -r"),
        (["-p", "who?", "--cache", "book", "-m", other], 1, "was made with the model"),
    ):
        done = run(*args)
        assert done.code == code, (args, done)
        assert why in done.err, args
        assert done.err.count("\n") == 1, done.err
    assert run("cache", "create", "book", "-f", book, "-m", tiny_path, "--force").code == 0


def test_to_mlx_lm_and_back(run: Run, book: Path, home: Path, tmp_path: Path) -> None:  # noqa: F811
    for name, fmt in (("new", "mlx-lm"), ("old", "mlx-lm-0.31")):
        assert run("cache", "export", "book", "-o", tmp_path / f"{name}.safetensors", "--format", fmt).code == 0
        done = run("cache", "import", name, tmp_path / f"{name}.safetensors")
        assert done.code == 0
        assert "its creator" in done.err
    assert len(load_prompt_cache(str(tmp_path / "new.safetensors"))) == 2
    assert run("cache", "export", "book", "-o", tmp_path / "copy.kv").code == 0
    assert run("cache", "export", "book", "-o", tmp_path / "copy.any", "--format", "kv").code == 0
    assert (tmp_path / "copy.any").read_bytes() == (tmp_path / "copy.kv").read_bytes()
    assert run("cache", "export", "book", "-o", tmp_path / "named.safetensors").code == 0
    assert (tmp_path / "named.safetensors").read_bytes() == (tmp_path / "new.safetensors").read_bytes()
    assert run("cache", "import", "copy", tmp_path / "copy.kv").code == 0
    expected = asked(run, "--cache", "book")
    for name in ("new", "old", "copy"):
        found = asked(run, "--cache", name)
        assert (found["text"], found["usage"]) == (expected["text"], expected["usage"]), name
    listed = {c["name"]: c["is_imported"] for c in json.loads(run("cache", "ls", "--json").out)}
    assert listed == {"book": False, "copy": False, "new": True, "old": True}
    assert run("cache", "import", "new", tmp_path / "copy.kv", "--force").code == 0
    assert [p.suffix for p in (home / "cache" / "prompts").glob("new.*")] == [".kv"]


@pytest.mark.parametrize("kind", ["plain", "rotating", "quantized"])
def test_a_file_of_mlx_lms_is_imported_and_asked(run: Run, tmp_path: Path, kind: str) -> None:  # noqa: F811
    model = tiny_folder(tmp_path / "tiny", **MODELS[kind])
    done = run("cache", "import", "theirs", FIXTURES / "0.31.3" / f"{kind}.safetensors", "-m", model)
    assert done.code == 0, done.err
    assert asked(run, "--cache", "theirs")["usage"]["cached_tokens"] == 27  # type: ignore[index]
    other = tiny_folder(tmp_path / "other", **{**MODELS[kind], "seed": 1})
    done = run("-p", "who?", "--cache", "theirs", "-m", other)
    assert "made with other weights" in done.err


def test_they_count_towards_the_disk_limit(run: Run, book: Path, tiny_path: Path, home: Path, tmp_path: Path) -> None:  # noqa: F811
    """Whatever makes one by name refuses where there is no room, in one sentence, and leaves nothing behind."""
    prompts = home / "cache" / "prompts"
    used = int(subprocess.run(["du", "-s", "-B1", home / "cache"], capture_output=True, check=True).stdout.split()[0])
    listed = run("cache", "ls")
    size = bytes_text((prompts / "book.kv").stat().st_blocks * 512)  # one figure, wherever it is shown
    assert f" {size}  " in listed.out
    total = f"KV on disk in all: {bytes_text(used)} of 20 GB, {size} of it named prompt caches"
    assert listed.err.splitlines() == [total]
    assert f"{size} on disk" in run("cache", "show", "book").out
    for name, fmt in (("copy.kv", "kv"), ("theirs.safetensors", "mlx-lm")):
        assert run("cache", "export", "book", "-o", tmp_path / name, "--format", fmt).code == 0
    limit = used + 50_000
    for args in (
        ["create", "new", "-f", book, "-m", tiny_path],
        ["create", "book", "-f", book, "-m", tiny_path, "--force"],
        ["import", "new", tmp_path / "copy.kv"],
        ["import", "new", tmp_path / "theirs.safetensors"],
        ["export", "book", "-o", prompts / "new.kv", "--format", "kv"],
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLXKV_DISK_LIMIT", str(limit / 1e9))
            done = run("cache", *args)
        assert done.code == 1, args
        assert f"which does not fit the disk limit of {bytes_text(limit)}" in done.err
        assert "`mlxkv cache rm`, or raise `disk_limit`" in done.err
        assert done.err.count("\n") == 1
        assert [path.name for path in prompts.iterdir()] == ["book.kv"], args
    assert run("cache", "rm", "book", "-y").code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLXKV_DISK_LIMIT", str(limit / 1e9))
        assert run("cache", "import", "new", tmp_path / "copy.kv").code == 0


def test_listing_them_imports_no_mlx(book: Path) -> None:
    code = "import sys; sys.argv = ['mlxkv', 'cache', 'ls']\ntry:\n import mlxkv.cli.app; mlxkv.cli.app.main()\n"
    code += "except SystemExit: print([m for m in ('mlx.core', 'mlx_lm', 'textual') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done
