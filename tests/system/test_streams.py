"""What `mlxkv` does with streams that are closed, full, gone, binary or of another encoding. A row is a case."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mlxkv.config import Folders
from mlxkv.errors import OutputError
from mlxkv.store.session_store import SessionStore
from mlxkv.system import streams
from mlxkv.system.terminal import GONE

ASK = ("-p", "hi", "-m", "TINY", "--max-tokens", "5", "--temp", "0", "--window", "256")
FULL = "mlxkv: Standard output cannot be written (No space left on device); free some space or write somewhere else.\n"
BINARY = "mlxkv: Standard input is not text (it contains a NUL); give UTF-8, or UTF-16 with a byte order mark.\n"
LOSSY = "mlxkv: standard input is not all text; invalid bytes became U+FFFD.\n"


@dataclass(frozen=True)
class Case:
    """`mlxkv ARGS` with its streams as they are named in `stream_cases`, and what comes of it.

    `says`: all of stderr; None: not looked at. `prompt`: the user's message that is saved; "": none is.
    """

    args: tuple[str | bytes, ...]
    stdin: str = "null"
    stdout: str = "file"
    stderr: str = "file"
    data: bytes = b""
    env: dict[str, str] = field(default_factory=dict)
    code: int = 0
    says: str | None = ""
    out: Callable[[str], bool] = bool
    prompt: str = ""


def empty(out: str) -> bool:
    return not out


CASES = {
    # Where nobody reads, or nothing can be written.
    "--help, no reader": Case(("--help",), stdout="gone", out=empty),
    "--version, no reader": Case(("--version",), stdout="gone", out=empty),
    "path, no reader": Case(("path",), stdout="gone", out=empty),
    "doctor, no reader": Case(("doctor",), stdout="gone", out=empty),
    "models ls, no reader": Case(("models", "ls"), stdout="gone", out=empty),
    "cache ls, no reader": Case(("cache", "ls", "--json"), stdout="gone", out=empty),
    "bench, no reader": Case(("bench", "-m", "TINY", "--prompt", "4", "--tokens", "2"), stdout="gone", out=empty),
    "-p, no reader": Case((*ASK, "-q"), stdout="gone", out=empty, prompt="hi"),
    "-p as JSON, no reader": Case((*ASK, "--output-format", "json"), stdout="gone", out=empty, prompt="hi"),
    "--plain, no reader": Case(("--plain", "-m", "TINY"), stdout="gone", out=empty),
    "a failure, no reader": Case(("chats", "show", "x"), stdout="gone", out=empty, code=1, says=None),
    "--help, full": Case(("--help",), stdout="full", out=empty, code=1, says=FULL),
    "--version, full": Case(("--version",), stdout="full", out=empty, code=1, says=FULL),
    "path, full": Case(("path",), stdout="full", out=empty, code=1, says=FULL),
    "doctor, full": Case(("doctor",), stdout="full", out=empty, code=1, says=FULL),
    "models ls, full": Case(("models", "ls"), stdout="full", out=empty, code=1, says=FULL),
    "-p, full": Case(ASK, stdout="full", out=empty, code=1, says=FULL, prompt="hi"),
    "stderr full": Case(ASK, stderr="full", prompt="hi"),
    "stderr gone": Case(("cache", "ls"), stderr="gone", out=empty),
    "an error to a full stderr": Case(("chats", "show", "x"), stderr="full", out=empty, code=1),
    # Closed.
    "-p <&-": Case((*ASK, "-q"), stdin="closed", prompt="hi"),
    "-p, all three": Case(ASK, "closed", "closed", "closed", out=empty, prompt="hi"),
    "models ls >&-": Case(("models", "ls"), stdout="closed", out=empty),
    "chats ls, all three": Case(("chats", "ls"), "closed", "closed", "closed", out=empty),
    # What cannot be read.
    "a descriptor to write to": Case(
        ASK,
        stdin="write-only",
        code=2,
        out=empty,
        says="mlxkv: Standard input cannot be read (Bad file descriptor); "
        "leave it out with -n, or give `< /dev/null`.\n",
    ),
    "the same with -n": Case((*ASK, "-nq"), stdin="write-only", prompt="hi"),
    "without -n it is said": Case(
        (*ASK, "--output-format", "text"), stdin="pipe", data=b"more", prompt="hi\n\nmore", says=None
    ),
    # Encodings of standard input.
    "UTF-16, little": Case((*ASK, "-q"), stdin="pipe", data=b"\xff\xfe" + "é€".encode("utf-16-le"), prompt="hi\n\né€"),
    "UTF-16 without a mark": Case(ASK, stdin="pipe", data="hi".encode("utf-16-le"), code=2, out=empty, says=BINARY),
    # Arguments.
    "0xff in a prompt": Case((ASK[0], b"a\xffb", *ASK[2:], "-q"), prompt="a\ufffdb"),
    "0xff in a model's name": Case((*ASK[:3], b"\xff", *ASK[4:]), code=1, out=empty, says=None),
    "0xff in a chat's name": Case(("chats", "show", b"\xff"), code=1, out=empty, says=None),
    "0xff in a file's name": Case((*ASK, "-f", b"/no/\xff"), code=2, out=empty, says=None),
    # Encodings of standard output.
    "figures to an ASCII stderr": Case(("cache", "ls"), env={"PYTHONIOENCODING": "ascii"}, out=empty, says=None),
    "an ASCII output": Case(("chats", "search", "x"), env={"PYTHONIOENCODING": "ascii"}, code=1, out=empty, says=None),
    # Lines.
    "--plain reads a pipe line by line": Case(
        ("--plain", "-m", "TINY", "--max-tokens", "2"),
        stdin="pipe",
        data=b"/stats\none\\\ntwo\xff\n/resume\n/quit\nnever\n",
        prompt="one\ntwo\ufffd",
        out=lambda out: "User: /stats\n" in out and "\nUser: /quit\n" in out and "never" not in out,
    ),
    "--plain of a binary": Case(("--plain", "-m", "TINY"), stdin="pipe", data=b"a\0\n", code=2, says=BINARY),
}  # fmt: skip


class Driver:
    """`stream_cases` as a process."""

    def __init__(self, tiny: Path) -> None:
        self._tiny = str(tiny).encode()
        command = [sys.executable, "-m", "tests.system.stream_cases"]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)

    def play(self, case: Case, home: Path) -> tuple[int, str, str]:
        words = [word.encode() if isinstance(word, str) else word for word in case.args]
        args = [base64.b64encode(self._tiny if word == b"TINY" else word).decode() for word in words]
        asked = {name: getattr(case, name) for name in ("stdin", "stdout", "stderr", "env")}
        asked |= {"args": args, "home": str(home), "data": base64.b64encode(case.data).decode()}
        to, of = self._process.stdin, self._process.stdout
        assert to is not None
        assert of is not None
        print(json.dumps(asked), file=to, flush=True)
        result = json.loads(of.readline())
        out, err = (base64.b64decode(result[name]).decode() for name in ("out", "err"))
        return result["code"], out, err

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def driver(tiny_path: Path) -> Iterator[Driver]:
    made = Driver(tiny_path)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_streams(name: str, driver: Driver, home: Path) -> None:
    case = CASES[name]
    if "full" in (case.stdout, case.stderr) and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    code, out, err = driver.play(case, home)
    assert code == case.code, err
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert err.count("\n") <= 2
    if case.says is not None and case.stderr == "file":
        assert err == case.says
    assert case.out(out), out
    with SessionStore.open(Folders(home / "config", home / "data", home / "cache", home / "state")) as store:
        chats = [store.load(chat.id) for chat in store.list()]
    assert [chat.turns[0].text for chat in chats] == ([case.prompt] if case.prompt else [])
    assert all(len(chat.turns) == 2 for chat in chats)  # with what was generated, whoever read it


@pytest.mark.slow
@pytest.mark.parametrize(("stdout", "code", "says"), [("gone", 0, ""), ("full", 1, FULL)])
def test_chats_that_cannot_be_printed(stdout: str, code: int, says: str, driver: Driver, home: Path) -> None:
    if stdout == "full" and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    assert driver.play(Case((*ASK, "-q")), home)[0] == 0
    for args in (("ls", "--all"), ("ls", "--all", "--json"), ("show", "hi"), ("export", "hi"), ("search", "hi")):
        case = Case(("chats", *args), stdout=stdout)
        assert driver.play(case, home) == (code, "", says), args


@pytest.mark.parametrize(
    ("stream", "chosen", "encoding"),
    [
        ("ANSI_X3.4-1968", None, "utf-8"),  # LC_ALL=C with PYTHONUTF8=0
        ("ascii", None, "utf-8"),
        ("ascii", "ascii", "ascii"),
        ("iso-8859-1", None, "iso-8859-1"),
        ("utf-8", None, "utf-8"),
        (None, None, "utf-8"),  # it was closed
    ],
)
def test_the_encoding_is_the_locales_unless_that_has_none(
    stream: str | None, chosen: str | None, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    if chosen:
        monkeypatch.setenv("PYTHONIOENCODING", chosen)
    given = None if stream is None else io.TextIOWrapper(io.BytesIO(), encoding=stream)
    assert streams._encoding(given) == encoding


@pytest.mark.slow
def test_a_fresh_interpreter_without_streams(home: Path) -> None:
    command = [sys.executable, "-m", "mlxkv", "path"]
    done = subprocess.run(["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", *command], check=False)
    assert done.returncode == 0


@pytest.mark.slow
def test_a_fresh_interpreter_in_an_ascii_locale(home: Path) -> None:
    env = {**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C", "MLXKV_HOME": f"{home}/café"}
    env.pop("PYTHONIOENCODING", None)
    done = subprocess.run([sys.executable, "-m", "mlxkv", "path"], env=env, capture_output=True, check=True)
    assert f"{home}/café/data\n" in done.stdout.decode()


# -- the streams themselves ------------------------------------------------------------------------------------------


def writer(fd: int, drops: bool = False) -> io.TextIOWrapper:
    raw = streams._Descriptor(fd, drops)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8")  # type: ignore[arg-type]


def test_a_full_non_blocking_pipe_gets_everything() -> None:
    """As under node, which makes the pipes of its children non-blocking."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.extend(iter(lambda: os.read(read, 1 << 12), b"")))
    reader.start()
    out, text = writer(write), "0123456789" * 100_000
    out.write(text)
    out.flush()
    os.close(write)
    reader.join()
    os.close(read)
    assert b"".join(got).decode() == text


