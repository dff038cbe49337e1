"""Small exports in the formats that ChatGPT, Claude and LM Studio write in 2026, made of a few words each."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = "00000000-0000-4000-8000-000000000000"  # the parent of Claude's first messages


def gpt_node(
    node: str, parent: str | None, role: str = "", text: str = "", children: tuple[str, ...] = (), **more: Any
) -> dict[str, Any]:
    """A node of ChatGPT's tree. `more`: fields of the message."""
    content = more.pop("content", {"content_type": "text", "parts": [text]})
    message = {
        "id": node, "author": {"role": role, "name": more.pop("name", None), "metadata": {}}, "content": content,
        "create_time": 1.7e9 + len(node), "status": "finished_successfully", "recipient": "all", "metadata": {}, **more,
    }  # fmt: skip
    return {"id": node, "parent": parent, "children": [*children], "message": message if role else None}


def chatgpt(**changes: Any) -> dict[str, Any]:
    """Two questions; the first reply was generated three times, of which the user went on from the second."""
    picture = {"content_type": "image_asset_pointer", "asset_pointer": "sediment://file_1", "metadata": None}
    thoughts = {"content_type": "thoughts", "thoughts": [{"summary": "Sky", "content": "Blue scatters most."}]}
    nodes = [
        gpt_node("root", None, children=("sys",)),
        gpt_node("sys", "root", "system", "", ("me",), metadata={"is_visually_hidden_from_conversation": True}),
        gpt_node("me", "sys", "user", children=("q1",), metadata={"is_visually_hidden_from_conversation": True},
                 content={"content_type": "user_editable_context", "user_instructions": "Be brief."}),
        gpt_node("q1", "me", "user", children=("a1", "t2", "a3"),
                 content={"content_type": "multimodal_text", "parts": [picture, "Why is it blue?"]},
                 metadata={"attachments": [{"id": "file_1", "name": "sky.png", "mimeType": "image/png"},
                                           {"id": "file_2", "name": "notes.pdf", "mimeType": "application/pdf"}]}),
        gpt_node("a3", "q1", "assistant", "Because of air.", metadata={"model_slug": "gpt-5"}),
        gpt_node("a1", "q1", "assistant", "No idea.", metadata={"model_slug": "gpt-5"}),
        gpt_node("t2", "q1", "assistant", children=("c2",), content=thoughts),
        gpt_node("c2", "t2", "assistant", children=("r2",), recipient="python",
                 content={"content_type": "code", "language": "python", "text": "print(450 ** -4)"}),
        gpt_node("r2", "c2", "tool", children=("a2",), name="python",
                 content={"content_type": "execution_output", "text": "2.4e-11"}),
        gpt_node("a2", "r2", "assistant", "Rayleigh.\ue200cite\ue202turn0search0\ue201", ("q2",),
                 metadata={"model_slug": "gpt-5-1"}),
        gpt_node("q2", "a2", "user", "And red?", ("a4",)),
        gpt_node("a4", "q2", "assistant", "At sunset.", metadata={"model_slug": "gpt-5-1"}),
    ]  # fmt: skip
    return {
        "title": "The sky", "create_time": 1.7e9, "update_time": 1.70001e9, "conversation_id": "c-1", "id": "c-1",
        "mapping": {node["id"]: node for node in nodes}, "current_node": "a4", "is_archived": False, **changes,
    }  # fmt: skip


def claude(**changes: Any) -> dict[str, Any]:
    """A question with a document, a reply with reasoning and a search, which was asked for twice."""
    time = "2026-03-01T10:0{}:00.123456Z"

    def said(n: int, sender: str, parent: str, blocks: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"uuid": f"m{n}", "sender": sender, "text": "", "content": blocks, "parent_message_uuid": parent,
                "created_at": time.format(n), "updated_at": time.format(n), "attachments": [], "files": [],
                **more}  # fmt: skip

    return {
        "uuid": "c-2", "name": "A letter", "created_at": time.format(0), "updated_at": time.format(5),
        "account": {"uuid": "me"},
        "chat_messages": [
            said(1, "human", ROOT, [{"type": "text", "text": "Summarise it."}],
                 attachments=[{"file_name": "ada.txt", "file_type": "txt", "extracted_content": "Dear ``` Ada\n"}],
                 files=[{"file_name": "photo.jpg", "file_uuid": "f1", "file_kind": "image"}]),
            said(2, "assistant", "m1", [{"type": "text", "text": "No."}]),
            said(3, "assistant", "m1", [
                {"type": "thinking", "thinking": "It is short."},
                {"type": "tool_use", "id": "t", "name": "web_search", "input": {"q": "Ada"}},
                {"type": "tool_result", "tool_use_id": "t", "name": "web_search",
                 "content": [{"type": "text", "text": "Lovelace"}]},
                {"type": "text", "text": "To Ada Lovelace.", "citations": []},
            ]),
            said(4, "human", "m3", [{"type": "text", "text": "Thanks"}]),
        ], **changes,
    }  # fmt: skip


def lm_studio(**changes: Any) -> dict[str, Any]:
    """A question and its reply in two versions, of which the first is selected."""

    def text(words: str) -> list[dict[str, Any]]:
        return [{"type": "text", "text": words, "tokensCount": 3}]

    def block(*content: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"type": "contentBlock", "content": [*content], **more}

    def reply(*steps: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "multiStep", "role": "assistant", "steps": [*steps], "senderInfo": {"senderName": "qwen"}}

    return {
        "name": "Primes", "pinned": False, "createdAt": 1_772_000_000_000, "userLastMessagedAt": 1_772_000_100_000,
        "systemPrompt": "", "usePerChatPredictionConfig": True, "lastUsedModel": {"identifier": "qwen/qwen3-4b"},
        "perChatPredictionConfig": {"fields": [{"key": "llm.prediction.systemPrompt", "value": "Count."}]},
        "messages": [
            {"currentlySelected": 0, "versions": [{
                "type": "singleStep", "role": "user",
                "content": [*text("The third prime?"),
                            {"type": "file", "fileIdentifier": "1 - 2.jpg", "fileType": "image"}],
            }]},
            {"currentlySelected": 0, "versions": [
                reply(block(*text("2, 3, 5"), style={"type": "thinking", "ended": True}),
                      block({"type": "toolCallRequest", "callId": 1, "name": "add", "parameters": {"a": 5}}),
                      block({"type": "toolCallResult", "toolCallId": 1, "content": "5"}),
                      {"type": "debugInfoBlock", "debugInfo": "x"}, block(*text("Five."))),
                reply(block(*text("Seven."))),
            ]},
            {"currentlySelected": 0, "versions": [{"type": "singleStep", "role": "user", "content": text("Sure?")}]},
        ], **changes,
    }  # fmt: skip


def write(path: Path, found: Any) -> Path:
    """A JSON file; its parent folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def write_zip(path: Path, files: Mapping[str, Any]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, found in files.items():
            archive.writestr(name, found if isinstance(found, bytes) else json.dumps(found))
    return path
