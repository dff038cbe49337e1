"""Look at the window without a model: `python -m tests.tui.demo_engine [--first] [--resume] [--ask TEXT]`."""

from __future__ import annotations

import argparse
import os
import sys

from mlxkv.config import Folders, Settings
from mlxkv.protocol.commands import Command, LoadModel, NewChat, OpenChat
from mlxkv.protocol.events import ModelCard
from mlxkv.tui import run
from tests.tui.fake_engine import ThreadEngine

CARDS = (
    ModelCard("tutor", 1_400_000, "MIT", "built in, knows this program"),
    ModelCard("mlx-community/Qwen3-4B-4bit", 2_300_000_000, "Apache-2.0", "fast"),
    ModelCard("mlx-community/Qwen3-32B-4bit", 18_400_000_000, "Apache-2.0", "", fits=False),
)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", action="store_true", help="no model yet")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--ask")
    parser.add_argument("--rate", type=float, default=40.0)
    parser.add_argument("--theme", default="textual-dark")
    args = parser.parse_args()
    model = None if args.first else "mlx-community/Qwen3-8B-4bit"
    start: list[Command] = [LoadModel(model)] if model else []
    start.append(OpenChat("c1") if args.resume else NewChat())
    folders = Folders.from_env(os.environ)
    return run(ThreadEngine(args.rate), CARDS, Settings(theme=args.theme), folders, start, args.ask)


if __name__ == "__main__":
    sys.exit(main())
