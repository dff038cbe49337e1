"""Which of several values of a setting is in force, and where it comes from. Pure.

Option (for that run) > what it implies > environment > this chat > preset > config.toml > the model's own. `config.py`
reads the options, the environment and config.toml, the store keeps a chat's own values, `presets.py` reads presets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

from mlxkv.errors import ConfigError, quoted
from mlxkv.settings.schema import CHAT_SETTINGS, OF_SESSION, Settings, change

_PRESET = "preset_"  # before the names of a preset's values in a stored table


class Source(StrEnum):
    """Where the value of a setting comes from, the strongest first."""

    OPTION = "option"
    IMPLIED = "implied"  # by the option --model
    ENVIRONMENT = "environment"
    CHAT = "this chat"
    PRESET = "preset"
    CONFIG = "config.toml"
    MODEL = "default"  # the model's own, or mlxkv's


@dataclass(frozen=True)
class ChatSettings:
    """A chat's own `values` by setting, and those of the `preset` that it took; None means the model's own."""

    values: Mapping[str, Any] = field(default_factory=dict)
    preset: str = ""
    preset_values: Mapping[str, Any] = field(default_factory=dict)

    def with_values(self, values: Mapping[str, Any]) -> ChatSettings:
        return replace(self, values={**self.values, **values})

    def without(self, names: Iterable[str]) -> ChatSettings:
        return replace(self, values={name: v for name, v in self.values.items() if name not in {*names}})

    def without_all(self, names: Iterable[str]) -> ChatSettings:
        """Drop own values and those of the preset."""
        names = {*names}
        left = {name: value for name, value in self.preset_values.items() if name not in names}
        return replace(self.without(names), preset_values=left)

    def with_preset(self, name: str, values: Mapping[str, Any]) -> ChatSettings:
        """Take a preset instead of the one before; own values of the same names are dropped."""
        return replace(self.without(values), preset=name, preset_values=dict(values))

    def renamed(self, preset: str) -> ChatSettings:
        return replace(self, preset=preset)

    @property
    def settings(self) -> Settings:
        """The settings that these values alone describe."""
        return replace(Settings(), **{**self.preset_values, **self.values})

    @property
    def stored(self) -> dict[str, Any]:
        """The table that is stored with the chat; model, adapter and system prompt are columns of their own."""
        table = {name: value for name, value in self.values.items() if name not in OF_SESSION}
        return table | {f"{_PRESET}{n}": v for n, v in self.preset_values.items() if n not in OF_SESSION}

    @classmethod
    def read(cls, table: Mapping[str, Any], preset: str | None) -> tuple[ChatSettings, str]:
        """A stored table, which may be another version's or damaged; a sentence on what of it is not used, or ""."""
        found: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        unusable = []
        for key, value in table.items():
            name = key.removeprefix(_PRESET)
            try:
                if name not in CHAT_SETTINGS or name in OF_SESSION:
                    raise ConfigError(name)
                found[key != name][name] = getattr(
                    change(Settings(), {name: "none" if value is None else value}, str), name
                )
            except ConfigError:
                unusable.append(f"{key} = {quoted(value)}")
        notice = ""
        if unusable:
            rest = f" and {len(unusable) - 3} more" if len(unusable) > 3 else ""
            what = ", ".join(unusable[:3]) + rest
            notice = f"Of this chat's settings this mlxkv cannot use {what}; without them the defaults are used."
        return cls(found[0], preset or "", found[1]), notice


@dataclass(frozen=True)
class SettingSources:
    """The values of every source, by setting.

    `implied`: what the option --model says of other settings, unless they have options of their own.
    `lifted`: settings of the open chat that were changed in this run, so that no option or variable hides the change
    until another chat is opened.
    """

    option: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    chat: ChatSettings = field(default_factory=ChatSettings)
    config: Mapping[str, Any] = field(default_factory=dict)
    lifted: frozenset[str] = frozenset()
    implied: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings | SettingSources) -> SettingSources:
        """Settings whose sources are unknown count as those of config.toml."""
        if isinstance(settings, SettingSources):
            return settings
        none = Settings()
        names = settings.__dataclass_fields__
        return cls(config={n: v for n in names if (v := getattr(settings, n)) != getattr(none, n)})

    def _layers(self, name: str) -> tuple[tuple[Source, Mapping[str, Any]], ...]:
        option = (Source.OPTION, self.option), (Source.IMPLIED, self.implied)
        run = (*option, (Source.ENVIRONMENT, self.environment))
        chat = ((Source.CHAT, self.chat.values), (Source.PRESET, self.chat.preset_values))
        first = (*chat, *run) if name in self.lifted else (*run, *chat)
        return (*first, (Source.CONFIG, self.config))

    def source(self, name: str) -> Source:
        return next((source for source, values in self._layers(name) if name in values), Source.MODEL)

    def has_own(self, names: Iterable[str]) -> bool:
        """Whether this chat or its preset gives the value of one of these."""
        return any(self.source(name) in (Source.CHAT, Source.PRESET) for name in names)

    def value(self, name: str) -> Any:
        layers = self._layers(name)
        return next((values[name] for _, values in layers if name in values), getattr(Settings(), name))

    @cached_property
    def settings(self) -> Settings:
        """The settings in force."""
        return replace(Settings(), **{name: self.value(name) for name in Settings.__dataclass_fields__})

    # -- changes -----------------------------------------------------------------------------------------------------

    def for_chat(self, chat: ChatSettings, lifted: Iterable[str] = ()) -> SettingSources:
        """Those of another chat."""
        return replace(self, chat=chat, lifted=frozenset(lifted))

    def with_chat(self, values: Mapping[str, Any]) -> SettingSources:
        """Set this chat's own values."""
        return replace(self, chat=self.chat.with_values(values), lifted=self.lifted | {*values})

    def without_chat(self, names: Iterable[str]) -> SettingSources:
        """Drop this chat's own values, so that it follows the other sources."""
        names = {*names}
        return replace(self, chat=self.chat.without(names), lifted=self.lifted - names)

    def with_preset(self, name: str, values: Mapping[str, Any]) -> SettingSources:
        """Take a preset for this chat."""
        return replace(self, chat=self.chat.with_preset(name, values), lifted=self.lifted | {*values})

    def with_default(self, values: Mapping[str, Any]) -> SettingSources:
        """Set the values of config.toml; this chat follows them, unless a preset, variable or option hides them."""
        return replace(self.without_chat(values), config={**self.config, **values})

    def with_option(self, values: Mapping[str, Any]) -> SettingSources:
        """Set values for this run, as options do."""
        return replace(self, option={**self.option, **values}, lifted=self.lifted - {*values})

    def without_config(self, names: Iterable[str]) -> SettingSources:
        return replace(self, config={name: value for name, value in self.config.items() if name not in {*names}})

    def without_option(self, names: Iterable[str]) -> SettingSources:
        return replace(self, option={name: value for name, value in self.option.items() if name not in {*names}})
