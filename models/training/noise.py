"""How people really type: case, punctuation, politeness, synonyms, small typos, keywords. Seeded; changes user text only."""

from __future__ import annotations

import random
import re

PREFIXES = (
    "please ", "hey, ", "hi, ", "hello, ", "ok, ", "so ", "and ", "can you tell me: ", "could you tell me: ", "tell me: ",
    "quick question: ", "i want to know: ", "i have a question: ", "sorry, ", "hm, ", "next: ", "one more: ", "well, ",
    "please tell me: ", "hey tutor, ", "tutor, ", "explain: ", "do you know ", "just wondering, ", "question: ", "now ",
    "excuse me, ", "i forgot, ", "help: ", "please explain: ", "ok so ", "alright, ", "then ", "also, ", "but ",
)  # fmt: skip
SUFFIXES = (
    " please", ", please", " thanks", ", thanks", " exactly", " again", " please?", " in short", " actually", ", tutor",
    ", do you know", " ?", "??", "...", " in mlxkv", "!", " then", " anyway", " here",
)  # fmt: skip
SYNONYMS = [
    group.split("/")
    for group in """how do i/how can i/how to/how would i/what do i do to/how could i/what is the way to
what is/what's/whats/explain/define/describe/what exactly is/tell me what is/what does it mean,
what does/what will/what would/what might
what are/explain/describe/what exactly are
why is/why's/how come/for what reason is
why does/how come/for what reason does
why do/how come/what is the reason that
can i/may i/is it possible to/am i able to/is there a way to/could i/could one
delete/remove/erase/get rid of
show/list/display/see/view/print
save/store/keep
conversation/chat/session
conversations/chats/sessions
option/flag/switch/argument
command/subcommand
find/locate/look up/search for
where is/where do i find/where can i find/in which place is
where are/where do i find/where can i find
happens/goes on/occurs
when/if/as soon as
big/large/huge
small/little/tiny
fast/quick/speedy
slow/sluggish
faster/quicker
use/employ/take/make use of
start/begin/launch/open/run
stop/end/halt/interrupt/quit
change/set/alter/adjust/modify/configure
make/create/produce
purpose/point/use/goal
difference/distinction
between/separating
explain/describe/tell me about/talk about
need/require
memory/ram
means/stands for
mean/stand for/signify
computer/machine/mac
directory/folder
setting/configuration/config option
settings/configuration/config
answer/reply/response
answers/replies/responses
prompt/input
message/text
error/failure/problem
wrong/broken/bad
get/obtain/have
give/hand/offer
many/lots of
much/big an amount of
does it/will it/would it
should i/do i have to/must i/ought i to
download/fetch/pull/get
install/set up
resume/continue/go on with/pick up
restart/reboot/new start
full/filled up/at its limit
old/earlier/previous
oldest/earliest/first
limit/bound/maximum/cap
several/multiple/many/more than one
kv cache/key-value cache/kv-cache/cache
works/functions
work/function
reduce/lower/shrink/decrease
increase/raise/grow
quantization/quantizing/quantisation
quantized/quantised
keys/shortcuts/key bindings
key/shortcut/keystroke
copy/duplicate
script/program
python/python code
tokens/pieces of text
choose/pick/select
model/llm/language model""".splitlines()
]
STOP_WORDS = {"the", "a", "an", "is", "are", "do", "does", "of", "to", "in", "it", "i", "my", "for", "with", "that", "there"}
_CONTRACTIONS = (("what is", "what's"), ("i am", "i'm"), ("do not", "don't"), ("does not", "doesn't"), ("where is", "where's"),
                 ("is not", "isn't"), ("cannot", "can't"), ("how is", "how's"), ("who is", "who's"))  # fmt: skip
_REPLACE: dict[str, list[str]] = {}
for _group in SYNONYMS:
    for _word in _group:
        _REPLACE.setdefault(_word.strip(), []).extend(w for w in _group if w != _word)
_PATTERN = re.compile(r"(?<![\w-])(" + "|".join(sorted(map(re.escape, _REPLACE), key=len, reverse=True)) + r")(?![\w-])", re.I)


def vary(text: str, rng: random.Random, *, reword: bool = True, typos: bool = True) -> str:
    """`text` as somebody else might type it. Where it holds a value to remember, pass `reword=False, typos=False`."""
    if reword:
        text = _reworded(text, rng)
    if typos and rng.random() < 0.14:
        for _ in range(rng.choice((1, 1, 2))):
            text = typo(text, rng)
    return dressed(text, rng)


def dressed(text: str, rng: random.Random) -> str:
    """Case, punctuation and politeness; no word of the text itself changes."""
    if rng.random() < 0.45:
        text = text.rstrip("?.!")
    if rng.random() < 0.22:
        prefix = rng.choice(PREFIXES)
        text = (prefix.capitalize() if rng.random() < 0.5 else prefix) + (text[:1].lower() + text[1:])
    if rng.random() < 0.12:
        text = text.rstrip("?.!") + rng.choice(SUFFIXES)
    roll = rng.random()
    return text.lower() if roll < 0.4 else text


def typo(text: str, rng: random.Random) -> str:
    """One letter dropped, doubled, or exchanged with its neighbour, inside a word of five letters or more."""
    spots = [m for m in re.finditer(r"[A-Za-z]{5,}", text)]
    if not spots:
        return text
    word = rng.choice(spots)
    i = rng.randrange(word.start() + 1, word.end() - 1)
    match rng.randrange(3):
        case 0:
            return text[:i] + text[i + 1 :]
        case 1:
            return text[:i] + text[i] + text[i:]
        case _:
            return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def _reworded(text: str, rng: random.Random) -> str:
    roll = rng.random()
    if roll < 0.45:
        share = rng.choice((0.3, 0.6))
        text = _PATTERN.sub(lambda m: rng.choice(_REPLACE[m[0].lower()]) if rng.random() < share else m[0], text)
    if rng.random() < 0.15:
        for long, short in _CONTRACTIONS:
            text = re.sub(long, short, text, flags=re.I)
    roll = rng.random()
    if roll < 0.10:  # as typed into a search box
        words = [w for w in re.findall(r"\S+", text) if w.strip("?.,!").lower() not in STOP_WORDS]
        text = " ".join(words) or text
    elif roll < 0.22:
        words = text.split()
        if len(words) > 3:
            del words[rng.randrange(len(words))]
            text = " ".join(words)
    return text