def pty_without_a_terminal() -> int:
    terminal, ours = os.openpty()
    os.close(terminal)
    return ours


@pytest.mark.parametrize(
    ("open_fd", "says"),
    [
        (lambda: os.open(os.devnull, os.O_RDONLY), "Standard output cannot be written (Bad file descriptor); free"),
    ],
    ids=["a descriptor to read from"],
)
@pytest.mark.parametrize("drops", [False, True])
def test_what_cannot_be_written_is_said_once(open_fd: Callable[[], int], says: str, drops: bool) -> None:
    out = writer(fd := open_fd(), drops)
    out.write("x")
    if not drops:
        with pytest.raises(OutputError, match=re.escape(says)):
            out.flush()
        out.buffer.raw.drops = True  # type: ignore[attr-defined]  # as `run` does at the end
    out.close()
    os.close(fd)


@pytest.mark.parametrize("drops", [False, True])
def test_output_to_a_terminal_that_is_gone_ends_the_command(drops: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr it is dropped: what goes to stdout may still be wanted."""
    left: list[bool] = []
    monkeypatch.setattr(streams, "detach_terminal", lambda: left.append(True))
    out = writer(fd := pty_without_a_terminal(), drops)
    out.write("x")
    if drops:
        out.flush()
    else:
        with pytest.raises(SystemExit) as end:
            out.flush()
        assert end.value.code == GONE
        out.buffer.raw.drops = True  # type: ignore[attr-defined]
    assert left == ([] if drops else [True])
    out.close()
    os.close(fd)


def test_the_exit_code_and_the_error_of_a_command_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "prepare", lambda: None)
    for end, code in ((SystemExit(3), 3), (SystemExit(), None), (KeyboardInterrupt(), 130), (None, 0)):

        def main(end: BaseException | None = end) -> None:
            if end is not None:
                raise end

        with pytest.raises(SystemExit) as caught:
            streams.run(main)
        assert caught.value.code == code
    with pytest.raises(ZeroDivisionError):
        streams.run(lambda: 1 / 0)


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_slow_producer_is_waited_for_and_loses_nothing(is_blocking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_NOTICE_SECONDS", 0.0)
    read, write = os.pipe()
    os.set_blocking(read, is_blocking)
    told: list[str] = []

    def tell() -> None:
        told.append("waiting")
        os.write(write, b"at last")
        os.close(write)

    assert streams.read_input(read, 100, tell) == b"at last"
    assert told == ["waiting"]
    os.close(read)


def test_input_without_an_end_is_cut_off() -> None:
    with open("/dev/zero", "rb") as zeros:
        data = streams.read_input(zeros.fileno(), 1 << 17, lambda: None)
    assert 1 << 17 < len(data) <= 1 << 18
