"""`make tutor-eval`: measures the shipped model through mlxkv's own API, on cases it was never trained on.

Earlier turns of a case are answered by the model itself, so a figure measures a chat as a user has it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import mlxkv
from mlxkv.models.training import cases
from mlxkv.models.training.knowledge import read_topics

LONGEST = 700  # tokens; a reply that does not end by itself is wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tutor")
    parser.add_argument("--every", type=int, default=1, help="take every n-th case")
    parser.add_argument("--wrong", type=Path, help="write the wrong replies to this file, as JSON lines")
    options = parser.parse_args()
    model = mlxkv.load(options.model)
    wrong: list[dict[str, str]] = []
    for name, group in cases.groups(read_topics()).items():
        started, taken = time.perf_counter(), group[:: options.every]
        right = 0
        for case in taken:
            said = reply(model, case)
            right += case.right(said)
            if not case.right(said):
                wrong.append({"group": name, "question": case.question, "expected": case.expected, "said": said})
        took = time.perf_counter() - started
        print(f"{name:16} {right / len(taken):6.1%}   {right} of {len(taken)}   {took:.0f} s", flush=True)
    if options.wrong:
        options.wrong.write_text("".join(json.dumps(w, ensure_ascii=False) + "\n" for w in wrong), encoding="utf-8")


def reply(model: mlxkv.Model, case: cases.Case) -> str:
    """Return the last reply of the case's chat; empty if it does not end by itself."""
    chat = model.chat(system=case.system, max_tokens=LONGEST)
    for question, _ in case.before:
        say(chat, question)
    return say(chat, case.question)


def say(chat: mlxkv.Chat, text: str) -> str:
    """Send `text` and return the reply; empty if it was cut."""
    said = ""
    for event in chat.send(text):
        if isinstance(event, mlxkv.TurnFinished) and event.reason == "stop":
            said = event.text
    return said


if __name__ == "__main__":
    main()
