"""Texts that answer /context, /stats, /memory and /compact. Pure."""

from __future__ import annotations

from dataclasses import replace

from rich.cells import cell_len

from mlxkv.protocol.events import Compacted, ModelUnloaded
from mlxkv.protocol.status import ContextUsage, SessionStats, SessionStatus
from mlxkv.stats import bytes_text, disk_text, plural, prompt_text, rate_text
from mlxkv.text.clean import clean
from mlxkv.tui.state.labels import short_name
from mlxkv.tui.state.lists.choices import cut
from mlxkv.tui.state.reports.report import Line, Report
from mlxkv.tui.state.transcript.blocks import ContextRow

_BAR = 20  # cells at most
_COLUMNS = 60  # cells from which on there is room for columns
_POSITIONS = 6  # of checkpoints, at most
_OWN = "the chat template's own"
_NAMES = {"system": "system", "user": "you", "assistant": "reply"}


def context_report(usage: ContextUsage) -> Report:
    """Totals of the window, a row for each message, and what is to be said of them."""
    notes = (Line("", note) for note in (*context_note(usage), *state_lines(usage)))
    return Report("context", (Line("", context_text(usage)), *context_rows(usage), *notes), is_of_chat=True)


def unloaded_text(event: ModelUnloaded, minutes: float | None) -> str:
    """Says what was given back, and what the next message costs."""
    name, freed = clean(short_name(event.name)), bytes_text(event.freed)
    why = f" after {minutes:g} min without a command" if event.is_idle and minutes is not None else ""
    again = "; nothing is prefilled again"
    if event.again:
        again = f" and prefills the {event.again:,} tok of this chat, which is not saved"
    return f"{name} is unloaded{why}: {freed} given back. Your next message loads it again{again}."


def context_text(usage: ContextUsage) -> str:
    """Totals of the window, above the rows of `context_rows`."""
    if not usage.parts:
        return "The window is empty: this chat has no messages yet."
    live, waiting = sum(p.live for p in usage.parts), sum(p.waiting for p in usage.parts)
    evicted = sum(p.tokens for p in usage.parts) - live - waiting
    left = f" · {waiting:,} to prefill" if waiting else ""
    share = f" of {usage.window:,} ({100 * live // usage.window}%)" if usage.window else ""
    return f"Context: {live:,} tok{share} · {usage.pinned:,} pinned · {evicted:,} evicted{left}"


def context_note(usage: ContextUsage) -> list[str]:
    """A line about what the template left out of an earlier reply, or none."""
    if usage.removed <= 0:
        return []
    return [
        f"The chat template left {usage.removed:,} tok of reasoning out of the reply before the last question; "
        f"{usage.again:,} tok after it were prefilled again."
    ]


def state_lines(usage: ContextUsage) -> list[str]:
    """Two lines about recurrent states, in memory and on disk; none for a model without them."""
    if (recurrent := usage.recurrent) is None:
        return []
    checkpoints = f"checkpoints {bytes_text(recurrent.checkpoints)} of {bytes_text(recurrent.limit)}"
    if at := [f"{p:,}" for p in recurrent.positions]:
        some = at if len(at) <= _POSITIONS else [f"{at[0]} …", *at[1 - _POSITIONS :]]
        checkpoints += f" (at {', '.join(some)} tok)".replace("…,", "…")
    lines = [f"Recurrent state {bytes_text(recurrent.state)} · {checkpoints}"]
    if recurrent.disk_states is not None:
        rows = f"rows {bytes_text(recurrent.disk_rows)} · " if recurrent.disk_rows else ""
        states = f"states {bytes_text(recurrent.disk_states)}" if recurrent.disk_states else "no state yet"
        lines.append(f"On disk: {rows}{states}")
    return lines


def context_rows(usage: ContextUsage) -> list[ContextRow]:
    """A row for each message. `number` is that of its question, as in /fork 2; 0 before the first."""
    most = max((p.tokens for p in usage.parts), default=0) or 1
    rows: list[ContextRow] = []
    for part in usage.parts:
        number = (rows[-1].number if rows else 0) + (part.role == "user")
        text = " ".join(clean(part.text).split()) or (_OWN if part.role == "system" else "")
        name = _NAMES.get(part.role, part.role)
        rows.append(ContextRow(number, name, text, part.tokens, part.live, most, part.waiting))
    note = max((len(_note(row)) for row in rows), default=0)
    return [replace(row, note=note) for row in rows]


