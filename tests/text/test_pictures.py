"""Pictures are known by their bytes, and one sentence says what to do instead of attaching them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxkv.cli.input_files import read_text
from mlxkv.errors import PromptError
from mlxkv.text.pictures import not_read, picture_format
from mlxkv.tui.state.prompt.attachments import AttachError, dropped_pictures, read
from mlxkv.tui.widgets.attached_files import AttachedFiles

HEADS = {
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "GIF": b"GIF89a\1\0\1\0",
    "WebP": b"RIFF\x24\0\0\0WEBPVP8 ",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0",
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0",
    "TIFF": b"MM\0*\0\0\0\x08",
    "BMP": b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0",
}


@pytest.mark.parametrize("kind", HEADS)
def test_each_format_whatever_its_name(kind: str, tmp_path: Path) -> None:
    assert picture_format(HEADS[kind]) == kind
    path = tmp_path / "a picture.txt"
    path.write_bytes(HEADS[kind] + bytes(2 << 20))  # larger than a text may be
    with pytest.raises(AttachError) as attached:
        read("a picture.txt", tmp_path)
    assert str(attached.value) == not_read("a picture.txt", kind)
    with pytest.raises(PromptError, match="images are not read here"):
        read_text(path)


@pytest.mark.parametrize("text", [b"", b"BM is a sign of BMP files", b"GIF files", b"RIFF....WAVE", b"....ftypisom"])
def test_text_and_films_are_no_pictures(text: bytes) -> None:
    assert picture_format(text) == ""


def test_a_dropped_picture_is_told_and_its_path_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "my photo.png"
    path.write_bytes(HEADS["PNG"])
    (tmp_path / "notes.png").write_text("text")
    said = [not_read("my photo.png", "PNG")]
    escaped = str(path).replace(" ", "\\ ")
    for typed in (
        escaped,
        f"what is {escaped} ",
        f"'{path}'",
        f'"{path}" ?',
        f"file://{str(path).replace(' ', '%20')}",
    ):
        assert dropped_pictures(typed) == said, typed
    for typed in (f"x{escaped}", str(tmp_path / "notes.png"), str(tmp_path), "/no/such.png", "/\0", "a/b", "'/"):
        assert dropped_pictures(typed) == [], typed
    files = AttachedFiles()
    assert files.note(f"look at {escaped}") == f"✗ {said[0]}"
    with pytest.raises(AttachError, match="Enter again sends its path"):
        files.expand(f"look at {escaped}")
    assert files.expand(f"look at {escaped}") == f"look at {escaped}"
