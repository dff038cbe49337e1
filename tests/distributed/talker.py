"""Rank 0 of the tests of failures: talks in one saved chat, and prints a line of JSON at each step.

`python talker.py HOSTFILE FOLDER SPLIT TITLE TOKENS`: sends each line of its input, and ends with it; replies have up
to TOKENS. Prints "loading" with the ids of all processes by rank, "turn" with the chat's messages, "prefill",
"token", "saved" with the messages once a turn is, "closed", and "error" with the sentence that ended it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import mlxkv
from mlxkv import Chat, Model
from mlxkv.distributed import start
from mlxkv.errors import MlxkvError, SessionNotFoundError


def say(at: str, **more: Any) -> None:
    print(json.dumps({"at": at, **more}), flush=True)


def opened(model: Model, title: str, tokens: int) -> Chat:
    try:
        return model.resume(title, temperature=0.0, max_tokens=tokens)
    except SessionNotFoundError:
        chat = model.chat("be brief", temperature=0.0, max_tokens=tokens)
        chat.save(title=title)
        return chat


def talk(chat: Chat) -> None:
    say("turn", messages=[message.text for message in chat.messages])
    for line in sys.stdin:
        for event in chat.send(line.strip()):
            if isinstance(event, mlxkv.PrefillProgress):
                say("prefill")
            elif isinstance(event, mlxkv.TextDelta):
                say("token")
        say("saved", messages=[message.text for message in chat.messages])
    chat.close()


if __name__ == "__main__":
    hostfile, folder, split, title, tokens = sys.argv[1:]
    try:
        start.start_hosts(Path(hostfile))
        (control,) = start._controls
        say("loading", pids=[os.getpid(), *(process.pid for process in control._processes.values())])
        with mlxkv.load(folder, distributed=split) as loaded:  # type: ignore[arg-type]
            talk(opened(loaded, title, int(tokens)))
        say("closed")
    except MlxkvError as error:
        say("error", kind=type(error).__name__, text=str(error))
        sys.exit(3)
