"""`--adapter` in every mode, and an adapter that a chat or a prompt cache remembers."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from tests.adapters import make_adapter
from tests.cli.test_cli import Run, run  # noqa: F401  # a fixture
from tests.engine.test_engine_chats import Said

ASK = ["--temp", "0", "--max-tokens", "12", "--output-format", "json"]

pytestmark = pytest.mark.slow


@pytest.fixture
def adapter(tiny_path: Path, tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "poems", tiny_path)


def asked(run: Run, *args: str | Path) -> Any:  # noqa: F811
    done = run("-p", "hello", *args, *ASK)
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_chat_remembers_its_adapter(run: Run, tiny_path: Path, adapter: Path) -> None:  # noqa: F811
    tuned, plain = (asked(run, "-m", tiny_path, *more, "--no-save") for more in (["--adapter", adapter], []))
    assert tuned["text"] != plain["text"]
    saved = asked(run, "-m", tiny_path, "--adapter", adapter)
    assert saved["text"] == tuned["text"]
    again = asked(run, "-c", "--fork")
    assert again["usage"]["cached_tokens"] > tuned["usage"]["prompt_tokens"]
    assert asked(run)["text"] == tuned["text"]  # a new chat, with the model of the last one
    (line,) = (json.dumps({"id": 1, "prompt": "hello"}),)
    batch = run("--batch", "-", *ASK[:4], stdin=line)
    assert json.loads(batch.out)["text"] == tuned["text"]
    without = asked(run, "-c", "--fork", "--adapter", "none")
    assert without["usage"]["cached_tokens"] == 0
    shutil.rmtree(adapter)
    gone = run("-p", "hello", "-r", saved["chat_id"])
    assert gone.code == 1
    assert "There is no adapter" in gone.err
    assert gone.err.endswith("; --adapter none continues without it.\n")
    assert asked(run, "-m", tiny_path, "--no-save")["text"] == plain["text"]


def test_a_prompt_cache_remembers_its_adapter(run: Run, tiny_path: Path, adapter: Path) -> None:  # noqa: F811
    assert run("cache", "create", "fox", "-s", "a fox", "-m", tiny_path, "--adapter", adapter).code == 0
    assert str(adapter) in run("cache", "show", "fox").out
    found = asked(run, "--cache", "fox")
    assert found["usage"]["cached_tokens"] > 0
    assert found["text"] == asked(run, "-m", tiny_path, "--adapter", adapter, "-s", "a fox")["text"]
    refused = run("-p", "hello", "--cache", "fox", "-m", tiny_path)
    assert "`adapter." in refused.err
    assert run("cache", "export", "fox", "-o", adapter / "fox.safetensors").code == 0
    estimated = [run("models", "estimate", tiny_path, *more).out for more in ([], ["--adapter", adapter])]
    assert estimated[0] != estimated[1]


def test_the_window_loads_and_removes_it_and_the_chat_continues(home: Path, tiny_path: Path, adapter: Path) -> None:
    said, name = Said(), str(tiny_path)
    said.one(cmd.LoadModel(name), ev.ModelReady)
    said.one(cmd.Send("hello", 0.0), ev.TurnFinished)
    session = said.context.current_chat.session_id
    for given, is_new in ((str(adapter), True), (None, False), (str(adapter), False)):
        ready = said.one(cmd.LoadModel(name, adapter=given), ev.ModelReady)
        assert (ready.adapter or None) == given
        assert said.context.current_chat.session_id == session
        stats = said.one(cmd.Send("and you?", 0.0), ev.TurnFinished).stats
        assert (stats.cached_tokens == 0) is is_new  # rows of the turns that it saw itself are used again
    model = said.context.model
    assert isinstance(said.ask(cmd.LoadModel(name, adapter="nowhere/"))[0], ev.Failed)
    assert said.context.model is model  # it was not unloaded
    (adapter / "adapter_config.json").write_text('{"fine_tune_type": "full"}')  # found only when it is loaded
    failed = said.ask(cmd.LoadModel(name, adapter=str(adapter)))
    assert any(isinstance(event, ev.Failed) for event in failed)
    said.context.close()


def test_the_endpoint_loads_it(run: Run, tiny_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    loaded: dict[str, str | None] = {}

    def serve(options: Any, load: Any) -> int:
        for name in options.models:
            model = load(name, threading.Event())
            loaded[name] = model.adapter
            model.close()
        return 0

    monkeypatch.setattr("mlxkv.server.run.serve", serve)
    done = run("serve", "-m", tiny_path, "--adapter", adapter, "--models", "tutor")
    assert done.code == 0, done.err
    assert loaded == {str(tiny_path): str(adapter), "tutor": None}
