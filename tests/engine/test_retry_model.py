"""Another model in the middle of a chat: versions side by side, and no row or token of one model reaches another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import mlxkv
from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.tui.state.commands.retry import version_labels
from tests.engine.test_engine_chats import Said
from tests.tokenizers import tiny_folder

pytestmark = pytest.mark.slow


@pytest.fixture(params=[True, False], ids=["saved", "not saved"])
def said(request: pytest.FixtureRequest, home: Path, tiny_path: Path, tmp_path: Path) -> Iterator[Said]:
    """A question, answered by the model `tiny`; `other` has the same tokens under other ids."""
    tiny_folder(tmp_path / "an other", seed=1, reverse=True)
    said = Said(save=request.param)
    said.one(cmd.LoadModel(str(tiny_path)), ev.ModelReady)
    said.one(cmd.Send("one", 0.0), ev.TurnFinished)
    yield said
    said.context.close()


def test_versions_of_two_models_and_of_other_settings(said: Said, tiny_path: Path, tmp_path: Path) -> None:
    first = said.context.current_chat.session_id
    warm = said.one(cmd.Retry(None, (("temperature", 3.0), ("seed", 4))), ev.TurnFinished)
    other = str(tmp_path / "an other")
    (opened,) = [e for e in said.ask(cmd.LoadModel(other)) if isinstance(e, ev.ChatOpened)]
    assert [message.text for message in opened.messages] == ["one", warm.text]
    events = said.ask(cmd.Retry())
    (finished,) = [e for e in events if isinstance(e, ev.TurnFinished)]
    assert finished.stats.cached_tokens == 0  # rows of the other model
    alone = mlxkv.load(other).chat(temperature=0.0, max_tokens=12)
    assert finished.text == alone.ask("one").text

    said.ask(cmd.Send("two", 0.0))
    assert said.context.current_chat.messages[-1].text == alone.ask("two").text
    if first is None:
        return
    versions = [e for e in events if isinstance(e, ev.Versions)][-1].messages
    assert [len(found) for found in versions] == [1, 3]
    assert version_labels(versions[1]) == ["tiny temp 0", "tiny temp 3 seed 4", "an other temp 0"]
    assert [sibling.is_current for sibling in versions[1]] == [False, False, True]

    opened = said.ask(cmd.OpenChat(first))  # the first version, which the other model did not write
    said.ask(cmd.Send("two", 0.0))
    chat = said.context.current_chat
    messages = [{"role": m.role, "content": m.text} for m in chat.messages[:2]]
    assert (
        chat.messages[-1].text
        == mlxkv.load(other).chat(messages=messages, temperature=0.0, max_tokens=12).ask("two").text
    )
