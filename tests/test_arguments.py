"""What every public function refuses, in which words, and what it takes; a case is a row.

Of all that `mlxkv` exports: functions, methods, setters and dataclasses that a caller makes.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mlxkv
from mlxkv import arguments, errors
from mlxkv.cli.batch_lines import SAMPLING_FIELDS
from mlxkv.errors import (
    ArgumentError,
    CacheError,
    ConfigError,
    FileMissingError,
    MlxkvError,
    ModelNotFoundError,
    PromptError,
    SessionNotFoundError,
)
from mlxkv.model import Model

api: Any = mlxkv  # wrong types are the point here
N = 2  # tokens of a reply
HALF = "\ud800"  # half a character


class Odd:
    """Every way a stranger's class can misbehave when it is asked for a number, a name or its looks."""

    def __repr__(self) -> str:
        raise RuntimeError

    __index__ = __float__ = __fspath__ = __repr__  # type: ignore[assignment]


@pytest.fixture(scope="module")
def loaded(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folders = mlxkv.config.Folders.from_env({"MLXKV_HOME": str(tmp_path_factory.mktemp("home"))})
    model = mlxkv.load(tiny_path, folders=folders)
    yield model
    model.close()


@pytest.fixture(scope="module")
def on(loaded: Model) -> Any:
    """What the rows call: a model, a chat in which something was said, and a prompt cache."""
    chat = loaded.chat(max_tokens=N)
    list(chat.send("hello"))

    class On:
        model, store, pc = loaded, loaded.store, loaded.prefill([1, 2, 3])
        network = loaded.loaded.model

    On.chat = chat  # type: ignore[attr-defined]
    return On


Call = Callable[[Any], Any]
REFUSED: list[tuple[str, Call, type[MlxkvError], str]] = [
    # load
    ("load number", lambda o: api.load(5), ArgumentError, r"`name` is 5; it must be the name of a model"),
    ("load bytes", lambda o: api.load(b"tutor"), ArgumentError, r"`name` is b'tutor'"),
    ("load odd", lambda o: api.load(Odd()), ArgumentError, r"`name` is <Odd instance"),
    ("load path", lambda o: api.load(Path("tutor")), ModelNotFoundError, r"There is no folder '/"),
    ("load long", lambda o: api.load("a" * 5000), ModelNotFoundError, r"'aaa.*' is not a model; no folder"),
    ("load keyword", lambda o: api.load(limit=1), ArgumentError, r"`mlxkv.load` has no .* `limited`\?"),
    ("load limited", lambda o: api.load(limited="no"), ArgumentError, r"`limited` is 'no'; .* True or False"),
    ("load folders", lambda o: api.load(folders="/x"), ArgumentError, r"`folders` is '/x'; .* a Folders"),
    ("load progress", lambda o: api.load(progress=5), ArgumentError, r"`progress` is 5; it must be a function"),
    ("load cancel", lambda o: api.load(cancel=True), ArgumentError, r"`cancel` is True; it must be an Event"),
    # estimate, make_cache
    ("estimate", lambda o: api.estimate(None), ArgumentError, r"`name` is None"),
    ("estimate long", lambda o: api.estimate("org/" + HALF * 300), ModelNotFoundError, r"is not a model"),
    ("estimate config", lambda o: api.estimate("tutor", {}), ArgumentError, r"`config` is {}; .* CacheConfig"),
    ("make_cache", lambda o: api.make_cache(o.model), ArgumentError, r"that is `model.loaded.model`"),
    ("make_cache config", lambda o: api.make_cache(o.network, 512), ArgumentError, r"`config` is 512"),
    # generate, stream
    ("prompt texts", lambda o: o.model.generate(["a", "b"]), ArgumentError, r"it must be text .*: `generate_batch` ta"),
    ("prompt messages", lambda o: o.model.stream([{"role": "user"}]), ArgumentError, r"`generate_batch` takes several"),
    ("prompt ids none", lambda o: o.model.generate(()), PromptError, r"The prompt is empty"),
    ("prompt id beyond", lambda o: o.model.stream([1, 64]), PromptError, r"Token 1 of the prompt is 64; .* below 64"),
    ("prompt id float", lambda o: o.model.generate(np.array([1.0])), PromptError, r"Token 0 of the prompt is 1.0"),
    ("prompt matrix", lambda o: o.model.generate(mx.array([[1]])), ArgumentError, r"text \(str\) or a list of token"),
    ("count", lambda o: o.model.count(5), ArgumentError, r"`prompt` is 5; it must be text \(str\) or a list of token"),
    ("count none", lambda o: o.model.count([]), PromptError, r"The prompt is empty"),
    ("count role", lambda o: o.model.count([{"role": "x", "content": ""}]), PromptError, r"Message 0 is .*`role`"),
    ("prompt None", lambda o: o.model.generate(None), ArgumentError, r"`prompt` is None; it must be text"),
    ("prompt bytes", lambda o: o.model.generate(b"abc"), ArgumentError, r"decode the bytes first"),
    ("prompt missing", lambda o: o.model.generate(), ArgumentError, r"`Model.generate` .*missing.*'prompt'"),
    ("prompt empty", lambda o: o.model.generate(""), PromptError, r"The prompt is empty"),
    ("cache name", lambda o: o.model.generate("a", cache="b.kv"), ArgumentError, r"'b.kv'; .*`Model.load_cache`"),
    ("cache layers", lambda o: o.model.generate("a", cache=o.pc.layers), ArgumentError, r"must be a PromptCache or"),
    ("keyword", lambda o: o.model.generate("a", max_token=1), ArgumentError, r"`Model.generate` .* `max_tokens`\?"),
    ("keyword far", lambda o: o.model.generate("a", zzz=1), ArgumentError, r"no argument `zzz`; it has prompt, cache"),
    ("stream", lambda o: o.model.stream(None), ArgumentError, r"`prompt` is None"),
    ("stream empty", lambda o: o.model.stream(""), PromptError, r"The prompt is empty"),
    ("stream keyword", lambda o: o.model.stream("a", tmperature=1), ArgumentError, r"`Model.stream` .*`temperature`\?"),
    ("stream value", lambda o: o.model.stream("a", top_p=2), ConfigError, r"`top_p` is 2; .* from 0.0 to 1.0"),
    ("stream cache", lambda o: o.model.stream("a", cache=5), ArgumentError, r"`cache` is 5"),
    # prefill
    ("prefill bytes", lambda o: o.model.prefill(b"abc"), ArgumentError, r"`prompt` is b'abc'; .*decode the bytes"),
    ("prefill bytearray", lambda o: o.model.prefill(bytearray(3)), ArgumentError, r"decode the bytes first"),
    ("prefill dict", lambda o: o.model.prefill({1: 2}), ArgumentError, r"`prompt` is {1: 2}; .* list of token ids"),
    ("prefill set", lambda o: o.model.prefill({1}), ArgumentError, r"list of token ids"),
    ("prefill None", lambda o: o.model.prefill(None), ArgumentError, r"`prompt` is None"),
    ("prefill number", lambda o: o.model.prefill(5), ArgumentError, r"`prompt` is 5"),
    ("prefill generator", lambda o: o.model.prefill(i for i in (1, 2)), ArgumentError, r"make a `list` of it first"),
    ("prefill matrix", lambda o: o.model.prefill(np.zeros((1, 2), int)), ArgumentError, r"list of token ids"),
    ("prefill scalar", lambda o: o.model.prefill(mx.array(1)), ArgumentError, r"list of token ids"),
    ("prefill long", lambda o: o.model.prefill(range(10**12)), PromptError, r"more than 4,000,000 token ids"),
    ("prefill longer", lambda o: o.model.prefill(range(10**30)), PromptError, r"more than 4,000,000 token ids"),
    ("prefill none", lambda o: o.model.prefill([]), PromptError, r"There are no token ids"),
    ("id negative", lambda o: o.model.prefill([1, -2]), PromptError, r"Token 1 of the prompt is -2; .* below 64"),
    ("id beyond", lambda o: o.model.prefill([1, 64]), PromptError, r"Token 1 .* is 64; .* below 64"),
    ("id float", lambda o: o.model.prefill([1.0]), PromptError, r"Token 0 .* is 1.0"),
    ("id bool", lambda o: o.model.prefill([1, True]), PromptError, r"Token 1 .* is True"),
    ("id None", lambda o: o.model.prefill([None]), PromptError, r"Token 0 .* is None"),
    ("id text", lambda o: o.model.prefill(["a"]), PromptError, r"Token 0 .* is 'a'"),
    ("id array float", lambda o: o.model.prefill(np.array([1, 2.5])), PromptError, r"Token 0 .* is 1.0"),
    ("id odd", lambda o: o.model.prefill([Odd()]), PromptError, r"Token 0 .* is <Odd instance"),
    ("prefill cache", lambda o: o.model.prefill("a", o.pc), ArgumentError, r"`cache` is .*CacheConfig"),
    ("prefill system", lambda o: o.model.prefill("a", system=5), ArgumentError, r"`system` is 5; it must be text"),
    ("prefill chat", lambda o: o.model.prefill("a", chat="no"), ArgumentError, r"`chat` is 'no'"),
    ("prefill progress", lambda o: o.model.prefill("a", progress=1), ArgumentError, r"`progress` is 1"),
    ("prefill save_to", lambda o: o.model.prefill("a", save_to=5), ArgumentError, r"`save_to` is 5; .* a path"),
    ("prefill keyword", lambda o: o.model.prefill("a", sytem="b"), ArgumentError, r"`Model.prefill` .* `system`\?"),
    # chat, resume
    ("chat system", lambda o: o.model.chat(5), ArgumentError, r"`system` is 5"),
    ("chat cache", lambda o: o.model.chat(cache="x"), ArgumentError, r"`cache` is 'x'"),
    ("chat autosave", lambda o: o.model.chat(autosave="no"), ArgumentError, r"`autosave` is 'no'"),
    ("chat think", lambda o: o.model.chat(think="on"), ArgumentError, r"`think` is 'on'"),
    ("chat keyword", lambda o: o.model.chat(sytem="x"), ArgumentError, r"`Model.chat` .* `system`\?"),
    ("chat many", lambda o: o.model.chat("a", None, 1), ArgumentError, r"`Model.chat` .*too many positional"),
    ("chat twice", lambda o: o.model.chat("a", system="b"), ArgumentError, r"`Model.chat` .*multiple values"),
    ("resume", lambda o: o.model.resume(None), ArgumentError, r"`session` is None"),
    ("resume half", lambda o: o.model.resume(HALF), ConfigError, r"`session` is '\\ud800', .* half a character"),
    ("resume missing", lambda o: o.model.resume("zzz"), SessionNotFoundError, r"zzz"),
    ("resume cache", lambda o: o.model.resume("zzz", cache=o.pc), ArgumentError, r"must be a CacheConfig"),
    ("resume keyword", lambda o: o.model.resume("zzz", forks=True), ArgumentError, r"`Model.resume` .* `fork`\?"),
    # caches and their files
    ("Model.make_cache", lambda o: o.model.make_cache(5), ArgumentError, r"`config` is 5"),
    ("num_tokens", lambda o: o.model.num_tokens(5), ArgumentError, r"`text` is 5"),
    ("load_cache missing", lambda o: o.model.load_cache("missing"), FileMissingError, r"no file 'missing'; check"),
    ("load_cache folder", lambda o: o.model.load_cache("/"), FileMissingError, r"/ is a folder"),
    ("load_cache None", lambda o: o.model.load_cache(None), ArgumentError, r"`path` is None; it must be a path"),
    ("load_cache bytes", lambda o: o.model.load_cache(b"x"), ArgumentError, r"`path` is b'x'"),
    ("load_cache empty", lambda o: o.model.load_cache(""), ConfigError, r"`path` is ''; no file can have that name"),
    ("load_cache NUL", lambda o: o.model.load_cache("a\0b"), ConfigError, r"no file can have that name"),
    ("load_cache half", lambda o: o.model.load_cache(HALF), ConfigError, r"no file can have that name"),
    ("load_cache long", lambda o: o.model.load_cache("a" * 300), ConfigError, r"`path` is 'aaa.*no file can"),
    ("load_cache odd", lambda o: o.model.load_cache(Odd()), ArgumentError, r"`path` is <Odd instance"),
    ("import missing", lambda o: o.model.import_mlx_lm("missing"), FileMissingError, r"no file 'missing'"),
    ("import cache", lambda o: o.model.import_mlx_lm("x", 5), ArgumentError, r"`cache` is 5"),
    ("save", lambda o: o.pc.save(None), ArgumentError, r"`path` is None"),
    ("save keyword", lambda o: o.pc.save(pth="x"), ArgumentError, r"`PromptCache.save` .* `path`\?"),
    ("export", lambda o: o.pc.export_mlx_lm(5), ArgumentError, r"`path` is 5"),
    ("export version", lambda o: o.pc.export_mlx_lm("x.safetensors", 0.32), ArgumentError, r"`version` is 0.32"),
    ("export version text", lambda o: o.pc.export_mlx_lm("x.safetensors", "1"), ConfigError, r"'0.32' or '0.31'"),
    ("pc.rewind", lambda o: o.pc.rewind("x"), ArgumentError, r"`offset` is 'x'"),
    ("pc.rewind below", lambda o: o.pc.rewind(-1), CacheError, r"rewind to token -1"),
    ("pc.rewind float", lambda o: o.pc.rewind(1.0), ArgumentError, r"`offset` is 1.0; it must be a whole number"),
    ("undo many", lambda o: o.chat.undo(1), ArgumentError, r"`Chat.undo` .*too many .*; it has none"),
    ("pc.fork", lambda o: o.pc.fork(1), ArgumentError, r"`PromptCache.fork` .*too many positional"),
    # a chat
    ("send None", lambda o: o.chat.send(None), ArgumentError, r"`text` is None; it must be text"),
    ("send list", lambda o: o.chat.send([1]), ArgumentError, r"`text` is \[1\]"),
    ("send empty", lambda o: o.chat.send(" \n"), PromptError, r"The message is empty"),
    ("send keyword", lambda o: o.chat.send("a", temp=1), ArgumentError, r"`Chat.send` has no argument `temp`"),
    ("send value", lambda o: o.chat.send("a", top_k=-1), ConfigError, r"`top_k` is -1"),
    ("send started", lambda o: o.chat.send("a", started="x"), ArgumentError, r"`started` is 'x'; it must be a number"),
    ("continue_reply", lambda o: o.chat.continue_reply(max_token=2), ArgumentError, r"`Chat.continue_reply`.*max_tok"),
    ("retry text", lambda o: o.chat.retry("x"), ArgumentError, r"`turn` is 'x'; it must be a whole number"),
    ("retry beyond", lambda o: o.chat.retry(99), ConfigError, r"Message 99 is not one of yours"),
    ("retry value", lambda o: o.chat.retry(temperature=-1), ConfigError, r"`temperature` is -1"),
    ("edit turn", lambda o: o.chat.edit("a", "b"), ArgumentError, r"`turn` is 'a'"),
    ("edit bool", lambda o: o.chat.edit(False, "b"), ArgumentError, r"`turn` is False"),
    ("edit text", lambda o: o.chat.edit(0, None), ArgumentError, r"`text` is None"),
    ("edit empty", lambda o: o.chat.edit(0, ""), PromptError, r"The message is empty"),
    ("edit beyond", lambda o: o.chat.edit(7, "x"), ConfigError, r"Message 7 is not one of yours"),
    ("rewind", lambda o: o.chat.rewind(None), ArgumentError, r"`turn` is None"),
    ("fork", lambda o: o.chat.fork("x"), ArgumentError, r"`turn` is 'x'"),
    ("fork beyond", lambda o: o.chat.fork(99), ConfigError, r"There is no message 99"),
    ("siblings", lambda o: o.chat.siblings("x"), ArgumentError, r"`turn` is 'x'"),
    ("chat.save", lambda o: o.chat.save(5), ArgumentError, r"`title` is 5"),
    ("chat.load", lambda o: o.chat.load("sky"), ArgumentError, r"must be a SessionRecord: `Model.resume` takes"),
    ("aside", lambda o: o.chat.aside(None), ArgumentError, r"`text` is None"),
    ("aside empty", lambda o: o.chat.aside(""), PromptError, r"The question is empty"),
    ("num_to_read", lambda o: o.chat.num_to_read(1), ArgumentError, r"`text` is 1"),
    ("thinking", lambda o: setattr(o.chat, "thinking", "maybe"), ArgumentError, r"`thinking` is 'maybe'"),
    # the store
    ("store.load", lambda o: o.store.load(["a"]), ArgumentError, r"`session_id` is \['a'\]"),
    ("store.find", lambda o: o.store.sessions.find(None), ArgumentError, r"`text` is None"),
    ("store.search", lambda o: o.store.sessions.search(5), ArgumentError, r"`text` is 5"),
    ("store.rename", lambda o: o.store.sessions.rename(HALF, "a"), ConfigError, r"`session_id` is '\\ud800'"),
    ("store.rename title", lambda o: o.store.sessions.rename("a", 5), ArgumentError, r"`title` is 5"),
    ("store.delete", lambda o: o.store.delete(None), ArgumentError, r"`session_id` is None"),
    ("store.fork", lambda o: o.store.fork("a", 1.5), ArgumentError, r"`num_turns` is 1.5"),
    ("store.export_chat", lambda o: o.store.export_chat("a", None), ArgumentError, r"`path` is None"),
    ("store.import_chat", lambda o: o.store.import_chat("a" * 999), ConfigError, r"no file can have that name"),
    ("store.pin", lambda o: o.store.sessions.pin("a", "no"), ArgumentError, r"`pinned` is 'no'"),
    # dataclasses
    ("CacheConfig keyword", lambda o: api.CacheConfig(windw=1), ArgumentError, r"`CacheConfig` .* `window`\?"),
    ("CacheConfig window", lambda o: api.CacheConfig(window=512.0), ArgumentError, r"`window` is 512.0"),
    ("CacheConfig sinks", lambda o: api.CacheConfig(sinks="all"), ArgumentError, r'`sinks` is .*or "system"'),
    ("CacheConfig array", lambda o: api.CacheConfig(sinks=np.ones(2)), ArgumentError, r"`sinks` is array"),
    ("CacheConfig bits", lambda o: api.CacheConfig(bits=True), ConfigError, r"`bits` is True"),
    ("CacheConfig bits 8.0", lambda o: api.CacheConfig(bits=8.0), ConfigError, r"`bits` is 8.0"),
    ("CacheConfig group", lambda o: api.CacheConfig(group_size=64.0), ArgumentError, r"`group_size` is 64.0"),
    ("CacheConfig position", lambda o: api.CacheConfig(positions=5), ConfigError, r"`positions` is 5"),
    ("Sampling keyword", lambda o: api.SamplingParams(topp=1), ArgumentError, r"`SamplingParams` .* `top_p`\?"),
    ("Sampling many", lambda o: api.SamplingParams(*range(20)), ArgumentError, r"too many positional"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("call", "kind", "says"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_refused_at_the_call_in_one_sentence(on: Any, call: Call, kind: type[MlxkvError], says: str) -> None:
    with pytest.raises(kind, match=says) as refused:
        call(on)
    text = str(refused.value)
    assert type(refused.value) is kind
    assert text.isprintable()
    assert len(text) < 450  # with the names of all parameters
    assert text.endswith((".", "`?"))


NAN, HUGE = float("nan"), 10**5000
ACCEPTED_NUMBERS = [
    0.5, 1, np.float32(0.5), np.int64(1), np.array(0.5), mx.array(0.5), mx.array(1), Fraction(1, 2), Decimal("0.5"),
]  # fmt: skip
REFUSED_NUMBERS = [
    NAN, float("inf"), -float("inf"), True, np.bool_(True), mx.array(True), "1", b"1", [1], (), {}, np.array([1.0]),
    mx.array([0.5]), 1j, np.complex64(1), HUGE, Decimal("NaN"), Decimal("sNaN"), Decimal("1e999"), Fraction(HUGE),
    Odd(), object,
]  # fmt: skip
ACCEPTED_WHOLE = [1, np.int64(1), np.uint8(1), np.array(1), mx.array(1), mx.array(1, mx.uint32)]
REFUSED_WHOLE = [*REFUSED_NUMBERS, 0.5, 1.0, np.float32(1), mx.array(1.0), Fraction(1), Decimal(1), -1]
NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "xtc_probability",
)
WHOLE = (
    "top_k",
    "max_tokens",
    "thinking_budget",
    "seed",
    "repetition_context_size",
    "presence_context_size",
    "frequency_context_size",
    "logprobs",
)
OTHERS = ("stop", "logit_bias", "xtc_threshold")  # have rows of their own, here and in inference/test_hooks.py


def test_every_sampling_parameter_is_in_a_table() -> None:
    assert {*NUMBERS, *WHOLE, *OTHERS} == {f.name for f in fields(mlxkv.SamplingParams)} == {*SAMPLING_FIELDS}


@pytest.mark.parametrize("name", [*NUMBERS, *WHOLE])
def test_numbers_that_are_taken_are_python_numbers_from_then_on(name: str) -> None:
    for value in ACCEPTED_NUMBERS if name in NUMBERS else ACCEPTED_WHOLE:
        found = getattr(mlxkv.SamplingParams(**{name: value}), name)
        assert type(found) in (int, float), value
        assert found in (0.5, 1)


@pytest.mark.parametrize("name", [*NUMBERS, *WHOLE])
def test_numbers_that_are_refused(name: str) -> None:
    for value in REFUSED_NUMBERS if name in NUMBERS else REFUSED_WHOLE:
        with pytest.raises(ConfigError, match=rf"^`{name}` is .{{1,60}}; it must be a "):
            mlxkv.SamplingParams(**{name: value})


STOPS = [
    ("a", ("a",)), (["a", "b"], ("a", "b")), (("a",), ("a",)), ((), ()), ([], ()), ({"a"}, ("a",)),
    (iter("ab"), ("a", "b")),
]  # fmt: skip


@pytest.mark.parametrize(("stop", "found"), STOPS)
def test_stop_strings_that_are_taken(stop: Any, found: tuple[str, ...]) -> None:
    assert mlxkv.SamplingParams(stop=stop).stop == found


@pytest.mark.parametrize(
    "stop",
    [5, None, "", [""], ["a", 5], b"a", [b"a"], {"a": 1}, True, Odd()],
    ids=lambda v: arguments.shown(v).split(" at 0x")[0],
)
def test_stop_strings_that_are_refused(stop: Any) -> None:
    with pytest.raises(ConfigError, match=r"^`stop` is .*; it must be a string or a list of strings"):
        mlxkv.SamplingParams(stop=stop)


CONFIGS = [
    ({"window": np.int64(512)}, "window", 512), ({"sinks": mx.array(8)}, "sinks", 8),
    ({"bits": np.int64(8)}, "bits", 8),
    ({"bits": [8, 4]}, "bits", (8, 4)), ({"group_size": np.int32(32)}, "group_size", 32),
    ({"slack": np.array(64)}, "slack", 64),
    ({"block": np.uint16(16)}, "block", 16),
]  # fmt: skip


@pytest.mark.parametrize(("given", "name", "found"), CONFIGS)
def test_bounds_that_are_taken(given: dict[str, Any], name: str, found: Any) -> None:
    value = getattr(mlxkv.CacheConfig(**given), name)
    assert value == found
    assert type(value) is type(found)


IDS = [1, 2, 3]
ACCEPTED: list[tuple[str, Call, Any]] = [
    ("list", lambda o: o.model.prefill(IDS).tokens, IDS),
    ("tuple", lambda o: o.model.prefill(tuple(IDS)).tokens, IDS),
    ("range", lambda o: o.model.prefill(range(1, 4)).tokens, IDS),
    ("numpy", lambda o: o.model.prefill(np.array(IDS)).tokens, IDS),
    ("mlx", lambda o: o.model.prefill(mx.array(IDS)).tokens, IDS),
    ("list of numpy", lambda o: o.model.prefill(list(np.array(IDS, np.uint16))).tokens, IDS),
    ("list of mlx", lambda o: o.model.prefill([mx.array(i) for i in IDS]).tokens, IDS),
    ("another cache's", lambda o: o.model.prefill(o.model.prefill(IDS).log).tokens, IDS),
    ("numpy's text", lambda o: len(o.model.generate(np.str_("once"), max_tokens=np.int64(N)).tokens), N),
    ("None for all", lambda o: len(o.model.generate("a", cache=None, max_tokens=N, seed=None, stop=None).tokens), N),
    ("make_cache", lambda o: o.model.make_cache().offset, 0),
    ("rewind numpy", lambda o: o.model.prefill(IDS).rewind(np.int64(1)), 1),
    ("think", lambda o: o.model.chat(think=np.bool_(True), autosave=0).thinking, True),
    ("half a title", lambda o: o.store.load(o.chat.fork().save(HALF)).title, "\ufffd"),
    ("fork", lambda o: o.chat.fork(np.int64(0)).turns, ()),
    ("estimate", lambda o: api.estimate(o.model.loaded.path).weight_bytes > 0, True),
]  # fmt: skip


@pytest.mark.parametrize(("call", "found"), [pytest.param(*row[1:], id=row[0]) for row in ACCEPTED])
def test_accepted(on: Any, call: Call, found: Any) -> None:
    assert call(on) == found


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_text_or_a_path_object(on: Any, tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    pc = on.model.prefill(IDS)
    assert pc.save(kind(tmp_path / "a.kv")) == (tmp_path / "a.kv").stat().st_size
    assert on.model.load_cache(kind(tmp_path / "a.kv")).tokens == IDS
    pc.export_mlx_lm(kind(tmp_path / "a.safetensors"))
    assert on.model.import_mlx_lm(kind(tmp_path / "a.safetensors")).offset == 3
    session = on.chat.fork().save("exported")
    on.store.export_chat(session, kind(tmp_path / "a.mlxkv"))
    assert on.store.import_chat(kind(tmp_path / "a.mlxkv")).session_id


# -- the whole of it -------------------------------------------------------------------------------------------------

CLASSES = (mlxkv.Model, mlxkv.Chat, mlxkv.PromptCache)
INTERNAL = {  # fed with what this library made; no place for a caller's value
    "cancel", "reuse", "rewind_target", "tokens_to_boundary", "advance", "begin_turn", "check_length", "checkpoint",
    "recover", "answer_now", "make_room", "needs_room", "growth", "live_nbytes_of", "mark", "take_back",
    "num_unattended", "layout",
    "begin_restore", "finish_restore", "check_model", "check_log", "in_use", "question", "open_store_for_one_reply",
    "batch_prompts", "prefill_steps", "scheduler", "add_turn", "begin_with", "close_with_model",
    "suggest_title", "record_as_run",
}  # fmt: skip


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_public_method_checks_its_arguments(cls: type) -> None:
    methods = {n for n, f in inspect.getmembers(cls, inspect.isfunction) if not n.startswith("_")}
    unchecked = {n for n in methods if not hasattr(getattr(cls, n), "__wrapped__")}
    assert unchecked <= INTERNAL


@pytest.mark.parametrize("name", ["load", "estimate", "make_cache"])
def test_every_public_function_checks_its_arguments(name: str) -> None:
    with pytest.raises(ArgumentError, match=rf"`mlxkv.{name}` has no argument `nonsense\\n`"):
        getattr(mlxkv, name)(**{"nonsense\n": 1})


def test_the_errors_are_there_after_the_import() -> None:
    assert mlxkv.errors is errors
    assert issubclass(mlxkv.errors.ArgumentError, (ConfigError, TypeError, ValueError))
    assert not issubclass(FileMissingError, errors.CorruptError)


def test_a_value_is_shown_on_one_short_line() -> None:
    for value in ("\x1b[31m\n" * 99, [["x" * 99] * 99] * 99, Odd(), HUGE, np.zeros((50, 50)), {"a": HALF}):
        text = arguments.shown(value)
        assert text.isprintable()
        assert 0 < len(text) <= 60


# -- threads ---------------------------------------------------------------------------------------------------------


def elsewhere(call: Callable[[], object]) -> BaseException | None:
    """What `call` raises on another thread."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="another")
    thread.start()
    thread.join()
    return raised[0] if raised else None


THREADED: list[tuple[str, Call]] = [
    ("generate", lambda o: o.model.generate("a")),
    ("send", lambda o: o.chat.send("a")),
    ("save", lambda o: o.chat.save()),
    ("pc", lambda o: o.pc.fork()),
]


@pytest.mark.parametrize("call", [pytest.param(row[1], id=row[0]) for row in THREADED])
def test_another_thread_is_told_whose_the_model_is(on: Any, call: Call) -> None:
    error = elsewhere(lambda: call(on))
    assert isinstance(error, errors.WrongThreadError)
    assert "loaded by the thread 'MainThread' and is used from 'another'" in str(error)


def test_a_reply_iterated_elsewhere_can_be_continued_where_it_belongs(on: Any) -> None:
    for events in (on.chat.fork().send("go on"), on.model.stream("a", max_tokens=N)):
        next(events)
        for misuse in (lambda: next(events), events.close):  # noqa: B023
            assert isinstance(elsewhere(misuse), errors.WrongThreadError)
        assert isinstance([*events][-1], mlxkv.TurnFinished)


def test_the_store_says_it_too(on: Any) -> None:
    error = elsewhere(on.store.list)
    assert isinstance(error, errors.WrongThreadError)
    assert "on the thread that loaded the model" in str(error)
