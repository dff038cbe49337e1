"""DraftGate with made-up costs: drafts freely, rarely or never, and never costs more than 3 %. No clock, no model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mlxkv.inference.drafting.gate import DraftGate

STEP = 0.02  # seconds


@dataclass
class Simulated:
    """A reply of `tokens` on a machine where a forward of k + 1 tokens costs `cost(k)` plain steps."""

    cost: Callable[[int], float]
    share: float  # of drafted tokens that are right
    matches: float = 1.0  # share of tokens after which there is a match
    waited: float = 1.1
    seed: int = 0
    silent: int = 0  # tokens before the first match
    first: float | None = None  # share of tokens waited for that are right, if another one

    def reply(self, gate: DraftGate, tokens: int) -> tuple[float, int]:
        """Its time, in plain steps per token, and the number of drafts."""
        rng, seconds, done, drafts = random.Random(self.seed), 0.0, 0, 0
        gate.begin_reply()
        is_known = False
        while done < tokens:
            match = 8 if done >= self.silent and rng.random() < self.matches else 0
            waits = match and (is_known or gate.is_worth_waiting(match, 16))
            right = rng.random() < (self.share if self.first is None else self.first)
            if match and not is_known:
                gate.told(match, is_right=right)
            if waits and (right or is_known) and (length := gate.length(match + 1, 16)):
                accepted = next((i for i in range(length) if rng.random() >= self.share), length)
                for i in range(min(accepted + 1, length)):
                    gate.told(match + 1 + i, is_right=i < accepted)
                took = self.cost(length) * STEP
                gate.drafted(match + 1, length, accepted, took)
                done, seconds, drafts, is_known = done + accepted + 1, seconds + took, drafts + 1, True
                continue
            took = STEP * (self.waited if waits or is_known else 1.0)
            (gate.waited if waits or is_known else gate.plain)(took)
            done, seconds, is_known = done + 1, seconds + took, False
        return seconds / STEP / done, drafts


def table(cost_of_17: float) -> Callable[[int], float]:
    return lambda k: 1 + (cost_of_17 - 1) * k / 16


def test_it_drafts_freely_rarely_or_never() -> None:
    """Of 2,000 tokens, half of them after a match that is right three times in four."""
    found = []
    for cost in (1.2, 3.0, 14.0):
        machine = Simulated(table(cost), share=0.75, matches=0.5)
        gate = DraftGate()
        machine.reply(gate, 1000)  # measured by then
        found.append(machine.reply(gate, 2000))
    (free, many), (some, fewer), (none, few) = found
    assert free < 0.75
    assert some < free + 0.3
    assert none < 1.03
    assert many > 200
    assert few < 15
    assert few < fewer


@pytest.mark.parametrize("cost", [1.2, 3.0, 14.0, 17.0, 40.0])
@pytest.mark.parametrize("tokens", [20, 100, 500, 4000])
@pytest.mark.parametrize("share", [0.0, 0.3])
@pytest.mark.parametrize("first", [None, 1.0])
def test_a_fresh_gate_never_costs_more_than_three_percent(
    cost: float, tokens: int, share: float, first: float | None
) -> None:
    took, _ = Simulated(table(cost), share, first=first).reply(DraftGate(), tokens)
    assert took <= 1.03 + 1e-9


@pytest.mark.parametrize("silent", [0, 50, 100])
def test_a_long_call_says_little_of_short_ones(silent: int) -> None:
    """On a CPU, 512 tokens are cheaper by the token than 17: a draft of 16 is not tried before shorter ones."""
    gate = DraftGate()
    gate.prefilled(512, 512 * 0.15 * STEP)
    took, _ = Simulated(lambda k: 1 + 0.65 * k, share=0.0, first=1.0, silent=silent).reply(gate, 130)
    assert took <= 1.03


@pytest.mark.parametrize("cost", [1.2, 3.0, 14.0])
def test_replies_without_luck_after_one_with_it(cost: float) -> None:
    gate = DraftGate()
    Simulated(table(cost), share=0.95).reply(gate, 500)
    took, _ = Simulated(table(cost), share=0.0).reply(gate, 200)
    assert took <= 1.04  # three per cent, and two steps' time that earlier replies did not use


def test_what_one_reply_won_is_not_spent_in_the_next() -> None:
    gate = DraftGate()
    for _ in range(3):
        gate.plain(STEP)
    for _ in range(20):
        gate.told(32, is_right=True)
        for length in (1, 2, 4):
            gate.drafted(32, length, length, 1.5 * STEP)
    assert gate.length(32, 16) == 8  # which may cost 9 steps, as far as is known
    gate.begin_reply()
    for _ in range(3):
        gate.plain(STEP)
    assert gate.length(32, 16) == 4


def test_costs_between_and_beyond_the_measured_sizes() -> None:
    costs = DraftGate().lookup
    assert costs.expected(16) == 1.0
    assert costs.worst(4) == 5.0
    costs.per_token = 0.1
    assert costs.worst(4) == pytest.approx(1.4)
    costs.add(2, 1.2)
    costs.add(2, 1.2)
    assert costs.expected(16) == pytest.approx(2.6)  # in proportion
    costs.add(16, 4.2)
    assert costs.expected(16) == pytest.approx(2.6)  # one sample says little, but may be the worst
    assert costs.worst(16) == 4.2
    costs.add(16, 4.2)
    assert costs.expected(9) == pytest.approx(2.7)
    assert costs.worst(8) == costs.expected(8)  # more than the bound by prefill, which is proved wrong
    assert costs.worst(16) == 4.2


@pytest.mark.parametrize("first", [2.5, 6.0])
def test_one_slow_call_does_not_end_drafting(first: float) -> None:
    gate, machine = DraftGate(), Simulated(table(1.2), share=0.9)
    for _ in range(5):
        gate.plain(STEP)
    gate.drafted(8, 1, 0, first * STEP)
    took, drafts = machine.reply(gate, 500)
    assert drafts > 15
    assert took < 0.8


def test_a_slow_first_call_is_tried_again() -> None:
    """Metal compiles kernels at their first use."""
    gate, machine = DraftGate(), Simulated(table(1.2), share=0.9)
    for _ in range(5):
        gate.plain(STEP)
    gate.drafted(8, 1, 1, 30 * STEP)
    assert gate.length(8, 16) == 0
    machine.reply(gate, 4000)
    took, drafts = machine.reply(gate, 1000)
    assert drafts > 50
    assert took < 0.6


def test_slow_first_calls_on_a_busy_machine_are_tried_again_soon() -> None:
    gate, machine = DraftGate(), Simulated(lambda k: 1 + 0.4 * k, share=0.95)
    for _ in range(5):
        gate.plain(STEP)
    for _ in range(2):
        gate.drafted(8, 1, 1, 2.5 * STEP)
    assert gate.length(8, 16) == 0
    took, drafts = machine.reply(gate, 400)
    assert drafts > 20
    assert took < 0.9


def test_a_pause_does_not_make_a_step_dear() -> None:
    gate = DraftGate()
    for seconds in (STEP, STEP, 50 * STEP, STEP, STEP):
        gate.plain(seconds)
    for _ in range(2):
        gate.drafted(8, 16, 16, 14 * STEP)
    assert gate.lookup.expected(16) == pytest.approx(14)


def test_each_reply_measures_its_own_steps() -> None:
    """A short chat after a long one has faster steps, beside which the same call is dear."""
    gate = DraftGate()
    Simulated(table(3.0), share=0.8).reply(gate, 500)
    gate.begin_reply()
    assert gate.length(8, 16) == 0
    for _ in range(3):
        gate.plain(STEP / 4)
    gate.drafted(8, 16, 16, 3 * STEP)
    assert gate.lookup.worst(16) == pytest.approx(12)


def test_a_draft_model_counts_by_itself() -> None:
    gate = DraftGate()
    for _ in range(200):
        gate.plain(STEP)
    for _ in range(5):
        gate.drafted(0, 16, 0, 9 * STEP)
        gate.drafted(8, 16, 16, 1.2 * STEP)
    assert gate.model.expected(16) == pytest.approx(9)
    assert gate.lookup.expected(16) == pytest.approx(1.2)
