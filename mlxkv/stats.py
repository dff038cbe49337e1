"""TurnStats, the measurements of one turn, and the formatting of numbers for the window and print mode.

Pure values and strings: no MLX, no clock, no terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from mlxkv.system.inspection import table


@dataclass(frozen=True)
class TurnStats:
    """Measurements of one turn. Always `cached_tokens + prefill_tokens == prompt_tokens`.

    Attributes:
        prompt_tokens: tokens of the prompt.
        cached_tokens: those that were in the cache already.
        prefill_tokens: those that were prefilled.
        generated_tokens: tokens of the reply.
        decode_steps: calls of the model that generated them.
        drafted_tokens: tokens drafted, to be verified together in one call.
        accepted_tokens: those of them that became part of the reply.
        evicted_tokens: tokens evicted from this cache by the end of the turn, in all.
        cached_evicted_tokens: cached tokens that were already evicted when the last prompt token was computed; the
            reply does not attend to them.
        ttft_s: seconds to the first token.
        prefill_tps: prefilled tokens per second.
        decode_tps: generated tokens per second, without the time to the first one.
        total_s: seconds of the whole turn.
        finish_reason: as in TurnFinished.
        cache_tokens: tokens attended at the end of the turn.
        cache_window: the most tokens attended, sinks included.
        cache_bytes: bytes of all buffers.
        cache_live_bytes: the part of these that holds attended rows.
        cache_bits: 8 or 4 if the rows are quantized, "8/4" if keys and values differ, else None.
        disk_bytes: bytes of the files that the chat's rows are in.
        disk_written_bytes: bytes of rows and states that the end of this turn wrote.
        peak_memory_bytes: the most memory that MLX has held by the end of the turn.
        reuse_stopped_at: the position at which reuse ended, if fewer tokens were reused than the cache and the prompt
            have in common, or the prompt differs from the cached one; else None.
        reuse_stopped_why: the reason, or None.
        batched: the reply was generated together with those of other prompts, in one batch.
        not_batched_why: of a prompt of `generate_batch`, why it was not; else None.
        continued: the text or the token ids were a continuation of what a prompt cache held, whose tokens are part of
            the prompt. False: they were the whole prompt.
        reasoning_cut_at: the tokens of reasoning after which `thinking_budget` or `Chat.answer_now` ended it; None: it
            was not cut.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_tokens: int = 0
    generated_tokens: int = 0
    decode_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    evicted_tokens: int = 0
    cached_evicted_tokens: int = 0
    ttft_s: float = 0.0
    prefill_tps: float = 0.0
    decode_tps: float = 0.0
    total_s: float = 0.0
    finish_reason: str = ""
    cache_tokens: int = 0
    cache_window: int = 0
    cache_bytes: int = 0
    cache_live_bytes: int = 0
    cache_bits: int | str | None = None
    disk_bytes: int = 0
    disk_written_bytes: int = 0
    peak_memory_bytes: int = 0
    reuse_stopped_at: int | None = None
    reuse_stopped_why: str | None = None
    batched: bool = False
    not_batched_why: str | None = None
    continued: bool = False
    reasoning_cut_at: int | None = None

    def __repr__(self) -> str:
        evicted = self.cached_evicted_tokens
        parts = [prompt_text(self.prefill_tokens, self.cached_tokens, evicted), plural(self.generated_tokens, "token")]
        parts += [f"{rate_text(self.decode_tps)} tok/s"] if self.decode_tps > 0 else []
        parts += [seconds_text(self.total_s), *([str(self.finish_reason)] if self.finish_reason else [])]
        return f"<TurnStats {', '.join(parts)}>"

    def _repr_markdown_(self) -> str:
        """A table for a notebook of the figures that are not zero."""
        return table((f.name, value_text(f.name, v)) for f in fields(self) if (v := getattr(self, f.name)))


@dataclass(frozen=True)
class Overflow:
    """A prompt that exceeds the window, so that a part of it is evicted before the reply.

    Attributes:
        tokens: tokens of the prompt.
        capacity: the most tokens that fit, sinks included.
        evicted: of its new tokens, how many of the oldest are evicted.
        evicted_before: how many tokens of the chat before them are evicted.
        window: a window that would hold the prompt and a reply; 0 if none can.
        kv_bytes: bytes of a KV cache with that window.
        trained: the context length that the model was trained for, if `window` exceeds it, else 0.
    """

    tokens: int
    capacity: int
    evicted: int
    evicted_before: int = 0
    window: int = 0
    kv_bytes: int = 0
    trained: int = 0


