"""The answer of /save, and the line after the window has closed. Pure; any thread."""

from __future__ import annotations

from mlxkv.protocol.events import ChatSaved
from mlxkv.text.clean import clean


def saved_text(saved: ChatSaved) -> str:
    """`Everything is saved, as “Rust lifetimes”; mlxkv -c continues it.`"""
    if saved.title is None:
        return saved.problem
    title = " ".join(clean(saved.title).split())
    if saved.problem:
        return f"{saved.problem} The rest is saved, as “{title}”; {clean(saved.command)} continues it."
    return f"Everything is saved, as “{title}”; {clean(saved.command)} continues it."
