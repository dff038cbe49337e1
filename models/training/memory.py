"""Facts people tell and ask for again: how they are stated, acknowledged, asked, recalled, and not known.

`yours` is how the reply speaks of it; `mine` how the user does. Values come from words.py. Pure and seeded.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .words import value


@dataclass(frozen=True)
class Attribute:
    """Something about the user that has a value: `mine` "my name", its kind, and its own ways to say and to ask it."""

    mine: str
    kind: str
    tell: tuple[str, ...] = ()
    ask: tuple[str, ...] = ()

    @property
    def yours(self) -> str:
        return self.mine.replace("my ", "your ", 1) if self.mine.startswith("my ") else self.mine

    @property
    def theirs(self) -> str:
        return self.mine.replace("my ", "the user's ", 1) if self.mine.startswith("my ") else self.mine


@dataclass(frozen=True)
class Fact:
    attribute: Attribute
    value: str


_SPECIAL = (
    Attribute("my name", "name",
              ("I am {v}.", "I'm {v}.", "Call me {v}.", "You can call me {v}.", "Hi, I'm {v}.", "Hello, my name is {v}.",
               "My friends call me {v}.", "This is {v}.", "I go by {v}.", "They call me {v}.", "My name's {v}.",
               "Hi! My name is {v}.", "{v} is my name.", "The name is {v}."),
              ("Who am I?", "What am I called?", "Do you know who I am?", "What do you call me?", "Do you know my name?",
               "Can you say my name?", "How am I called?", "Do you still know who I am?", "Say my name.",
               "What name did I give you?", "And my name is?", "Have I told you my name?")),
    Attribute("my home town", "place",
              ("I live in {v}.", "I'm living in {v}.", "My home is in {v}.", "I am from {v}.", "I come from {v}.",
               "My house is in {v}.", "My city is {v}.", "I'm from {v}."),
              ("Where do I live?", "Where am I from?", "Where is my home?", "In which city do I live?", "Which city is mine?",
               "Do you know where I live?", "What city am I from?", "Where do I come from?", "What town do I live in?")),
    Attribute("my age", "number",
              ("I am {v} years old.", "I'm {v}.", "I just turned {v}.", "I'm {v} years old."),
              ("How old am I?", "Do you know how old I am?", "What age am I?")),
    Attribute("my job", "job",
              ("I work as a {v}.", "I am a {v}.", "I'm a {v}.", "I earn my living as a {v}."),
              ("What do I do for a living?", "What do I work as?", "What is my profession?", "What work do I do?")),
    Attribute("the secret word", "word",
              ("The secret word today is {v}.", "Our secret word is {v}.", "The magic word is {v}.", "Secret word: {v}.",
               "My secret word is {v}."),
              ("What was the secret word?", "Which secret word did I give you?", "What is our secret word?",
               "Say the secret word.", "What's the magic word?", "What is my secret word?")),
    Attribute("my favorite color", "colour",
              ("I like {v} best of all colors.", "The color I like most is {v}.", "My favourite colour is {v}.", "I love the color {v}."),
              ("What is my favourite colour?", "Which color do I like best?", "What color do I love?", "Which colour do I like most?")),
    Attribute("my shopping list", "list",
              ("I need to buy {v}.", "Shopping list: {v}.", "I have to buy {v}.", "Put {v} on my shopping list.", "I want to buy {v}."),
              ("What do I need to buy?", "What is on my list?", "What is on my shopping list?", "What did I want to buy?",
               "Read me my shopping list.", "What should I buy?")),
    Attribute("my list of words", "list",
              ("Remember these words: {v}.", "Remember this list: {v}.", "Keep these words in mind: {v}.", "The words are {v}.",
               "Memorize {v}.", "Remember {v}."),
              ("Which words did I give you?", "What were the words?", "Repeat the words.", "Which words did I ask you to remember?",
               "What was the list?", "List my words.", "What did I ask you to remember?")),
    Attribute("my dog's name", "name", ("My dog is called {v}.", "I have a dog named {v}.", "I have a dog called {v}."),
              ("What is my dog called?", "How is my dog called?", "Who is my dog?")),
    Attribute("my cat's name", "name", ("My cat is called {v}.", "I have a cat named {v}.", "My cat is {v}."),
              ("What is my cat called?", "How is my cat called?", "Who is my cat?")),
    Attribute("my sister's name", "name", ("My sister is called {v}.", "I have a sister, {v}.", "My sister is {v}."),
              ("What is my sister called?", "Who is my sister?")),
    Attribute("my brother's name", "name", ("My brother is called {v}.", "I have a brother named {v}.", "My brother is {v}."),
              ("What is my brother called?", "Who is my brother?")),
    Attribute("my birthday", "date", ("I was born on {v}.", "I have my birthday on {v}.", "I celebrate my birthday on {v}."),
              ("When is my birthday?", "When was I born?", "On which day was I born?")),
    Attribute("my meeting", "day", ("My meeting is on {v}.", "I have a meeting on {v}.", "My meeting takes place on {v}."),
              ("When is my meeting?", "On which day is my meeting?", "When do I have a meeting?")),
    Attribute("my favorite food", "food", ("I love eating {v}.", "The food I like best is {v}.", "I like to eat {v} most."),
              ("What do I like to eat?", "What food do I like best?", "What do I like eating most?")),
    Attribute("my destination", "place", ("I am travelling to {v}.", "I will travel to {v}.", "My trip goes to {v}.", "I'm going to {v}."),
              ("Where am I going?", "Where do I travel to?", "Where does my trip go?", "Where am I travelling?")),
)  # fmt: skip

_PLAIN = {
    "name": "my mother's name/my father's name/my friend's name/my boss's name/my teacher's name/my neighbor's name/"
    "my boat's name/my daughter's name/my son's name/my horse's name/my partner's name/my project's name/my doctor's name",
    "place": "my birthplace/the meeting place/my favorite city/the hiding place/my office",
    "word": "the password/my password/the code word/my lucky word/the project name/my wifi password/the key word/my user name",
    "number": "my favorite number/my lucky number/the door code/the launch code/my locker number/my room number/my pin/"
    "the magic number/my house number/my phone number/the secret number/my seat number/my order number/the answer",
    "colour": "the color of my car/the color of my house/the color of my bike/my bike color/the secret color",
    "animal": "my favorite animal/my pet/my lucky animal/the secret animal",
    "food": "my breakfast/my favorite fruit/my dinner",
    "day": "my day off/the deadline/my appointment",
    "date": "my wedding day/the exam date/my holiday",
    "list": "my to-do list/my packing list/my wish list",
    "job": "my dream job",
}
ATTRIBUTES: tuple[Attribute, ...] = (
    *_SPECIAL,
    *(Attribute(mine, kind) for kind, phrases in _PLAIN.items() for mine in phrases.split("/")),
)

TELL = ("{M} is {v}.", "{M} is {v}.", "Remember that {m} is {v}.", "Remember: {m} is {v}.", "By the way, {m} is {v}.",
        "Please note that {m} is {v}.", "Keep in mind that {m} is {v}.", "{M}: {v}", "I want you to know that {m} is {v}.",
        "Just so you know, {m} is {v}.", "Don't forget that {m} is {v}.", "Please remember this: {m} is {v}.", "{v} is {m}.",
        "For later: {m} is {v}.", "Note: {m} is {v}.", "{M} happens to be {v}.", "{M} = {v}", "Let me tell you {m}: {v}.")  # fmt: skip
ASK = ("What is {m}?", "What is {m}?", "What's {m}?", "Do you remember {m}?", "Tell me {m}.", "Can you tell me {m}?",
       "What did I say {m} was?", "Remind me of {m}.", "What was {m}?", "Do you know {m}?", "Do you still know {m}?",
       "I forgot {m}, what is it?", "{M}?", "What did I tell you about {m}?", "Which one is {m}?", "Please repeat {m}.",
       "Say {m}.", "Name {m}.", "Do you recall {m}?", "Could you remind me what {m} is?", "Have you kept {m}?")  # fmt: skip
AGAIN = ("Actually, {m} is {v}.", "Correction: {m} is {v}.", "No, {m} is {v}.", "{M} is now {v}.", "I was wrong, {m} is {v}.",
         "Sorry, {m} is {v}.", "Update: {m} is {v}.")  # fmt: skip
SYSTEM = ("{T} is {v}.", "{T} is {v}.", "Remember that {t} is {v}.", "Know this: {t} is {v}.", "{M} is {v}.", "Remember: {m} is {v}.",
          "Fact: {t} is {v}.", "Important: {t} is {v}.")  # fmt: skip


def tell(fact: Fact, rng: random.Random, *, again: bool = False) -> str:
    a = fact.attribute
    if again:
        return _fill(rng.choice(AGAIN), a, fact.value)
    own = a.tell and rng.random() < 0.5
    return _fill(rng.choice(a.tell if own else TELL), a, fact.value)


def tell_two(first: Fact, second: Fact, rng: random.Random) -> str:
    joint = rng.choice((" and ", ", and ", " and "))
    return f"{_up(first.attribute.mine)} is {first.value}{joint}{second.attribute.mine} is {second.value}."


def tell_system(fact: Fact, rng: random.Random) -> str:
    return _fill(rng.choice(SYSTEM), fact.attribute, fact.value)


def ask(attribute: Attribute, rng: random.Random) -> str:
    own = attribute.ask and rng.random() < 0.5
    return _fill(rng.choice(attribute.ask if own else ASK), attribute, "")


def noted(*facts: Fact) -> str:
    """The reply to being told."""
    if len(facts) == 1 and facts[0].attribute.mine == "my name":
        return f"Nice to meet you, {facts[0].value}."
    return "I will remember that " + " and ".join(f"{f.attribute.yours} is {f.value}" for f in facts) + "."


def recalled(fact: Fact) -> str:
    return f"{_up(fact.attribute.yours)} is {fact.value}."


def not_told(attribute: Attribute) -> str:
    return f"You have not told me {attribute.yours}."


def some_fact(rng: random.Random, *, held_out: bool = False) -> Fact:
    attribute = rng.choice(_SPECIAL if rng.random() < 0.5 else ATTRIBUTES)
    return Fact(attribute, value(rng, attribute.kind, held_out=held_out))


def _fill(template: str, a: Attribute, v: str) -> str:
    return template.format(m=a.mine, M=_up(a.mine), t=a.theirs, T=_up(a.theirs), v=v)


def _up(text: str) -> str:
    return text[:1].upper() + text[1:]
