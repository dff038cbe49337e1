"""Training of tutor: `python -m mlxkv.models.training.train --out FOLDER`. Writes checkpoints and figures as it runs.

A batch holds chats of similar length, padded at the end. Muon updates the matrices, AdamW the rest; the learning rate
is flat, then falls to zero over the last part. A checkpoint holds the running average of the weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file
from torch import Tensor, distributed  # pyright: ignore[reportMissingImports]

from mlxkv.models.training import cases, styles
from mlxkv.models.training.conversations import Chat, Maker
from mlxkv.models.training.knowledge import Topic, read_topics
from mlxkv.models.training.muon import Muon
from mlxkv.models.training.network import Network, Shape
from mlxkv.models.training.teacher import Teacher, lessons
from mlxkv.models.training.text import PAD_ID, Encoder, Sample, load, train_tokenizer

LONGEST = 1024
KNOWN = 0.6  # share of the phrasings asked that a known topic's answer is given to


def main() -> None:
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    topics = read_topics()
    path = options.out / "tokenizer.json"
    options.seed = options.seed or new_seed(options.init)
    if options.init and options.init.is_dir():
        shutil.copyfile(options.init / path.name, path)
    if not path.is_file():
        train_tokenizer(Maker(topics, options.seed), options.vocab, 20_000).save(str(path))
    teacher = Teacher(topics, options.seed) if options.lessons else None
    (options.out / "meeting").unlink(missing_ok=True)
    if options.workers == 1:
        work(0, options, teacher)
    else:
        torch.multiprocessing.spawn(work, (options, teacher), nprocs=options.workers)


def work(rank: int, options: argparse.Namespace, teacher: Teacher | None) -> None:
    """Train in one process with one thread: on a busy machine, processes that meet once a step outrun threads."""
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    distributed.init_process_group(
        "gloo", f"file://{(options.out / 'meeting').resolve()}", rank=rank, world_size=options.workers
    )
    topics = read_topics()
    tokenizer = load(options.out / "tokenizer.json")
    shape = Shape(tokenizer.get_vocab_size(), options.width, options.layers, intermediate_size=options.hidden)
    network = Network(shape).to(options.device)
    if options.init:
        network.load_state_dict(start_weights(options.init))
    if rank == 0:
        print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {len(topics)} topics", flush=True)
    encoder = Encoder(tokenizer, random.Random(options.seed + 1 + 1000 * rank))
    new = unknown(network, topics, encoder) if options.init else []
    often = topics + 2 * new
    if rank == 0 and new:
        print(f"{len(new)} of them three times as often: {' '.join(topic.id for topic in new)}", flush=True)
    groups = cases.groups(topics)
    held_out = {name: [encoder.case(c) for c in group[rank :: 2 * options.workers]] for name, group in groups.items()}
    maker = Maker(often, options.seed + 2 + 1000 * rank, options.echoes)
    taught = lessons(often, teacher, random.Random(options.seed + 3 + 1000 * rank)) if teacher else iter(())
    chats = batches(_both(maker, taught, options.lessons), encoder, options.batch)
    Training(rank, network, shape, chats, held_out, options).run()
    distributed.destroy_process_group()


def start_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, or in a folder that export.py wrote."""
    if not path.is_dir():
        return torch.load(path, map_location="cpu")["weights"]
    weights = load_file(path / "model.safetensors")
    return {name.removeprefix("model."): weight.float() for name, weight in weights.items()}


def new_seed(init: Path | None) -> int:
    """Make a seed from the weights to start from: with the seed of the stage before, its chats would come again."""
    if init is None:
        return 1
    return zlib.crc32((init / "model.safetensors" if init.is_dir() else init).read_bytes())


def unknown(network: Network, topics: list[Topic], encoder: Encoder) -> list[Topic]:
    """Return the topics whose answer `network` often gets wrong, even to phrasings to train on: new or changed ones."""
    found: list[Topic] = []
    for topic in topics:
        asked = [(q, topic.answer, None) for q in topic.ask[:4]]
        asked += [(q, topic.answer.upper(), styles.CAPITALS[0]) for q in topic.ask[4:8]]
        samples = [encoder.case(cases.Case(q, answer, bool, system=system)) for q, answer, system in asked]
        if exact_share(network, samples) < KNOWN:
            found.append(topic)
    return found


