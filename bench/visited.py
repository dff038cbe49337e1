"""Modules of mlxkv that a turn visits before its first token, and its spine: `python -m bench.visited [MODEL]`.

Visited: each module of which a function was entered on the calling thread between `Chat.send` and the first TextDelta,
in the order of first entry. Imports, and methods that a dataclass generates, are not counted.
Spine: the modules of the functions that are active when the first layer's KV cache is first updated, outermost first.
Next to it: the modules that are not on the spine and are called by one that is; `*` marks the others.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import mlxkv
from mlxkv.config import Folders

PACKAGE = Path(mlxkv.__file__).parent  # `tui` and `models` are links below it


def module_of(frame: FrameType) -> str | None:
    """The module that the frame's code was written in, without the package's name; None if it is not ours."""
    path = Path(frame.f_code.co_filename)
    if not path.is_absolute() or not path.is_relative_to(PACKAGE):
        return None
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


class Recorder:
    """A profile function for one thread. `entries`: first function and number of entries of each module."""

    def __init__(self, updates: set[CodeType]) -> None:
        self.entries: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.spine: list[str] = []
        self.calls: set[tuple[str, str]] = set()
        self._updates, self._importing = updates, 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if code.co_name == "<module>":
            self._importing += {"call": 1, "return": -1}.get(event, 0)
        if event != "call" or self._importing:
            return
        if (module := module_of(frame)) is not None:
            self.first.setdefault(module, code.co_qualname)
            self.entries[module] += 1
            if caller := next((name for f in active(frame.f_back) if (name := module_of(f))), None):
                self.calls.add((caller, module))
        if code in self._updates and not self.spine:
            self.spine = list(dict.fromkeys(reversed([name for f in active(frame) if (name := module_of(f))])))


def active(frame: FrameType | None) -> Iterator[FrameType]:
    """The frame and its callers, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def record(chat: mlxkv.Chat, text: str) -> Recorder:
    """Send `text`, recorded up to the first TextDelta."""
    recorder = Recorder({type(layer).update_and_fetch.__code__ for layer in chat.cache.layers})
    sys.setprofile(recorder)
    try:
        events = chat.send(text)
        for event in events:
            if isinstance(event, mlxkv.TextDelta):
                break
    finally:
        sys.setprofile(None)
    for _ in events:
        pass
    return recorder


def show(title: str, recorder: Recorder) -> None:
    spine = recorder.spine
    beside = {module for caller, module in recorder.calls if caller in spine and module not in spine}
    print(f"{title}: visited {len(recorder.entries)}, spine {len(spine)}, beside it {len(beside)}")
    for i, (module, function) in enumerate(recorder.first.items(), 1):
        mark = " " if module in spine or module in beside else "*"
        print(f"  {i:2} {mark} {module:24} {recorder.entries[module]:6,}  {function}")
    folders = Counter(module.rpartition(".")[0] or "mlxkv" for module in recorder.entries)
    print(f"  folders: {', '.join(f'{name} {count}' for name, count in folders.most_common())}")
    print(f"  spine: {' > '.join(spine)}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tutor")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        model = mlxkv.load(args.model, folders=Folders.from_env({"MLXKV_HOME": home}))
        titles = ("first turn of the process, which opens the store", "first turn of a chat")
        for title in titles:
            with model.chat(autosave=True, temperature=0.0, max_tokens=8) as chat:
                show(title, record(chat, "What is a KV cache?"))
                if title == titles[-1]:
                    show("follow-up turn", record(chat, "And a prompt cache?"))
        model.close()


if __name__ == "__main__":
    main()
