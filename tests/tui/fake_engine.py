"""An engine without a model: it answers commands with scripted events, at once or on a thread with delays."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from mlxkv.events import Branch, Message, PrefillProgress, TextDelta, TurnFinished
from mlxkv.protocol.commands import (
    ChangeSettings,
    CollectCache,
    Command,
    Compact,
    Continue,
    CountTokens,
    DeleteChat,
    Edit,
    ExportChat,
    Fork,
    ListCache,
    ListChats,
    ListModels,
    ListPresets,
    LoadModel,
    NewChat,
    OpenChat,
    PausePull,
    PinChat,
    PlanCompact,
    Pull,
    RenameChat,
    Retry,
    Rewind,
    SearchChats,
    Send,
    ShowContext,
    ShowSaved,
    ShowStats,
    ShowTree,
    Unload,
)
from mlxkv.protocol.events import (
    CacheCollected,
    CacheList,
    ChatDeleted,
    ChatExported,
    ChatHits,
    ChatList,
    ChatOpened,
    ChatPinned,
    ChatRenamed,
    ChatSaved,
    ChatTree,
    Compacted,
    EngineEvent,
    EngineStopped,
    Failed,
    LoadPhase,
    ModelCard,
    ModelList,
    ModelLoading,
    ModelReady,
    ModelUnloaded,
    PresetList,
    PullProgress,
    PullState,
    SettingsApplied,
    TokensCounted,
    TurnStarted,
)
from mlxkv.protocol.status import (
    CacheView,
    ChatSummary,
    CompactPlan,
    ContextPart,
    ContextUsage,
    SaveState,
    SearchHit,
    SessionStats,
    SessionStatus,
)
from mlxkv.stats import TurnStats

REPLY = """The borrow of `map` lives until the last use of `entry`, so the second insert needs a mutable borrow \
while an immutable one is alive.

```rust
let n = map.get("a").copied();   // the copy ends the borrow
map.insert("b", n.unwrap_or(0));
```

Three ways out:

1. **Clone or copy** the value before the await.
2. Drop the guard in an inner block, so that `List<String>` is free.
3. Hold an `Arc` instead of a reference.

