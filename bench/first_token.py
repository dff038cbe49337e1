"""Seconds to the first token: cold, resumed, forked, edited; and from a prompt cache's file beside mlx-lm's.

`python -m bench --only first_token`. What begins in a new process is measured in one, from the call to the first piece
of text, after the model was loaded; files are in the page cache. `child` is what such a process runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from bench.measure import fresh_home, make_part, real_model
from mlxkv.cli.bench.report import Part, Row, Unit

TEXT = "The tower has {} rooms, and the lamp of each is lit by another hand. "
QUESTION = " How many rooms does the tower have?"
TURNS = ("Who lights them?", "And by day?", "Is that so?")  # after the long first message
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}
_AHEAD = 16  # both sides compute one token ahead of the one they give

Figures = dict[str, Any]


def text_of(tokenizer: Any, num_tokens: int) -> str:
    """A text of about so many tokens."""
    each = len(tokenizer.encode(TEXT.format(100), add_special_tokens=False))
    return "".join(TEXT.format(i) for i in range(max(1, num_tokens // each)))


# -- a chat ------------------------------------------------------------------------------------------------------------


def first_token(begin: Callable[[], Iterator[Any]]) -> Figures:
    """Seconds from the call to the first piece of text, and of the processor; prefilled and cached tokens."""
    import mlxkv

    begun, cpu, found = time.perf_counter(), time.process_time(), Figures()
    with closing(begin()) as events:  # type: ignore[type-var]
        for event in events:
            if isinstance(event, mlxkv.PrefillProgress):
                found |= {"prefilled": event.total, "cached": event.cached}
            if isinstance(event, mlxkv.TextDelta | mlxkv.TurnFinished):
                break
        return {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu, **found}


def make_chat(model: Any, num_tokens: int) -> Any:
    """A saved chat of a long first message and some short ones, with their replies."""
    import mlxkv

    chat = model.chat(cache=mlxkv.CacheConfig(window=num_tokens + 1024), autosave=True, **GREEDY)
    for text in (text_of(model.tokenizer, num_tokens), *TURNS):
        for _ in chat.send(text):
            pass
    model.store.flush(str(chat.session_id))
    return chat


def chat_part(path: Path, name: str, lengths: tuple[int, ...], rounds: int, cold_rounds: int) -> Part:
    """A question after a history of about so many tokens, however one gets there."""
    import mlxkv

    rows = list[Row]()
    for num_tokens in lengths:
        with fresh_home() as folders:
            model = mlxkv.load(str(path), folders=folders)
            with make_chat(model, num_tokens) as chat:
                history, session = len(chat.log), str(chat.session_id)

                def twin(ask: Callable[[Any], Iterator[Any]], chat: Any = chat) -> Figures:
                    def begin() -> Iterator[Any]:
                        forked.append(chat.fork())
                        return ask(forked[-1])

                    forked: list[Any] = []
                    found = first_token(begin)
                    forked[-1].close()
                    return found

                forked = [twin(lambda chat: chat.send("And then?")) for _ in range(rounds)]
                edited = [twin(lambda chat: chat.edit(4, "And by night?")) for _ in range(rounds)]
            model.close()
            resumed = [child("resume", path, session, folders.cache.parent) for _ in range(rounds)]
            shutil.rmtree(folders.cache)  # its rows: the messages stay
            cold = [child("resume", path, session, folders.cache.parent) for _ in range(cold_rounds)]
        base = statistics.median(run["seconds"] for run in cold)
        for what, runs in (
            ("cold, new process", cold), ("resumed, new process", resumed), ("forked", forked),
            ("edited in mid-history", edited),
        ):  # fmt: skip
            took = statistics.median(run["seconds"] for run in runs)
            values = {"history": history, "cached": runs[-1].get("cached"), "prefilled": runs[-1].get("prefilled"),
                      "first token": took, "times faster": base / took}  # fmt: skip
            rows.append(Row(f"{history:,} tokens: {what}", values))
    count = Unit.COUNT
    return make_part(
        "first-token", "Time to the first token of a chat", name,
        f"greedy; medians of {rounds}, cold of {cold_rounds}; files in the page cache, the model loaded before",
        {"history": count, "cached": count, "prefilled": count, "first token": Unit.SECONDS,
         "times faster": Unit.RATIO}, rows,
        "Cold is the same chat resumed after its KV rows were removed.",
    )  # fmt: skip


def run_resume(path: str, session: str) -> Figures:
    import mlxkv

    model = mlxkv.load(path)
    return first_token(lambda: model.resume(session, fork=True).send("And then?"))


# -- a prompt cache's file ---------------------------------------------------------------------------------------------


def make_files(path: Path, folder: Path, num_tokens: int) -> int:
    """A prompt cache of one text in the files of both programs; the number of its tokens."""
    from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

    import mlxkv

    model = mlxkv.load(str(path))
    cache = model.prefill(text_of(model.tokenizer, num_tokens))
    cache.save(folder / "mlxkv.kv")
    cache.export_mlx_lm(theirs := folder / "mlx-lm.safetensors")
    read: Any = load_prompt_cache(str(theirs))
    save_prompt_cache(str(theirs), read)  # as mlx-lm writes it
    length = cache.offset
    model.close()
    return length


def file_part(path: Path, name: str, num_tokens: int, rounds: int) -> Part:
    """From the file to the first token, in new processes that take turns."""
    with fresh_home() as folders:
        folder = folders.cache.parent
        length = make_files(path, folder, num_tokens)
        runs: dict[str, list[Figures]] = {"mlxkv": [], "mlx-lm": []}
        for _ in range(rounds):
            for side, found in runs.items():
                found.append(child(side, path, str(folder), folder))
    rows = []
    for what, unit in ((f"{length:,} tokens", "seconds"), ("the same, of the processor", "cpu")):
        values = {side: statistics.median(run[unit] for run in found) for side, found in runs.items()}
        rows.append(Row(what, {**values, "ratio": values["mlx-lm"] / values["mlxkv"]}))
    return make_part(
        "prompt-file", "From a prompt cache's file to the first token, in a new process", name,
        f"greedy; medians of {rounds}; files in the page cache, the model loaded before",
        {"mlxkv": Unit.SECONDS, "mlx-lm": Unit.SECONDS, "ratio": Unit.RATIO},
        rows,
        "Each reads its own file; mlxkv verifies every byte of it.",
    )  # fmt: skip


def run_mlxkv(path: str, folder: str) -> Figures:
    import mlxkv

    model = mlxkv.load(path)
    options = {**GREEDY, "max_tokens": _AHEAD}
    return first_token(lambda: model.stream(QUESTION, cache=model.load_cache(Path(folder) / "mlxkv.kv"), **options))


def run_mlx_lm(path: str, folder: str) -> Figures:
    from mlx_lm import load, stream_generate
    from mlx_lm.models.cache import load_prompt_cache
    from mlx_lm.sample_utils import make_sampler

    loaded, tokenizer, *_ = load(path)
    begun, cpu = time.perf_counter(), time.process_time()
    cache = load_prompt_cache(str(Path(folder) / "mlx-lm.safetensors"))
    ids = tokenizer.encode(QUESTION, add_special_tokens=False)
    sampler = make_sampler(temp=0.0)
    replies = stream_generate(loaded, tokenizer, ids, max_tokens=_AHEAD, sampler=sampler, prompt_cache=cache)
    next((reply for reply in replies if reply.text), None)
    return {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu}


# -- processes ---------------------------------------------------------------------------------------------------------

CHILDREN: dict[str, Callable[[str, str], Figures]] = {
    "resume": run_resume, "mlxkv": run_mlxkv, "mlx-lm": run_mlx_lm
}  # fmt: skip


def child(what: str, path: Path, of: str, home: Path) -> Figures:
    """Run one of `CHILDREN` in a process of its own."""
    command = [sys.executable, "-m", "bench.first_token", what, str(path), of]
    env = {**os.environ, "MLXKV_HOME": str(home)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def parts(full: bool) -> Iterator[Part]:
    if (path := real_model("smollm2")) is None:
        return
    name = "SmolLM2-135M-Instruct, bfloat16"
    rounds = 5 if full else 3
    yield chat_part(path, name, (512, 1024, 2048) if full else (512,), rounds, 3 if full else 1)
    yield file_part(path, name, 2048 if full else 256, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=CHILDREN)
    parser.add_argument("model")
    parser.add_argument("of", help="a session, or the folder of the files")
    args = parser.parse_args()
    print(json.dumps(CHILDREN[args.what](args.model, args.of)), flush=True)
    os._exit(0)  # without waiting for computations that are queued


if __name__ == "__main__":
    main()
