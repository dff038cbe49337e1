"""Chat templates against transformers, and the tokens that six turns reuse: `python -m bench.templates FOLDER ...`.

A folder with a tokenizer.json is a tokenizer, with its own template or, as FOLDER:FILE.jinja, with that one; another
folder is one of templates, each of which is rendered with every tokenizer. Nothing is downloaded or saved.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_tokenizer

import mlxkv
from mlxkv.chat.prompts.prompt import Message, PromptFormat, PromptState, message
from mlxkv.errors import ModelError
from mlxkv.events import TurnFinished
from mlxkv.inference.draws import Draws
from mlxkv.inference.runner import ModelRunner
from mlxkv.inference.sampling import SamplingParams
from mlxkv.model import Model
from tests.tokenizers import tiny_folder

ASK, SAY = message("user", "What does  `x = y<z>` do?\n\n\tIt's in  the file. "), message("assistant", "It compares.\n")
TALKS: dict[str, list[Message]] = {
    "user": [ASK],
    "system": [message("system", "Be brief."), ASK],
    "turns": [message("system", "Be brief."), *[ASK, SAY] * 5, ASK],
    "consecutive": [ASK, ASK, SAY, SAY, ASK],
    "reasoning": [ASK, message("assistant", "Yes.", "Let me see.\nIt is so."), ASK],
    "unicode": [
        message("user", "日本語 \U0001f468\u200d\U0001f469\u200d\U0001f467 ﬁ é \u00a0\u2028 <b>ß</b>"),
        SAY,
        ASK,
    ],
}
TURNS = 6
WORDS = (
    "the",
    "cache",
    "holds",
    "rows",
    "of",
    "keys",
    "and",
    "values",
    "so",
    "that",
    "a",
    "prompt",
    "is",
    "short",
    "now",
)


class Scripted(ModelRunner):
    """Feeds the model, and samples the given tokens."""

    script: list[int]

    def _draws(self, params: SamplingParams, seen: Sequence[int], num_before: int) -> Draws:
        runner = self

        class Told(Draws):
            def next(self, logits: mx.array, y: mx.array) -> mx.array:
                return mx.array([runner.script.pop(0) if runner.script else 0])

        return Told(params, seen, num_before)


def compared(tokenizer: TokenizerWrapper, talk: list[Message]) -> str:
    """Result: same, moved (a system prompt that the template puts elsewhere), refused by both, or the difference."""
    theirs: tuple[str, list[int]] | str

    def transformers(messages: list[Message]) -> tuple[str, list[int]]:
        text = tokenizer._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text, list(tokenizer.encode(text, add_special_tokens=False))

    try:
        theirs = transformers(talk)
    except Exception as error:
        theirs = str(error)
    try:
        ours = PromptFormat(tokenizer).prompt(talk, PromptState())
    except ModelError as error:
        is_sentence = len(str(error).splitlines()) == 1 and "Traceback" not in str(error)
        return "refused" if isinstance(theirs, str) and is_sentence else f"WE REFUSE: {error}"
    if (ours.text, list(ours.ids)) == theirs:
        return "same"
    if talk[0]["role"] == "system":
        moved = [message("user", f"{talk[0]['content']}\n\n{talk[1]['content']}"), *talk[2:]]
        if (ours.text, list(ours.ids)) == transformers(moved):
            return "moved"
    return "WE RENDER WHAT THEY REFUSE" if isinstance(theirs, str) else "DIFFERS"


def spelled(tokenizer: TokenizerWrapper) -> str:
    """Whether all control tokens in a chat are the template's when messages spell each of them."""
    prompts = PromptFormat(tokenizer)
    control = list(prompts._control._ids)
    evil = " a".join(random.Random(0).sample(control, min(len(control), 40)))
    talk = [message("system", evil), message("user", evil), message("assistant", evil, evil), message("user", evil)]
    safe = [{k: t if k == "role" else t.replace(evil, "text") for k, t in m.items()} for m in talk]
    try:
        expected = prompts.prompt(safe, PromptState())
        got = prompts.prompt(talk, PromptState())
    except ModelError:
        return "refused"
    known = prompts._control._known
    own = [[i for i in fed.ids if i in known] for fed in (got, expected)]
    if own[0] != own[1]:
        return "SPECIAL"
    return "text" if tokenizer.decode(list(got.ids)) == got.text else "text (decodes otherwise)"


