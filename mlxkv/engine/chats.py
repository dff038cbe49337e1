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
from mlxkv.engine.context import EngineContext
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


def new(context: EngineContext, system: str | None) -> Iterator[EngineEvent]:
    context.close_chat()
    context.saved = "" if context.save else "off"
    if context.model is not None:
        context.chat = context.model.chat(
            system or context.system,
            context.bounds(),
            autosave=context.save,
            think=context.settings.think,
            **context.settings.sampling,
        )
    yield Versions(())
    yield ChatOpened(None, "")  # the first message will be its title
    yield figures.status(context)


def opened(context: EngineContext, session_id: str) -> Iterator[EngineEvent]:
    """Resume; a chat that another process has open is shown, and can be forked."""
    model = context.ready_model
    if context.chat is None or context.chat.session_id != session_id:
        model.store.sessions.check(session_id)  # what is damaged is said while the chat in front is still open
    context.close_chat()
    bounds = context.bounds() if context.settings.bounds_cache else None
    chat = context.chat = model.reopen(session_id, cache=bounds, **context.settings.sampling)
    if context.settings.think is not None:
        chat.thinking = context.settings.think
    yield from versions(context)
    yield view(chat)
    if chat.restored and chat.restored.notice:
        yield Notice(chat.restored.notice)
    if not context.save:
        chat.detach()
    context.saved = "" if chat.read_only else "saved" if chat.session_id else "off"
    figures.look_at_disk(context)
    yield figures.status(context)


def checked(context: EngineContext) -> Iterator[EngineEvent]:
    chat = context.chat
    if (
        chat is not None
        and chat.read_only
        and chat.session_id
        and not context.ready_model.store.is_open(chat.session_id)
    ):
        yield ChatReleased(chat.session_id)


def view(chat: Chat, prompt: str = "", num_messages: int | None = None) -> ChatOpened:
    """The chat as it is now, or its first messages."""
    back = chat.restored
    restored = (0, 0, 0.0)
    if back and not prompt and num_messages is None:
        restored = (back.tokens - back.evicted, back.bytes, back.seconds)
    messages = chat.messages[:num_messages]
    return ChatOpened(chat.session_id, chat.title, messages, *restored, prompt, chat.read_only or "")


def versions(context: EngineContext, first: int = 0) -> Iterator[EngineEvent]:
    """What versions there are of each message, from number `first` on; told before what is shown with them."""
    chat = context.chat
    model, session = context.model, chat.session_id if chat else None
    yield Versions(model.store.siblings(session, first) if model and session else (), first)


# -- going back ------------------------------------------------------------------------------------------------------


def rewound(context: EngineContext, turn: int | None) -> Iterator[EngineEvent]:
    chat = context.current_chat
    text = chat.undo() if turn is None else chat.rewind(turn)
    if context.save and chat.session_id is None:
        context.saved = ""
    yield from versions(context)
    yield view(chat, text)
    yield figures.status(context)


def forked(context: EngineContext, turn: int | None) -> Iterator[EngineEvent]:
    """Before a message of the user's, whose text comes back to be changed; after a reply."""
    chat, text = context.current_chat, ""
    if not chat.messages:
        raise PromptError("There is nothing to fork yet: nothing has been said.")
    if turn is not None and turn in range(len(chat.messages)) and chat.messages[turn].role == "user":
        text = chat.messages[turn].text
    twin = chat.fork(turn)
    context.close_chat()
    context.chat = twin
    context.saved = "saved" if context.save else "off"
    yield from versions(context)
    yield view(twin, text, len(twin.messages))
    yield figures.status(context)


def tree(context: EngineContext) -> Iterator[EngineEvent]:
    yield ChatTree(context.current_chat.tree())


# -- all chats -------------------------------------------------------------------------------------------------------


def listed(context: EngineContext) -> Iterator[EngineEvent]:
    with context.store() as store:
        yield ChatList(store.list())


