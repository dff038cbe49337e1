"""Chats of Claude's data export: `conversations.json`, a list of chats with `chat_messages`. Pure; any thread.

The format is undocumented. A message has blocks (`content`): text, thinking, tool_use and tool_result; older exports
have `text` alone. `parent_message_uuid` makes a tree where an export has it; older ones are a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxkv.store.export.foreign.chat import (
    ForeignChat,
    ForeignFile,
    ForeignMessage,
    ForeignNode,
    files_of,
    name_of,
    table_of,
    tables_of,
    text_of,
    time_of,
)
from mlxkv.store.export.foreign.tool_turns import call

PROGRAM = "Claude"
_QUIET = ("token_budget", "flag", "voice_note")  # blocks without content
_ROLES = {"human": "user", "assistant": "assistant"}


def is_chat(found: object) -> bool:
    return isinstance(found, dict) and isinstance(found.get("chat_messages"), list)


def read(found: Mapping[str, Any]) -> ForeignChat:
    """The chat in an entry of `conversations.json`."""
    nodes: list[ForeignNode] = []
    messages = tables_of(found["chat_messages"])
    known = {message["uuid"] for message in messages if isinstance(message.get("uuid"), str)}
    unknown = 0
    for i, message in enumerate(messages):
        shown, num_unknown = _message(message)
        unknown += num_unknown
        parent = message.get("parent_message_uuid")
        if not isinstance(parent, str):  # a line, in the order of the list
            parent = nodes[-1].id if nodes else None
        node_id = message.get("uuid")
        nodes.append(
            ForeignNode(
                node_id if isinstance(node_id, str) else f"#{i}",
                parent if parent in known or parent == (nodes[-1].id if nodes else None) else None,
                shown,
                time_of(message.get("created_at")),
            )
        )
    leaf = found.get("current_leaf_message_uuid")
    newest = max(nodes, key=lambda node: node.time, default=None)  # the last of those of one time
    if newest is not None and newest.time == nodes[-1].time:
        newest = nodes[-1]
    return ForeignChat(
        PROGRAM,
        text_of(found.get("uuid")),
        text_of(found.get("name")),
        time_of(found.get("created_at")),
        time_of(found.get("updated_at")),
        name_of(found.get("model")),
        text_of(table_of(found.get("settings")).get("system_prompt")),
        nodes,
        leaf if isinstance(leaf, str) else newest and newest.id,
        unknown,
    )


def _message(message: Mapping[str, Any]) -> tuple[list[ForeignMessage], int]:
    """The parts of a message, and how many of its blocks could not be read."""
    role = _ROLES.get(text_of(message.get("sender")))
    parts: list[ForeignMessage] = []
    files: list[ForeignFile] = []
    unknown = 0
    for block in tables_of(message.get("content")):
        match block.get("type"):
            case "text":
                parts.append(ForeignMessage(role or "", text_of(block.get("text"))))
            case "thinking":
                parts.append(ForeignMessage(role or "", thinking=text_of(block.get("thinking"))))
            case "tool_use":
                parts.append(call(name_of(block.get("name")), block.get("input"), block.get("id")))
            case "tool_result":
                text, pictures = _result(block.get("content"))
                name, call_id = name_of(block.get("name")), name_of(block.get("tool_use_id"))
                parts.append(ForeignMessage("tool", text, call_id=call_id, name=name))
                files += pictures
            case "image" | "document":
                files += files_of([block], "file_name", kind=str(block["type"]).replace("document", "file"))
            case kind:
                unknown += kind not in _QUIET
    if not any(part.text.strip() or part.call for part in parts):
        parts.append(ForeignMessage(role or "", text_of(message.get("text"))))
    for table in tables_of(message.get("attachments")):  # pasted text and documents, with their text
        text = text_of(table.get("extracted_content"))
        files += [ForeignFile(file.name, text=text or None) for file in files_of([table], "file_name", "id")]
    for table in tables_of(message.get("files")) + tables_of(message.get("files_v2")):
        kind = "image" if table.get("file_kind") == "image" else "file"
        files += [file for file in files_of([table], "file_name", "file_uuid", kind=kind) if file not in files]
    if role is None:
        return [], unknown + 1
    parts = [p for p in parts if p.text.strip() or p.thinking.strip() or p.call or p.role == "tool"]
    if files:
        parts.append(ForeignMessage(role, files=tuple(files)))
    return parts, unknown


def _result(content: object) -> tuple[str, list[ForeignFile]]:
    """Text and pictures of a tool's result."""
    if isinstance(content, str):
        return text_of(content), []
    blocks = tables_of(content)
    texts = [text_of(b.get("text")) or text_of(b.get("title")) for b in blocks if b.get("type") != "image"]
    pictures = files_of([b for b in blocks if b.get("type") == "image"], "file_name", kind="image")
    return "\n\n".join(filter(None, texts)), pictures
