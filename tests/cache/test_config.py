"""CacheConfig refuses what cannot be, by name, value and rule; and the ring that follows from it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxkv.cache.config import CacheConfig, default_block
from mlxkv.errors import ConfigError
from mlxkv.settings.schema import KV_BITS, Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window", 0), ("window", -4), ("window", 2.5), ("window", True), ("window", "8k"), ("window", 10**12),
        ("sinks", -1), ("sinks", "systems"), ("block", 0), ("slack", -1), ("bits", 3), ("bits", (8,)),
        ("bits", (8, None)), ("bits", "8"), ("bits", "8/2"), ("bits", "8/4/4"),
        ("group_size", 48), ("positions", "rope"),
    ],
)  # fmt: skip
def test_refused_with_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(ConfigError) as error:
        CacheConfig(**{field: value})
    assert f"`{field}`" in str(error.value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("bits", "named", "both"),
    [(None, None, (None, None)), (8, 8, (8, 8)), ((8, 8), 8, (8, 8)), ([8, 4], "8/4", (8, 4)), ("8/4", "8/4", (8, 4)),
     ((4, 8), "4/8", (4, 8))],
)  # fmt: skip
def test_bits_are_a_number_or_a_pair_of_keys_and_values(bits: Any, named: Any, both: Any) -> None:
    config = CacheConfig(bits=bits)
    assert (config.named_bits, config.key_and_value_bits) == (named, both)
    assert CacheConfig(bits=config.named_bits).key_and_value_bits == both
    assert CacheConfig.from_table(asdict(config)) == config


def test_every_choice_of_the_setting_is_a_config() -> None:
    assert [CacheConfig.from_settings(Settings(kv_bits=bits)).named_bits for bits in KV_BITS] == [*KV_BITS]


@given(st.integers(1, 100_000), st.integers(0, 5000), st.none() | st.integers(0, 4000))
def test_every_window_becomes_a_ring_of_at_least_its_size(window: int, system: int, slack: int | None) -> None:
    g = CacheConfig(window=window, slack=slack).geometry(window, system)
    assert window <= g.window < window + 2 * max(g.block, window // 2 + 16)
    assert g.window % g.block == 0
    assert g.window >= 2 * g.block
    assert g.sinks <= max(g.window // 4, 0)
    if slack is not None:
        assert slack <= g.undo * g.block < slack + g.block or (slack == 0 and g.undo == 0)


@pytest.mark.parametrize(
    ("window", "block", "undo_rows"),
    [(256, 16, 64), (512, 32, 128), (2048, 128, 512), (4096, 256, 512), (32_768, 256, 512)],
)
def test_defaults(window: int, block: int, undo_rows: int) -> None:
    g = CacheConfig().geometry(window)
    assert (g.block, g.undo * g.block, g.sinks) == (block, undo_rows, 4)
    assert default_block(window) == block


def test_the_default_window_is_bounded_by_training_memory_and_32768() -> None:
    c = CacheConfig()
    assert c.default_window(None, 100, 1 << 40) == 32_768
    assert c.default_window(131_072, 100, 1 << 40) == 32_768
    assert c.default_window(512, 100, 1 << 40) == 512
    assert c.default_window(40_960, 1000, 5_000_000) == 4096


def test_system_sinks_take_at_most_a_quarter() -> None:
    assert CacheConfig().geometry(1024, 100).sinks == 100
    assert CacheConfig().geometry(1024, 900).sinks == 256
    assert CacheConfig(sinks=7).geometry(1024, 900).sinks == 7


@given(st.integers(1, 5000), st.integers(0, 600))
def test_a_native_ring_always_holds_its_window(native: int, slack: int) -> None:
    g = CacheConfig().native_geometry(native, slack)
    assert g.window - g.block + 1 >= native
    assert g.undo * g.block >= slack
