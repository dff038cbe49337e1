"""Chats of ChatGPT's data export: `conversations.json`, a list of trees (`mapping`). Pure; any thread.

The format is undocumented. A node holds one message; its `content` has a `content_type` and `parts`, `text` or others.
Messages to a tool (`recipient`) are calls, those from one their results. Text that ChatGPT hides is left out, the
user's custom instructions and instructions of a system message are the system prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from mlxkv.store.export.foreign.chat import (
    ForeignChat,
    ForeignFile,
    ForeignMessage,
    ForeignNode,
    files_of,
    list_of,
    name_of,
    table_of,
    tables_of,
    text_of,
    time_of,
)
from mlxkv.store.export.foreign.tool_turns import call

PROGRAM = "ChatGPT"
_INSTRUCTIONS = ("user_profile", "user_instructions", "about_user_message", "about_model_message")
_UNSEEN = ("user_editable_context", "model_editable_context", "reasoning_recap")
_ENTITY = re.compile('\ue200entity\ue202\\["[^"]*",\\s*"([^"]*)"[^\ue201]*\ue201')
_CITATION = re.compile("[ \t]?\ue200[^\ue200\ue201]*\ue201|[\ue200-\ue2ff]")  # marks that ChatGPT shows as links


def is_chat(found: object) -> bool:
    return isinstance(found, dict) and isinstance(found.get("mapping"), dict)


def read(found: Mapping[str, Any]) -> ForeignChat:
    """The chat in an entry of `conversations.json`."""
    mapping = found["mapping"]
    places = {child: i for node in tables_of([*mapping.values()]) for i, child in enumerate(_children(node))}
    nodes, system, unknown, model = [], [], 0, name_of(found.get("default_model_slug"))
    for key, entry in mapping.items():
        node = table_of(entry)
        message = table_of(node.get("message"))
        shown, instructions = _message(message), _instructions(message)
        unknown += shown is None and not instructions and _is_unknown(message)
        if instructions and instructions not in system:
            system.append(instructions)
        model = name_of(table_of(message.get("metadata")).get("model_slug")) or model
        parent = node.get("parent")
        nodes.append(
            ForeignNode(
                key,
                parent if isinstance(parent, str) else None,
                () if shown is None else (shown,),
                time_of(message.get("create_time")),
            )
        )
    nodes.sort(key=lambda node: places.get(node.id, 0))  # siblings in the order in which they were made
    current = found.get("current_node")
    return ForeignChat(
        PROGRAM,
        text_of(found.get("conversation_id")) or text_of(found.get("id")),
        text_of(found.get("title")),
        time_of(found.get("create_time")),
        time_of(found.get("update_time")),
        model,
        "\n\n".join(system),
        nodes,
        current if isinstance(current, str) else None,
        unknown,
    )


def _children(node: Mapping[str, Any]) -> list[str]:
    return [child for child in list_of(node.get("children")) if isinstance(child, str)]


def _instructions(message: Mapping[str, Any]) -> str:
    """The system prompt that a message carries, if it does."""
    content, metadata = table_of(message.get("content")), table_of(message.get("metadata"))
    if table_of(message.get("author")).get("role") == "system":
        texts = [text_of(part) for part in list_of(content.get("parts"))]
    elif content.get("content_type") != "user_editable_context":
        return ""
    else:
        texts = [text_of(content.get(name)) for name in _INSTRUCTIONS]
    data = table_of(metadata.get("user_context_message_data"))
    if not any(map(str.strip, texts)):
        texts = [text_of(data.get(name)) for name in _INSTRUCTIONS]
    return "\n\n".join(text.strip() for text in texts if text.strip())


def _message(message: Mapping[str, Any]) -> ForeignMessage | None:
    """What ChatGPT shows of a message; None if it shows nothing."""
    author, content, metadata = (table_of(message.get(key)) for key in ("author", "content", "metadata"))
    role, kind = author.get("role"), content.get("content_type")
    if role not in ("user", "assistant", "tool") or kind in _UNSEEN:
        return None
    if metadata.get("is_visually_hidden_from_conversation") is True:
        return None
    if kind == "thoughts":
        thoughts = [text_of(t.get("content")) or text_of(t.get("summary")) for t in tables_of(content.get("thoughts"))]
        thinking = "\n\n".join(filter(None, thoughts))
        return ForeignMessage("assistant", thinking=thinking) if thinking else None
    text, files = _text(content), _files(content, metadata)
    recipient = message.get("recipient")
    if role == "assistant" and isinstance(recipient, str) and recipient not in ("all", "assistant", "user"):
        language = text_of(content.get("language"))
        if text:
            return call(name_of(recipient), text, language="json" if language in ("", "unknown") else language)
    elif role == "tool" and text:
        return ForeignMessage("tool", text, files=files, name=name_of(author.get("name")))
    elif role == "assistant":
        text = _CITATION.sub("", _ENTITY.sub(r"\1", text))
    if not text.strip() and not files:
        return None
    is_complete = message.get("status") not in ("in_progress", "finished_partial_completion")
    return ForeignMessage("user" if role == "user" else "assistant", text, "", files, is_complete)


def _text(content: Mapping[str, Any]) -> str:
    """The text of a message, of whatever type."""
    parts = []
    for part in list_of(content.get("parts")):
        if isinstance(part, dict):
            part = part.get("text")  # a transcript
        if text_of(part).strip():
            parts.append(text_of(part))
    for name in ("text", "result", "content"):
        if not parts and text_of(content.get(name)).strip():
            parts.append(text_of(content[name]))
    links = [text_of(content.get(name)) for name in ("title", "url") if parts]
    return "\n\n".join([" · ".join(filter(None, links)), *parts]).strip("\n")


def _files(content: Mapping[str, Any], metadata: Mapping[str, Any]) -> tuple[ForeignFile, ...]:
    """Pictures, recordings and attachments. An attachment names the picture that the message points to."""
    attached = tables_of(metadata.get("attachments"))
    names = {text_of(table.get("id")): table for table in attached}
    files: list[ForeignFile] = []
    for part in tables_of(content.get("parts")):
        pointer = text_of(part.get("asset_pointer"))
        kind = next((kind for kind in ("image", "audio", "video") if kind in text_of(part.get("content_type"))), "")
        if not (pointer or kind) or text_of(part.get("text")):
            continue
        entry = names.pop(pointer.rsplit("/", 1)[-1], None)
        title = table_of(table_of(part.get("metadata")).get("dalle")).get("prompt") if entry is None else None
        files += files_of(
            [entry or {"name": name_of(title)[:60]}], "name", kind="recording" if kind == "audio" else kind or "file"
        )
    return (*files, *files_of([table for table in attached if text_of(table.get("id")) in names], "name"))


def _is_unknown(message: Mapping[str, Any]) -> bool:
    """Whether a message has content that could not be read."""
    content, role = table_of(message.get("content")), table_of(message.get("author")).get("role")
    known = ("text", "code", "multimodal_text", "thoughts", *_UNSEEN)
    if role not in ("user", "assistant", "tool") or content.get("content_type") in known:
        return False
    hidden = table_of(message.get("metadata")).get("is_visually_hidden_from_conversation") is True
    return not hidden and len(json.dumps(content, default=str)) > 100
