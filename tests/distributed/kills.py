"""Kill a random process of a group at a random moment, again and again.

`python -m tests.distributed.kills 100 --seed 1`: each round starts two or three processes on loopback, which continue
the chat of the round before, and kills one: while they load, prefill, decode, save or rest. Then every process must end
within 10 seconds, the next round must find every message that was acknowledged, and rank 0, if it lives, must say in
one sentence whose connection was lost. Prints a line of JSON for each round, and the counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.distributed.ranks import ROOT, folder_of

MOMENTS = ("loading", "prefill", "decode", "save", "rest")
_AT = {"loading": ("loading", 1), "prefill": ("prefill", 1), "decode": ("token", 3), "save": ("token", 23)}
_LATEST = {"loading": 8.0, "prefill": 0.3, "decode": 0.5, "save": 0.1, "rest": 1.0}  # seconds from the line on
_GROUPS = ((2, "tensor"), (2, "pipeline"), (3, "pipeline"))
_MOST_SECONDS = 10.0  # until every process has ended
_ROUNDS_OF_A_CHAT = 4  # each adds to what the next has to prefill
_TEXT = "the fox and the dog " * 12


@dataclass
class Round:
    """One group, of which rank `victim` is killed at `moment`; None: no rank is killed."""

    count: int
    split: str
    moment: str = "rest"
    victim: int | None = None
    delay: float = 0.0
    acknowledged: list[str] = field(default_factory=list)  # at the end, by what rank 0 printed
    found: list[str] | None = None  # at the beginning
    error: str = ""
    seconds: float = 0.0  # from the kill to the end of all
    faults: list[str] = field(default_factory=list)

    def run(self, folder: Path, model: Path, title: str) -> None:
        hosts = folder / "hosts.json"
        hosts.write_text(json.dumps([{"ssh": "localhost", "ips": ["127.0.0.1"]}] * self.count))
        environ = {**os.environ, "MLXKV_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
        talker_py = str(ROOT / "tests/distributed/talker.py")
        command = [sys.executable, talker_py, str(hosts), str(model), self.split, title, "24"]
        with subprocess.Popen(
            command, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as talker:
            assert talker.stdin is not None
            assert talker.stdout is not None
            lines = self._lines(talker.stdout)
            pids = next((line["pids"] for line in lines if line["at"] == "loading"), [talker.pid])
            if self.victim is None:
                talker.stdin.write(f"{_TEXT}\n")
                talker.stdin.close()
                *_, last = list(lines)
                if last["at"] != "closed":
                    self.faults.append(f"a start without a kill ended at {last}")
            else:
                self._kill(talker, lines, pids)
            self._judge(talker, pids)
            with suppress(OSError):  # what it did not read any more
                talker.stdin.close()

    def _kill(self, talker: subprocess.Popen[str], lines: Iterator[dict[str, Any]], pids: list[int]) -> None:
        assert talker.stdin is not None
        at, count = _AT.get(self.moment, ("saved", 1))
        if self.moment != "loading":
            talker.stdin.write(f"{_TEXT}\n")
            talker.stdin.flush()
            for line in lines:
                count -= line["at"] == at
                if not count:
                    break
            else:
                self.faults.append(f"ended before the moment: {self.error}")
        time.sleep(self.delay)
        with suppress(ProcessLookupError):
            os.kill(pids[self.victim or 0], signal.SIGKILL)
        killed = time.monotonic()
        with suppress(OSError):
            talker.stdin.write(f"{_TEXT}\n")  # at rest nothing is noticed before the next message
            talker.stdin.flush()
        while any(map(is_running, pids)) and time.monotonic() - killed < _MOST_SECONDS:
            time.sleep(0.02)
        self.seconds = time.monotonic() - killed
        for rank, pid in enumerate(pids):
            if is_running(pid):
                self.faults.append(f"rank {rank} still runs after {self.seconds:.1f} s")
                os.kill(pid, signal.SIGKILL)
        list(lines)

    def _lines(self, stream: Any) -> Iterator[dict[str, Any]]:
        for text in stream:
            with suppress(ValueError):  # cut by the kill
                line = json.loads(text)
                if "messages" in line:
                    self.acknowledged = line["messages"]
                    if line["at"] == "turn":
                        self.found = line["messages"]
                self.error = line.get("text", "")
                yield line

    def _judge(self, talker: subprocess.Popen[str], pids: list[int]) -> None:
        assert talker.stderr is not None
        told = talker.stderr.read()
        if "Traceback" in told:
            self.faults.append(told)
        said = self.error or told.strip()  # where MLX waits for ever, only the process can be ended
        named = f"rank {self.victim}" in said or (self.moment == "loading" and "localhost ended" in said)
        if self.victim and not (said.endswith(".") and named):
            self.faults.append(f"rank 0 said {self.error!r} with exit code {talker.wait()}")


def is_running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip()[:1] not in ("", "Z")


def rounds(count: int, seed: int) -> Iterator[Round]:
    chance = random.Random(seed)
    for number in range(count):
        size, split = chance.choice(_GROUPS)
        moment = MOMENTS[number % len(MOMENTS)]
        yield Round(size, split, moment, chance.randrange(size), chance.uniform(0, _LATEST[moment]))
    yield Round(2, "tensor")


def run(count: int, seed: int, folder: Path, *, is_quiet: bool = False) -> list[Round]:
    """So many kills, and one start that nothing disturbs."""
    model, done = folder_of("qwen2", folder / "model"), list[Round]()
    expected: list[str] = []
    for number, each in enumerate(rounds(count, seed)):
        if number % _ROUNDS_OF_A_CHAT == 0:
            expected = []
        each.run(folder, model, f"chat {number // _ROUNDS_OF_A_CHAT}")
        if each.found is not None and each.found[: len(expected)] != expected:
            each.faults.append(f"{len(expected)} messages were acknowledged, and found are {each.found}")
        expected = each.acknowledged if each.found is not None else expected
        done.append(each)
        if not is_quiet:
            shown = {
                **vars(each),
                "acknowledged": len(expected),
                "found": None if each.found is None else len(each.found),
            }
            print(json.dumps({"round": number, **shown}), flush=True)
    return done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made = run(arguments.count, arguments.seed, Path(temporary))
    killed = [each for each in made if each.victim is not None]
    print(dict(Counter(f"{each.moment}, {'rank 0' if each.victim == 0 else 'another'}" for each in killed)))
    print(f"{len(killed)} kills, {max(each.seconds for each in killed):.1f} s until all had ended at most")
    print(f"{sum(bool(each.faults) for each in made)} rounds with faults")
