"""`mlxkv chats ...`, as a script and at a terminal's width."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len as cells

from mlxkv.cli.app import main
from mlxkv.cli.chats import ids_for_completion
from mlxkv.config import Folders, private_folder
from mlxkv.store.export.archive import is_archive
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.cli.test_cli import Run, run  # noqa: F401  # a fixture
from tests.store.fake import model


@pytest.fixture
def family(home: Path) -> list[str]:
    """Two chats, and a fork of the older one with a fork of its own."""
    with SessionStore.open(Folders.from_env()) as store:
        sky = store.sessions.create("the sky 天空\x1b[31m", model(), system="be brief")
        store.add_turn(sky, TurnRecord("user", "Why is the sky blue?", (1, 2, 3)))
        store.add_turn(sky, TurnRecord("assistant", "Rayleigh scattering, \x1b[2Jmostly.", (4, 5)))
        sea = store.sessions.create("the sea", model())
        store.add_turn(sea, TurnRecord("user", "Why is the sea salty?", (1, 2)))
        fork = store.fork(sky, 1)
        return [sky, sea, fork, store.fork(fork, 1)]


@pytest.mark.slow
def test_a_list_nests_forks_and_fits_the_width(run: Run, family: list[str], monkeypatch: Any) -> None:  # noqa: F811
    lines = run("chats", "ls").out.splitlines()
    ids = [line.split()[0] for line in lines]  # made in one millisecond, chats share more than the first ten characters
    sky, sea, fork, second = (next(i for i, start in enumerate(ids) if f.startswith(start)) for f in family)
    assert (sky, fork, second) == (0, 1, 2)  # the family with the newest member first
    assert sea == 3
    assert "  ↳ after “Why is the sky blue?”" in lines[fork]
    assert "    ↳ after “Why" in lines[second]
    assert "\x1b" not in "".join(lines)
    assert len({*ids}) == 4
    for i, session_id in zip((sky, sea, fork, second), family, strict=True):
        assert session_id.startswith(ids[i])
        assert json.loads(run("chats", "show", ids[i], "--json").out)["id"] == session_id
    for width in (20, 34, 39):
        monkeypatch.setattr("mlxkv.cli.tables.width_of_terminal", lambda w=width: w)
        narrow = run("chats", "ls").out.splitlines()
        assert max(map(cells, narrow)) <= width
        assert narrow[1].endswith("…")


@pytest.mark.slow
def test_json_says_everything(run: Run, family: list[str]) -> None:  # noqa: F811
    listed = json.loads(run("chats", "ls", "--json").out)
    assert {c["id"] for c in listed} == {*family}
    assert {"title", "updated", "num_turns", "kv_bytes", "model", "parent", "untrusted"} <= listed[0].keys()
    assert json.loads(run("chats", "ls", "--output-format", "json").out) == listed
    shown = json.loads(run("chats", "show", family[0], "--json").out)
    assert [t["ids"] for t in shown["turns"]] == [[1, 2, 3], [4, 5]]
    hits = json.loads(run("chats", "search", "rayl", "--output-format", "json").out)
    assert [(h["session_id"], h["turn"], h["role"]) for h in hits] == [(family[0], 1, "assistant")]
    snippet = hits[0]["snippet"]
    assert [snippet[a:b] for a, b in hits[0]["marks"]] == ["Rayleigh"]


@pytest.mark.slow
def test_search_prints_a_line_per_hit(run: Run, family: list[str], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    lines = run("chats", "search", "why", "is").out.splitlines()
    assert len(lines) == 4
    assert len(run("chats", "search", "why is", "--limit", "2").out.splitlines()) == 2
    assert "the sea  #1 user:  Why is the sea salty?" in "\n".join(lines)
    assert "\x1b" not in run("chats", "search", "mostly").out
    assert run("chats", "rename", "the sea", "Salt \x1b[7m water").code == 0
    assert f"{family[1][:10]}" in (found := run("chats", "search", "salt wat").out)
    assert found.endswith("  title:  Salt ␛[7m water\n")
    monkeypatch.setattr("mlxkv.cli.tables.width_of_terminal", lambda: 60)
    shown = run("chats", "search", "salt wat").out
    assert shown.endswith("  title:  \x1b[1mSalt\x1b[0m ␛[7m \x1b[1mwater\x1b[0m\n")
    monkeypatch.setattr("mlxkv.cli.tables.width_of_terminal", lambda: 30)
    assert re.sub(r"\x1b\[[01]m", "", run("chats", "search", "salt wat").out).rstrip("\n")[-1] == "…"
    monkeypatch.setattr(
        "mlxkv.cli.tables.width_of_terminal", lambda: None
    )  # undo() would bring back the user's own home
    nothing = run("chats", "search", 'no" OR such*')
    assert (nothing.code, nothing.out) == (1, "")
    assert "Nothing found" in nothing.err


@pytest.mark.slow
def test_show_and_export_print_markdown(run: Run, family: list[str], tmp_path: Path) -> None:  # noqa: F811
    assert run("chats", "export", family[0]).out == (
        "# the sky 天空␛[31m\n\nfake · 5 tokens\n\n## system\n\nbe brief\n\n## user\n\nWhy is the sky blue?\n\n"
        "## assistant\n\nRayleigh scattering, ␛[2Jmostly.\n"
    )
    shown = run("chats", "show", family[0]).out
    assert shown.startswith(f"# the sky 天空␛[31m\n\n{family[0]} · fake · 5 tokens\n\n## system")
    done = run("chats", "export", "the sea", "-o", tmp_path / "sea.md")
    assert done.code == 0
    assert (tmp_path / "sea.md").read_text().startswith("# the sea\n")
    assert (tmp_path / "sea.md").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
@pytest.mark.parametrize("is_terminal", [True, False])
def test_emoji_go_joined_into_files_and_pipes_and_in_parts_to_a_terminal(
    run: Run,  # noqa: F811
    family: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_terminal: bool,
) -> None:
    joined = "\U0001f468\u200d\U0001f469"
    with SessionStore.open(Folders.from_env()) as store:
        store.sessions.rename(family[0], joined)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    out = run("chats", "export", family[0]).out
    assert (joined in out) is not is_terminal
    run("chats", "export", family[0], "-o", tmp_path / "emoji.md")
    assert joined in (tmp_path / "emoji.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json", "mlxkv"])
def test_there_and_back(run: Run, family: list[str], tmp_path: Path, form: str) -> None:  # noqa: F811
    path = tmp_path / f"sea.{form}"
    assert run("chats", "export", "the sea", "--format", form, "-o", path).code == 0
    before = json.loads(run("chats", "show", family[1], "--json").out)
    assert run("chats", "import", path).out == "Imported 0 chats of mlxkv; skipped 1 already here.\n"
    assert run("chats", "rm", "the sea", "-y").code == 0
    done = run("chats", "import", path)
    assert done.code == 0, done.err
    assert "the sea  1 message, 2 tokens" in done.out
    new = done.out.split()[0]
    after = json.loads(run("chats", "show", new, "--json").out)
    assert {**before, "id": ""} == {**after, "id": ""}
    assert run("chats", "rename", new, "ocean").code == 0
    known = run("chats", "import", path, "--trust-kv")
    assert known.code == 0
    assert known.err == f"{new:.10} 'ocean' has all of its messages; to import its KV rows, delete it first.\n"
    assert run("chats", "rm", new, "-y").code == 0
    trusted = run("chats", "import", path, "--trust-kv")
    assert trusted.code == 0
    if form == "json":
        assert trusted.err.endswith("The chat was imported without its KV rows: sea.json holds no KV rows.\n")


@pytest.mark.slow
def test_the_format_is_the_one_that_the_file_ends_in(run: Run, family: list[str], tmp_path: Path) -> None:  # noqa: F811
    """`-o chat.json` and `-o chat.mlxkv` once held Markdown."""
    for name, begins in (
        ("a.md", b"# the sea"),
        ("a.markdown", b"# the sea"),
        ("a", b"# the sea"),
        ("a.json", b"{"),
        ("A.JSON", b"{"),
    ):
        assert run("chats", "export", "the sea", "-o", tmp_path / name).code == 0
        assert (tmp_path / name).read_bytes().startswith(begins), name
    assert run("chats", "export", "the sea", "-o", tmp_path / "a.mlxkv").code == 0
    assert is_archive(tmp_path / "a.mlxkv")
    for asked in ("md", "json"):  # an option says more than a name
        assert run("chats", "export", "the sea", "-o", tmp_path / "a.txt", "--format", asked, "--force").code == 0
    assert json.loads((tmp_path / "a.txt").read_text())["title"] == "the sea"
    assert run("chats", "import", tmp_path / "a.txt").code == 0  # what a file is decides, not its name
    refused = run("chats", "export", "the sea", "-o", tmp_path / "a.pdf")
    assert refused.code == 2
    assert "ends in .pdf, which names no format; end it in .md, .markdown, .json or .mlxkv.\n" in refused.err
    assert not (tmp_path / "a.pdf").exists()


@pytest.mark.slow
def test_removing_asks_or_wants_yes(run: Run, family: list[str]) -> None:  # noqa: F811
    refused = run("chats", "rm", "the sea")
    assert refused.code == 2
    assert "--yes" in refused.err
    wrong = run("chats", "rm", "the sea", "nothing", "--yes")
    assert wrong.code == 1
    assert len(json.loads(run("chats", "ls", "--json").out)) == 4
    assert run("chats", "rm", "the sea", family[3][:26], "-y").out.count("deleted") == 2
    assert {c["id"] for c in json.loads(run("chats", "ls", "--json").out)} == {family[0], family[2]}


def test_what_cannot_be_is_said_in_one_sentence(run: Run, family: list[str], tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "there").write_text("x")
    for args, code, why in (
        (["show", "nothing"], 1, "No chat has the title or id 'nothing'"),
        (["show", "the sky"], 1, "matches 3 chats"),
        (["export", "the sea", "--format", "pdf"], 2, "'pdf'"),
        (["export", "the sea", "--format", "mlxkv"], 2, "-o FILE"),
        (["export", "the sea", "-o", tmp_path / "there"], 1, "--force"),
        (["export", "the sea", "-o", tmp_path / "no" / "x"], 1, "does not exist"),
        (["import", tmp_path / "there"], 1, "not a chat that can be imported"),
        (["import", tmp_path / "nowhere"], 1, "cannot be read"),
        (["ls", "--output-format", "xml"], 2, "'xml'"),
        (["rename", "the sea", "\n"], 2, "title is empty"),
    ):
        done = run("chats", *args)
        assert done.code == code, (args, done)
        assert why in done.err, (args, done.err)
        assert done.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mlxkv ca", ["cache"]),
        ("mlxkv -r the\\ se", []),
        ("mlxkv --cac", ["--cache"]),
        ("mlxkv why -p --res", ["--resume"]),
        ("mlxkv chats sh", ["show"]),
        ("mlxkv -m tut", ["tutor"]),
        ("mlxkv cache show bo", ["book"]),
        ("mlxkv -p --cache bo", ["book"]),
    ],
)
def test_the_shell_is_offered_what_fits(
    home: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str], line: str, offered: list[str]
) -> None:
    private_folder(home / "cache" / "prompts")
    (home / "cache" / "prompts" / "book.kv").write_bytes(b"x")
    for variable, value in (("_MLXKV_COMPLETE", "complete_zsh"), ("_TYPER_COMPLETE_ARGS", line)):
        monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit):
        main([])
    out = capsys.readouterr().out
    for name in offered:
        assert f'"{name}"' in out, out
    monkeypatch.setenv("_MLXKV_COMPLETE", "complete_bash")
    monkeypatch.delenv("_TYPER_COMPLETE_ARGS")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    with pytest.raises(SystemExit):
        main([])
    assert [*offered] == [name for name in capsys.readouterr().out.split("\n") if name in offered]


def test_the_shell_completes_ids_and_titles(family: list[str]) -> None:
    assert {title for _, title in ids_for_completion("the s")} >= {"the sea"}
    assert [i for i, _ in ids_for_completion(family[1].lower())] == [
        family[1][: len(ids_for_completion("the sea")[0][0])]
    ]
    assert len(ids_for_completion("")) == 4


@pytest.mark.slow
def test_all_chats_go_back_to_a_copy(run: Run, family: list[str]) -> None:  # noqa: F811
    """Opening the store made a copy of the four chats; one is deleted, and all come back."""
    run("chats", "ls")
    listed = run("chats", "backups").out
    assert "4 chats" in listed
    run("chats", "rm", family[1], "--yes")
    assert "the sea" not in run("chats", "ls").out
    assert "saved as" in run("chats", "restore-backup", listed.split()[0]).out
    assert "the sea" in run("chats", "ls").out
    assert run("chats", "restore-backup", "mlxkv-19990101").code == 1
