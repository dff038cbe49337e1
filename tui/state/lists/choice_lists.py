"""Lists to choose from: chats, messages to rewind to, branches, models, search hits, confirmations. Pure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from mlxkv.protocol import commands as cmd
from mlxkv.protocol import events as ev
from mlxkv.protocol.status import CompactPlan, ModelTooLarge
from mlxkv.stats import Overflow, bytes_text, disk_text, plural
from mlxkv.text.clean import clean, marked
from mlxkv.tui.state.lists.chat_list import latest_first, listed_as, when_text
from mlxkv.tui.state.lists.choices import Listing, Row, SendAnyway


def one_line(text: str) -> str:
    return " ".join(clean(text).split())


def chats_list(chats: Sequence[ev.ChatSummary], now: float, at: str | None = None) -> Listing:
    """`● Rust lifetimes      6 messages · 916 MB · 14:02`; ● has KV on disk, ○ is prefilled again."""
    newest = latest_first(chats)
    rows = tuple(chat_row(chat, now) for chat in newest)
    at = listed_as(newest, at)
    index = next((i for i, chat in enumerate(newest) if chat.id == at), 0)
    empty = "No title matches. ⏎ searches the messages of all chats."
    return Listing("Chats", rows, "⏎ resume · esc close", empty, index, searches_chats=True)


def chat_row(chat: ev.ChatSummary, now: float) -> Row:
    sign = "●" if chat.kv_bytes else "○"
    kv = bytes_text(chat.kv_bytes) if chat.kv_bytes else "no KV"
    kv += ", pinned" if chat.pinned else ""
    facts = (plural(chat.num_turns, "message"), kv, when_text(chat.updated, now))
    name = f"{'↳ ' if chat.departure else ''}{one_line(chat.name) or 'Untitled'}"
    return Row(f"{sign} {name}", cmd.OpenChat(chat.id), facts)


def cache_list(cache: ev.CacheList, now: float) -> Listing:
    """Chats with KV on disk, the largest first, and the named prompt caches."""
    saved = sorted((chat for chat in cache.chats if chat.kv_bytes), key=lambda chat: -chat.kv_bytes)
    rows = [replace(row, facts=(row.facts[0], row.facts[2], row.facts[1])) for row in (chat_row(c, now) for c in saved)]
    if cache.named:
        rows.append(Row("Prompt caches, for `mlxkv -p --cache NAME`"))
    rows += [Row(f"  {name} · {bytes_text(size)}") for name, size in cache.named]
    return Listing(
        f"KV on disk in all: {disk_text(cache.used, cache.limit, states=cache.states)}",
        tuple(rows),
        "⏎ open · /cache gc cleans up · esc close",
        "There is no KV on disk.",
    )


def rewind_list(messages: Sequence[ev.Message]) -> Listing:
    """The user's messages; choosing one rewinds to before it."""
    mine = [(i, m) for i, m in enumerate(messages) if m.role == "user"]
    rows = tuple(Row(f"{n}  {one_line(m.text)}", cmd.Rewind(i)) for n, (i, m) in enumerate(mine, 1))
    return Listing("Rewind to", rows, "⏎ rewind to before it; the old branch stays · esc close", at=len(rows) - 1)


def tree_list(branches: Sequence[ev.Branch], now: float) -> Listing:
    """All branches, each below its parent, named by where it departs. `⑂` is a chat of its own, `↳` a version."""
    depths: dict[str, int] = {}
    rows, at = [], 0
    for i, branch in enumerate(branches):
        depth = depths[branch.session_id] = depths.get(branch.parent or "", -1) + 1
        lead = "  " * (depth - 1) + ("↳ " if branch.is_version else "⑂ ") if depth else ""
        mark = "▌" if branch.is_current else " "
        facts = (plural(branch.num_turns, "message"), when_text(branch.updated, now))
        name = one_line(branch.name or branch.title)
        rows.append(Row(f"{mark}{lead}{name}", cmd.OpenChat(branch.session_id), facts))
        at = i if branch.is_current else at
    return Listing("Branches of this chat", tuple(rows), "⏎ open · esc close", at=at)


