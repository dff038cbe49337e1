"""Text of PDF files, extracted by pypdf in a process of its own (`pdf_child.py`), since files may be hostile.

That process gets the bytes on a pipe and opens nothing; its time, memory, pages and text are limited. Any thread; it
waits for the process, so not on the UI's.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from mlxkv.text.encoding import well_formed
from mlxkv.text.pdf_child import DAMAGED, ENCRYPTED, LONG, MANY_PAGES, MEMORY, NO_TEXT

MAX_PDF = 32 << 20  # bytes of a file
MAX_PAGES = 2000
MAX_SECONDS = 60
MAX_MEMORY = 1 << 30  # bytes of the process
_CHILD = Path(__file__).with_name("pdf_child.py")
_REASONS = {
    ENCRYPTED: "is encrypted; save a copy without a password",
    NO_TEXT: "has no text, only pictures of its pages; run OCR on it first",
    DAMAGED: "is no PDF that can be read, or is damaged; save it again as PDF, or as text",
    MANY_PAGES: f"has over {MAX_PAGES:,} pages; give a part of it",
    MEMORY: f"needs over {MAX_MEMORY >> 30} GiB of memory to read; save it as text",
}


class PdfError(ValueError):
    """A PDF has no text to give; the message continues a sentence that begins with its name."""


def is_pdf(data: bytes) -> bool:
    """Whether a file that begins with `data` is a PDF."""
    return data.startswith(b"%PDF-")


def pdf_text(data: bytes, limit: int) -> str:
    """The text of a PDF, page after page, of at most `limit` characters.

    Raises:
        PdfError: there is none, it is too much, or reading it takes too much; or pypdf is missing.
    """
    if importlib.util.find_spec("pypdf") is None:
        raise PdfError("is a PDF, which needs a further package: pip install 'mlxkv[pdf]'")
    command = [sys.executable, "-I", str(_CHILD), *map(str, (limit, MAX_PAGES, MAX_SECONDS, MAX_MEMORY))]
    try:
        done = subprocess.run(
            command, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=MAX_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise PdfError(f"takes over {MAX_SECONDS} seconds to read; save it as text") from None
    except OSError as error:
        raise PdfError(f"cannot be read ({error.strerror})") from error
    if done.returncode == LONG:
        raise PdfError(f"has over {limit:,} characters of text; give a part of it")
    if done.returncode < 0:  # the system ended it: processor time, or memory
        raise PdfError("takes too much time or memory to read; save it as text")
    if done.returncode != 0:
        raise PdfError(_REASONS.get(done.returncode, _REASONS[DAMAGED]))
    return well_formed(done.stdout.decode("utf-8", "surrogatepass")).replace("\0", "")