| Way | Cost |
|-----|-----:|
| copy | 8 B |
| Arc | 16 B |
"""

STATS = TurnStats(
    prompt_tokens=5898, cached_tokens=5871, prefill_tokens=27, generated_tokens=312, ttft_s=0.21, prefill_tps=812.0,
    decode_tps=42.1, total_s=7.6, finish_reason="stop", cache_tokens=6210, cache_window=32768,
    cache_bytes=4_831_838_208, cache_live_bytes=916_000_000,
)  # fmt: skip
RING = CacheView(38, 6300, 32000, 6300, 0, 0, 4_831_838_208, 936_000_000, None)
STATUS = SessionStatus(
    936_000_000, 6300, 32000, 5_600_000_000, 27_000_000_000, SaveState.SAVED, RING,
    4_600_000_000, 5_900_000_000, 20_000_000_000,
)  # fmt: skip
CHATS = (
    ChatSummary("c1", "Rust lifetimes", 1_700_000_000.0, 3, 916_000_000, "Qwen3-8B-4bit"),
    ChatSummary("c2", "Trip to Porto", 1_699_900_000.0, 1, 0, "Qwen3-8B-4bit"),
)

MODELS = (
    ModelCard("tutor", 1_400_000, "MIT", "built in", True, True),
    ModelCard("org/Qwen3-8B-4bit", 4_600_000_000, "Apache-2.0", "", True, True),
    ModelCard("mlx-community/Qwen3-32B-4bit", 18_400_000_000, "Apache-2.0", "", False),
)
BRANCHES = (
    Branch("c1", "Rust lifetimes", None, None, 1_700_000_000.0, 3, is_current=True, name="Rust lifetimes"),
    Branch("c3", "Rust lifetimes", "c1", 2, 1_700_000_100.0, 2, name="another reply to “Why?”", is_version=True),
)
CONTEXT = ContextUsage(
    (
        ContextPart("system", "Be terse.", 12, 12), ContextPart("user", "hello", 40, 8),
        ContextPart("assistant", "x", 80, 80),
    ),
    128, 12,
)  # fmt: skip
FIGURES = SessionStats(2, 624, 54, 11_742, 0, 42.1, 812.0, 916_000_000, 900_000_000, 950_000_000, 2, 1_100_000_000,
                         2_000_000_000, 20_000_000_000, num_messages=4)  # fmt: skip


def reply_events(reply: str = REPLY, piece: int = 5, stats: TurnStats = STATS) -> list[EngineEvent]:
    """A whole turn after `TurnStarted`."""
    out: list[EngineEvent] = [PrefillProgress(27, 27, 5871, 812.0)]
    out += [TextDelta(reply[i : i + piece], i // piece + 1) for i in range(0, len(reply), piece)]
    return [*out, TurnFinished("stop", reply, stats), STATUS]


class FakeEngine:
    """Answers at once, on the caller's thread. With `manual` replies, the test appends the events of a turn itself."""

    def __init__(self, manual: bool = False, chats: tuple[ChatSummary, ...] = CHATS) -> None:
        self.events: deque[EngineEvent] = deque()
        self.commands: list[Command] = []
        self.manual, self.chats = manual, chats
        self.started = self.stopped = self.closed = self.answered = 0
        self.history: tuple[Message, ...] = (Message("user", "hello"), Message("assistant", REPLY, STATS))

    def start(self) -> None:
        self.started += 1

    def submit(self, command: Command) -> None:
        self.commands.append(command)
        self.say(self.answer(command))

    def say(self, events: Iterable[EngineEvent]) -> None:
        self.events.extend(events)

    def stop(self, *, closing: bool = False) -> None:
        self.stopped += 1

    def answer_now(self) -> None:
        self.answered += 1

    def close(self) -> None:
        self.closed += 1

    def answer(self, command: Command) -> list[EngineEvent]:
        match command:
            case LoadModel(name):
                if name == "missing":
                    return [Failed("There is no model “missing”; /model lists those you have.")]
                return [
                    ModelLoading(name, LoadPhase.LOADING, 2_100_000_000, 4_600_000_000),
                    ModelReady(name, 10, 0.1, True),
                ]
            case NewChat():
                return [ChatOpened("n1", "")]
            case OpenChat(session_id):
                title = next((c.title for c in self.chats if c.id == session_id), "Untitled")
                return [ChatOpened(session_id, title, self.history, 12_288, 1_800_000_000, 0.4), STATUS]
            case ListChats():
                return [ChatList(self.chats)]
            case Unload():
                return [ModelUnloaded("tutor", 7_200_000), replace(STATUS, unloaded=True)]
            case ListModels():
                return [ModelList(MODELS)]
            case ShowTree():
                return [ChatTree(BRANCHES)]
            case RenameChat(title, session_id):
                return [ChatRenamed(session_id or "c1", title)]
            case DeleteChat(session_id):
                return [ChatDeleted(session_id or "c1", "Rust lifetimes"), ChatOpened(None, "")]
            case ExportChat(kind, path):
                return [ChatExported(path or f"/tmp/Rust-lifetimes.{kind}")]
            case SearchChats(words):
                return [
                    ChatHits(words, (SearchHit("c2", "Trip to Porto", 0, "user", "the train to Porto", ((4, 9),)),))
                ]
            case ChangeSettings():
                return [SettingsApplied("")]
            case ShowContext():
                return [CONTEXT]
            case ShowStats():
                return [FIGURES]
            case ListPresets():
                return [PresetList(())]
            case ShowSaved():
                return [ChatSaved("Rust lifetimes", "mlxkv -c")]
            case Rewind(turn):
                at = 0 if turn is None else turn
                return [ChatOpened("c3", "Rust lifetimes (2)", self.history[:at], prompt=self.history[at].text), STATUS]
            case Fork():
                return [ChatOpened("c3", "Rust lifetimes (2)", self.history), STATUS]
            case Retry() | Continue():
                return [ChatOpened("c3", "Rust lifetimes (2)", self.history[:-2]), TurnStarted("hello"), *self._reply()]
            case Edit(turn, text):
                return [ChatOpened("c3", "Rust lifetimes (2)", self.history[:turn]), TurnStarted(text), *self._reply()]
            case ListCache():
                return [CacheList(self.chats, (("book", 52_000_000),), 5_900_000_000, 20_000_000_000)]
            case CollectCache():
                return [CacheCollected(1_200_000, 5_900_000_000)]
            case PinChat():
                return [ChatPinned("c1", True)]
            case CountTokens(key, text):
                return [TokensCounted(key, len(text.split()))]
            case PlanCompact():
                return [CompactPlan("Qwen3-8B-4bit", 32_768, 4, 1_900, 18, 29_300, 0, 71, 1024)]
            case Compact(summarise):
                kept = self.history[-2:]
                whole = [ChatOpened("c1", "Rust lifetimes"), TurnStarted("Sum up"), *self._reply()] if summarise else []
                return [*whole, ChatOpened("c4", "Rust lifetimes · compact", kept), Compacted(True, 2, 120, 256)]
            case Pull(name):
                return [
                    PullProgress(name, PullState.ASKING),
                    PullProgress(name, PullState.DOWNLOADING, 2_100_000_000, 4_600_000_000, 25e6),
                ]
            case PausePull():
                return [PullProgress("org/model", PullState.PAUSED, 2_100_000_000, 4_600_000_000)]
            case Send(text):
                return [TurnStarted(text), *self._reply()]
        return []

    def _reply(self) -> list[EngineEvent]:
        return [] if self.manual else reply_events()


