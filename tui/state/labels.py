"""Texts around a chat: activity line, notices, footer, gauge. Pure; UI thread.

`figures.py` has the line under a reply.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlxkv.events import PrefillProgress, ToolCall
from mlxkv.protocol.events import FailureKind, ModelLoading, PullProgress
from mlxkv.protocol.status import ChatSummary, SaveState, SessionStatus
from mlxkv.stats import TurnStats, bytes_text, fit, no_answer_text, rate_text, tokens_text
from mlxkv.text.clean import clean

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FULL, EMPTY = "▰", "▱"


def spinner(now: float) -> str:
    return SPINNER[int(now * 10) % len(SPINNER)]


def short_name(model: str) -> str:
    """`Qwen3-8B-4bit` of `mlx-community/Qwen3-8B-4bit`."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def pair_text(done: float, total: float) -> str:
    """`2.1/4.6 GB`: the unit once where both share it."""
    if not total:
        return bytes_text(done)
    left, right = bytes_text(done), bytes_text(total)
    return f"{left.split()[0]}/{right}" if left.split()[1] == right.split()[1] else f"{left}/{right}"


def no_answer(text: str, thinking: str, stats: TurnStats | None, can_be_quiet: bool) -> str:
    """The notice under a reply without text; "" if it has text, or the user stopped it."""
    if text or stats is None or stats.finish_reason in ("stopped", "tool_calls"):
        return ""
    longer, quiet = "max-tokens (/set)", "/think off" if can_be_quiet else ""
    return no_answer_text(stats.generated_tokens, stats.finish_reason, bool(thinking), longer, quiet)


def call_lines(calls: Sequence[ToolCall]) -> list[str]:
    """A line for each tool call of a reply."""
    return [" ".join(clean(f"→ {call.name}({call.arguments})").split()) for call in calls]


def seconds_short(s: float) -> str:
    """`12s`, `2m05s`: whole seconds, for running times."""
    return f"{s:.0f}s" if s < 60 else f"{int(s) // 60}m{int(s) % 60:02d}s"


def loading_text(event: ModelLoading) -> list[str]:
    what = f"{event.phase} {short_name(event.name)}"
    amount = f" {pair_text(event.done, event.total)}" if event.total or event.done else ""
    return [what + amount, "you can type ahead"]


def prefill_text(event: PrefillProgress | None) -> list[str]:
    if event is None:
        return ["prefill"]
    parts = [f"prefill {event.done:,}/{event.total:,}"]
    if event.tps > 0:
        parts.append(f"{rate_text(event.tps)} tok/s")
        parts.append(f"~{seconds_short(max(0, event.total - event.done) / event.tps)} left")
    return parts


def thinking_text(seconds: float, tokens: int, tps: float) -> list[str]:
    return [f"thinking {seconds_short(seconds)}", f"{tokens:,} tok", *([f"{tps:.0f} tok/s"] if tps else [])]


def streaming_text(tps: float, tokens: int, seconds: float) -> list[str]:
    return [*([f"{rate_text(tps)} tok/s"] if tps else []), f"{tokens:,} tok", f"{seconds:.1f}s"]


def restored_text(tokens: int, num_bytes: int, seconds: float, left: int) -> str:
    """`left`: tokens of the chat that were not restored."""
    prefill = f"{left:,} tok to prefill" if left else "nothing to prefill"
    return f"✓ restored {tokens:,} tok ({bytes_text(num_bytes)}) in {seconds:.1f}s · {prefill}"


def number_range(count: int) -> str:
    """The valid numbers, after an invalid one: `they are 1 to 4`."""
    return "there is only 1" if count == 1 else f"they are 1 to {count:,}"


def restoring_text(chat: ChatSummary | None) -> str:
    return f"restoring {bytes_text(chat.kv_bytes)} from disk" if chat and chat.kv_bytes else "restoring the chat"


