"""The endpoint with SmolLM2: ten turns of a client that keeps texts prefill only the new one, also after a restart."""

from __future__ import annotations

import pytest

from mlxkv.model import Model
from mlxkv.server.jobs import ChatMessage
from tests.server.local import Local

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_ten_turns_prefill_only_the_new_one(smollm2: Model) -> None:
    said, before = [ChatMessage("system", "Answer in one sentence.")], 0
    local = Local(smollm2)
    for i in range(10):
        if i == 5:
            local = Local(smollm2)  # finds what the first one saved
        said.append(ChatMessage("user", f"What is the capital of country number {i}?"))
        end = local.say(said, temperature=0.0, max_tokens=6)
        said.append(ChatMessage("assistant", end.text))
        new = end.stats.prompt_tokens - before
        assert not i or end.stats.prompt_tokens - end.stats.cached_tokens <= new + 1, i
        before = end.stats.prompt_tokens + end.stats.generated_tokens
