"""Files that mlx-lm's own loader would trust: each is refused in one sentence, nothing is built from what it says."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxkv.errors import CorruptError
from mlxkv.safetensors.header import read_header
from mlxkv.store.prompts.mlx_lm_file import describe_mlx_lm, read_mlx_lm
from tests.thorough import THOROUGH

FIXTURES = Path(__file__).parents[1] / "fixtures" / "mlx_lm"
Table = dict[str, Any]


def rewritten(source: Path, target: Path, change: Callable[[Table, bytearray], object]) -> Path:
    """`source` with its header (and data) changed by `change(table, data)`; what it returns is ignored."""
    raw = source.read_bytes()
    start = read_header(source).data_start
    table, data = json.loads(raw[8:start]), bytearray(raw[start:])
    change(table, data)
    text = json.dumps(table).encode()
    target.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return target


def user(**values: str) -> Callable[[Table, bytearray], object]:
    return lambda table, _: table["__metadata__"].update({k.replace("_", "."): v for k, v in values.items()})


def without(key: str) -> Callable[[Table, bytearray], object]:
    return lambda table, _: table["__metadata__"].pop(key)


def renamed(old: str, new: str) -> Callable[[Table, bytearray], object]:
    return lambda table, _: table.update({new: table.pop(old)})


def typed(name: str, **values: Any) -> Callable[[Table, bytearray], object]:
    return lambda table, _: table[name].update(values)


def number(name: str, value: int) -> Callable[[Table, bytearray], object]:
    """Write an integer into a scalar tensor."""

    def change(table: Table, data: bytearray) -> None:
        start = table[name]["data_offsets"][0]
        data[start : start + 4] = value.to_bytes(4, "little", signed=True)

    return change


def flattened(name: str) -> Callable[[Table, bytearray], object]:
    """One dimension less, with the same bytes."""

    def change(table: Table, _: bytearray) -> None:
        shape = table[name]["shape"]
        table[name]["shape"] = [*shape[:2], shape[2] * shape[3]]

    return change


def halved(name: str) -> Callable[[Table, bytearray], object]:
    def change(table: Table, _: bytearray) -> None:
        shape = table[name]["shape"]
        table[name]["shape"] = [1, 1, shape[2] // 2, shape[3] * 2]

    return change


HOSTILE: list[tuple[str, str, Callable[[Table, bytearray], object], str]] = [
    ("0.32.2", "plain", user(**{"1_0": "os.system"}), "must be a KVCache"),
    ("0.32.2", "plain", user(**{"1_0": "ArraysCache"}), "must be a KVCache"),
    ("0.31.3", "plain", user(**{"2_0": "_BaseCache"}), "must be a KVCache"),
    ("0.31.3", "plain", user(**{"2_1": "mx"}), "must be a KVCache"),
    ("0.32.2", "plain", without("1.0"), "classes of 1 to"),
    ("0.31.3", "plain", without("2.0"), "classes of 1 to"),
    ("0.31.3", "plain", user(**{"2_1000000000": "KVCache"}), "metadata must be"),
    ("0.32.2", "plain", user(**{"1_99999999": "KVCache"}), "metadata must be"),
    ("0.32.2", "plain", user(**{"2_7_0": "0.2"}), "metadata must be"),
    ("0.32.2", "plain", user(**{"2_1_0": "0.0"}), "list of scalars"),
    ("0.32.2", "plain", user(**{"2_1_1": "string"}), "list of scalars"),
    ("0.32.2", "plain", without("2.1.0"), "list of scalars"),
    ("0.31.3", "rotating", user(**{"0_0_0": "-1"}), "whole number"),
    ("0.31.3", "rotating", user(**{"0_0_1": "0x10"}), "whole number"),
    ("0.31.3", "rotating", user(**{"0_0_2": "\u0661"}), "whole number"),
    ("0.31.3", "rotating", user(**{"0_0_1": "9" * 10}), "from 0 to 2147483647"),
    ("0.31.3", "rotating", user(**{"0_0_1": "9" * 5000}), "whole number"),
    ("0.31.3", "rotating", user(**{"0_0_0": "16"}), "mlx-lm can produce"),
    ("0.31.3", "rotating", user(**{"0_0_3": "17"}), "mlx-lm can produce"),
    ("0.31.3", "rotating", user(**{"0_0_3": "2"}), "mlx-lm can produce"),
    ("0.31.3", "rotating", user(**{"0_0_2": "5"}), "mlx-lm can produce"),
    ("0.31.3", "rotating", user(**{"0_0_1": "17"}), "mlx-lm can produce"),
    ("0.31.3", "quantized", user(**{"0_0_0": "28"}), "at most its 27 rows"),
    ("0.31.3", "quantized", user(**{"0_0_2": "7"}), "2 to 8 bits"),
    ("0.31.3", "quantized", user(**{"0_0_2": "4"}), "scale and a bias per group"),
    ("0.31.3", "quantized", user(**{"0_0_1": "64"}), "scale and a bias per group"),
    ("0.31.3", "plain", user(**{"0_0": "x"}), "no state besides its rows"),
    ("0.32.2", "plain", number("0.2", -1), "from 0 to"),
    ("0.32.2", "plain", number("0.2", 33), "at most its 32 rows"),
    ("0.32.2", "plain", number("0.2", 26), "equally long"),
    ("0.32.2", "plain", number("0.2", 0), "must hold tokens"),
    ("0.32.2", "rotating", number("0.4", 0), "mlx-lm can produce"),
    ("0.32.2", "rotating", number("1.5", 1 << 30), "mlx-lm can produce"),
    ("0.32.2", "quantized", number("1.4", 0), "2 to 8 bits"),
    ("0.32.2", "plain", renamed("0.0", "0.9"), "keys, values and its integers"),
    ("0.32.2", "plain", renamed("0.0", "99999999.0"), "keys, values and its integers"),
    ("0.31.3", "plain", typed("0.0", dtype="I32"), "floating type"),
    ("0.31.3", "quantized", typed("0.0.1", dtype="U32"), "floating type"),
    ("0.32.2", "plain", typed("0.2", dtype="F32"), "one integer"),
    ("0.32.2", "plain", typed("0.2", shape=[1]), "one integer"),
    ("0.31.3", "plain", flattened("0.0"), "one sequence"),
    ("0.32.2", "plain", halved("0.0"), "equal rows"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("version", "kind", "change", "why"), HOSTILE)
def test_each_is_refused_in_one_sentence(tmp_path: Path, version: str, kind: str, change: Any, why: str) -> None:
    path = rewritten(FIXTURES / version / f"{kind}.safetensors", tmp_path / "hostile.safetensors", change)
    with pytest.raises(CorruptError, match=why) as caught:
        read_mlx_lm(path)
    text = str(caught.value)
    assert text.startswith("hostile.safetensors is not a prompt cache of mlx-lm's: ")
    assert text.count("\n") == 0
    assert len(text) < 300
    assert text.isprintable()


def test_one_tensor_too_many_is_refused(tmp_path: Path) -> None:
    def add(table: Table, data: bytearray) -> None:
        table["5.0"] = {"dtype": "U8", "shape": [4], "data_offsets": [len(data), len(data) + 4]}
        data += b"\0\0\0\0"

    path = rewritten(FIXTURES / "0.31.3" / "plain.safetensors", tmp_path / "x.safetensors", add)
    with pytest.raises(CorruptError, match="no others"):
        read_mlx_lm(path)


@pytest.mark.parametrize("version", ["0.31.3", "0.32.2"])
def test_what_is_cut_or_no_such_file_at_all_is_refused(tmp_path: Path, version: str) -> None:
    good = (FIXTURES / version / "plain.safetensors").read_bytes()
    path = tmp_path / "x.safetensors"
    for data in (b"", good[:7], good[:100], good[:-1], good + b"\0", b"PK\x03\x04" + good, b"\x80\x04K\x01."):
        path.write_bytes(data)
        with pytest.raises(CorruptError):
            read_mlx_lm(path)
    with pytest.raises(CorruptError):
        describe_mlx_lm(tmp_path / "nowhere")


@pytest.mark.slow
def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """A file with a few bytes changed, mostly in its header, is read or refused in a sentence; nothing else happens."""
    rng, count = random.Random(7), 100_000 if THOROUGH else 300
    files = [(f.read_bytes(), read_header(f).data_start) for f in sorted(FIXTURES.glob("*/*.safetensors"))]
    pieces = [b'"', b"{", b"]", b"9", b"-1", b"e5", b"\0", b"null", b"RotatingKVCache", b"2147483648", b"", b"1.0"]
    path, refused, said = tmp_path / "fuzzed.safetensors", 0, list[str]()
    for _ in range(count):
        good, start = rng.choice(files)
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 3))):
            i = rng.randrange(8, start if rng.random() < 0.9 else len(good))
            data[i : i + rng.randrange(3)] = rng.choice([*pieces, bytes([rng.randrange(256)])])
        if rng.random() < 0.7:  # the length fits again, so that more files reach the rules
            data[:8] = (start - 8 + len(data) - len(good)).to_bytes(8, "little")
        path.write_bytes(data)
        try:
            read_mlx_lm(path)
        except CorruptError as error:
            refused += 1
            said.append(str(error))
    print(f"{refused} of {count} damaged files refused, the others read")
    assert refused > count * 0.8
    assert not any("\n" in text for text in said)


def test_the_untouched_ones_are_read() -> None:
    for file in sorted(FIXTURES.glob("*/*.safetensors")):
        assert describe_mlx_lm(file)[2] == {"model": "tiny"}
        assert len(read_mlx_lm(file).layers) == 2
    print(f"{len(HOSTILE) + 15} hostile files refused")
