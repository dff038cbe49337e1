"""Schema of the settings: name, type, range, help, default, and when a change takes effect.

Source of the settings screen, `/set`, the help of the options, docs/settings.md and the checks of config.toml. Pure.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import cache
from typing import Any

from mlxkv.errors import ConfigError, quoted

NEXT_REPLY, NEW_CACHE, AT_ONCE, NEXT_START = "the next reply", "a new cache", "at once", "the next start"
KV_BITS = (8, "8/4", 4)
"""Bits of quantized KV rows that a user can choose, the best first; a pair is keys/values."""
SAMPLING_SETTINGS = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "thinking_budget",
    "seed", "repetition_penalty", "repetition_context_size",
    "presence_penalty", "presence_context_size", "frequency_penalty", "frequency_context_size", "xtc_probability",
    "xtc_threshold", "logit_bias",
)  # fmt: skip
"""Settings that are fields of SamplingParams."""
OF_SESSION = ("model", "adapter", "system")
"""Settings of a chat that its session has in columns of their own."""
CHAT_SETTINGS = (
    *OF_SESSION, *SAMPLING_SETTINGS, "think", "thinking_budget", "window", "sinks", "kv_bits", "checkpoint_limit",
)  # fmt: skip
"""Settings that a chat can have a value of its own for; the others belong to the machine or the window."""
CACHE_SETTINGS = ("window", "sinks", "kv_bits", "checkpoint_limit")
"""Settings that bound the KV cache."""
_NONE = ("", "none", "auto")
_YES_NO = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Setting:
    """One setting. `slash`: its name after `/set`; `option`: its command-line option; `holds`: when it takes effect."""

    name: str
    kind: str  # "int" | "float" | "str" | "bool"
    default: Any
    help: str
    slash: str = ""
    option: str = ""
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[Any, ...] = ()
    word: str = ""  # a word allowed instead of a number
    unit: str = ""
    nullable: bool = False
    null: str = "the model's own"  # what "none" means
    holds: str = AT_ONCE
    form: str = ""  # of text
    parse: Callable[[str], object] | None = None  # raises ValueError for text that has another form

    @property
    def is_for_chat(self) -> bool:
        """Whether a chat can have a value of its own."""
        return self.name in CHAT_SETTINGS

    @property
    def rule(self) -> str:
        """Description of valid values."""
        if self.choices:
            rule = ", ".join(map(str, self.choices))
        else:
            rule = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": self.form or "text"}[
                self.kind
            ]
            rule += f" of {self.unit}" if self.unit else ""
        if self.low > -math.inf and not self.choices:
            rule += (
                f" from {self.low:,g}"
                if self.high == math.inf
                else f" from {_digits(self.low)} to {_digits(self.high)}"
            )
        if self.word:
            rule += f' or "{self.word}"'
        return f'{rule}, or "none"' if self.nullable else rule

    def convert(self, value: Any) -> Any:
        """`value` from TOML, the environment, an option or `/set`, converted to this setting's type.

        Raises:
            ValueError, KeyError, OverflowError: it does not satisfy `rule`.
        """
        if isinstance(value, str) and self.nullable and value.lower() in _NONE:
            return None
        if self.kind == "bool":
            return value if isinstance(value, bool) else _YES_NO[str(value).lower()]
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(value)
        if (self.word and value == self.word) or (isinstance(value, str) and value in self.choices):
            return value
        if self.kind == "str":
            if not isinstance(value, str):
                raise ValueError(value)
            if self.parse is not None:
                self.parse(value)
            return value
        number = _integer(value) if self.kind == "int" else float(value)
        if (
            not self.low <= number <= self.high
            or not math.isfinite(number)
            or (self.choices and number not in self.choices)
        ):
            raise ValueError(value)
        return number

    def shown(self, value: Any) -> str:
        """`value` as a user types it."""
        if value is None:
            return "none"
        return (
            str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
        )


def bias_of(text: str) -> dict[int, float]:
    """`logit_bias` as a user types it: ids and numbers. Raises ValueError."""
    found = {}
    for pair in text.split(","):
        token, _, value = pair.partition("=")
        number = float(value)
        if not (token.strip().isascii() and token.strip().isdigit() and abs(number) <= 1000):
            raise ValueError(text)
        found[int(token)] = number
    return found


def folders_of(text: str) -> tuple[str, ...]:
    """`model_dirs` as a user types it. Raises ValueError: a relative folder depends on where mlxkv is started."""
    names = [name.strip() for name in text.split(os.pathsep) if name.strip()]
    if not names or not all(name.startswith(("/", "~")) for name in names):
        raise ValueError(text)
    return tuple(os.path.expanduser(name) for name in dict.fromkeys(names))


def _setting(default: Any, help: str, **rest: Any) -> Any:
    return field(default=default, metadata={"help": help, **rest})


@dataclass(frozen=True)
class Settings:
    """Every setting a user can write into config.toml; None means "decided from the model"."""

    model: str | None = _setting(
        None, "Model to start with: a built-in name, a folder or org/name.", option="-m, --model",
        null="the last one used", holds=NEXT_START,
    )  # fmt: skip
    model_dirs: str | None = _setting(
        None, "More folders with models for /model and `mlxkv models ls`.", slash="model-dirs", parse=folders_of,
        form=f"folders that begin with / or ~, separated by {os.pathsep}", null="no others",
    )  # fmt: skip
    adapter: str = _setting(
        "auto", "LoRA adapter of the model: a folder or org/name, none, or auto for that of the chat.",
        option="--adapter", holds=NEXT_START,
    )  # fmt: skip
    system: str | None = _setting(
        None,
        "System prompt: what the model is told before the first message.",
        option="-s, --system",
        null="no system prompt",
        holds=NEXT_REPLY,
    )
    temperature: float | None = _setting(
        None, "0 always takes the most likely token.", slash="temp", option="--temp", low=0, high=100, holds=NEXT_REPLY
    )
    top_p: float | None = _setting(
        None, "Sample from the most likely tokens that together have this probability; 1 is off.", slash="top-p",
        option="--top-p", low=0, high=1, holds=NEXT_REPLY,
    )  # fmt: skip
    top_k: int | None = _setting(
        None, "Sample from this many of the most likely tokens; 0 is off.", slash="top-k", option="--top-k", low=0,
        high=10_000_000, holds=NEXT_REPLY,
    )  # fmt: skip
    min_p: float | None = _setting(
        None, "Sample only tokens with this probability relative to the most likely one; 0 is off.", slash="min-p",
        option="--min-p", low=0, high=1, holds=NEXT_REPLY,
    )  # fmt: skip
    max_tokens: int | None = _setting(
        None, "Maximum number of tokens of a reply.", slash="max-tokens", option="--max-tokens", low=1, high=10_000_000,
        null="4,096", holds=NEXT_REPLY,
    )  # fmt: skip
    thinking_budget: int | None = _setting(
        None, "Maximum number of tokens of reasoning in a reply; then the answer begins.", slash="thinking-budget",
        option="--thinking-budget", low=0, high=10_000_000, null="no limit", holds=NEXT_REPLY,
    )  # fmt: skip
    seed: int | None = _setting(
        None, "Makes sampling repeatable.", slash="seed", option="--seed", low=0, high=2**64 - 1, null="random",
        holds=NEXT_REPLY,
    )  # fmt: skip
    repetition_penalty: float | None = _setting(
        None, "Divides the logits of the last tokens if positive, else multiplies them; above 1 avoids repetition.",
        slash="repetition-penalty", option="--repetition-penalty", low=0, high=100, holds=NEXT_REPLY,
    )  # fmt: skip
    repetition_context_size: int | None = _setting(
        None, "How many are the last tokens of the repetition penalty.", slash="repetition-context-size",
        option="--repetition-context-size", low=1, high=10_000_000, null="20", holds=NEXT_REPLY,
    )  # fmt: skip
    presence_penalty: float | None = _setting(
        None, "Is subtracted from the logit of each of the last tokens, once.", slash="presence-penalty",
        option="--presence-penalty", low=-100, high=100, null="off", holds=NEXT_REPLY,
    )  # fmt: skip
    presence_context_size: int | None = _setting(
        None, "How many are the last tokens of the presence penalty.", slash="presence-context-size",
        option="--presence-context-size", low=1, high=10_000_000, null="20", holds=NEXT_REPLY,
    )  # fmt: skip
    frequency_penalty: float | None = _setting(
        None, "Is subtracted from the logit of each of the last tokens, as often as it is among them.",
        slash="frequency-penalty", option="--frequency-penalty", low=-100, high=100, null="off", holds=NEXT_REPLY,
    )  # fmt: skip
    frequency_context_size: int | None = _setting(
        None, "How many are the last tokens of the frequency penalty.", slash="frequency-context-size",
        option="--frequency-context-size", low=1, high=10_000_000, null="20", holds=NEXT_REPLY,
    )  # fmt: skip
    xtc_probability: float | None = _setting(
        None, "How often XTC excludes all likely tokens but the least likely of them; 0 is off.",
        slash="xtc-probability", option="--xtc-probability", low=0, high=1, null="0", holds=NEXT_REPLY,
    )  # fmt: skip
    xtc_threshold: float | None = _setting(
        None, "Probability from which XTC calls a token likely.", slash="xtc-threshold", option="--xtc-threshold",
        low=0, high=0.5, null="0.1", holds=NEXT_REPLY,
    )  # fmt: skip
    logit_bias: str | None = _setting(
        None, "Is added to the logits of tokens, from -1000 to 1000 by token id.", slash="logit-bias",
        option="--logit-bias", parse=bias_of, form="ids and numbers, such as 1234=-5,42=2", null="off",
        holds=NEXT_REPLY,
    )  # fmt: skip
    think: bool | None = _setting(
        None, "Reason before the answer, with models that can.", slash="think", option="--think",
        null="the default of the model's template", holds=NEXT_REPLY,
    )  # fmt: skip
    window: int | None = _setting(
        None, "Window in tokens, pinned ones not counted.", slash="ctx", option="--window", low=1, high=2**24,
        null="what fits, at most 32,768", holds=NEW_CACHE,
    )  # fmt: skip
    sinks: int | str = _setting(
        "system", "Pinned tokens: a number, or system for all before the first message.", slash="sinks",
        option="--sinks", low=0, high=2**24, word="system", holds=NEW_CACHE,
    )  # fmt: skip
    kv_bits: int | str | None = _setting(
        None, "Bits of the KV cache: none, 8, 8/4 (keys in 8, values in 4) or 4.", slash="kv-bits",
        option="--kv-bits", choices=KV_BITS, null="the model's own precision", holds=NEW_CACHE,
    )  # fmt: skip
    checkpoint_limit: float | None = _setting(
        None, "Memory for earlier states of recurrent layers, to go back to.", slash="checkpoint-limit", low=0,
        high=1_000_000, unit="GB", null="a quarter of the window's memory, at least six states", holds=NEW_CACHE,
    )  # fmt: skip
    disk_limit: float | None = _setting(
        20.0, "Limit of KV cache on disk, prompt caches included; 0 saves none.", slash="disk-limit",
        option="--disk-limit", low=0, high=1_000_000_000, unit="GB", null="limited only by the disk", holds=NEXT_START,
    )  # fmt: skip
    draft: bool = _setting(
        True, "Draft tokens from the prompt and the reply where that is faster; the text stays the same.",
        slash="draft", option="--no-draft", holds=NEXT_START,
    )  # fmt: skip
    draft_model: str | None = _setting(
        None, "Smaller model with the same tokenizer that drafts, too: a built-in name, a folder or org/name.",
        slash="draft-model", option="--draft-model", null="no model", holds=NEXT_START,
    )  # fmt: skip
    prefill_chunk: int | None = _setting(
        None, "Most tokens of one call in a prefill, which can be stopped between calls; a number makes prefills "
        "repeatable to the last bit.", slash="prefill-chunk", low=32, high=2048,
        null="what takes less than a second, as measured", holds=NEXT_START,
    )  # fmt: skip
    wired: bool = _setting(
        True, "Keep the model in memory that macOS does not page out; on Macs of up to 24 GB, a part of it.",
        slash="wired", holds=NEXT_START,
    )  # fmt: skip
    unload_after: float | None = _setting(
        None, "Give the model's memory back after this time without a command; the next message loads it again.",
        slash="unload-after", low=0.1, high=100_000, unit="minutes", null="never",
    )  # fmt: skip
    keep_awake: bool = _setting(
        True, "Keep the Mac awake while a prompt is prefilled, a reply generated, or a model loaded or downloaded.",
        slash="keep-awake",
    )  # fmt: skip
    notify: bool = _setting(
        True, "Tell the terminal when something that took over ten seconds ends while it has no focus, and show in its "
        "title what runs.", slash="notify",
    )  # fmt: skip
    auto_title: bool = _setting(
        True, "Let models of a billion parameters or more name a new chat, while you are idle.", slash="auto-title",
    )  # fmt: skip
    theme: str = _setting("textual-dark", "Colour theme of the window; Ctrl+P lists them.", slash="theme")
    plain: bool = _setting(False, "Lines instead of a window, for screen readers.", option="--plain", holds=NEXT_START)
    mouse: bool = _setting(
        True, "Mouse in the window; off leaves selection to the terminal.", option="--no-mouse", holds=NEXT_START
    )
    joined_emoji: bool | None = _setting(
        None, "Draw joined emoji, such as families, as one in the window.", slash="joined-emoji",
        null="if the terminal is known to", holds=NEXT_START,
    )  # fmt: skip
    keys: tuple[tuple[str, str], ...] = ()  # the table [keys]: binding id and its keys

    @property
    def bounds_cache(self) -> bool:
        """Whether the user set a cache setting; otherwise a resumed chat keeps its own."""
        return (self.window, self.sinks, self.kv_bits, self.checkpoint_limit) != (None, "system", None, None)

    @property
    def checkpoint_bytes(self) -> int | None:
        return None if self.checkpoint_limit is None else int(self.checkpoint_limit * 1e9)

    @property
    def disk_limit_bytes(self) -> int | None:
        return None if self.disk_limit is None else int(self.disk_limit * 1e9)

    @property
    def drafting(self) -> bool | str:
        """`draft` of `mlxkv.load`."""
        return self.draft and (self.draft_model or True)

    @property
    def adapter_name(self) -> str | None:
        """The adapter that the user names; None for "auto" and "none"."""
        return None if self.adapter in ("auto", "none") else self.adapter

    @property
    def sampling(self) -> dict[str, Any]:
        """Sampling parameters; None for those the user did not set."""
        found = {name: getattr(self, name) for name in SAMPLING_SETTINGS}
        return found | {"logit_bias": None if self.logit_bias is None else bias_of(self.logit_bias)}


@cache
def schema() -> tuple[Setting, ...]:
    """Every setting except the table of keys, in display order."""
    return tuple(_row(f) for f in fields(Settings) if f.metadata)


def _row(f: Field[Any]) -> Setting:
    kind = str(f.type).split(" ")[0]
    return Setting(f.name, kind, f.default, nullable="None" in str(f.type), **f.metadata)


def find(name: str) -> Setting | None:
    """Find a setting by its name, its name after `/set` or its option."""
    wanted = name.strip().lower().lstrip("-")
    return next((s for s in schema() if wanted in (s.name, s.slash, s.name.replace("_", "-"))), None)


def help_of(name: str) -> str:
    return next(s.help for s in schema() if s.name == name)


def change(settings: Settings, values: Mapping[str, Any], where: Callable[[str], str]) -> Settings:
    """`settings` with `values`, which may be text; `where` names a key's source for a message.

    Raises:
        ConfigError: there is no such setting, or it cannot have this value.
    """
    known = {s.name: s for s in schema()}
    for key, value in values.items():
        if key == "keys":
            settings = replace(settings, keys=_keys(value, where))
            continue
        if key not in known:
            import difflib  # only here

            names = {name: s.name for s in known.values() for name in (s.name, s.slash)}
            near = difflib.get_close_matches(key, names, 1)
            advice = f"did you mean `{names[near[0]]}`?" if near else f"the settings are {', '.join(known)}."
            raise ConfigError(f"{where(key)} is not a setting; {advice}")
        try:
            settings = replace(settings, **{key: known[key].convert(value)})
        except (ValueError, KeyError, OverflowError) as error:
            raise ConfigError(f"{where(key)} is {quoted(value)}; it must be {known[key].rule}.") from error
    return settings


def _keys(value: Any, where: Callable[[str], str]) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, Mapping) or not all(isinstance(v, str) for v in value.values()):
        raise ConfigError(f'{where("keys")} must be a table such as [keys] with lines such as "app.help" = "f1".')
    return tuple((str(name), str(keys)) for name, keys in value.items())


def _integer(value: float | str) -> int:
    """Convert exactly: a seed has up to 64 bits, more than a float can hold."""
    number = int(value)
    if isinstance(value, float) and number != value:
        raise ValueError(value)
    return number


def _digits(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"


def as_markdown() -> str:
    """docs/settings.md: every setting with its names, its values and its default."""
    lines = [
        "# Settings",
        "",
        "Generated from `mlxkv/settings/schema.py`: `python -m mlxkv.settings.schema > docs/settings.md`.",
        "",
        "The value in force is the first of these: the command line (for that run), the environment (`MLXKV_` and",
        "the name in capitals), this chat, its [preset](#presets), `config.toml` (`mlxkv path` prints its folder),",
        "the default below. `/set temp` shows it and where it comes from.",
        "",
        "In a chat, `/set temp 0.2` changes that chat alone and is stored with it; `/set temp 0.2 --default` saves",
        "it for all chats in `config.toml`, keeping its comments. `/set temp none` is the model's own value, `/set",
        "temp default` follows the other sources again. What you change in a chat comes before options and",
        "variables until you open another chat. Settings marked with * belong to no chat: `/set` saves them at",
        "once.",
        "",
        "| name | `/set` | option | value | default | a change takes effect with |",
        "|---|---|---|---|---|---|",
    ]
    for s in schema():
        without = s.null if s.default is None else f"`{s.shown(s.default)}`"
        names = [f"`{name}`" if name else "" for name in (s.name, s.slash, s.option)]
        names[0] += "" if s.is_for_chat else " *"
        cells = (*names, s.rule, without)
        lines.append(f"| {' | '.join(cells)} | {s.holds} |")
    lines += ["", *(f"* `{s.name}`: {s.help}" for s in schema()), ""]
    lines += [
        "## Presets",
        "",
        "A preset is a name for a system prompt, sampling, a model, a window: any settings that a chat can have.",
        "`/preset save terse` saves what is in force in the chat as `presets/terse.toml` beside `config.toml`; you",
        "can edit the file:",
        "",
        "```toml",
        'system = "Answer in one sentence."',
        "temperature = 0.2",
        "window = 8192",
        "```",
        "",
        "`/preset terse` takes it for the open chat from the next turn on, in place of the chat's own values of the",
        "same settings, and says how much is prefilled again. `/preset` lists the presets. `mlxkv -P terse` begins",
        "chats with it, `mlxkv -c -P terse` takes it for the last chat, `mlxkv serve -P terse` uses all but its",
        "system prompt. A chat stores what it took: editing, renaming or deleting the file changes no chat.",
        "",
        "## Keys",
        "",
        "Key bindings are a table of their own, with the names that `/keys` lists:",
        "",
        "```toml",
        "[keys]",
        '"app.sidebar" = "ctrl+b"',
        "```",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_markdown(), end="")
