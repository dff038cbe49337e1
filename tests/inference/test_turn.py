"""Turn: events in order, figures that add up, stop strings that never leak."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxkv.cache.config import CacheConfig
from mlxkv.cache.planning.plan import plan_cache
from mlxkv.cache.prompt_cache import PromptCache
from mlxkv.engine.handlers.unattended import unattended_positions
from mlxkv.errors import PromptError
from mlxkv.events import Notice, PrefillProgress, TextDelta, TurnFinished
from mlxkv.inference.generation import Generation
from mlxkv.inference.reply_parser import StopStrings
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from tests.hybrids import tiny
from tests.reference import FullRecomputation, random_ids, tiny_llama
from tests.tokenizers import tiny_tokenizer

MODEL, TOKENIZER = tiny_llama(), tiny_tokenizer()
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


def cache() -> PromptCache:
    return PromptCache(plan_cache(MODEL, CacheConfig(window=64, block=16, sinks=4)), MODEL)


def turn(held: PromptCache, ids: Sequence[int], params: SamplingParams = GREEDY, **more: object) -> Generation:
    return Generation(ModelRunner(MODEL, chunk=16), TOKENIZER, held, ids, params, **more)  # type: ignore[arg-type]


def test_events_come_in_order_and_the_figures_add_up() -> None:
    held = cache()
    t = turn(held, random_ids(40))
    events = list(t.events())
    kinds = [type(e) for e in events]
    assert kinds[0] is PrefillProgress
    assert kinds[-1] is TurnFinished
    reads = [e for e in events if isinstance(e, PrefillProgress)]
    assert [e.done for e in reads] == [0, 16, 32, 39]
    text = "".join(e.text for e in events if isinstance(e, TextDelta))
    finished = events[-1]
    assert isinstance(finished, TurnFinished)
    assert finished.text == text == t.text
    s = finished.stats
    assert s.cached_tokens + s.prefill_tokens == s.prompt_tokens == 40
    assert s.generated_tokens == len(t.generated) <= 12
    assert s.cache_bytes == held.nbytes == sum(layer.nbytes for layer in held.layers)
    assert 0 < s.cache_live_bytes < s.cache_bytes
    assert s.finish_reason == finished.reason == ("length" if len(t.generated) == 12 else "stop")
    assert s.ttft_s > 0
    assert s.decode_tps > 0


def test_the_second_turn_reads_only_what_is_new() -> None:
    held = cache()
    first = turn(held, random_ids(40))
    list(first.events())
    ids = [*held.tokens, *random_ids(7, seed=3)]
    second = turn(held, ids)
    list(second.events())
    assert second.stats.cached_tokens == len(ids) - 7
    assert second.stats.prefill_tokens == 7


def test_a_prompt_longer_than_the_window_is_read_with_one_notice() -> None:
    events = list(turn(cache(), random_ids(300)).events())
    notices = [e for e in events if isinstance(e, Notice)]
    assert len(notices) == 1
    assert "300 tokens" in notices[0].text
    assert "68" in notices[0].text
    finished = events[-1]
    assert isinstance(finished, TurnFinished)
    assert finished.stats.evicted_tokens >= 300 - 68


# What the query at the last prompt token sees, as the slow references say it.
SEEN = {
    "ring": (MODEL, lambda p: FullRecomputation(4, 64, 16).visible(p)),
    "recurrent state and sliding windows": (
        tiny("recurrent_gemma"),
        lambda p: range(max(0, p + 1 - 24), p + 1),
    ),
    "sliding windows and a ring": (
        tiny_llama(layer_types=["sliding_attention", "full_attention"], sliding_window=24),
        lambda p: FullRecomputation(4, 64, 16).visible(p),
    ),
    "recurrent state alone": (tiny("mamba2"), lambda p: range(p + 1)),
    "recurrent state and a ring": (tiny("qwen3_next"), lambda p: FullRecomputation(4, 64, 16).visible(p)),
}


@pytest.mark.slow
@pytest.mark.parametrize("slack", [0, 32])
@pytest.mark.parametrize("kind", SEEN)
def test_cached_tokens_that_had_rotated_out_are_counted_apart(kind: str, slack: int) -> None:
    """`23 + 690 cached` in a window of 516: 200 of them were no longer attended to."""
    model, seen = SEEN[kind]
    held = PromptCache(plan_cache(model, CacheConfig(window=64, block=16, sinks=4, slack=slack)), model)
    for num_new in (40, 20, 33, 1, 90, 7):  # below the window, across it, more than it at once
        ids = [*held.tokens, *random_ids(num_new, seed=num_new)]
        t = Generation(
            ModelRunner(model, chunk=16), TOKENIZER, held, ids, SamplingParams(temperature=0.0, max_tokens=3)
        )
        list(t.events())
        s = t.stats
        assert s.cached_tokens + s.prefill_tokens == s.prompt_tokens == len(ids)
        assert s.cached_evicted_tokens == s.cached_tokens - sum(j < s.cached_tokens for j in seen(len(ids) - 1))
        for filled in (held, PromptCache(held.plan, model)):  # the rule in the transcript, also before a prefill
            begin, end = unattended_positions(filled, held.offset)
            assert [j for j in range(held.offset) if not begin <= j < end] == list(seen(held.offset - 1))
    assert (s.cached_evicted_tokens > 0) is (kind != "recurrent state alone")


def test_of_a_prompt_that_was_cancelled_what_was_fed_counts() -> None:
    held = cache()
    list(turn(held, random_ids(60)).events())
    cached = held.offset
    t = turn(held, [*held.tokens, *random_ids(60, seed=3)], cancelled=lambda: held.offset >= cached + 16)
    list(t.events())
    last = t.stats.prompt_tokens - 1
    seen = sum(j < cached for j in FullRecomputation(4, 64, 16).visible(last))
    assert t.stats.cached_evicted_tokens == cached - seen > 0


def test_cancelling_while_reading_keeps_the_figures_honest() -> None:
    held = cache()
    t = turn(held, random_ids(60), cancelled=lambda: held.offset >= 32)
    events = list(t.events())
    s = t.stats
    assert not any(isinstance(e, TextDelta) for e in events)
    assert (s.finish_reason, s.prefill_tokens, s.prompt_tokens) == ("stopped", 32, 32)
    assert held.offset == 32


def test_cancelling_while_writing_keeps_what_was_said() -> None:
    held, said = cache(), []
    t = turn(held, random_ids(20), cancelled=lambda: len(said) >= 3)
    for e in t.events():
        if isinstance(e, TextDelta):
            said.append(e.text)
    assert t.stats.finish_reason == "stopped"
    assert t.text.startswith("".join(said[:3]))
    assert held.tokens[20:] == t.generated


def test_walking_away_counts_as_stopping() -> None:
    held = cache()
    t = turn(held, random_ids(20))
    events = t.events()
    for e in events:
        if isinstance(e, TextDelta):
            break
    events.close()  # type: ignore[attr-defined]
    assert t.reason == "stopped"
    assert held.layers[0].offset == held.offset


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(PromptError, match="empty"):
        turn(cache(), [])


@pytest.mark.slow
@settings(max_examples=400)
@given(
    st.text(alphabet="ab.", max_size=30),
    st.lists(st.text(alphabet="ab.", min_size=1, max_size=4), max_size=3),
    st.data(),
)
def test_stop_strings_cut_at_the_first_hit_in_any_chunking(text: str, stops: list[str], data: st.DataObject) -> None:
    """Streamed in any pieces, what is shown is the text before the first stop string, and never more."""
    machine, shown, rest = StopStrings(stops), "", text
    while rest:
        n = data.draw(st.integers(1, len(rest)))
        piece, rest = rest[:n], rest[n:]
        shown += machine.feed(piece)
        if machine.hit:
            break
    shown += machine.rest()
    # the reference looks at every beginning of the text, as a reader of the stream would
    ends = [i for i in range(len(text) + 1) if any(text[:i].endswith(s) for s in stops)]
    expected = text
    if ends:
        expected = text[: min(text[: ends[0]].rfind(s) for s in stops if text[: ends[0]].endswith(s))]
    if machine.hit:
        assert any(text[len(shown) :].startswith(s) for s in stops)
        assert len(shown) <= len(expected)
    else:
        assert shown == text
        assert not ends


def test_the_beginning_of_a_stop_string_at_the_end_is_shown_after_all() -> None:
    free = turn(cache(), random_ids(20))
    list(free.events())
    t = turn(cache(), random_ids(20), SamplingParams(temperature=0.0, max_tokens=12, stop=(free.text[-1] + "\0",)))
    shown = "".join(e.text for e in t.events() if isinstance(e, TextDelta))
    assert shown == t.text == free.text


def test_a_stop_string_ends_the_reply_without_being_part_of_it() -> None:
    held = cache()
    free = turn(held, random_ids(20))
    list(free.events())
    stop = free.text[2:4]
    held.reset()
    t = turn(held, random_ids(20), SamplingParams(temperature=0.0, max_tokens=12, stop=(stop,)))
    list(t.events())
    assert t.reason == "stop_string"
    assert t.text == free.text[: free.text.index(stop)]
