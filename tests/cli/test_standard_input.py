"""`-` is standard input wherever the command line takes a file, and standard output with `-o`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from mlxkv.cli.cache import cache_import
from mlxkv.cli.input_files import schema_file, text_or_file
from mlxkv.config import Folders, private_folder
from mlxkv.store.prompts.kv_file import write_prompt_file
from mlxkv.store.records import TurnRecord
from mlxkv.store.session_store import SessionStore
from tests.cli.test_cli import Run, run  # noqa: F401  # a fixture
from tests.store.fake import FakeCache, model


@pytest.mark.slow
def test_a_dash_is_standard_input_wherever_a_file_is_taken(
    run: Run,  # noqa: F811
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = private_folder(Folders.from_env().cache / "prompts")
    write_prompt_file(prompts / "book.kv", FakeCache(), model())
    with SessionStore.open(Folders.from_env()) as store:
        store.add_turn(store.sessions.create("sky", model()), TurnRecord("user", "Why?", (1,)))
    whole = run("chats", "export", "sky", "--format", "json", "-o", "-").out
    assert not Path("-").exists()
    assert run("chats", "import", "-", stdin=whole).out == "Imported 0 chats of mlxkv; skipped 1 already here.\n"
    assert run("chats", "import", "-", stdin="{}").err.startswith("mlxkv: Standard input is not a chat that can be")
    assert run("cache", "import", "x", "-", stdin="{}").err.startswith("mlxkv: Standard input is ")
    data = (prompts / "book.kv").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    cache_import("copy", Path("-"))
    assert (prompts / "copy.kv").read_bytes() == data
    for value, read in (("be brief", text_or_file), ('{"type": "string"}', lambda _: schema_file(Path("-")))):
        monkeypatch.setattr(sys, "stdin", io.StringIO(value))
        assert read("@-") in (value, {"type": "string"})
    for args in (("-p", "hi"), ("doctor",)):
        assert run(*args, "--hosts", "-", stdin="[]").err.startswith(
            "mlxkv: Standard input names fewer than two hosts;"
        )
        assert "The hostfile standard input cannot" in run(*args, "--hosts", "-", stdin="{").err
    for args in (
        ("chats", "import", "-"),
        ("-p", "hi", "-s", "@-"),
        ("-p", "hi", "--schema", "-"),
        ("-p", "hi", "-f", "-"),
    ):
        assert run(*args).err == "mlxkv: The file - is standard input, and nothing comes from there; pipe a text in.\n"
    assert "name a file with -o FILE" in run("cache", "export", "book", "-o", "-").err
