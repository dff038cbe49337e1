"""The text of PDFs: what there is, or one sentence, whatever the file does."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from mlxkv.cli.input_files import question_with
from mlxkv.errors import PromptError
from mlxkv.text import pdf as module
from mlxkv.text.pdf import PdfError, pdf_text
from mlxkv.tui.state.prompt.attachments import AttachError
from mlxkv.tui.widgets.attached_files import AttachedFiles
from tests.text.pdfs import encrypted, huge_page, pdf


@pytest.mark.slow
def test_pages_follow_each_other() -> None:
    assert pdf_text(pdf("Hello (world\\)".replace("(", "\\("), "Second"), 100) == "Hello (world)\n\nSecond"
    assert pdf_text(encrypted(pdf("may be read"), ""), 100) == "may be read"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: pdf("", ""), "has no text, only pictures"),
        (lambda: encrypted(pdf("secret"), "password"), "is encrypted"),
        (lambda: pdf("Hello")[:200], "is damaged"),
        (lambda: pdf("x", "x", "x"), "has over 2 pages"),
        (lambda: pdf("y" * 300, "z" * 300), "has over 400 characters"),
    ],
)
def test_why_there_is_none(monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes], reason: str) -> None:
    monkeypatch.setattr(module, "MAX_PAGES", 2)
    monkeypatch.setitem(module._REASONS, module.MANY_PAGES, "has over 2 pages")
    with pytest.raises(PdfError, match=reason):
        pdf_text(make(), 400)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value", "reason"), [("MAX_MEMORY", 1 << 24, "memory"), ("MAX_SECONDS", 1, "takes")])
def test_a_hostile_file_is_ended(monkeypatch: pytest.MonkeyPatch, name: str, value: int, reason: str) -> None:
    monkeypatch.setattr(module, name, value)
    with pytest.raises(PdfError, match=reason):
        pdf_text(huge_page(), 1 << 30)


@pytest.mark.slow
def test_print_mode_and_the_window(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf("Page one"))
    (tmp_path / "b.pdf").write_bytes(pdf(""))
    assert question_with("Why?", [tmp_path / "a.pdf"]) == "a.pdf:\n\nPage one\n\nWhy?"
    with pytest.raises(PromptError, match=r"b\.pdf has no text, only pictures of its pages; run OCR on it first\.$"):
        question_with("Why?", [tmp_path / "b.pdf"])
    files, is_read = AttachedFiles(), Event()
    files.base, files.when_read = tmp_path, is_read.set
    assert files.note("what is @a.pdf") == "@a.pdf PDF · reading its text …"
    with pytest.raises(AttachError, match="still being read"):
        files.expand("what is @a.pdf")
    assert is_read.wait(60)
    assert files.note("what is @a.pdf") == "@a.pdf 1 line · ~2 tok"
    assert files.expand("what is @a.pdf").endswith("File `a.pdf`:\n```\nPage one\n```")


def test_without_pypdf_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PdfError, match=r"pip install 'mlxkv\[pdf\]'"):
        pdf_text(pdf("x"), 100)
