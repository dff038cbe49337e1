"""Give one instruction about every file of a folder. It is prefilled once; each file continues from a fork of that.

python examples/folder.py [MODEL [FOLDER]]
"""

import sys
from pathlib import Path

import mlxkv

INSTRUCTION = (
    "You answer questions about caches of language models. "
    "Answer in one sentence, in words that a newcomer understands, without lists."
)

folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_name("letters")
files = sorted(folder.glob("*.txt")) or sys.exit(f"There is no .txt file in {folder}.")
model = mlxkv.load(sys.argv[1] if len(sys.argv) > 1 else "tutor")

# A prompt cache that begins a chat: the system prompt, as the model's chat template writes it.
instruction = model.prefill("", system=INSTRUCTION)
print(f"instruction: {instruction.offset} tokens prefilled, once\n")

for path in files:
    # A fork shares the KV rows of the original and copies them when it writes: the original stays as it is.
    chat = model.chat(cache=instruction.fork(), max_tokens=60, temperature=0)
    for _ in chat.send(path.read_text(encoding="utf-8")):
        pass  # the events of the reply; below only its end matters
    print(f"{path.name}: {chat.messages[-1].text}")
    print(f"    {chat.stats.prefill_tokens} tokens prefilled, {chat.stats.cached_tokens} cached\n")
model.close()