def pull_text(event: PullProgress) -> list[str]:
    """`downloading Qwen3-8B-4bit 2.1/4.6 GB`, bytes per second, time left."""
    what = f"downloading {short_name(event.name)}"
    if not event.total:
        return [what]
    parts = [f"{what} {pair_text(event.done, event.total)}"]
    if event.bytes_per_s > 0:
        left = seconds_short(max(0, event.total - event.done) / event.bytes_per_s)
        parts += [f"{bytes_text(event.bytes_per_s)}/s", f"~{left} left"]
    return parts


def eviction_text(stats: TurnStats, before: int) -> str:
    """The notice of the first turn of a chat that evicts tokens; "" otherwise. `before`: tokens evicted before it."""
    if before or not stats.evicted_tokens:
        return ""
    return (
        f"The window of {stats.cache_window:,} tok is full and rotates: the oldest tokens make room for new ones · "
        "/compact · /context · /set ctx"
    )


def nearly_full_text(stats: TurnStats, before: int) -> str:
    """A warning, once, before anything is evicted: a summary made now covers the whole chat. `before`: tokens cached
    after the last turn."""
    most = stats.cache_window * 9 // 10
    if not most or stats.evicted_tokens or not before < most <= stats.cache_tokens:
        return ""
    share = 100 * stats.cache_tokens // stats.cache_window
    return (
        f"▲ The context is {share}% full: the oldest tokens will be evicted soon · "
        "/compact replaces them with a summary"
    )


def advice(kind: FailureKind) -> str:
    """Advice on a failure, appended to its message."""
    return {
        FailureKind.MEMORY: " · chat saved · /set kv-bits 8/4 · /set ctx · /model",
        FailureKind.DISK: " · free some space, then /retry",
        FailureKind.LOCKED: " · /fork continues in a copy",
    }.get(kind, "")


def footer_text(status: SessionStatus, width: int, narrow: bool = False, saving: int | None = None) -> str:
    """State of the session: `KV 936 MB · 6.3k/32k tok · mem 5.6/27 GB · saved ✓`.

    `saving`: percent of the KV rows written so far.
    """
    if narrow:
        full = "ctx rotating" if is_rotating(status) else f"{percent(status)}% ctx"
        return full if status.cache_window else ""
    parts: list[str] = []
    if status.cache_window:
        parts.append(f"KV {bytes_text(status.kv_bytes)}")
        parts.append(f"{tokens_text(status.cache_tokens)}/{tokens_text(status.cache_window)} tok")
    if status.memory_used or status.unloaded:
        parts.append(f"mem {pair_text(status.memory_used, status.memory_limit)}")
    saved = {SaveState.SAVING: "saving …", SaveState.SAVED: "saved ✓", SaveState.OFF: "not saving this chat"}
    last = saved.get(status.saved, "")
    if status.saved is SaveState.NOT_SAVED:  # must never be dropped
        parts.insert(0, f"▲ not saved: {status.save_problem}")
    elif saving is not None:
        parts.append(f"saving KV {saving}%")
    elif last:
        parts.append(last)
    return fit(parts, width) if parts else ""


def percent(status: SessionStatus) -> int:
    return min(100, 100 * status.cache_tokens // status.cache_window) if status.cache_window else 0


def is_rotating(status: SessionStatus) -> bool:
    """Whether the ring evicts its oldest block whenever a new one begins."""
    return status.cache is not None and status.cache.evicted > 0


def gauge_text(status: SessionStatus, width: int) -> tuple[str, str]:
    """The context gauge and its level: "" | "warning" (75 %) | "error" (90 %), "" again once the ring rotates."""
    if status.unloaded:
        return "unloaded – your next message loads it again" if width >= 100 else "unloaded", ""
    if not status.cache_window:
        return "", ""
    share = percent(status)
    cells = 16 if width >= 100 else 8
    if is_rotating(status):
        return f"ctx {FULL * cells} rotating", ""
    full = min(cells, max(share * cells // 100, 1 if share else 0))
    words = " – full" if share >= 100 else " – nearly full" if share >= 90 else ""
    level = "error" if share >= 90 else "warning" if share >= 75 else ""
    return f"ctx {FULL * full}{EMPTY * (cells - full)} {share}%{words}", level
