"""The chats: opening, going back, forking, naming, finding, writing out. On the MLX thread.

What a chat is and where it is saved belongs to `mlxkv.chat.chat` and `mlxkv.store`; here commands become calls and
results events.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlxkv.config import Settings
from mlxkv.engine import status as figures
from mlxkv.engine.context import Front
from mlxkv.errors import ConfigError, MlxkvError, PromptError
from mlxkv.events import Notice
from mlxkv.protocol.events import (
    Applied,
    ChatDeleted,
    ChatExported,
    ChatHit,
    ChatHits,
    ChatList,
    ChatOpened,
    ChatReleased,
    ChatRenamed,
    ChatTree,
    EngineEvent,
    Versions,
)
from mlxkv.protocol.export_format import CHAT_FORMATS, one_of

if TYPE_CHECKING:
    from mlxkv.chat.chat import Chat
    from mlxkv.store import SessionStore

# -- opening ---------------------------------------------------------------------------------------------------------


def new(front: Front, system: str | None) -> Iterator[EngineEvent]:
    front.close_chat()
    front.saved = "" if front.save else "off"
    if front.model is not None:
        front.chat = front.model.chat(
            system or front.system,
            front.bounds(),
            autosave=front.save,
            think=front.settings.think,
            **front.settings.sampling,
        )
    yield Versions(())
    yield ChatOpened(None, "")  # the first message will be its title
    yield figures.status(front)


def opened(front: Front, session_id: str) -> Iterator[EngineEvent]:
    """Resume; a chat that another process has open is shown, and can be forked."""
    model = front.ready_model
    if front.chat is None or front.chat.session_id != session_id:
        model.store.check(session_id)  # what is damaged is said while the chat in front is still open
    front.close_chat()
    bounds = front.bounds() if front.settings.bounds_cache else None
    chat = front.chat = model.reopen(session_id, cache=bounds, **front.settings.sampling)
    if front.settings.think is not None:
        chat.thinking = front.settings.think
    yield from versions(front)
    yield view(chat)
    if chat.restored and chat.restored.notice:
        yield Notice(chat.restored.notice)
    if not front.save:
        chat.detach()
    front.saved = "" if chat.read_only else "saved" if chat.session_id else "off"
    figures.look_at_disk(front)
    yield figures.status(front)


def checked(front: Front) -> Iterator[EngineEvent]:
    chat = front.chat
    if chat is not None and chat.read_only and chat.session_id and not front.ready_model.store.is_open(chat.session_id):
        yield ChatReleased(chat.session_id)


def view(chat: Chat, prompt: str = "", num_messages: int | None = None) -> ChatOpened:
    """The chat as it is now, or its first messages."""
    back = chat.restored
    restored = (0, 0, 0.0)
    if back and not prompt and num_messages is None:
        restored = (back.tokens - back.evicted, back.bytes, back.seconds)
    messages = chat.messages[:num_messages]
    return ChatOpened(chat.session_id, chat.title, messages, *restored, prompt, chat.read_only or "")


def versions(front: Front, first: int = 0) -> Iterator[EngineEvent]:
    """What versions there are of each message, from number `first` on; told before what is shown with them."""
    chat = front.chat
    model, session = front.model, chat.session_id if chat else None
    yield Versions(model.store.siblings(session, first) if model and session else (), first)


# -- going back ------------------------------------------------------------------------------------------------------


def rewound(front: Front, turn: int | None) -> Iterator[EngineEvent]:
    chat = front.open_chat
    text = chat.undo() if turn is None else chat.rewind(turn)
    if front.save and chat.session_id is None:
        front.saved = ""
    yield from versions(front)
    yield view(chat, text)
    yield figures.status(front)


def forked(front: Front, turn: int | None) -> Iterator[EngineEvent]:
    """Before a message of the user's, whose text comes back to be changed; after a reply."""
    chat, text = front.open_chat, ""
    if not chat.messages:
        raise PromptError("There is nothing to fork yet: nothing has been said.")
    if turn is not None and turn in range(len(chat.messages)) and chat.messages[turn].role == "user":
        text = chat.messages[turn].text
    twin = chat.fork(turn)
    front.close_chat()
    front.chat = twin
    front.saved = "saved" if front.save else "off"
    yield from versions(front)
    yield view(twin, text, len(twin.messages))
    yield figures.status(front)


def tree(front: Front) -> Iterator[EngineEvent]:
    yield ChatTree(front.open_chat.tree())


# -- all chats -------------------------------------------------------------------------------------------------------


def listed(front: Front) -> Iterator[EngineEvent]:
    with front.store() as store:
        yield ChatList(store.list())


def found(front: Front, words: str) -> Iterator[EngineEvent]:
    with front.store() as store:
        hits = store.search(words)
    yield ChatHits(words, tuple(ChatHit(h.session_id, h.title, h.turn, h.role, h.snippet, h.marks) for h in hits))


