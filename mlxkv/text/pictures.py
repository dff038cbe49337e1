"""Pictures among the files that users give: known by their first bytes, and not read here. Pure."""

from __future__ import annotations

HEAD = 16  # bytes that tell
_HEADS = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF = {b"avif", b"avis"}


def picture_format(head: bytes) -> str:
    """The format of a picture whose file begins with `head` (`HEAD` bytes); "" for any other file."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp":
        return "HEIC" if head[8:12] in _HEIF else "AVIF" if head[8:12] in _AVIF else ""
    if head[:2] == b"BM" and head[6:10] == bytes(4):  # text may begin with these two letters
        return "BMP"
    return next((name for begin, name in _HEADS if head.startswith(begin)), "")


def not_read(name: str, kind: str) -> str:
    """The sentence about a picture of the format `kind`."""
    return f"{name} is a picture ({kind}), and images are not read here; describe it, or paste the text in it."
