"""The window's parent in a pseudo-terminal: aborts, exit codes, signals, Ctrl+Z, and its own death."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import tty
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import typer

from mlxkv.__main__ import COMMANDS, opens_window
from mlxkv.cli.app import app
from mlxkv.system.supervisor import (
    ALIVE,
    DONE,
    HANG_SECONDS,
    PARENT_PIPE_ENV,
    POLL_SECONDS,
    QUIT_SECONDS,
    QUITTING,
    WINDOW_PAUSED,
    WINDOW_READS,
    Watch,
    exit_message,
    is_quit,
)  # fmt: skip

PARENT = (
    "import sys; from mlxkv.system.supervisor import supervise; "
    "sys.exit(supervise([sys.executable, '-c', sys.argv[1]]))"
)


@dataclass
class Run:
    """A supervised child in a terminal of its own."""

    pid: int
    fd: int
    output: bytes = b""

    def until(self, text: bytes) -> None:
        while text not in self.output:
            data = self._read()
            assert data, self.output
            self.output += data

    def end(self) -> int:
        while data := self._read():
            self.output += data
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> bytes:
        try:
            return os.read(self.fd, 4096)
        except OSError:  # Linux says EIO when the other side has closed
            return b""


def supervised(child: str) -> Run:
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", PARENT, child])
    return Run(pid, fd)


def has_usual_mode(master: int) -> bool:
    """Whether the terminal echoes, reads lines and makes Enter a newline: the master sees the slave's mode."""
    mode = termios.tcgetattr(master)
    return bool(mode[3] & termios.ECHO and mode[3] & termios.ICANON and mode[0] & termios.ICRNL)


