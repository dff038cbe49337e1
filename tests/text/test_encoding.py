"""What is no Unicode text, at every entrance: one rule, a row per case."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlxkv.cli.input_files import piped_lines, piped_text, question_with, read_text, text_or_file
from mlxkv.errors import PromptError
from mlxkv.events import TurnFinished
from mlxkv.model import Model
from mlxkv.text.encoding import well_formed
from mlxkv.tui.state.prompt.attachments import AttachError, read
from tests.chats import CONFIG, say

HALF, MARK = "\ud800", "\ufffd"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", ""),
        ("plain", "plain"),
        ("é€😀", "é€😀"),
        (f"a{HALF}b", f"a{MARK}b"),
        ("\udfff", MARK),
        ("\ud83d\ude00", "😀"),  # two halves that belong together
        ("\ude00\ud83d", MARK * 2),
        (b"\xff".decode("utf-8", "surrogateescape"), MARK),  # the byte 0xff of an argument
        ("caf\udcc3\udca9", "café"),  # an argument that LC_ALL=C did not decode
        ("\udce2\udc82", MARK),
        ("\ud83d\udcff", "\U0001f4ff"),
        ("a\0b", "a\0b"),
    ],
)
def test_well_formed(text: str, whole: str) -> None:
    assert well_formed(text) == whole
    assert well_formed(whole) == whole
    whole.encode()


# Bytes, their text (None: refused) in standard input, and in a file.
BYTES: dict[str, tuple[bytes, str | None, str | None]] = {
    "nothing": (b"", "", ""),
    "UTF-8": ("é€".encode(), "é€", "é€"),
    "UTF-8 with a mark": ("é".encode("utf-8-sig"), "é", "é"),
    "UTF-16, little": (b"\xff\xfe" + "é€".encode("utf-16-le"), "é€", "é€"),
    "UTF-16, big": (b"\xfe\xff" + "é€".encode("utf-16-be"), "é€", "é€"),
    "UTF-32, little": (b"\xff\xfe\0\0" + "é€".encode("utf-32-le"), "é€", "é€"),
    "UTF-32, big": (b"\0\0\xfe\xff" + "é€".encode("utf-32-be"), "é€", "é€"),
    "a mark alone": (b"\xff\xfe", "", ""),
    "line ends": (b"a\r\nb\rc\n", "a\nb\nc\n", "a\nb\nc\n"),
    "UTF-16 without a mark": ("hi".encode("utf-16-le"), None, None),
    "UTF-16 that breaks off": (b"\xff\xfeh\0i", f"h{MARK}", None),
    "half a character in UTF-16": (b"\xff\xfe\x00\xd8a\0", f"{MARK}a", None),
    "all bytes": (bytes(range(256)), None, None),
    "a NUL": (b"a\0b", None, None),
    "a byte that is no text": (b"a\xffb", f"a{MARK}b", None),
    "a character that breaks off": ("é".encode()[:1], MARK, None),
    "half a character in UTF-8": (b"\xed\xa0\x80", MARK * 3, None),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_become_text_or_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, piped, filed = BYTES[name]
    path = tmp_path / "notes.txt"
    path.write_bytes(data)

    def from_stdin() -> str:
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        with open(reader, encoding="utf-8") as stdin:
            return piped_text(stdin, report=False)

    entrances: list[tuple[Callable[[], str], str | None]] = [
        (from_stdin, piped),
        (lambda: read_text(path), filed),
        (lambda: text_or_file(f"@{path}"), filed),
        (lambda: question_with(None, [path]).removeprefix("notes.txt:\n\n"), filed),
        (lambda: read("notes.txt", tmp_path).text, filed),
    ]
    for enter, expected in entrances:
        if expected is None:
            with pytest.raises((PromptError, AttachError), match="text"):
                enter()
        else:
            assert enter() == expected
    assert bool(capsys.readouterr().err) is (piped is not None and MARK in piped)  # what is lost is said


def test_what_is_read_beside_a_question_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert piped_text(io.StringIO("a log\n"), report=True) == "a log\n"
    assert capsys.readouterr().err == "standard input: 6 B read (-n skips it)\n"
    piped_text(io.StringIO("\n"), report=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a\nb\r\nc", ["a", "b", "c"]),
        (b"\xef\xbb\xbfa\n\n", ["a", ""]),
        (b"\xff\xfea\0\n\0", ["a"]),
        (b"a\xff\n", [f"a{MARK}"]),
        (b"", []),
    ],
)
def test_lines_of_a_pipe(data: bytes, lines: list[str]) -> None:
    out = io.StringIO()
    ask = piped_lines(io.TextIOWrapper(io.BufferedReader(io.BytesIO(data)), encoding="utf-8"), out)  # type: ignore[arg-type]
    assert [ask("> ") for _ in lines] == lines
    with pytest.raises(EOFError):
        ask("> ")
    assert out.getvalue() == "".join(f"> {line}\n" for line in lines) + "> "


# -- from Python -----------------------------------------------------------------------------------------------------


def test_half_a_character_from_python_is_a_mark(model: Model) -> None:
    chat = model.chat(system=HALF, cache=CONFIG, max_tokens=2, temperature=0.0, autosave=True)
    assert chat.system == MARK
    assert say(chat, f"a{HALF}").text is not None
    assert chat.messages[0].text == f"a{MARK}"
    assert chat.num_to_read(HALF) == chat.num_to_read(MARK)
    for ask in (lambda: chat.aside(HALF), lambda: chat.edit(0, f"b{HALF}")):
        *_, last = ask()
        assert isinstance(last, TurnFinished)
    assert chat.messages[0].text == f"b{MARK}"
    chat.save(title=f"t{HALF}")
    assert chat.title == f"t{MARK}"
    session = model.store.sessions.find(f"t{HALF}")
    assert session == chat.session_id
    model.store.sessions.rename(session, f"u{HALF}")
    assert model.store.load(session).title == f"u{MARK}"
    assert [hit.session_id for hit in model.store.sessions.search(f"{HALF} b")] == [session]
    chat.close()


def test_half_a_character_in_a_completion_is_a_mark(model: Model) -> None:
    one, other = (
        model.generate(f"hi {half}", max_tokens=3, temperature=0.0, stop=[half]).tokens for half in (HALF, MARK)
    )
    assert one == other
    assert list(model.stream(HALF, max_tokens=1))
    assert model.num_tokens(HALF) == model.num_tokens(MARK)
    assert model.prefill(f"hi {HALF}", CONFIG).log == model.prefill(f"hi {MARK}", CONFIG).log
    assert model.prefill("hi", CONFIG, system=HALF).log == model.prefill("hi", CONFIG, system=MARK).log


def test_the_window_takes_any_byte() -> None:
    """Textual's driver decodes strictly: one byte 0xff ended the window, with what was typed."""
    import threading

    from textual import events
    from textual.drivers.linux_driver import LinuxDriver

    from mlxkv.tui import accept_any_bytes

    accept_any_bytes()
    driver, keys = object.__new__(LinuxDriver), list[str]()
    driver.fileno, writer = os.pipe()
    driver._debug, driver.exit_event = False, threading.Event()

    def hear(message: object) -> None:
        if isinstance(message, events.Key):
            keys.append(str(message.character))
            if message.character == "b":
                driver.exit_event.set()

    driver.process_message = hear  # type: ignore[method-assign]
    os.write(writer, b"a\xff\xc3\xa9b")
    os.close(writer)
    driver.run_input_thread()
    os.close(driver.fileno)
    assert "".join(keys) == f"a{MARK}éb"
