"""Hostile tokenizers: what one fails with, at load, on reading or writing text, is a sentence that names its file.

One row a case: what is put into a sound tokenizer.json, and what is done when it fails. What merely takes long or much
memory is trusted as weights are (docs/security.md).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxkv.chat.prompts.prompt import PromptFormat, PromptState
from mlxkv.cli.app import main as cli
from mlxkv.errors import ModelError
from mlxkv.models import find_tokenizer
from mlxkv.tokenizer.tokens import decode, encode
from tests.tokenizers import tiny_folder, tiny_tokenizer

MANY = "a" * 60 + "b!"
NESTED = "[" * 10_000


def sequence(kind: str, part: dict[str, Any], times: int) -> dict[str, Any]:
    return {"type": "Sequence", kind: [part] * times}


def split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def wraps(part: dict[str, Any], kind: str, times: int) -> dict[str, Any]:
    for _ in range(times):
        part = {"type": "Sequence", kind: [part]}
    return part


ROWS: dict[str, dict[str, Any] | str | bytes] = {
    # A panic (the regular expression's own limit of tries), where it used to be a traceback.
    "regex bomb": {"pre_tokenizer": split("(a|a|aa)+$")},
    "regex bomb in a normalizer": {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "(a|a|aa)+$"}, "content": "x"}
    },
    "a regex that is none": {"pre_tokenizer": split("(")},
    "a character map that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "a character map that points outside": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////8="}
    },
    "pieces of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "deep normalizers": {"normalizer": wraps({"type": "NFC"}, "normalizers", 10_000)},
    "a decoder that strips more than there is": {
        "decoder": {"type": "Strip", "content": "h", "start": 0, "stop": 5_000_000_000}
    },
    "a decoder that does not exist": {"decoder": {"type": "Bomb"}},
    "a template of tokens it has not": {
        "post_processor": {"type": "TemplateProcessing", "pair": [], "special_tokens": {},
                           "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}]}
    },
    "no token for what is unknown": {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}},
    "an unknown token outside": {"model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]}},
    "a merge of nothing": {"model": {"type": "BPE", "vocab": {"h": 0}, "merges": [["h", "i"]]}},
    "a negative id": {"model": {"type": "WordLevel", "unk_token": "a", "vocab": {"a": -1}}},
    "nested": NESTED,
    "a number of 5,000 digits": '{"version": ' + "9" * 5000 + "}",
    "no JSON": "{",
    "a list": "[]",
    "not UTF-8": b'{"\xff": 1}',
}  # fmt: skip


def folder_of(tmp_path: Path, change: dict[str, Any] | str | bytes, file: str = "tokenizer.json") -> Path:
    """A tiny model with `change` in one of its files: keys that are set, or its content."""
    folder = tiny_folder(tmp_path / "model")
    path = folder / file
    if isinstance(change, dict):
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(100_000)
        try:
            change = json.dumps(json.loads(path.read_text()) | change)
        finally:
            sys.setrecursionlimit(limit)
    path.write_bytes(change if isinstance(change, bytes) else change.encode())
    return folder


def use(folder: Path) -> None:
    """What a chat does with a tokenizer: load it, read a message, write a reply."""
    side = find_tokenizer(folder)
    assert side is not None
    prompts = PromptFormat(side.tokenizer)
    prompts.prompt([{"role": "user", "content": MANY}], PromptState())
    prompts.encode_raw(MANY)
    decode(side.tokenizer, [10, 11, 12])


def check(error: ModelError, folder: Path, file: str) -> None:
    text = str(error)
    assert str(folder) in text
    assert file in text
    assert "\n" not in text
    assert len(text) < 500 + len(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_hostile_tokenizer_is_a_sentence_that_names_its_file(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, ROWS[name])
    with pytest.raises(ModelError) as caught:
        use(folder)
    check(caught.value, folder, "tokenizer.json")


BESIDE: dict[str, dict[str, Any] | str] = {
    "nested": NESTED,
    "no JSON": "{",
    "a list": "[]",
    "a token that is a number": {"bos_token": 5},
    "tokens added at no place": {"added_tokens_decoder": {"x": {"content": "y"}}},
    "tokens added as numbers": {"added_tokens_decoder": {"1": 1}},
}


@pytest.mark.parametrize("name", BESIDE)
def test_so_is_its_configuration(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, BESIDE[name], "tokenizer_config.json")
    with pytest.raises(ModelError) as caught:
        use(folder)
    check(caught.value, folder, "tokenizer_config.json")


@pytest.mark.parametrize(
    "growing",
    [sequence("normalizers", {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}, 4),
     sequence("normalizers", {"type": "Prepend", "prepend": "aaaa"}, 9)],
)  # fmt: skip
def test_what_makes_much_of_a_text_is_trusted(growing: dict[str, Any], tmp_path: Path) -> None:
    side = find_tokenizer(folder_of(tmp_path, {"normalizer": growing}))
    assert side is not None
    assert len(encode(side.tokenizer, "aaaa")) > 32


def test_models_info_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path, ROWS["a character map that is none"])
    with pytest.raises(SystemExit) as ended:
        cli(["models", "info", str(folder)])
    assert not ended.value.code
    assert f"The tokenizer of {folder} (tokenizer.json) cannot be read (" in capsys.readouterr().out


class Spy:
    """A Rust tokenizer that counts another thread's steps while it encodes."""

    def __init__(self, real: Any, steps: Callable[[], int]) -> None:
        self._real, self._steps = real, steps
        self.advanced = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def encode_batch(self, *args: Any, **more: Any) -> Any:
        before = self._steps()
        try:
            return self._real.encode_batch(*args, **more)
        finally:
            self.advanced += self._steps() - before


def test_other_threads_run_while_a_text_is_encoded() -> None:
    """The window goes on drawing: `encode` of a Rust tokenizer would hold the interpreter, `encode_batch` does not."""
    steps, stop = 0, threading.Event()

    def step() -> None:
        nonlocal steps
        while not stop.is_set():
            steps += 1
            time.sleep(0)  # lets go of the interpreter

    tokenizer = tiny_tokenizer()
    spy = tokenizer._tokenizer._tokenizer = Spy(tokenizer._tokenizer._tokenizer, lambda: steps)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # whoever holds the interpreter keeps it until it lets go by itself
    other = threading.Thread(target=step)
    other.start()
    try:
        for _ in range(200):
            encode(tokenizer, "a" * 20_000)
            if spy.advanced:
                break
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        other.join()
    assert spy.advanced