def _note(row: ContextRow) -> str:
    if row.waiting:
        return f" · {row.waiting:,} to prefill"
    return "" if row.live == row.tokens else f" · {row.live:,} left" if row.live else " · evicted"


def context_line(row: ContextRow, width: int) -> str:
    """A row in at most `width` cells: number, role, text, tokens and a bar.

    The bar is dropped first, then the role; the text gets the remaining cells.
    """
    note = _note(row)
    kept = row.note if width >= _COLUMNS else len(note)  # the figures of all rows are in one column
    cells = min(_BAR, max(0, (width - 40 - kept) // 2))
    full = round(cells * row.live / row.most)
    bar = "█" * max(full, 1 if row.live and cells else 0)
    who = f"{row.number or '':>3} {row.name:<6} " if width >= 30 else ""
    right = f" {row.tokens:>7,} tok" + (f" {bar}" if cells else "") + note
    widest = len(f" {row.tokens:>7,} tok") + (cells + 1 if cells else 0) + kept
    room = max(0, width - len(who) - widest)
    text = cut(row.text, room) if room > 1 else ""
    return cut(f"{who}{text}{' ' * (room - cell_len(text))}{right}", width)


def compacted_text(event: Compacted) -> str:
    summary = "a pinned summary and " if event.has_summary else ""
    used = f"{event.tokens:,} of {event.window or event.tokens:,} tok"
    return (
        f"✓ compacted: {summary}the last {event.kept_messages} messages · {used} · the whole chat stays saved: /undo "
        "returns to it, /tree shows both"
    )


def stats_lines(f: SessionStats) -> list[Line]:
    rates = f"{rate_text(f.decode_tps)} tok/s decode" if f.decode_tps else "nothing generated yet"
    rates += f" · {f.tokens_per_step:.1f} tok/step" if f.tokens_per_step else ""
    rates += f" · {rate_text(f.prefill_tps)} tok/s prefill" if f.prefill_tps else ""
    prompt_tokens = f.prefill_tokens + f.cached_tokens
    saved = f" ({100 * (f.cached_tokens - f.cached_evicted_tokens) // prompt_tokens}% reused)" if prompt_tokens else ""
    prompt = prompt_text(f.prefill_tokens, f.cached_tokens, f.cached_evicted_tokens)
    used = disk_text(f.all_disk_bytes, f.disk_limit, f.named_disk_bytes)
    kv = (
        f"{bytes_text(f.kv_bytes)} in memory · {bytes_text(f.disk_bytes)} on disk"
        f" · {bytes_text(f.disk_written_bytes)} written · {f.evicted_tokens:,} tok evicted"
    )
    every = f"{f.num_chats:,} · KV on disk in all: {used} · {bytes_text(f.all_written_bytes)} ever written"
    return [
        Line("This chat:", f"{plural(f.num_turns, 'turn')} ({plural(f.num_messages, 'message')}) · {rates}"),
        Line("  tokens", f"{f.generated_tokens:,} generated · {prompt}{saved}"),
        Line("  KV", kv),
        Line("All chats:", every),
    ]


def memory_lines(status: SessionStatus) -> list[Line]:
    cache = status.cache
    allocated = f"{bytes_text(cache.allocated_bytes)} allocated, " if cache else ""
    limit = f" of {bytes_text(status.memory_limit)} usable" if status.memory_limit else ""
    free = bytes_text(max(0, status.memory_limit - status.memory_used))
    return [
        Line("Memory:", f"{bytes_text(status.memory_used)}{limit}"),
        Line("  weights", bytes_text(status.weight_bytes)),
        Line("  KV", f"{allocated}{bytes_text(status.kv_bytes)} live"),
        *([Line("  free", free)] if status.memory_limit else []),
    ]
