"""Ask ten questions about one document, in ten processes. The document is prefilled once and saved as a file.

python examples/ten_questions.py [MODEL [DOCUMENT [QUESTION ...]]]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import mlxkv

DOCUMENT = Path(__file__).with_name("document.txt")
QUESTIONS = (
    "What is a KV cache?", "What is prefill?", "What is decode?", "What falls out of the window?", "What are sinks?",
    "What happens when the window is full?", "Are the sinks evicted?", "What is a prompt cache?",
    "What does a fork share?", "How much memory does a cache of 8 bits take?",
)  # fmt: skip


def ask(name: str, file: str, question: str) -> None:
    """What each of the ten processes does; `load_cache` checks the model and every byte."""
    model = mlxkv.load(name)
    chat = model.chat(cache=model.load_cache(file), max_tokens=40, temperature=0)
    for _ in chat.send(f"\n{question}"):
        pass
    print(f"{chat.stats.prefill_tokens:3} prefilled + {chat.stats.cached_tokens} cached  {question}")
    print(f"    {chat.messages[-1].text}")


def main(name: str = "tutor", document: str | Path = DOCUMENT, *asked: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = mlxkv.load(name).prefill(Path(document).read_text(encoding="utf-8"), system="Answer from the text.")
        size = cache.save(file := f"{folder}/document.kv")
        print(f"document: {cache.offset} tokens prefilled, {size / 1e3:.0f} kB on disk", flush=True)
        for question in asked or QUESTIONS:
            subprocess.run([sys.executable, __file__, "--ask", name, file, question], check=True)


ask(*sys.argv[2:]) if sys.argv[1:2] == ["--ask"] else main(*sys.argv[1:])
