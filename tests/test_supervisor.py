"""The window's parent in a pseudo-terminal: aborts, exit codes, signals, Ctrl+Z, and its own death."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
from dataclasses import dataclass

import pytest

from mlxkv.__main__ import opens_window
from mlxkv.supervisor import LIFELINE, farewell

PARENT = "import sys; from mlxkv.supervisor import supervise; sys.exit(supervise([sys.executable, '-c', sys.argv[1]]))"


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


DYING = """
import os, sys, termios, tty
tty.setraw(0)
os.write(1, b"\\x1b[?1049h\\x1b[?1003hpainted")
os.write(2, b"[METAL] Command buffer execution failed: Insufficient Memory")
os.kill(os.getpid(), {number})
"""


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV])
def test_after_an_abort_the_terminal_is_as_it_was(number: signal.Signals) -> None:
    run = supervised(DYING.format(number=int(number)))
    run.until(b"mlxkv stopped")
    attributes = termios.tcgetattr(run.fd)  # the master sees what the slave's were set to
    assert attributes[3] & termios.ECHO
    assert attributes[3] & termios.ICANON
    assert run.end() == 128 + number
    after = run.output.split(b"painted")[1]
    for sequence in (b"\x1b[?1049l", b"\x1b[?7h", b"\x1b[?25h", b"\x1b[?1003l", b"\x1b[?2004l"):
        assert sequence in after
    assert b"mlxkv stopped: out of GPU memory. Chat saved - mlxkv -c" in after
    assert b"METAL" not in after  # the library's own words would only frighten


def test_exit_codes_and_what_was_said_on_stderr_come_through() -> None:
    run = supervised("import sys; sys.stderr.write('mlxkv: no such chat\\n'); sys.exit(2)")
    assert run.end() == 2
    assert b"mlxkv: no such chat" in run.output
    assert b"stopped" not in run.output


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
    os.kill(run.pid, signal.SIGCONT)
    run.until(b"awake")
    assert run.end() == 0


@pytest.mark.parametrize(("hang_up", "end"), [("SIG_DFL", signal.SIGHUP), ("SIG_IGN", signal.SIGTERM)])
def test_a_child_does_not_outlive_its_parent(hang_up: str, end: signal.Signals) -> None:
    """Without a terminal, whose hang-up would end it as well; also under nohup, which ignores hang-ups."""
    lifeline, held = os.pipe()
    script = (
        f"import os, signal\nsignal.signal(signal.SIGHUP, signal.{hang_up})\n"
        "from mlxkv.supervisor import watch_parent\nwatch_parent()\n"
        "assert 'MLXKV_LIFELINE' not in os.environ\nos.write(1, b'r')\nwhile True: signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, LIFELINE: str(lifeline)}, pass_fds=[lifeline],
        stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.read(1) == b"r"
        os.close(lifeline)
        os.close(held)
        try:
            assert child.wait(60) == -end
        finally:
            child.kill()


def test_what_is_said_at_the_end() -> None:
    assert farewell(signal.SIGKILL, b"", True).startswith("mlxkv stopped: the system ended it (SIGKILL)")
    assert farewell(signal.SIGTERM, b"", True) == "mlxkv stopped: it was told to end (SIGTERM). Chat saved - mlxkv -c"
    assert farewell(signal.SIGSEGV, b"x", False) == "mlxkv stopped: it crashed (SIGSEGV)."
    assert farewell(200, b"", False) == "mlxkv stopped: it crashed (signal 200)."


@pytest.mark.parametrize(
    ("args", "window"),
    [([], True), (["-c"], True), (["why?"], True), (["what is chats"], True),
     (["-p", "why?"], False), (["chats", "ls"], False), (["--help"], False), (["--plain"], False)],
)  # fmt: skip
def test_only_a_window_has_a_parent(args: list[str], window: bool) -> None:
    assert opens_window(args) is window
