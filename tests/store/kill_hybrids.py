"""Kill a process that chats with a hybrid model, at random moments, and judge what is left each time.

Run as a process of its own, which forks the chatting ones: importing MLX once is enough. A chatting process writes an
empty line for each event and each step on disk, and a line of JSON for each TurnFinished; it is killed after a random
number of lines, while it continues. The next one judges what it finds before it continues the chat: nothing that was
acknowledged may be lost, and the next turn may prefill only what comes after the last state on disk. Prints one line
of JSON. Usage: python -m tests.store.kill_hybrids FAMILY FOLDER [--kills N] [--turns N] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
from mlx.utils import tree_flatten

import mlxkv
from mlxkv.config import Folders
from mlxkv.events import PrefillProgress, TurnFinished
from mlxkv.store.db.open import DATABASE
from mlxkv.store.session_store import SessionStore
from tests.cache.architectures import ARCHITECTURES
from tests.store.crash_driver import in_child
from tests.store.harness import no_waiting_for_the_disk
from tests.tokenizers import tiny_tokenizer

FAMILIES = ("qwen3_5", "nemotron_h", "lfm2")
INTERVAL = 1024  # new tokens after which a state is due
MAX_MESSAGE, MAX_REPLY, TEMPLATE = 300, 12, 24  # tokens of a turn
MAX_LINES = 120  # before a kill: up to five turns
CONFIG = mlxkv.CacheConfig(window=16_384)
SYSTEM = "you are tiny, and you answer at once. " * 8  # 300 tokens: enough for a state of its own


def build(folder: Path, family: str) -> None:
    """A tiny random model, and a tokenizer of one token per character."""
    architecture = ARCHITECTURES[family]
    config = architecture.config()
    for part in (config, config.get("text_config", config)):
        part["max_position_embeddings"] = 32_768
    mx.random.seed(0)
    weights: dict[str, Any] = dict(tree_flatten(architecture.build(config).parameters()))
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    tiny_tokenizer()._tokenizer.save_pretrained(folder)


def last_state(root: Path, session: str, most: int) -> int:
    """The position, `most` or less, of the last state on disk that the session refers to."""
    path = Folders.from_env({"MLXKV_HOME": str(root / "home")}).data / DATABASE
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        (found,) = db.execute(
            "SELECT max(k.b) FROM chunk k JOIN kv_ref r ON r.chunk = k.digest JOIN kv_commit c ON c.id = r.kv_commit"
            " WHERE c.session = ? AND k.grp = 'state' AND k.b <= ?",
            (session, most),
        ).fetchone()
    return found or 0


def chat(root: Path, seed: int, acked: list[dict[str, Any]], until: int, write: Callable[[str], None]) -> None:
    """One life: judge what the last one left, then send messages until `until` are acknowledged."""
    dice, real = random.Random(seed), SessionStore.open
    home = Folders.from_env({"MLXKV_HOME": str(root / "home")})

    def opened(folders: Folders, **more: Any) -> SessionStore:
        return real(folders, lambda _: write(""), **more)

    with mock.patch.object(SessionStore, "open", opened):
        model = mlxkv.load(root / "model", folders=home)
        stored = model.store.list()
        if stored:
            this = model.resume(stored[0].id, temperature=0.0)
        else:
            assert not acked, "the chat is lost"
            this = model.chat(SYSTEM, CONFIG, autosave=True, temperature=0.0)
        found = judge(root, this, acked)
        assert not [p.text for p in model.store.verify().problems if p.is_serious], "verify found a problem"
        while len(acked) < until:
            question = f"{seed} {len(acked)} " + "".join(dice.choices("abcdefgh", k=dice.randrange(20, MAX_MESSAGE)))
            for event in this.send(question, max_tokens=dice.randrange(1, MAX_REPLY)):
                if isinstance(event, PrefillProgress) and found is not None:
                    found["cached"], found["prompt"] = event.cached, event.cached + event.total
                    assert event.cached >= found["state"], f"{event.cached} tokens reused, a state is at {found}"
                    write(json.dumps({"resumed": found}))
                    found = None
                if isinstance(event, TurnFinished):
                    if is_flushed := dice.random() < 0.5:
                        model.store.flush(str(this.session_id))
                    acked.append({"question": question, "reply": event.text, "flushed": is_flushed,
                                  "log": len(this.log)})  # fmt: skip
                    write(json.dumps({"acked": acked[-1]}))
                else:
                    write("")
        this.close()
        model.close()


def judge(root: Path, this: mlxkv.Chat, acked: list[dict[str, Any]]) -> dict[str, int] | None:
    """Check a resumed chat: each acknowledged message and its reply, and where its last state is; None: a new one."""
    if not this.messages:
        assert not acked, "all messages are lost"
        return None
    said = [message.text for message in this.messages]
    for turn in acked:
        assert turn["question"] in said, f"lost: {turn}"
        assert said[said.index(turn["question"]) + 1] == turn["reply"], f"another reply than {turn}"
    state = last_state(root, str(this.session_id), len(this.log))
    if acked and acked[-1]["flushed"]:
        due = acked[-1]["log"] - INTERVAL - MAX_MESSAGE - MAX_REPLY - TEMPLATE
        assert state >= due, f"the last state is at {state}, and {acked[-1]['log']} tokens were saved"
    assert this.restored is None or this.restored.tokens >= state, f"{this.restored}, a state is at {state}"
    return {"log": len(this.log), "state": state}


def live(root: Path, seed: int, acked: list[dict[str, Any]], until: int, most: int | None) -> list[dict[str, int]]:
    """Fork a chatting process, kill it after `most` lines (None: let it end), add what it acknowledged to `acked`.
    Returns the resumes that it reported."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        code = 1
        try:
            chat(root, seed, list(acked), until, lambda line: _write(writer, line))
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(code)
    os.close(writer)
    resumed: list[dict[str, int]] = []
    with open(reader) as lines:
        for n, line in enumerate(lines, 1):
            if n == most:
                os.kill(pid, signal.SIGKILL)
            found = json.loads(line) if line.strip() else {}
            acked += [found["acked"]] if "acked" in found else []
            resumed += [found["resumed"]] if "resumed" in found else []
    status = os.waitpid(pid, 0)[1]
    is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert is_killed or status == 0, f"life {seed} failed by itself"
    return resumed


def _write(to: int, line: str) -> None:
    os.write(to, f"{line}\n".encode())


def run(root: Path, family: str, kills: int, turns: int, seed: int) -> dict[str, Any]:
    dice = random.Random(seed)
    assert in_child(lambda: build(root / "model", family)) == 0
    acked: list[dict[str, Any]] = []
    resumed: list[dict[str, int]] = []
    for n in range(kills):
        # Beyond the turns of this life, so that the kill finds it chatting.
        resumed += live(root, n, acked, len(acked) + MAX_LINES, dice.randrange(1, MAX_LINES))
    resumed += live(root, kills, acked, max(turns, len(acked) + 1), None)
    lost = [found["prompt"] - found["cached"] for found in resumed]
    behind = [found["log"] - found["state"] for found in resumed]
    return {"family": family, "kills": kills, "turns": len(acked), "resumed": len(resumed), "tokens": acked[-1]["log"],
            "most prefilled by the next turn": max(lost, default=0),
            "most tokens since the last state": max(behind, default=0)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with no_waiting_for_the_disk():
        print(json.dumps(run(args.folder, args.family, args.kills, args.turns, args.seed)))


if __name__ == "__main__":
    main()
