"""The strict header: hostile files refused one by one, valid ones read, never looser than the safetensors package."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from mlxkv.errors import CorruptError, ModelFileError
from mlxkv.safetensors.header import ITEM_SIZES, MAX_HEADER, check_weights, read_header
from mlxkv.safetensors.writer import encode_header
from tests.safetensors_files import encode


def frame(text: str | bytes, data: bytes = b"") -> bytes:
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return len(raw).to_bytes(8, "little") + raw + data


def one(entry: str, data: bytes = bytes(4), name: str = '"a"') -> bytes:
    return frame(f"{{{name}:{entry}}}", data)


def tensor(shape: object = (4,), start: object = 0, end: object = 4, dtype: object = "U8") -> str:
    return json.dumps({"dtype": dtype, "shape": shape, "data_offsets": [start, end]})


def two(first: str, second: str, size: int = 8) -> bytes:
    return frame(f'{{"a":{first},"b":{second}}}', bytes(size))


GOOD = one(tensor())

HOSTILE: dict[str, bytes] = {
    # the frame
    "empty file": b"",
    "seven bytes": bytes(7),
    "length 0": bytes(8),
    "length 1": frame("{"),
    "length past the end": (100).to_bytes(8, "little") + b"{}",
    "length one past the end": (3).to_bytes(8, "little") + b"{}",
    "length 2^63": (1 << 63).to_bytes(8, "little") + b"{}",
    "length 2^64 - 1": b"\xff" * 8 + b"{}",
    "length wraps to 0 with the 8 added": ((1 << 64) - 8).to_bytes(8, "little") + b"{}",
    "length over the limit": frame("{" + " " * (MAX_HEADER - 1) + "}"),
    "big-endian length": len(GOOD[8:-4]).to_bytes(8, "big") + GOOD[8:],
    "truncated in the header": GOOD[:20],
    # the text
    "not JSON": frame("{hello}"),
    "an array": frame("[]"),
    "a string": frame('"aa"'),
    "a number": frame("12"),
    "null": frame("null"),
    "byte order mark": frame(b"\xef\xbb\xbf{}"),
    "space first": frame(" {}"),
    "two objects": frame("{}{}"),
    "text after the object": frame("{} x"),
    "NUL after the object": frame(b"{}\0\0"),
    "not UTF-8": frame(b'{"\xff":1}'),
    "UTF-16": frame('{"a":1}'.encode("utf-16-le")),
    "raw surrogate": frame('{"__metadata__":{"a":"\ud800"}}'),
    "unclosed": frame('{"a":'),
    "trailing comma": frame('{"__metadata__":{},}'),
    "single quotes": frame("{'a':1}"),
    "a comment": frame("{/**/}"),
    "nested 20,000 deep": frame('{"a":' + "[" * 20_000 + "]" * 20_000 + "}"),
    "duplicate tensor": frame(f'{{"a":{tensor()},"a":{tensor()}}}', bytes(4)),
    "duplicate tensor by an escape": frame(f'{{"a":{tensor()},"\\u0061":{tensor()}}}', bytes(4)),
    "duplicate key in a tensor": one('{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}'),
    "duplicate metadata": frame('{"__metadata__":{},"__metadata__":{}}'),
    "duplicate key in the metadata": frame('{"__metadata__":{"a":"1","a":"2"}}'),
    # metadata
    "metadata is null": frame('{"__metadata__":null}'),
    "metadata is a list": frame('{"__metadata__":[]}'),
    "metadata with a number": frame('{"__metadata__":{"a":1}}'),
    "metadata with NaN": frame('{"__metadata__":{"a":NaN}}'),
    "metadata with an object": frame('{"__metadata__":{"a":{}}}'),
    "metadata with null": frame('{"__metadata__":{"a":null}}'),
    "metadata with a lone surrogate": frame('{"__metadata__":{"a":"\\ud800"}}'),
    "metadata key with a lone surrogate": frame('{"__metadata__":{"\\udfff":"a"}}'),
    # names
    "empty name": one(tensor(), name='""'),
    "upper-case name": one(tensor(), name='"A"'),
    "name with a slash": one(tensor(), name='"../a"'),
    "name with a NUL": one(tensor(), name='"a\\u0000"'),
    "name with an escape sequence": one(tensor(), name='"\\u001b[2J"'),
    "name with a newline at its end": one(tensor(), name='"a\\n"'),
    "name with a full-width letter": one(tensor(), name='"ａ"'),
    "name of 65": one(tensor(), name='"' + "a" * 65 + '"'),
    # the entry
    "entry is a list": one("[]"),
    "entry is null": one("null"),
    "entry is empty": one("{}"),
    "no dtype": one('{"shape":[4],"data_offsets":[0,4]}'),
    "no shape": one('{"dtype":"U8","data_offsets":[0,4]}'),
    "no offsets": one('{"dtype":"U8","shape":[4]}'),
    "one key more": one('{"dtype":"U8","shape":[4],"data_offsets":[0,4],"x":1}'),
    "misspelt key": one('{"dtype":"U8","Shape":[4],"data_offsets":[0,4]}'),
    # dtype
    "unknown dtype": one(tensor(dtype="U7")),
    "lower-case dtype": one(tensor(dtype="u8")),
    "dtype is a number": one(tensor(dtype=8)),
    "dtype is a list": one(tensor(dtype=["U8"])),
    "dtype MLX cannot read": one(tensor(shape=[1], end=8, dtype="F64"), bytes(8)),
    "dtype of half a byte": one(tensor(shape=[8], dtype="F4")),
    # shape
    "shape is a number": one(tensor(shape=4)),
    "shape is a string": one(tensor(shape="4")),
    "negative dimension": one(tensor(shape=[-4])),
    "two negative dimensions": one(tensor(shape=[-2, -2])),
    "minus zero": one('{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}', b""),
    "float dimension": one(tensor(shape=[4.0])),
    "exponent dimension": one('{"dtype":"U8","shape":[4e0],"data_offsets":[0,4]}'),
    "boolean dimension": one(tensor(shape=[True], end=1), bytes(1)),
    "string dimension": one(tensor(shape=["4"])),
    "null dimension": one(tensor(shape=[None])),
    "nested dimension": one(tensor(shape=[[4]])),
    "Infinity dimension": one('{"dtype":"U8","shape":[Infinity],"data_offsets":[0,4]}'),
    "dimension of 2^31": one(tensor(shape=[1 << 31, 0], end=0), b""),
    "product wraps 64 bits to 4": one(tensor(shape=[(1 << 62) + 1, 4])),
    "product wraps with small dimensions": one(tensor(shape=[1 << 30, 1 << 30, 16], end=0), b""),
    "size wraps with the item size": one(tensor(shape=[1 << 30, 1 << 30, 4], end=0, dtype="F32"), b""),
    "nine dimensions": one(tensor(shape=[1] * 8 + [4])),
    "a number of 5,000 digits": one('{"dtype":"U8","shape":[' + "9" * 5000 + '],"data_offsets":[0,4]}'),
    # offsets
    "offsets are null": one('{"dtype":"U8","shape":[4],"data_offsets":null}'),
    "one offset": one('{"dtype":"U8","shape":[4],"data_offsets":[4]}'),
    "three offsets": one('{"dtype":"U8","shape":[4],"data_offsets":[0,4,4]}'),
    "negative start": one(tensor(start=-4, end=0)),
    "float offset": one(tensor(end=4.0)),
    "boolean offset": one(tensor(start=False)),
    "string offset": one(tensor(start="0")),
    "end before start": one(tensor(start=4, end=0)),
    "span too short for the shape": one(tensor(end=3), bytes(3)),
    "span too long for the shape": one(tensor(end=5), bytes(5)),
    "end past the file": one(tensor(shape=[60_000], end=60_000)),
    "start not 0": one(tensor(start=1, end=5), bytes(5)),
    "offsets near 2^64": one(tensor(start=(1 << 64) - 4, end=1 << 64)),
    "a byte after the tensors": GOOD + b"x",
    "data without tensors": frame("{}", b"x"),
    "a byte missing": GOOD[:-1],
    "overlap": two(tensor(), tensor(start=2, end=6), 6),
    "the same span twice": two(tensor(), tensor(), 4),
    "a hole": two(tensor(), tensor(start=5, end=9), 9),
    "one inside another": two(tensor(), tensor(shape=[2], start=1, end=3), 4),
    "an empty tensor inside another": two(tensor(), tensor(shape=[0], start=2, end=2), 4),
    "an empty tensor after the end": two(tensor(), tensor(shape=[0], start=9, end=9), 4),
}  # fmt: skip


def test_there_are_enough_hostile_files() -> None:
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str, tmp_path: Path) -> None:
    """Refused from bytes, from a path and from a descriptor, in one printable sentence that names the file."""
    path = tmp_path / "evil.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(CorruptError):
        read_header(HOSTILE[name])
    with path.open("rb") as file, pytest.raises(CorruptError):
        read_header(file.fileno())
    with pytest.raises(CorruptError) as caught:
        read_header(path)
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable()
    assert message.isascii()
    assert message.endswith(".")
    assert len(message) < 600 + len(str(path))


@pytest.mark.parametrize(
    "name",
    [n for n in HOSTILE if n not in ("upper-case name", "name with a slash", "name of 65", "metadata is null")],
)
def test_hostile_weights(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ModelFileError):
        check_weights(path)


def test_weights_may_have_no_metadata(tmp_path: Path) -> None:
    path = tmp_path / "adapters.safetensors"
    mx.save_safetensors(str(path), {"a": mx.zeros((1,))})
    assert b'"__metadata__":null' in path.read_bytes()
    assert check_weights(path).metadata == {}
    with pytest.raises(CorruptError, match="__metadata__"):
        read_header(path)


def test_names_of_weights() -> None:
    """Models call their tensors what they like, within printable ASCII and 256."""
    longest = "Model layers/0 [w]" + "x" * 238
    header = read_header(one(tensor(), name=json.dumps(longest)), weights=True)
    assert header.tensors[0].name == longest
    with pytest.raises(ModelFileError, match="256 printable"):
        read_header(one(tensor(), name=json.dumps(longest + "x")), weights=True)


VALID: dict[str, bytes] = {
    "nothing": frame("{}"),
    "padded": frame("{}      "),
    "one": GOOD,
    "scalar": one(tensor(shape=[], end=1), bytes(1)),
    "eight dimensions": one(tensor(shape=[1] * 7 + [4])),
    "the largest dimension": one(tensor(shape=[(1 << 31) - 1, 0], end=0), b""),
    "an empty tensor between": frame(
        f'{{"a":{tensor()},"b":{tensor(shape=[0], start=4, end=4)},"c":{tensor(start=4, end=8)}}}', bytes(8)
    ),
    "not in the order of the data": two(tensor(start=4, end=8), tensor()),
    "metadata": frame('{"__metadata__":{"é\\ud83d\\ude00":"\\u0000"}}'),
    "the longest header": frame("{}" + " " * (MAX_HEADER - 2)),
}


@pytest.mark.parametrize("name", VALID)
def test_valid(name: str) -> None:
    header = read_header(VALID[name])
    assert header.file_size == len(VALID[name])
    assert_same_as_package(VALID[name])


def assert_same_as_package(data: bytes) -> None:
    """The package accepts it and cuts out the same bytes."""
    ours = read_header(data)
    theirs = dict(safetensors.deserialize(data))
    assert theirs.keys() == {t.name for t in ours.tensors}
    for t in ours.tensors:
        assert theirs[t.name]["dtype"] == t.dtype
        assert theirs[t.name]["shape"] == list(t.shape)
        assert bytes(theirs[t.name]["data"]) == data[ours.data_start + t.start : ours.data_start + t.end]


def check_never_looser(data: bytes) -> bool:
    try:
        read_header(data, weights=True)
    except ModelFileError:
        return False
    ours = read_header(data, weights=True)
    theirs = dict(safetensors.deserialize(data))  # raises where we were looser
    assert theirs.keys() == {t.name for t in ours.tensors}
    for t in ours.tensors:
        assert (theirs[t.name]["dtype"], theirs[t.name]["shape"]) == (t.dtype, list(t.shape))
        assert bytes(theirs[t.name]["data"]) == data[ours.data_start + t.start : ours.data_start + t.end]
    return True


NAMES = st.text("abc.019", min_size=1, max_size=8)
SHAPES = st.lists(st.integers(0, 4), max_size=3)
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(ITEM_SIZES)), SHAPES), max_size=5)
METADATA = st.dictionaries(st.text(max_size=5), st.text(max_size=8), max_size=3)


def build(tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str]) -> bytes:
    parts = {}
    for number, (name, (dtype, shape)) in enumerate(tensors.items()):
        parts[name] = (dtype, tuple(shape), bytes([number + 1]) * (ITEM_SIZES[dtype] * int(np.prod(shape, dtype=int))))
    return encode(parts, metadata)


@pytest.mark.slow
@given(TENSORS, METADATA)
def test_what_we_write_both_read(tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str]) -> None:
    data = build(tensors, metadata)
    header = read_header(data)
    assert header.metadata == metadata
    assert header.data_start % 8 == 0
    assert [t.name for t in sorted(header.tensors, key=lambda t: t.name)] == sorted(tensors)
    assert check_never_looser(data)


@pytest.mark.slow
@given(TENSORS, METADATA, st.data())
def test_never_looser_with_bytes_changed(
    tensors: dict[str, tuple[str, list[int]]], metadata: dict[str, str], data: st.DataObject
) -> None:
    raw = bytearray(build(tensors, metadata))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.one_of(st.sampled_from(b' {}[]",:0123456789-.eE\\utfnN\0'), st.integers(0, 255)))
    check_never_looser(bytes(raw))


ODD: st.SearchStrategy[Any] = st.one_of(
    st.integers(-2, 9), st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=3),
    st.lists(st.integers(-1, 9), max_size=3),
)  # fmt: skip
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.one_of(st.sampled_from(["U8", "F16", "F64", "F4", "F8_E4M3"]), ODD),
        "shape": st.one_of(SHAPES, st.lists(ODD, max_size=3), ODD),
        "data_offsets": st.one_of(st.lists(st.integers(0, 16), min_size=2, max_size=2), st.lists(ODD, max_size=3)),
    },
    optional={"extra": ODD},
)


@given(
    st.dictionaries(
        st.one_of(NAMES, st.just("__metadata__"), st.text(max_size=3)), st.one_of(ENTRY, METADATA, ODD), max_size=4
    ),
    st.integers(0, 32),
    st.sampled_from(["", " ", "\n", "\t  ", "\0", "x"]),
)
def test_never_looser_with_odd_headers(table: dict[str, Any], size: int, tail: str) -> None:
    check_never_looser(frame(json.dumps(table) + tail, bytes(size)))


def test_the_same_bytes_from_any_order() -> None:
    tensors = [("b", "U8", (2,), 2), ("a", "F32", (1, 1), 4), ("a.0", "BF16", (0,), 0)]
    metadata = {"z": "1", "a": "2"}
    expected = encode_header(tensors, metadata)
    assert encode_header(tensors[::-1], dict(reversed(metadata.items()))) == expected
    assert len(expected) % 8 == 0
    assert expected[8:].startswith(b'{"__metadata__":{"a":"2","z":"1"},"a":{"dtype":"F32",')


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ([("A", "U8", (1,), 1)], {}),
        ([("a", "U9", (1,), 1)], {}),
        ([("a", "U8", (2,), 1)], {}),
        ([("a", "U8", (-1,), -1)], {}),
        ([("a", "U8", (-1, -1), 1)], {}),
        ([("a", "U8", (1,), 1), ("a", "U8", (1,), 1)], {}),
        ([], {"a": 1}),
        ([], {"a": "\ud800"}),
        ([], {"a": "x" * MAX_HEADER}),
    ],
)
def test_never_writes_what_it_would_not_read(tensors: list[Any], metadata: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"would be refused|Two tensors"):
        encode_header(tensors, metadata)


@given(
    st.lists(
        st.tuples(
            NAMES,
            st.one_of(st.sampled_from(["U8", "F16"]), ODD),
            st.lists(st.one_of(st.integers(-2, 3), ODD), max_size=3),
            st.integers(-2, 18),
        ),
        max_size=3,
    ),
    st.dictionaries(
        st.one_of(st.text(max_size=2), ODD.filter(lambda x: not isinstance(x, list))),
        st.one_of(st.text(max_size=2), ODD),
        max_size=2,
    ),
)
def test_whatever_it_is_given_it_writes_what_it_would_read_or_nothing(
    tensors: list[Any], metadata: dict[Any, Any]
) -> None:
    try:
        head = encode_header(tensors, metadata)
    except ValueError:
        return
    header = read_header(head + bytes(sum(nbytes for *_, nbytes in tensors)))
    assert header.metadata == metadata
    assert [(t.name, t.dtype, list(t.shape)) for t in header.tensors] == sorted((n, d, s) for n, d, s, _ in tensors)


def test_links(tmp_path: Path) -> None:
    """The hub's cache is made of links; our own files never are one."""
    path, link = tmp_path / "a", tmp_path / "b"
    path.write_bytes(GOOD)
    link.symlink_to(path)
    assert check_weights(link).file_size == len(GOOD)
    assert read_header(link) == read_header(path)
    with pytest.raises(CorruptError, match="cannot be opened"):
        read_header(link, nofollow=True)


def test_what_is_no_file(tmp_path: Path) -> None:
    """A pipe would hang an ordinary open for ever."""
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("pipe", "regular file"),
        (".", "regular file"),
        ("none", "No such file"),
        ("a\0b", "opened"),
    ):
        with pytest.raises(CorruptError, match=message):
            read_header(str(tmp_path / name))


def test_a_descriptor_keeps_its_position(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(GOOD)
    with path.open("rb") as file:
        os.lseek(file.fileno(), 3, os.SEEK_SET)
        read_header(file.fileno())
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 3
        with pytest.raises(CorruptError, match="chunk 7 "):
            read_header(b"", name="chunk 7")


def test_a_hostile_file_name_does_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "\x1b[2Jmodel.safetensors"
    path.write_bytes(b"")
    with pytest.raises(ModelFileError) as caught:
        check_weights(path)
    assert str(caught.value).isprintable()


def test_real_weights(stories_path: Path) -> None:
    header = check_weights(stories_path / "model.safetensors")
    assert len(header.tensors) == 47
    assert header.metadata == {"format": "mlx"}