def renamed(front: Front, title: str, session_id: str | None) -> Iterator[EngineEvent]:
    title = " ".join(title.split())
    if not title:
        raise ConfigError("A title needs at least one letter; as in /rename Trip to Porto.")
    chat = front.chat
    if chat is not None and chat.session_id == (session_id or chat.session_id) and chat.session_id is not None:
        chat.save(title)
        yield ChatRenamed(chat.session_id, title)
        return
    if session_id is None:
        raise PromptError("This chat is not saved yet; write something first.")
    with front.store() as store:
        store.rename(session_id, title)
    yield ChatRenamed(session_id, title)


def deleted(front: Front, session_id: str | None) -> Iterator[EngineEvent]:
    in_front = front.chat.session_id if front.chat else None
    session_id = session_id or in_front
    if session_id is None:
        raise PromptError("This chat is not saved, so there is nothing to delete; /new starts another.")
    with front.store() as store:
        title = next((chat.title for chat in store.list() if chat.id == session_id), "")
        if session_id == in_front:
            front.close_chat()
        store.delete(session_id)
    yield ChatDeleted(session_id, title)
    if session_id == in_front:
        yield from new(front, None)


def exported(front: Front, kind: str, path: str, session_id: str | None) -> Iterator[EngineEvent]:
    from mlxkv.store.export.document import to_document
    from mlxkv.store.export.markdown import to_markdown

    if kind not in CHAT_FORMATS:
        raise ConfigError(f"A chat is not exported as {kind!r}; the format must be {one_of(CHAT_FORMATS)}.")
    session_id = session_id or (front.chat.session_id if front.chat else None)
    if session_id is None:
        raise PromptError("This chat is not saved, so there is nothing to export; write something first.")
    with front.store() as store:
        record = store.load(session_id)
        target = Path(path).expanduser() if path else Path(f"{_file_name(record.title)}.{kind}")
        try:
            with target.open("x", encoding="utf-8") as file:  # never over a file that is there
                if kind != "mlxkv":
                    document = json.dumps(to_document(record), indent=1) + "\n"
                    file.write(document if kind == "json" else to_markdown(record, joined=True))
            if kind == "mlxkv":
                _write_archive(store, session_id, target)
        except FileExistsError as error:
            raise ConfigError(
                f"{target} exists already; give another name, as in /export {kind} other.{kind}."
            ) from error
        except OSError as error:
            raise ConfigError(f"{target} cannot be written ({error.strerror}); choose another folder.") from error
    yield ChatExported(str(target.resolve()))


def _write_archive(store: SessionStore, session_id: str, target: Path) -> None:
    """In the place of the empty file that holds the name."""
    try:
        store.export_chat(session_id, target)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _file_name(title: str) -> str:
    """A file name of letters and digits of the title, with hyphens between."""
    words = "".join(c if c.isalnum() else " " for c in title).split()
    return "-".join(words)[:60] or "chat"


# -- what holds ------------------------------------------------------------------------------------------------------


def resettled(front: Front, settings: Settings) -> Iterator[EngineEvent]:
    """Sampling holds from the next reply on. Other bounds make another cache, which the chat is read into again."""
    before, front.settings = front.settings, settings
    if before.system != settings.system:
        front.system = settings.system
    notice = ""
    if before.think != settings.think and front.chat is not None:
        front.chat.thinking = settings.think
        notice = front.chat.think_notice
    bounds = ("window", "sinks", "kv_bits")
    if all(getattr(before, name) == getattr(settings, name) for name in bounds) or front.model is None:
        yield Applied(notice)
        return
    chat = front.chat
    if chat is None or not chat.messages:
        yield from new(front, None)
        yield Applied(" ".join(["The KV cache has its new bounds.", *_beyond_training(front, before)]))
    elif chat.session_id is not None and not chat.read_only:
        try:
            yield from opened(front, chat.session_id)
        except MlxkvError:
            front.settings = before
            yield from opened(front, chat.session_id)
            raise
        text = "The KV cache has its new bounds; the chat is read into it again with your next message."
        yield Applied(" ".join([text, *_beyond_training(front, before)]))
    else:
        yield Applied("New chats have the new bounds; this one keeps its own.")


def _beyond_training(front: Front, before: Settings) -> Iterator[str]:
    chat = front.chat
    if chat is not None and front.settings.window != before.window and (text := chat.cache.plan.beyond_training):
        yield text


def given_system(front: Front, text: str | None) -> Iterator[EngineEvent]:
    front.system = text
    what = "Chats have no system prompt" if text is None else "The system prompt is set"
    if front.chat is None or not front.chat.messages:
        yield from new(front, None)
        yield Applied(f"{what}.")
    else:
        yield Applied(f"{what} from the next chat on: /new starts one. This one keeps what it began with.")