class ThreadEngine(FakeEngine):
    """The same answers from a thread, with the delays of a real model, for looking at the window."""

    def __init__(self, tokens_per_s: float = 40.0, load_s: float = 1.5) -> None:
        super().__init__()
        self.pause, self.load_s = 1 / tokens_per_s, load_s
        self._inbox: deque[Command | None] = deque()
        self._wake, self._halt = threading.Semaphore(0), threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.live = 800_000_000

    def start(self) -> None:
        self._thread.start()

    def submit(self, command: Command) -> None:
        self._inbox.append(command)
        self._wake.release()

    def stop(self, *, closing: bool = False) -> None:
        self._halt.set()

    def answer_now(self) -> None:
        pass

    def close(self) -> None:
        self._inbox.append(None)
        self._wake.release()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while True:
            self._wake.acquire()
            command = self._inbox.popleft()
            if command is None:
                self.events.append(EngineStopped())
                return
            match command:
                case LoadModel(name) if name != "missing":
                    for part in range(10):
                        self.events.append(ModelLoading(name, LoadPhase.LOADING, part * 460_000_000, 4_600_000_000))
                        time.sleep(self.load_s / 10)
                    self.events.append(ModelReady(name, 4_600_000_000, self.load_s, True))
                case Send(text):
                    self._play(text)
                case _:
                    self.say(self.answer(command))

    def _play(self, text: str) -> None:
        self._halt.clear()
        self.events.append(TurnStarted(text))
        reply, words, reason = ((REPLY + "\n") * 12 if "long" in text else REPLY), 0, "stop"
        for done in range(0, 4097, 512):
            if "prefill" in text:
                self.events.append(PrefillProgress(done, 4096, 5871, 812.0))
                time.sleep(0.4)
        began = time.perf_counter()
        for start in range(0, len(reply), 5):
            if self._halt.is_set():
                reason = "stopped"
                break
            words += 1
            self.events.append(TextDelta(reply[start : start + 5], words))
            time.sleep(self.pause)
        self.live += 50_000_000
        spent = time.perf_counter() - began
        stats = TurnStats(
            prompt_tokens=5898, cached_tokens=5871, prefill_tokens=27, generated_tokens=words, ttft_s=0.21,
            decode_tps=words / max(spent, 0.001), total_s=spent, finish_reason=reason, cache_live_bytes=self.live,
        )  # fmt: skip
        self.events.append(TurnFinished(reason, reply, stats))
        self.events.append(
            SessionStatus(self.live, 6300 + words, 32768, 5_600_000_000, 27_000_000_000, SaveState.SAVED)
        )