def reply(prompts: PromptFormat, prompt: str, rng: random.Random) -> list[int]:
    """A sampled reply, cut into tokens as no tokenizer would: reasoning if the template has any, and the end."""
    thought, text = (" ".join(rng.choices(WORDS, k=30)) for _ in range(2))
    match prompts.reasoning:
        case None:
            said = text
        case reasoning if reasoning.opening is None:
            said = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>{text}"
        case reasoning:
            begin = "" if reasoning.state_after(prompt) == "thinking" else "<think>\n"
            said = f"{begin}{thought}\n</think>\n\n{text}"
    words = [i for word in re.findall(r"\s*\S+|\s+", said) for i in prompts.encode(word)]
    return [*words, prompts.tokenizer.eos_token_id]


def six_turns(tokenizer: TokenizerWrapper, folder: Path) -> Iterator[tuple[int, int, int]]:
    """For each turn but the first: ids of the history, those before a stripped reply, and those reused."""
    tiny_folder(folder, tokenizer=tokenizer, max_position_embeddings=16384)
    model: Model = mlxkv.load(str(folder))
    runner = model._runtime.runner = Scripted(model.loaded.model)
    prompts, rng = model._runtime.prompts, random.Random(0)
    chat = model.chat("Be brief.", mlxkv.CacheConfig(window=8192), max_tokens=400, temperature=0.0)
    for n in range(TURNS):
        question = " ".join(rng.choices(WORDS, k=40)) + "?"
        before, last = len(chat.log), len(chat.turns[-1].ids) if chat.turns else 0
        has_thought = bool(chat.turns and chat.turns[-1].thinking)
        messages = chat._history.messages([*chat.turns, mlxkv.store.TurnRecord("user", question)])
        runner.script = [*reply(prompts, prompts.render(messages), rng), 0]
        *_, done = chat.send(question)
        assert isinstance(done, TurnFinished)
        assert done.reason == "stop", done
        if n:
            kept = before - (last if has_thought and before > (chat.turns[-2].start or 0) else 0)
            yield before, kept, done.stats.cached_tokens


def main() -> None:
    tokenizers: dict[str, TokenizerWrapper] = {}
    templates: dict[str, str] = {}
    for argument in sys.argv[1:]:
        place, _, file = argument.partition(":")
        folder = Path(place)
        if (folder / "tokenizer.json").exists():
            tokenizer = load_tokenizer(folder)
            name = folder.parent.name if folder.name == "models" else folder.name
            if file:
                tokenizer._tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
                tokenizer.has_chat_template = True
            tokenizers[name] = tokenizer
        else:
            templates |= {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}
    if not tokenizers:
        sys.exit("Give a folder with a tokenizer.json.")

    print(f"{'template':58} {'  '.join(f'{name:11}' for name in (*TALKS, 'spelled'))}")
    totals: Counter[str] = Counter()
    own = {
        f"{name} (its own)": (t._tokenizer.chat_template, [t]) for name, t in tokenizers.items() if t.has_chat_template
    }
    for name, (source, those) in (own | {n: (s, list(tokenizers.values())) for n, s in templates.items()}).items():
        row: list[str] = []
        kept = [t._tokenizer.chat_template for t in those]
        for tokenizer in those:
            tokenizer._tokenizer.chat_template = source
        for talk in TALKS.values():
            row.append("/".join(sorted({compared(tokenizer, talk) for tokenizer in those})))
        row.append("/".join(sorted({spelled(tokenizer) for tokenizer in those})))
        for tokenizer, before in zip(those, kept, strict=True):
            tokenizer._tokenizer.chat_template = before
        totals.update(row[:-1])
        print(f"{name[:58]:58} {'  '.join(f'{cell:11}' for cell in row)}", flush=True)
    print(dict(totals), "\n")

    print("Six turns: ids of history, those that the template keeps, those reused")
    for name, tokenizer in tokenizers.items():
        if tokenizer.has_chat_template:
            with tempfile.TemporaryDirectory() as folder:
                rows = list(six_turns(tokenizer, Path(folder)))
            shares = [f"{reused}/{kept} of {history}" for history, kept, reused in rows]
            share = sum(reused for *_, reused in rows) / sum(kept for _, kept, _ in rows)
            print(f"{name:14} {share:7.2%}   {'  '.join(shares)}", flush=True)


if __name__ == "__main__":
    main()
