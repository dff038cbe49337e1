"""An imported chat goes on in any model: its text is prefilled once."""

from __future__ import annotations

from pathlib import Path

import mlxkv
from mlxkv.events import TurnFinished
from mlxkv.model import Model
from tests.chats import say
from tests.store.foreign.exports import chatgpt, write


def test_an_imported_chat_is_prefilled_once(model: Model, tiny_path: Path, tmp_path: Path) -> None:
    done = model.store.import_foreign(write(tmp_path / "c.json", chatgpt()))
    assert done is not None
    (session_id,) = done.session_ids
    with model.resume("The sky") as chat:  # opened and closed without a word: its ids are still no model's
        roles = [message.role for message in chat.messages]
        assert roles == ["user", "assistant", "tool", "assistant", "user", "assistant"]
        assert (chat.system, chat.log) == ("Be brief.", ())
    with model.resume(session_id) as chat:
        first, second = say(chat, "Go on", max_tokens=8), say(chat, "And on", max_tokens=8)
        assert second.stats.prefill_tokens < first.stats.prefill_tokens / 4
        text = model.tokenizer.decode(chat.log).lower()
        assert all(word in text for word in ("be brief", "ayleigh.", "and red?", "at sunset.")), text
        wanted = chat.messages
    assert "skipped 1 already here" in str(model.store.import_foreign(tmp_path / "c.json"))
    again = mlxkv.load(str(tiny_path))
    with again.resume(session_id) as chat:
        assert chat.restored is not None
        assert chat.restored.tokens == len(chat.log) - 1
        assert chat.messages == wanted
        *_, last = chat.retry(1, max_tokens=8)  # a reply of another program, made again; its question now has ids
        assert isinstance(last, TurnFinished)
        assert [len(found) for found in again.store.siblings(str(chat.session_id))] == [1, 4]
    again.close()
