"""Which value of a setting is in force: each source against each, a change in the run, and stored values. Pure."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from mlxkv.settings.schema import Settings
from mlxkv.settings.setting_sources import ChatSettings, SettingSources, Source

VALUES = {
    Source.OPTION: 1.0, Source.ENVIRONMENT: 2.0, Source.CHAT: 3.0, Source.PRESET: 4.0, Source.CONFIG: 5.0,
}  # fmt: skip


def sources(*given: Source, values: dict[Source, Any] = VALUES) -> SettingSources:
    def of(source: Source) -> dict[str, Any]:
        return {"temperature": values[source]} if source in given else {}

    chat = ChatSettings(of(Source.CHAT), "warm", of(Source.PRESET))
    return SettingSources(of(Source.OPTION), of(Source.ENVIRONMENT), chat, of(Source.CONFIG))


@pytest.mark.parametrize(("stronger", "weaker"), combinations(VALUES, 2))
def test_of_each_pair_the_stronger_is_in_force(stronger: Source, weaker: Source) -> None:
    found = sources(stronger, weaker)
    assert (found.source("temperature"), found.settings.temperature) == (stronger, VALUES[stronger])
    none = sources(stronger, weaker, values={**VALUES, stronger: None})
    assert (none.source("temperature"), none.settings.temperature) == (stronger, None), "none is a value"


def test_without_any_the_default_is() -> None:
    assert (sources().source("temperature"), sources().settings) == (Source.MODEL, Settings())


def test_a_change_in_this_run_holds_until_another_chat_is_opened() -> None:
    started = sources(*VALUES)
    changed = started.with_chat({"temperature": 9.0})
    assert (changed.source("temperature"), changed.settings.temperature) == (Source.CHAT, 9.0)
    assert changed.for_chat(changed.chat).settings.temperature == VALUES[Source.OPTION]
    taken = started.with_preset("cold", {"temperature": 0.0, "top_k": 1})
    assert (taken.source("temperature"), taken.settings.temperature, taken.chat.values) == (Source.PRESET, 0.0, {})
    assert taken.without_chat(["temperature"]).settings.temperature == VALUES[Source.OPTION]
    assert taken.with_option({"temperature": 7.0}).settings.temperature == 7.0


def test_a_new_default_takes_the_place_of_the_chats_own() -> None:
    changed = sources(Source.CHAT, Source.CONFIG).with_default({"temperature": 8.0})
    assert (changed.source("temperature"), changed.settings.temperature) == (Source.CONFIG, 8.0)


def test_settings_of_unknown_origin_are_those_of_all_chats() -> None:
    found = SettingSources.of(Settings(temperature=0.5, theme="nord"))
    assert (found.config, found.settings) == (
        {"temperature": 0.5, "theme": "nord"},
        Settings(temperature=0.5, theme="nord"),
    )
    assert SettingSources.of(found) is found


def test_what_a_chat_has_is_stored_and_read_again() -> None:
    own = ChatSettings({"temperature": None, "kv_bits": "8/4", "system": "x"}, "warm", {"top_k": 3, "model": "tutor"})
    assert own.stored == {"temperature": None, "kv_bits": "8/4", "preset_top_k": 3}
    read, notice = ChatSettings.read(own.stored, "warm")
    assert (read, notice) == (ChatSettings({"temperature": None, "kv_bits": "8/4"}, "warm", {"top_k": 3}), "")
    assert (read.settings.top_k, read.settings.kv_bits) == (3, "8/4")


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": "hot"}, {"top_k": [1]}, {"nonsense": 1}, {"theme": "nord"}, {"model": "tutor"}, {"window": 1e300},
     {"preset_temperature": -1}, {"kv_bits": {}}, {"a": 1, "b": 2, "c": 3, "d": "x" * 9999}],
)  # fmt: skip
def test_stored_values_that_are_no_longer_valid_give_one_notice(wrong: dict[str, Any]) -> None:
    own, notice = ChatSettings.read({**wrong, "top_p": 0.5}, None)
    assert (own.values, own.preset_values) == ({"top_p": 0.5}, {})
    assert notice.startswith("Of this chat's settings this mlxkv cannot use ")
    assert notice.count(". ") == 0
    assert len(notice) < 400