def models_list(
    models: Sequence[ev.ModelCard],
    current: str,
    has_chat: bool,
    only_fitting: bool = False,
    notes: Sequence[str] = (),
) -> Listing:
    """Local models first, by where they are; choosing another one downloads it."""
    rows: list[Row] = []
    heading, left = "", list(notes)
    for card in models:
        if not card.group and left:  # what follows is to download
            rows += [Row(clean(note)) for note in left]
            left = []
        if (group := card.group or ("On this machine" if card.is_local else "To download")) != heading:
            heading = group
            rows.append(Row(clean(heading)))
        is_current = card.is_current or card.id == current
        folder, name = os.path.split(card.id) if card.is_folder else ("", card.id)
        state = card.reason or ("fits" if card.fits else "too large")
        size = bytes_text(card.size_bytes) if card.size_bytes else ""
        notes_of = (clean("" if card.label else folder), clean(card.note), clean(card.licence))
        facts = (*notes_of, "loaded" if is_current else state, clean(card.quantization), size)
        text = f"{'▌' if is_current else ' '}{clean(card.label or name)}"
        rows.append(Row(text, cmd.LoadModel(card.id), tuple(filter(None, facts)), card.id))
    rows += [Row(clean(note)) for note in left]
    hint = "⏎ load; the chat is prefilled again · esc close" if has_chat else "⏎ load · esc close"
    title = "Models that fit here" if only_fitting else "Models"
    at = next((i for i, row in enumerate(rows) if row.text.startswith("▌")), 1)
    return Listing(title, tuple(rows), hint, "No such model here; /model org/name loads any other.", at)


def hits_list(words: str, hits: Sequence[ev.SearchHit]) -> Listing:
    rows = []
    for hit in hits:
        text, marks = marked(hit.snippet, hit.marks)
        facts = ("title",) if hit.turn is None else (hit.role, one_line(hit.title))
        rows.append(Row(text, cmd.OpenChat(hit.session_id), facts, marks=marks))
    title, hint = f"“{one_line(words)}” in all chats", "⏎ open the chat · esc close"
    return Listing(title, tuple(rows), hint, "No chat matches.")


def missing_model(name: str, size_bytes: int, adapter: str | None = None) -> Listing:
    """Choices when the chat's model was removed from this machine."""
    amount = f" {bytes_text(size_bytes)}" if size_bytes else ""
    rows = (
        Row(f"Download{amount} again", cmd.LoadModel(name, adapter=adapter)),
        Row("Choose another model; the chat is prefilled again", cmd.ListModels()),
    )
    return confirm(f"{clean(name)} is not on this machine", rows)


def too_large_list(model: ModelTooLarge, adapter: str | None = None, then: cmd.Retry | None = None) -> Listing:
    """Choices before loading a model that does not fit in memory."""
    load = cmd.LoadModel(model.name, adapter=adapter, then=then)
    rows = [
        Row("Pick a smaller model", cmd.ListModels(fitting=True)),
        Row("Load it anyway; the system may kill mlxkv", replace(load, anyway=True)),
    ]
    if bits := model.kv_bits:
        rows.insert(1, Row(f"Load it with a {bits}-bit KV cache, which fits", replace(load, kv_bits=bits)))
    return confirm(clean(model.text), rows)


def delete_list(session_id: str, title: str) -> Listing:
    rows = (Row("Keep it"), Row("Delete it, its versions and their KV rows", cmd.DeleteChat(session_id)))
    return confirm(f"Delete “{one_line(title)}”?", rows)


def compact_list(plan: CompactPlan) -> Listing:
    """The choices of /compact and their cost in tokens."""
    last = f"the last {plan.kept_messages} messages"
    rows = [Row(f"Only {last}", cmd.Compact(False), (f"prefills {plan.kept_tokens:,} tok",))]
    title = f"Continue in a shorter branch? {plan.model} cannot summarise"
    if plan.summary_tokens:
        title = "Continue in a shorter branch? This chat stays unchanged"
        prefill = plan.ask_tokens + plan.kept_tokens + plan.summary_tokens
        cost = (f"generates ≤ {plan.summary_tokens:,} tok", f"prefills ≤ {prefill:,}")
        rows.insert(0, Row(f"A summary of {plan.older_messages} messages, and {last}", cmd.Compact(True), cost))
        if plan.evicted_tokens:
            title += f"; the {plan.evicted_tokens:,} evicted tok are in no summary"
    return confirm(title, (*rows, Row("Cancel")))


def too_long_list(text: str, turn: int | None, overflow: Overflow) -> Listing:
    """Choices before sending a message that exceeds the window. Enter alone sends nothing."""
    before = f" and {overflow.evicted_before:,} tok of the chat" if overflow.evicted_before else ""
    rows = [Row("Do not send it: shorten it in the prompt")]
    if overflow.window:
        beyond = f"; it was trained for {overflow.trained:,}" if overflow.trained else ""
        what = f"Send it with /set window {overflow.window}{beyond}"
        facts = (f"{bytes_text(overflow.kv_bytes)} of KV",)
        rows.append(Row(what, SendAnyway(text, turn, overflow.window), facts))
    rows.append(Row(f"Send it; its oldest {overflow.evicted:,} tok{before} are evicted", SendAnyway(text, turn)))
    title = f"Not sent: {overflow.tokens:,} tok, but the window holds {overflow.capacity:,}"
    return confirm(title, rows)


def confirm(title: str, rows: Sequence[Row]) -> Listing:
    return Listing(title, tuple(rows), "⏎ choose · esc cancel", searchable=False)