class Training:
    """The training loop and its state."""

    def __init__(
        self,
        rank: int,
        network: Network,
        shape: Shape,
        chats: Iterator[tuple[Tensor, Tensor]],
        held_out: dict[str, list[Sample]],
        options: argparse.Namespace,
    ) -> None:
        self.network, self.shape, self.options, self.held_out = network, shape, options, held_out
        self.rank, self.chats = rank, chats
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        matrices = [p for n, p in network.named_parameters() if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in network.named_parameters() if p.ndim != 2 or "embed" in n]
        self.optimizers = [
            Muon(matrices, options.dtype, options.lr),
            torch.optim.AdamW(others, lr=options.lr * 0.8, betas=(0.9, 0.97), weight_decay=0.0, fused=True),
        ]
        self.progress = 0.0  # 0 to 1, the same in all processes

    def run(self) -> None:
        started = time.time()
        seen, losses, shown = 0, [], 0.0
        rng = random.Random(self.options.seed + self.rank)
        copying = 7.0  # running loss on repeats; while they are hard, every other batch is one
        for step in itertools.count(1):
            is_repeat = rng.random() < (0.5 if copying > 0.4 else 0.03)
            ids, learn = repeats(rng, self.options.batch, self.shape.vocab_size) if is_repeat else next(self.chats)
            elapsed = time.time() - started
            mine = max(step / self.options.steps, elapsed / 60 / self.options.minutes)
            loss = self.step(ids, learn, step, mine)
            if is_repeat:
                copying = 0.8 * copying + 0.2 * loss
            else:
                losses.append(loss)
            seen += ids.numel() * self.options.workers
            if step % 50 == 0 and self.rank == 0:
                loss, losses = sum(losses) / len(losses), []
                speed = f"{elapsed:.0f} s, {seen / 1e6:.2f}M tokens, {seen / elapsed:.0f}/s"
                print(f"step {step} {speed}, loss {loss:.4f}, copying {copying:.3f}", flush=True)
            if self.progress >= 1 or self.progress - shown > self.options.every:
                self.checkpoint(step, seen)
                shown = self.progress
            if self.progress >= 1:
                return

    def step(self, ids: Tensor, learn: Tensor, step: int, mine: float) -> float:
        factor = min(1.0, step / 40) * min(1.0, max(0.0, (1 - self.progress) / self.options.decay))
        for optimizer, base in zip(self.optimizers, (1.0, 0.8), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = self.options.lr * base * factor
        ids, learn = ids.to(self.options.device), learn.to(self.options.device)
        with torch.autocast(self.options.device, self.options.dtype, enabled=self.options.dtype == torch.bfloat16):
            hidden = self.network(ids[:, :-1])[learn[:, 1:]]
            logits = self.network.logits(hidden)
        loss = F.cross_entropy(logits.float(), ids[:, 1:][learn[:, 1:]])
        loss.backward()
        self.share_gradients(mine)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        keep = min(0.997, 1 - 1 / (1 + step / 8))
        names, values = zip(*self.network.state_dict().items(), strict=True)
        torch._foreach_lerp_([self.average[n] for n in names], list(values), 1 - keep)
        return float(loss.detach())

    def share_gradients(self, mine: float) -> None:
        """Average the gradients of all processes, and their estimates of the progress."""
        parameters = list(self.network.parameters())
        flat = torch.cat([p.grad.flatten() for p in parameters] + [torch.tensor([mine], device=self.options.device)])  # type: ignore[union-attr]
        if self.options.workers > 1:
            distributed.all_reduce(flat)
            flat /= self.options.workers
        self.progress = float(flat[-1])
        for p, g in zip(parameters, flat[:-1].split([p.numel() for p in parameters]), strict=True):
            p.grad = g.view_as(p)

    def checkpoint(self, step: int, seen: int) -> None:
        now = {k: v.clone() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        shares = torch.tensor([exact_share(self.network, samples) for samples in self.held_out.values()])
        distributed.all_reduce(shares)
        figures = dict(zip(self.held_out, (shares / self.options.workers).tolist(), strict=True))
        self.network.load_state_dict(now)
        if self.rank:
            return
        weights = {name: weight.cpu() for name, weight in self.average.items()}
        torch.save({"weights": weights, "shape": asdict(self.shape)}, self.options.out / "checkpoint.pt.new")
        (self.options.out / "checkpoint.pt.new").rename(self.options.out / "checkpoint.pt")
        print(json.dumps({"step": step, "tokens": seen, **{k: round(v, 3) for k, v in figures.items()}}), flush=True)


def _both(maker: Maker, taught: Iterator[Chat], share: float) -> Iterator[Chat]:
    """Mix chats with the teacher's lessons; `share` is the fraction of lessons."""
    while True:
        yield next(taught) if maker.rng.random() < share else maker.chat()


def batches(chats: Iterator[Chat], encoder: Encoder, tokens: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield endless batches of about `tokens` ids: ids (B, L), and which of them the loss covers."""
    rng = random.Random(0)
    while True:
        pool = [encoder.sample(next(chats)) for _ in range(5000)]
        pool = sorted((s for s in pool if len(s.ids) <= LONGEST), key=lambda s: len(s.ids))
        ready, row = [], []
        for sample in pool:
            if row and (len(row) + 1) * len(sample.ids) > tokens:
                ready.append(padded(row))
                row = []
            row.append(sample)
        rng.shuffle(ready)
        yield from ready


def repeats(rng: random.Random, tokens: int, vocab: int) -> tuple[Tensor, Tensor]:
    """Make random ids repeated three times: the second and third time can be predicted only by looking back."""
    length = rng.randrange(8, 40)
    once = [[rng.randrange(3, vocab) for _ in range(length)] for _ in range(tokens // (3 * length))]
    ids = torch.tensor([row * 3 for row in once])
    learn = torch.ones_like(ids, dtype=torch.bool)
    learn[:, : length + 1] = False
    return ids, learn


def faster_type(device: str) -> torch.dtype:
    """bfloat16 or float32: a CPU without instructions for bfloat16 takes ten times as long with it."""
    seconds: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(512, 512, device=device).to(dtype)
        for _ in range(2):  # the first prepares
            started = time.perf_counter()
            float((x @ x @ x).sum())
            seconds[dtype] = time.perf_counter() - started
    return min(seconds, key=lambda dtype: seconds[dtype])


def padded(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    length = max(len(s.ids) for s in samples)
    ids = torch.tensor([s.ids + [PAD_ID] * (length - len(s.ids)) for s in samples])
    return ids, torch.tensor([s.learn + [False] * (length - len(s.learn)) for s in samples])


@torch.no_grad()
def exact_share(network: Network, samples: list[Sample]) -> float:
    """Return the share of samples whose reply greedy decoding produces exactly (each next id is the likeliest)."""
    right = 0
    ordered = sorted(samples, key=lambda s: len(s.ids))
    for begin in range(0, len(ordered), 64):
        device = network.embed_tokens.weight.device
        ids, learn = (t.to(device) for t in padded(ordered[begin : begin + 64]))
        best = network.logits(network(ids[:, :-1])).argmax(-1)
        right += int(((best == ids[:, 1:]) | ~learn[:, 1:]).all(-1).sum())
    return right / max(1, len(samples))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="start from a checkpoint, or from a folder with a trained model")
    whole = {"vocab": 1792, "width": 256, "layers": 4, "hidden": 768, "seed": 0, "batch": 2300, "steps": 10**9}
    for name, default in {**whole, "workers": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    shares = {"decay": 0.4, "every": 0.06, "echoes": 0.04, "lessons": 0.65}
    for name, default in {"lr": 0.005, "minutes": 44.0, **shares}.items():
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--device", default="cpu", help="cuda trains on a GPU, in one process")
    options = parser.parse_args()
    if options.device != "cpu":
        options.workers = 1
    options.dtype = faster_type(options.device)
    return options


if __name__ == "__main__":
    main()
