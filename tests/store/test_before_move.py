"""A chat, a named prompt cache and an archive that the commit before the move of all files wrote, used by this one.

All that was saved is cached, and the replies are those that a chat which was never closed gave then.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlxkv
from mlxkv.config import Folders, private_folder
from mlxkv.model import Model
from mlxkv.store import identity
from mlxkv.store.prompts.folder import PromptFolder
from tests.fixtures.stores.before_move.make import CACHES, GREEDY, NEXT, SYSTEM, figures

FOLDER = Path(__file__).parents[1] / "fixtures" / "stores" / "before_move"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())
# mlx-lm's code for this model as it was then. Rows are refused when it changes, which is not what is tested here.
CODE = {"code.llama": "dfb656511e6740781cd0563f7994a78b3404c199b9aebaa2fbca28a19e280891"}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    monkeypatch.setattr(identity, "code_part", lambda module: CODE)
    loaded = mlxkv.load(FOLDER / "model")
    yield loaded
    loaded.close()


@pytest.mark.parametrize("title", ["sky", "long"])
def test_a_chat_is_resumed_without_prefilling_what_was_saved(model: Model, folders: Folders, title: str) -> None:
    with tarfile.open(FOLDER / "store.tar.gz") as tar:
        tar.extractall(folders.data.parent, filter="data")
    for folder in (folders.data, folders.cache):
        folder.chmod(0o700)
    expected = EXPECTED[title]
    with model.resume(title) as chat:
        assert [message.text for message in chat.messages] == expected["messages"]
        assert chat.system == SYSTEM
        assert chat.restored is not None
        assert (chat.restored.tokens, chat.restored.notice) == (expected["offset"], None)
        assert chat.restored.evicted == expected["evicted"]
        assert figures(chat) == expected["next"]
        assert chat.messages[-2].text == NEXT
    assert model.store.verify().problems == ()


def test_an_archive_is_imported_and_continued_without_prefilling_it(model: Model) -> None:
    expected = EXPECTED["sky"]
    done = model.store.import_chat(FOLDER / "chat.mlxkv", trust_kv=True)
    assert (done.title, done.kv_tokens, done.notice) == ("sky", expected["offset"], None)
    with model.resume(done.session_id) as chat:
        assert [message.text for message in chat.messages] == expected["messages"]
        assert figures(chat) == expected["next"]


def test_a_named_prompt_cache_is_loaded_and_asked_without_prefilling_it(model: Model, folders: Folders) -> None:
    shutil.copy(FOLDER / "book.kv", private_folder(folders.cache / "prompts") / "book.kv")
    expected = EXPECTED["book"]
    cache = model.load_cache(PromptFolder(folders).find("book"))
    assert (cache.offset, cache.prompt and cache.prompt.system) == (expected["offset"], SYSTEM)
    assert figures(model.chat(cache=cache, **GREEDY)) == expected["next"]


@pytest.mark.parametrize("title", ["sky", "long"])
def test_these_figures_are_what_a_chat_that_was_never_closed_has(model: Model, title: str) -> None:
    chat = model.chat(SYSTEM, CACHES[title], **GREEDY)
    for text in EXPECTED[title]["messages"][::2]:
        list(chat.send(text))
    assert [message.text for message in chat.messages] == EXPECTED[title]["messages"]
    assert figures(chat) == EXPECTED[title]["next"]
