"""`mlxkv serve` under clients that continue conversations, while it is killed and started again.

Every reply must be the one that a chat of the same messages has; after a restart, only the new turn of a conversation
may be prefilled; memory must stay flat. `python -m bench.endpoint --requests 1000`; exit code 1 if one of them fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOKENS, TURNS = 16, 5
_SUBJECTS = ("a KV cache", "the window", "a sink token", "a rotation", "a fork", "a prompt cache", "the disk limit")
_QUESTIONS = ("What is {}?", "Why does {} exist?", "How large is {}?", "Who needs {}?", "When is {} written?")


@dataclass
class Life:
    """The time from one start of the server to its end."""

    number: int
    answers: int = 0
    checked: int = 0  # conversations that were continued for the first time since the start
    worst: int = 0  # the most tokens that one of them prefilled
    early: int = 0  # bytes of memory after 20 answers
    late: int = 0  # and at the end


@dataclass
class Server:
    """The server as a child process."""

    model: str
    home: str
    port: int
    log: Any
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "mlxkv",
            "serve",
            "-m",
            self.model,
            "--port",
            str(self.port),
            "--window",
            "1024",
        ]
        env = {**os.environ, "MLXKV_HOME": self.home}
        self.process = subprocess.Popen(command, env=env, stdout=self.log, stderr=self.log)
        while True:
            if self.process.poll() is not None:
                raise SystemExit("the server did not start; see its log above")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)

    def end(self, how: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        return self.process.wait()

    def memory(self) -> int:
        """Resident bytes."""
        assert self.process is not None
        found = subprocess.run(["ps", "-o", "rss=", "-p", str(self.process.pid)], capture_output=True, text=True)
        return int(found.stdout or 0) * 1024

    def ask(self, messages: Sequence[dict[str, str]], max_tokens: int = TOKENS) -> dict[str, Any]:
        body = {"messages": messages, "temperature": 0, "max_tokens": max_tokens}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)


@dataclass
class Run:
    """What the clients share."""

    server: Server
    dialogues: list[list[dict[str, str]]]
    left: int
    lives: list[Life] = field(default_factory=lambda: [Life(1)])
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: set[int] = field(default_factory=set)  # dialogues that were continued since the start

    def client(self, seed: int) -> None:
        chance = random.Random(seed)
        while True:
            number = chance.randrange(len(self.dialogues))
            dialogue = self.dialogues[number]
            for turn in range(1, len(dialogue), 2):
                with self.lock:
                    if self.left <= 0:
                        return
                    self.left -= 1
                self._check(number, turn, self._answer(dialogue[:turn]))

    def _answer(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        while True:
            try:
                return self.server.ask(messages)
            except urllib.error.HTTPError:
                raise
            except (OSError, ValueError):
                time.sleep(0.2)  # it was killed: the client asks again

    def _check(self, number: int, turn: int, answer: dict[str, Any]) -> None:
        text, usage = answer["choices"][0]["message"]["content"], answer["usage"]
        prefilled = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        with self.lock:
            life = self.lives[-1]
            life.answers += 1
            if text != self.dialogues[number][turn]["content"]:
                self.wrong.append(f"dialogue {number}, turn {turn // 2 + 1}: {text!r}")
            if turn > 1 and number not in self.seen:
                self.seen.add(number)
                life.checked, life.worst = life.checked + 1, max(life.worst, prefilled)
            if life.answers == 20:
                life.early = self.server.memory()

    def begin_life(self) -> None:
        with self.lock:
            self.lives.append(Life(len(self.lives) + 1))
            self.seen.clear()


def dialogues_of(model_name: str, count: int, home: str) -> list[list[dict[str, str]]]:
    """Conversations with the replies that a chat gives, one after the other."""
    os.environ["MLXKV_HOME"] = home
    import mlxkv

    found = []
    with tempfile.TemporaryDirectory():
        model = mlxkv.load(model_name)
        for i in range(count):
            chat = model.chat(cache=mlxkv.CacheConfig(window=1024), temperature=0.0, max_tokens=TOKENS)
            messages: list[dict[str, str]] = []
            for turn in range(TURNS):
                text = _QUESTIONS[(i + turn) % len(_QUESTIONS)].format(_SUBJECTS[(i // 5 + turn) % len(_SUBJECTS)])
                text += f" ({i})"
                for _ in chat.send(text):
                    pass
                messages += [
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": chat.messages[-1].text},
                ]
            found.append(messages)
        model.close()
    return found


def turns(server: Server, count: int) -> int:
    """A conversation of `count` turns with its figures; returns the most tokens that a turn but the first prefilled
    beyond its own."""
    messages: list[dict[str, str]] = []
    worst = before = 0
    print(f"{'turn':>4} {'prompt':>7} {'cached':>7} {'prefilled':>9} {'reply':>5}")
    for i in range(count):
        messages.append({"role": "user", "content": f"{_QUESTIONS[i % 5].format(_SUBJECTS[i % 7])} ({i})"})
        answer = server.ask(messages, 24)
        usage, message = answer["usage"], answer["choices"][0]["message"]
        messages.append({"role": "assistant", "content": message["content"]})
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        prefilled = usage["prompt_tokens"] - cached
        print(f"{i + 1:>4} {usage['prompt_tokens']:>7} {cached:>7} {prefilled:>9} {usage['completion_tokens']:>5}")
        new = usage["prompt_tokens"] - before  # this turn's message and marks
        worst = max(worst, prefilled - new) if i else worst
        before = usage["prompt_tokens"] + usage["completion_tokens"]
    return worst


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", default="tutor")
    options.add_argument("--requests", type=int, default=1000)
    options.add_argument("--clients", type=int, default=4)
    options.add_argument("--kill-every", type=float, default=60.0, help="seconds, on average; 0: never")
    options.add_argument("--turns", type=int, default=0, help="only one conversation of so many turns")
    args = options.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        home, reference = f"{folder}/home", f"{folder}/reference"
        for each in (home, reference):
            Path(each).mkdir(mode=0o700)
        with log.open("wb") as output:
            server = Server(args.model, home, port, output)
            try:
                if args.turns:
                    server.start()
                    worst = turns(server, args.turns)
                    print(f"prefilled beyond the new turn: {worst} tokens at most; exit {server.end(signal.SIGTERM)}")
                    return 1 if worst > 2 else 0
                return soak(server, args, dialogues_of(args.model, max(10, args.requests // 25), reference))
            finally:
                if server.process is not None and server.process.poll() is None:
                    server.end(signal.SIGKILL)


def soak(server: Server, args: argparse.Namespace, dialogues: list[list[dict[str, str]]]) -> int:
    run = Run(server, dialogues, args.requests)
    began, chance = time.monotonic(), random.Random(1)
    server.start()
    clients = [threading.Thread(target=run.client, args=(i,), daemon=True) for i in range(args.clients)]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        wait = args.kill_every * chance.uniform(0.5, 1.5) if args.kill_every else 1e9
        ends = time.monotonic() + wait
        while time.monotonic() < ends and any(client.is_alive() for client in clients):
            time.sleep(0.2)
        run.lives[-1].late = server.memory()
        if any(client.is_alive() for client in clients):
            server.end(signal.SIGKILL)
            run.begin_life()
            server.start()
    code = server.end(signal.SIGTERM)
    print(
        f"{'life':>4} {'answers':>8} {'continued':>9} {'most prefilled':>14} {'MB after 20':>11} {'MB at the end':>13}"
    )
    for life in run.lives:
        row = (life.number, life.answers, life.checked, life.worst, life.early / 1e6, life.late / 1e6)
        print("{:>4} {:>8} {:>9} {:>14} {:>11.0f} {:>13.0f}".format(*row))
    answers = sum(life.answers for life in run.lives)
    seconds = time.monotonic() - began
    print(f"{answers} answers, {len(run.wrong)} wrong, {len(run.lives) - 1} kills, {seconds:.0f} s; exit {code}")
    for line in run.wrong[:5]:
        print(line)
    is_reused = all(life.worst <= 40 for life in run.lives[1:])
    is_flat = all(life.late <= 1.2 * life.early + 50e6 for life in run.lives if life.early)
    return 0 if not run.wrong and is_reused and is_flat and code == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