DYING = """
import os, sys, termios, tty
tty.setraw(0)
os.write(1, b"\\x1b[?1049h\\x1b[?1003hpainted")
os.write(2, b"[METAL] Command buffer execution failed: Insufficient Memory")
os.kill(os.getpid(), {number})
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV])
def test_after_an_abort_the_terminal_is_as_it_was(number: signal.Signals) -> None:
    run = supervised(DYING.format(number=int(number)))
    run.until(b"mlxkv stopped")
    assert has_usual_mode(run.fd)
    assert run.end() == 128 + number
    after = run.output.split(b"painted")[1]
    for sequence in (b"\x1b[?1049l", b"\x1b[?7h", b"\x1b[?25h", b"\x1b[?1003l", b"\x1b[?2004l", b"\x1b[23;0t"):
        assert sequence in after
    assert b"mlxkv stopped: out of GPU memory. Chat saved - mlxkv -c" in after
    assert b"METAL" not in after  # the library's own words would only frighten


def test_exit_codes_and_what_was_said_on_stderr_come_through() -> None:
    run = supervised("import sys; sys.stderr.write('mlxkv: no such chat\\n'); sys.exit(2)")
    assert run.end() == 2
    assert b"mlxkv: no such chat" in run.output
    assert b"stopped" not in run.output


def test_what_is_typed_before_the_window_waits_for_it_unechoed() -> None:
    run = supervised(
        "import os, sys\nos.write(1, b'starting ')\ntyped = b''\n"
        "while not typed.endswith((b'\\r', b'\\n')): typed += os.read(0, 1)\n"
        "sys.exit(f'it read {typed}')"
    )
    run.until(b"starting")
    os.write(run.fd, b"early\r")
    run.until(b"it read")
    assert has_usual_mode(run.fd)
    assert run.end() == 1
    assert run.output.strip() == b"starting it read b'early\\r'"


def test_a_child_without_a_window_gets_the_usual_mode() -> None:
    run = supervised(
        "import os\nfrom mlxkv.system.supervisor import show_typing\nshow_typing()\nos.write(1, b'line: ')\ninput()"
    )
    run.until(b"line: ")
    assert has_usual_mode(run.fd)
    os.write(run.fd, b"typed\r")
    assert run.end() == 0
    assert b"typed" in run.output


def test_nothing_is_said_below_a_window_that_ended_well() -> None:
    run = supervised(
        "import os, sys\nfrom mlxkv.system.supervisor_link import watch_parent\nsupervisor = watch_parent()\n"
        "supervisor.report_window()\nos.write(2, b'thread panicked')\nos.write(1, b'bye')"
    )
    assert run.end() == 0
    assert run.output == b"bye"


def test_a_signal_is_the_childs() -> None:
    run = supervised(
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "os.write(1, b'ready')\nwhile True: signal.pause()"
    )
    run.until(b"ready")
    os.kill(run.pid, signal.SIGTERM)
    assert run.end() == 7


def test_stopping_the_child_stops_the_job_and_fg_wakes_both() -> None:
    # SIGSTOP, not SIGTSTP: the kernel drops that one where no shell could wake the job again, as here.
    run = supervised("import os, signal; os.kill(os.getpid(), signal.SIGSTOP); os.write(1, b'awake')")
    _, status = os.waitpid(run.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert has_usual_mode(run.fd)
    os.kill(run.pid, signal.SIGCONT)
    run.until(b"awake")
    assert run.end() == 0


@pytest.mark.parametrize(("hang_up", "end"), [("SIG_DFL", signal.SIGHUP), ("SIG_IGN", signal.SIGTERM)])
def test_a_child_does_not_outlive_its_parent(hang_up: str, end: signal.Signals) -> None:
    """Without a terminal, whose hang-up would end it as well; also under nohup, which ignores hang-ups."""
    child_keys, held = os.pipe()
    reports, child_reports = os.pipe()
    script = (
        f"import os, signal\nsignal.signal(signal.SIGHUP, signal.{hang_up})\n"
        "from mlxkv.system.supervisor_link import watch_parent\nwatch_parent()\n"
        "assert 'MLXKV_PARENT_PIPE' not in os.environ\nos.write(1, b'r')\nwhile True: signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, PARENT_PIPE_ENV: f"{child_keys},{child_reports}"},
        pass_fds=[child_keys, child_reports], stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.read(1) == b"r"
        for fd in (child_keys, reports, child_reports, held):
            os.close(fd)
        try:
            assert child.wait(60) == -end
        finally:
            child.kill()


HANGING = """
import ctypes, os, tty
from mlxkv.system.supervisor_link import watch_parent
supervisor = watch_parent()
tty.setraw(0)
supervisor.report_window()
{then}
os.write(1, b"\x1b[?1049h\x1b[?1003hpainted")
ctypes.PyDLL(None).sleep(1000)  # holds the interpreter, as a normalizer or a decoder may
"""
# It lets other threads run, so that the window reads keys and quits; then it waits for its engine.
WAITING = """supervisor.quit()
import threading
wait = "import threading; threading.Event().wait()"
engine = threading.Thread(target=exec, args=(wait, {"__name__": "mlxkv.tokenizer.chat_template"}), name="mlxkv-engine")
engine.start()
os.write(1, b"painted")
engine.join()"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("then", "typed"),
    [("", b"\x03"), ("", b"text/quit\r"), ("supervisor.quit()", b""), (WAITING, b"")],
    ids=["ctrl+c", "/quit", "the window had been told", "its engine waits for a template"],
)
def test_a_window_that_hangs_is_ended_by_a_quit(then: str, typed: bytes) -> None:
    run = supervised(HANGING.format(then=then))
    run.until(b"painted")
    os.write(run.fd, typed)
    run.until(b"mlxkv stopped")
    assert has_usual_mode(run.fd)
    assert run.end() == 1
    after = run.output.split(b"painted")[1]
    for sequence in (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?1003l"):
        assert sequence in after
    assert b"it hung, perhaps in the model's tokenizer or template. Chat saved - mlxkv -c" in after


@dataclass
class Watched:
    """A watch over a terminal that nobody reads, by a clock of its own."""

    watch: Watch
    master: int
    child_says: int  # a pipe's end
    child_gets: int
    woken: int
    wake: int
    now: float = 0.0

    def look(self, seconds: float, times: int = 1) -> bool:
        """Look so often, at this interval."""
        for _ in range(times):
            self.now += seconds
            os.write(self.wake, b".")  # nothing is waited for
            if self.watch.wait(self.woken):
                return True
        return False

    def given(self) -> bytes:
        try:
            return os.read(self.child_gets, 99)
        except BlockingIOError:
            return b""


@pytest.fixture
def watched() -> Iterator[Watched]:
    master, slave = pty.openpty()
    tty.setraw(slave)
    (reports, child_says), (child_gets, keys), (woken, wake) = os.pipe(), os.pipe(), os.pipe()
    end = Watched(Watch(reports, keys, slave, lambda: end.now), master, child_says, child_gets, woken, wake)
    os.set_blocking(child_gets, False)
    yield end
    for fd in (master, slave, reports, child_says, child_gets, keys, woken, wake):
        os.close(fd)


def test_what_is_typed_while_the_window_hangs_is_handed_over(watched: Watched) -> None:
    os.write(watched.child_says, WINDOW_READS)
    watched.look(0)
    os.write(watched.master, b"some \x03")
    assert not watched.look(HANG_SECONDS / 2, 2)
    assert not watched.look(HANG_SECONDS / 2, 1)
    assert watched.given() == b"some \x03"
    os.write(watched.child_says, ALIVE)  # it had only been busy: Ctrl+C is its own affair
    assert not watched.look(QUIT_SECONDS, 3)


def test_a_window_that_is_slow_but_reads_keeps_its_keys(watched: Watched) -> None:
    os.write(watched.child_says, WINDOW_READS)
    watched.look(0)
    for _ in range(5):
        os.write(watched.master, b"\x03")
        assert not watched.look(0)
        os.write(watched.child_says, ALIVE)
        assert not watched.look(HANG_SECONDS)
    assert watched.given() == b""


def test_the_keys_of_an_editor_are_left_alone(watched: Watched) -> None:
    os.write(watched.child_says, WINDOW_READS + WINDOW_PAUSED)
    watched.look(0)
    os.write(watched.master, b"\x03")
    os.write(watched.child_says, WINDOW_PAUSED)
    assert not watched.look(HANG_SECONDS)
    os.write(watched.child_says, WINDOW_PAUSED)
    assert not watched.look(QUIT_SECONDS)
    assert watched.given() == b""


def test_after_a_quit_signs_of_life_give_time(watched: Watched) -> None:
    os.write(watched.child_says, WINDOW_READS + WINDOW_PAUSED + QUITTING)
    assert not watched.look(0)
    for _ in range(9):
        os.write(watched.child_says, ALIVE)
        assert not watched.look(QUIT_SECONDS / 2)
    assert watched.look(POLL_SECONDS, 20)
    assert not watched.look(0.0)  # once is enough


def test_a_window_that_is_done_may_take_its_time(watched: Watched) -> None:
    """On a busy machine an interpreter that took two seconds to end was said to have hung."""
    os.write(watched.child_says, WINDOW_READS + WINDOW_PAUSED + QUITTING + DONE)
    assert not watched.look(QUIT_SECONDS, 9)
    assert watched.look(QUIT_SECONDS, 3)
    assert watched.watch.is_done


@pytest.mark.parametrize(
    ("typed", "quits"),
    [(b"\x03", True), (b"text\x04", True), (b"\x11", False), (b"/quit\r", True), (b"/exit\n", True),
     (b"\x1b[99;5u", True), (b"\x1b[100;69u", True), (b"\x1b[113;5:1u", False),
     (b"".join(b"\x1b[%d;;%du" % (c, c) for c in b"/quit") + b"\x1b[13u", True),
     (b"c", False), (b"/quit", False), (b"\x1b[99;2u", False), (b"\x1b[99u", False), (b"\x1b[<35;3;4M", False),
     (b"\x1b[228;;228u", False), (b"", False)],
)  # fmt: skip
def test_which_keys_are_a_quit(typed: bytes, quits: bool) -> None:
    assert is_quit(typed) is quits


def test_what_is_said_at_the_end() -> None:
    assert exit_message(signal.SIGKILL, b"", True).startswith("mlxkv stopped: the system ended it (SIGKILL)")
    assert (
        exit_message(signal.SIGTERM, b"", True) == "mlxkv stopped: it was told to end (SIGTERM). Chat saved - mlxkv -c"
    )
    assert exit_message(signal.SIGSEGV, b"x", False) == "mlxkv stopped: it crashed (SIGSEGV)."
    assert exit_message(200, b"", False) == "mlxkv stopped: it crashed (signal 200)."


@pytest.mark.parametrize(
    ("args", "window"),
    [([], True), (["-c"], True), (["why?"], True), (["what is chats"], True),
     (["-p", "why?"], False), (["chats", "ls"], False), (["--help"], False), (["--plain"], False)],
)  # fmt: skip
def test_only_a_window_has_a_parent(args: list[str], window: bool) -> None:
    assert opens_window(args) is window


def test_a_command_has_no_parent_which_would_keep_what_it_reports_until_it_ends() -> None:
    assert {*COMMANDS, "chat"} == typer.main.get_command(app).commands.keys()  # type: ignore[attr-defined]
