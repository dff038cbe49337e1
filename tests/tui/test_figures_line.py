"""The line under a reply, at every width."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlxkv.stats import TurnStats, stat_line
from mlxkv.tui.state.figures import figures_line
from tests.tui.fake_engine import STATS

SHORT = TurnStats(
    prompt_tokens=61, cached_tokens=45, prefill_tokens=16, generated_tokens=29, ttft_s=0.14, decode_tps=41.3,
    total_s=0.37, finish_reason="stop", cache_live_bytes=9_700_000,
)  # fmt: skip
LARGE = TurnStats(  # a hybrid model near the end of its window
    prompt_tokens=131_072, cached_tokens=129_024, cached_evicted_tokens=90_000, prefill_tokens=2048,
    generated_tokens=4096, ttft_s=205, decode_tps=0.4, total_s=9000, finish_reason="length", cache_live_bytes=int(12e9),
    drafted_tokens=4000, accepted_tokens=3000, decode_steps=2000,
)  # fmt: skip


def line(
    stats: TurnStats, width: int, kv_added: int = 0, version: tuple[int, int] = (1, 1), asked: tuple[int, int] = (1, 1)
) -> str:
    return "".join(figures_line(stats, width, kv_added, version, asked=asked))


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (120, "41.3 tok/s · KV 9.7 MB (+221 kB) · TTFT 0.14s · 29 tok · prompt 16 + 45 cached · 0.37s"),
        (85, "41.3 tok/s · KV 9.7 MB (+221 kB) · TTFT 0.14s · 29 tok · prompt 16 + 45 cached"),
        (75, "41.3 tok/s · KV 9.7 MB · TTFT 0.14s · 29 tok · prompt 16 + 45 cached"),
        (60, "41.3 tok/s · KV 9.7 MB · TTFT 0.14s · 29 tok"),
        (36, "41.3 tok/s · KV 9.7 MB · TTFT 0.14s"),
        (26, "41.3 tok/s · KV 9.7 MB"),
        (16, "41.3 tok/s"),
    ],
)
def test_parts_go_from_the_end(width: int, text: str) -> None:
    assert line(SHORT, width, 221_000) == text
    assert figures_line(SHORT, width, 221_000)[0] == " · ".join(text.split(" · ")[:2])  # what is drawn brighter


def test_flags_and_commands_follow_the_figures() -> None:
    stopped, cut = replace(STATS, finish_reason="stopped"), replace(STATS, finish_reason="length")
    figures = "42.1 tok/s · KV 916 MB · TTFT 0.21s · 312 tok"
    whole = f"{figures} · prompt 27 + 5,871 cached · 7.6s · ■ stopped · ‹ 2/3 › · /retry · /continue"
    assert line(stopped, 200, version=(2, 3)) == whole
    assert line(stopped, 75) == f"{figures} · ■ stopped · /continue"
    assert line(stopped, 36) == "42.1 tok/s · KV 916 MB · ■ stopped"
    assert line(cut, 75) == "42.1 tok/s · KV 916 MB · TTFT 0.21s · ▲ cut at max-tokens · /continue"
    assert line(cut, 36, version=(2, 3)) == "42.1 tok/s · ▲ cut at max-tokens"
    assert line(STATS, 200, version=(2, 3), asked=(1, 2)).endswith("7.6s · ‹ question 1/2 › · ‹ 2/3 ›")


@pytest.mark.parametrize("stats", [SHORT, LARGE, replace(LARGE, finish_reason="stopped", decode_tps=0.0)])
def test_real_shapes_fit_every_width(stats: TurnStats) -> None:
    """Speed, KV and how a reply ended stay where the others go, in one place and in the words of line mode."""
    for width in range(36, 200):
        text = line(stats, width, 221_000_000, (12, 34))
        parts = text.split(" · ")
        assert len(text) <= width
        assert stats.decode_tps == 0 or parts[0] == f"{stats.decode_tps:.1f} tok/s"
        assert width < 60 or parts[stats.decode_tps > 0].startswith("KV ")
        assert stats is SHORT or any(part.startswith(("■", "▲")) for part in parts)
        said = [*stat_line(stats).split(" · "), "‹ 12/34 ›", "/retry", "/continue"]
        left = [part.split(" (+")[0] for part in parts]
        assert left == [part for part in said if part in left]
