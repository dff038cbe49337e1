"""Mutated headers: what this program accepts, the safetensors package reads alike; nothing but our errors comes out.

2,000 of them, or 100,000 with MLXKV_THOROUGH=1.
"""

from __future__ import annotations

import math
import random

import pytest
import safetensors

from mlxkv.errors import ModelFileError
from mlxkv.safetensors.header import ITEM_SIZES, Header, read_header
from tests.safetensors_files import encode
from tests.thorough import THOROUGH

pytestmark = pytest.mark.slow

COUNT = 100_000 if THOROUGH else 2_000
PIECES = [
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"0", b"1", b"9", b"-", b".", b"e", b"E", b"\\u0061", b"\\ud800", b"null",
    b"true", b"NaN", b"dtype", b"shape", b"data_offsets", b"__metadata__", b"F32", b"U8", b"F4", b"F64", b" ", b"\n",
    b"\0", b"\xff", b"2147483648", b"4294967296", b"9223372036854775808", b"18446744073709551615",
]  # fmt: skip
NUMBERS = [b"-1", b"00", b"1.0", b"1e0", b"18446744073709551616", *(str(n).encode() for n in range(21))]


def valid(rng: random.Random) -> bytes:
    """A file that is as it should be."""
    parts = {}
    for i in range(rng.randint(0, 4)):
        dtype = rng.choice(sorted(ITEM_SIZES))
        shape = tuple(rng.randint(0, 4) for _ in range(rng.randint(0, 3)))
        name = "".join(rng.choices("abc.019", k=rng.randint(1, 6)))
        parts[name] = (dtype, shape, bytes([i + 1]) * (ITEM_SIZES[dtype] * math.prod(shape)))
    metadata = {str(i): rng.choice(["", "x", "é", "\n"]) for i in range(rng.randint(0, 2))}
    return encode(parts, metadata)


def mutated(raw: bytes, rng: random.Random) -> bytes:
    end = 8 + int.from_bytes(raw[:8], "little")
    head, data, shift = bytearray(raw[8:end]), raw[end:], 0
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(head) + 1)
        upto = min(len(head), at + rng.randint(1, 40))
        match rng.randrange(7):
            case 0 if at < len(head):
                head[at] = rng.randrange(256)
            case 1:
                head[at:at] = rng.choice(PIECES)
            case 2:
                del head[at : at + rng.randint(1, 5)]
            case 3:
                head[at : at + rng.randint(1, 5)] = rng.choice(PIECES)
            case 4 if digits := [i for i, c in enumerate(head) if chr(c).isdigit()]:
                i = rng.choice(digits)
                head[i : i + 1] = rng.choice(NUMBERS)
            case 5:
                head[at:at] = head[at:upto]  # said twice
            case 6:
                data, shift = rng.choice([(data[:-1], 0), (data + b"xxxx", 0), (data, -8), (data, 1), (data, 1 << 63)])
    return (max(0, len(head) + shift) % (1 << 64)).to_bytes(8, "little") + bytes(head) + data


def is_read_alike(header: Header, raw: bytes) -> bool:
    theirs = dict(safetensors.deserialize(raw))
    return theirs.keys() == {t.name for t in header.tensors} and all(
        (theirs[t.name]["dtype"], theirs[t.name]["shape"]) == (t.dtype, list(t.shape))
        and bytes(theirs[t.name]["data"]) == raw[header.data_start + t.start : header.data_start + t.end]
        for t in header.tensors
    )


def test_never_looser_than_the_package() -> None:
    rng, num_accepted = random.Random(1), 0
    for _ in range(COUNT):
        raw = mutated(valid(rng), rng)
        try:
            header = read_header(raw, weights=True)
        except ModelFileError:
            continue
        assert is_read_alike(header, raw), raw
        num_accepted += 1
    print(f"{COUNT:,} mutated headers, {num_accepted:,} accepted, none that the package refuses or reads otherwise")
    assert 0.01 * COUNT < num_accepted < 0.5 * COUNT