def bytes_text(n: float) -> str:
    """`936 MB`, `1.7 GB`: decimal units, as Finder and the catalogue count."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= size * 0.9995:
            value = n / size
            return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"
    return f"{n:.0f} B"


def value_text(name: str, value: Any) -> str:
    """A figure with its unit, which its name says."""
    if isinstance(value, bool | str):
        return str(value)
    if "bytes" in name or name == "memory_limit":
        return bytes_text(value)
    if name.endswith("_s"):
        return seconds_text(value)
    return f"{rate_text(value)} tok/s" if name.endswith("_tps") else f"{value:,}"


def plural(count: int, thing: str) -> str:
    """`1 message`, `1,024 messages`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def no_answer_text(num_tokens: int, reason: str, thinking: bool, longer: str, quiet: str) -> str:
    """The notice for a reply without text. `longer` and `quiet` name the settings for more tokens and no reasoning;
    `quiet` is "" if reasoning is off or cannot be turned off."""
    tokens = plural(num_tokens, "token")
    what = f"The reply was reasoning alone ({tokens})" if thinking else f"The reply is empty ({tokens})"
    more = [f"raise {longer}"] if thinking and reason == "length" else []
    less = [f"ask for an answer without reasoning ({quiet})"] if thinking and quiet else []
    return f"{what}; {', or '.join([*more, *less]) or 'ask in other words'}."


def evicted_text(overflow: Overflow, option: Callable[[int], str]) -> str:
    """The notice for a prompt that exceeds the window. `option` formats the setting for a window."""
    before = f" and {overflow.evicted_before:,} of the chat before it" if overflow.evicted_before else ""
    text = (
        f"The prompt has {overflow.tokens:,} tokens and the window holds {overflow.capacity:,}: its oldest "
        f"{overflow.evicted:,}{before} are evicted before the reply"
    )
    return f"{text}; {option(overflow.window)} {_window_text(overflow)}." if overflow.window else f"{text}."


def _window_text(overflow: Overflow) -> str:
    beyond = f", beyond the {overflow.trained:,} this model was trained for" if overflow.trained else ""
    return f"holds all of it ({bytes_text(overflow.kv_bytes)} of KV{beyond})"


def disk_text(used: int, limit: int | None, named: int = 0, states: int = 0) -> str:
    """Total KV on disk, as the limit counts it: `631 MB of 20 GB, 52 MB of it named prompt caches`; `states`: bytes of
    recurrent states."""
    of = f" of {bytes_text(limit)}" if limit else ""
    shares = [(named, "named prompt caches"), (states, "recurrent states")]
    return bytes_text(used) + of + "".join(f", {bytes_text(size)} of it {what}" for size, what in shares if size)


def tokens_text(n: int) -> str:
    """`830`, `6.3k`, `32k`: rounded down, so that a window of 32,768 with its sinks is 32k."""
    if n < 1000:
        return str(n)
    return f"{n // 100 / 10}k" if n < 10_000 and n % 1000 >= 100 else f"{n // 1000}k"


def rate_text(tps: float) -> str:
    """`45.2`, `141`: one decimal below 100."""
    return f"{tps:.1f}" if tps < 99.95 else f"{tps:.0f}"


def seconds_text(s: float) -> str:
    """`0.21s`, `7.6s`, `2m05s`; a value that rounds up to the next unit is written in it."""
    if s < 0.995:
        return f"{s:.2f}s"
    if s < 59.95:
        return f"{s:.1f}s"
    minutes, seconds = divmod(round(s), 60)
    return f"{minutes}m{seconds:02d}s"


def prompt_text(prefill: int, cached: int, evicted: int) -> str:
    """`prompt 23 + 490 cached + 200 evicted`: prefilled tokens, cached tokens that are attended, and the rest."""
    gone = f" + {evicted:,} evicted" if evicted else ""
    return f"prompt {prefill:,} + {cached - evicted:,} cached{gone}"


def stat_parts(stats: TurnStats, kv_added: int = 0) -> dict[str, str]:
    """The parts of the line under a reply in their order, "" where there is nothing to say: first figures, the most
    important first, then why it ended early, and what drafting won."""
    added = f" (+{bytes_text(kv_added)})" if kv_added > 0 else ""
    drafted, cut_at = stats.accepted_tokens and stats.decode_steps, stats.reasoning_cut_at
    return {
        "rate": f"{rate_text(stats.decode_tps)} tok/s" if stats.decode_tps > 0 else "",  # one token has none
        "kv": f"KV {bytes_text(stats.cache_live_bytes)}{added}",
        "ttft": f"TTFT {seconds_text(stats.ttft_s)}" if stats.generated_tokens else "",
        "tokens": f"{stats.generated_tokens:,} tok",
        "prompt": prompt_text(stats.prefill_tokens, stats.cached_tokens, stats.cached_evicted_tokens),
        "time": seconds_text(stats.total_s),
        "ended": {"stopped": "■ stopped", "length": "▲ cut at max-tokens"}.get(stats.finish_reason, ""),
        "cut": "" if cut_at is None else f"▲ reasoning cut at {plural(cut_at, 'token')}",
        "drafted": f"{stats.generated_tokens / stats.decode_steps:.1f} tok/step" if drafted else "",
    }


def fit(segments: list[str], width: int) -> str:
    """Join with ` · `, dropping segments from the right until the line fits `width` cells."""
    while len(segments) > 1 and len(" · ".join(segments)) > width:
        segments = segments[:-1]
    return " · ".join(segments)


def stat_line(stats: TurnStats) -> str:
    """All parts in one line."""
    return fit([part for part in stat_parts(stats).values() if part], 1000)
