"""The process that reads a PDF from stdin and writes its text to stdout, or says by its exit code why there is none.

`pdf.py` runs it as a script. It imports nothing else of mlxkv; what a library prints is not shown.
"""

from __future__ import annotations

import io
import os
import resource
import sys
import threading
import time

ENCRYPTED, NO_TEXT, DAMAGED, MANY_PAGES, LONG, MEMORY = range(10, 16)  # exit codes
_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of `ru_maxrss`


def main(limit: int, max_pages: int, seconds: int, memory: int) -> int:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    threading.Thread(target=_watch, args=(memory, os.getppid()), daemon=True).start()
    data = sys.stdin.buffer.read()
    try:
        return _extract(data, limit, max_pages)
    except MemoryError:
        return MEMORY
    except Exception:  # pypdf raises anything on a damaged file
        return DAMAGED


def _extract(data: bytes, limit: int, max_pages: int) -> int:
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, FileNotDecryptedError

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):  # many only forbid changes, which needs no password to read
            return ENCRYPTED
        if len(reader.pages) > max_pages:
            return MANY_PAGES
        pages, size = [], 0
        for page in reader.pages:
            pages.append(page.extract_text().strip())
            size += len(pages[-1])
            if size > limit:
                return LONG
    except (DependencyError, FileNotDecryptedError):  # AES needs a library of its own
        return ENCRYPTED
    text = "\n\n".join(filter(None, pages))
    sys.stdout.buffer.write(text.encode("utf-8", "surrogatepass"))
    sys.stdout.flush()
    return 0 if text.strip() else NO_TEXT


def _watch(memory: int, parent: int) -> None:
    """End this process when it has too much memory (macOS enforces no such limit), or its parent is gone."""
    while os.getppid() == parent:
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT > memory:
            os._exit(MEMORY)
        time.sleep(0.05)
    os._exit(DAMAGED)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:5])))