def found(context: EngineContext, words: str) -> Iterator[EngineEvent]:
    with context.store() as store:
        hits = store.sessions.search(words)
    yield ChatHits(words, tuple(ChatHit(h.session_id, h.title, h.turn, h.role, h.snippet, h.marks) for h in hits))


def renamed(context: EngineContext, title: str, session_id: str | None) -> Iterator[EngineEvent]:
    title = " ".join(title.split())
    if not title:
        raise ConfigError("A title needs at least one letter; as in /rename Trip to Porto.")
    chat = context.chat
    if chat is not None and chat.session_id == (session_id or chat.session_id) and chat.session_id is not None:
        chat.save(title)
        yield ChatRenamed(chat.session_id, title)
        return
    if session_id is None:
        raise PromptError("This chat is not saved yet; write something first.")
    with context.store() as store:
        store.sessions.rename(session_id, title)
    yield ChatRenamed(session_id, title)


def deleted(context: EngineContext, session_id: str | None) -> Iterator[EngineEvent]:
    current = context.chat.session_id if context.chat else None
    session_id = session_id or current
    if session_id is None:
        raise PromptError("This chat is not saved, so there is nothing to delete; /new starts another.")
    with context.store() as store:
        title = next((chat.title for chat in store.list() if chat.id == session_id), "")
        if session_id == current:
            context.close_chat()
        store.delete(session_id)
    yield ChatDeleted(session_id, title)
    if session_id == current:
        yield from new(context, None)


def exported(context: EngineContext, kind: str, path: str, session_id: str | None) -> Iterator[EngineEvent]:
    from mlxkv.store.export.document import to_document
    from mlxkv.store.export.markdown import to_markdown

    if kind not in CHAT_FORMATS:
        raise ConfigError(f"A chat is not exported as {kind!r}; the format must be {one_of(CHAT_FORMATS)}.")
    session_id = session_id or (context.chat.session_id if context.chat else None)
    if session_id is None:
        raise PromptError("This chat is not saved, so there is nothing to export; write something first.")
    with context.store() as store:
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


def resettled(context: EngineContext, settings: Settings) -> Iterator[EngineEvent]:
    """Sampling holds from the next reply on. Other bounds make another cache, which the chat is read into again."""
    before, context.settings = context.settings, settings
    if before.system != settings.system:
        context.system = settings.system
    notice = ""
    if before.think != settings.think and context.chat is not None:
        context.chat.thinking = settings.think
        notice = context.chat.think_notice
    bounds = ("window", "sinks", "kv_bits")
    if all(getattr(before, name) == getattr(settings, name) for name in bounds) or context.model is None:
        yield Applied(notice)
        return
    chat = context.chat
    if chat is None or not chat.messages:
        yield from new(context, None)
        yield Applied(" ".join(["The KV cache has its new bounds.", *_beyond_training(context, before)]))
    elif chat.session_id is not None and not chat.read_only:
        try:
            yield from opened(context, chat.session_id)
        except MlxkvError:
            context.settings = before
            yield from opened(context, chat.session_id)
            raise
        text = "The KV cache has its new bounds; the chat is read into it again with your next message."
        yield Applied(" ".join([text, *_beyond_training(context, before)]))
    else:
        yield Applied("New chats have the new bounds; this one keeps its own.")


def _beyond_training(context: EngineContext, before: Settings) -> Iterator[str]:
    chat = context.chat
    if chat is not None and context.settings.window != before.window and (text := chat.cache.plan.beyond_training):
        yield text


def given_system(context: EngineContext, text: str | None) -> Iterator[EngineEvent]:
    context.system = text
    what = "Chats have no system prompt" if text is None else "The system prompt is set"
    if context.chat is None or not context.chat.messages:
        yield from new(context, None)
        yield Applied(f"{what}.")
    else:
        yield Applied(f"{what} from the next chat on: /new starts one. This one keeps what it began with.")
