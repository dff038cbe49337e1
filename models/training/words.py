"""Values to be remembered: real words, made-up ones, numbers, lists; a tenth of them is held out from training.

Held out by hash, so that the same value is held out wherever it turns up. Made-up words make copying worth learning:
no table could hold them.
"""

from __future__ import annotations

import random
import zlib

NAMES = """Ada Alan Alice Amira Anna Ben Bo Carla Chen Clara Dana David Diego Edith Elif Emil Emma Eva Farah Felix Finn
Frida Grace Greta Hana Hugo Ida Igor Ines Ivan Jan Jana Jonas Julia Kai Karl Kenji Lara Lena Leo Lin Lisa Luca Lucy Maja
Marco Maria Marie Max Mia Mila Mina Mira Moritz Nadia Nick Nina Noah Nora Oleg Olga Omar Oscar Otto Paul Petra Priya Rosa
Ruth Sam Samir Sara Sofia Sven Tara Theo Tim Tina Tom Uma Vera Victor Yara Yuki Zara Zoe Bob John Mary Peter James Kate
Linda Rachel Susan Robert Daniel Sophie Ella Ravi Aisha Mei Jack Harry Olivia Liam Ethan Chloe""".split()
PLACES = """Rome Paris Berlin London Oslo Vienna Prague Madrid Lisbon Dublin Athens Cairo Delhi Tokyo Kyoto Seoul Lima
Quito Boston Chicago Denver Austin Seattle Toronto Sydney Perth Zurich Geneva Basel Munich Hamburg Cologne Dresden Lyon
Nice Turin Milan Naples Venice Krakow Warsaw Riga Vilnius Tallinn Helsinki Bergen Malmo Porto Sevilla Valencia Nairobi
Accra Lagos Tunis Rabat Hanoi Manila Jakarta Bergen Leeds York Bath Oxford Cambridge""".split()
COLOURS = """red blue green yellow orange purple pink brown black white grey turquoise violet gold silver beige crimson
indigo teal navy olive maroon lilac scarlet""".split()
THINGS = """plum lantern river button candle garden window kettle pepper rocket violin basket mirror ladder pocket anchor
saddle hammer ribbon pillow feather blanket compass bottle pencil teapot marble thunder meadow harbor island castle
bridge forest desert valley mountain ocean pebble shadow sunrise winter summer bramble cactus clover daisy tulip willow
walnut almond cherry lemon mango melon papaya peach radish spinach tomato turnip bamboo copper iron amber coral crystal
granite magnet needle paddle puzzle quilt raven sparrow falcon heron badger otter walrus zebra penguin tiger panda""".split()
FOODS = """milk eggs bread butter cheese apples pears rice pasta tea coffee sugar salt honey flour onions carrots beans
soup pizza noodles potatoes yogurt juice grapes lemons olives nuts oats corn fish tofu pancakes curry lasagna sushi
dumplings salad waffles""".split()
ANIMALS = """fox owl bear mouse hare cat dog whale crow frog duck goose wolf horse goat sheep snail robin squirrel hedgehog
turtle dragon rabbit lion elephant parrot beaver""".split()
JOBS = """baker teacher nurse pilot farmer painter plumber doctor lawyer gardener driver carpenter librarian engineer
programmer biologist student dentist tailor fisherman singer writer cook chemist architect""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh st t tr v w y z th".split()
VOWELS = "a e i o u a e i o u ai ea ou ia".split()
CODAS = ["", "", "", "", "n", "r", "l", "s", "x", "m", "k", "nd", "th"]

KINDS = ("name", "place", "colour", "word", "number", "food", "job", "day", "date", "list", "animal")


def is_held_out(value: str) -> bool:
    """Whether training must not see this value: a tenth of all, by hash."""
    return zlib.crc32(value.lower().encode()) % 10 == 0


def made_up(rng: random.Random, syllables: int) -> str:
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))


def value(rng: random.Random, kind: str, *, held_out: bool) -> str:
    """A value of this kind on the asked side of the split."""
    for _ in range(10_000):
        candidate = _candidate(rng, kind)
        if is_held_out(candidate) == held_out:
            return candidate
    raise ValueError(f"No value of kind {kind!r} with held_out={held_out}; add words to its pool.")


def _candidate(rng: random.Random, kind: str) -> str:
    match kind:
        case "name":
            first = rng.choice(NAMES) if rng.random() < 0.35 else made_up(rng, rng.choice((1, 2, 2, 3))).capitalize()
            return first if rng.random() < 0.9 else f"{first} {made_up(rng, 2).capitalize()}"
        case "place":
            return rng.choice(PLACES) if rng.random() < 0.4 else made_up(rng, rng.choice((2, 2, 3))).capitalize()
        case "word":
            return rng.choice(THINGS) if rng.random() < 0.5 else made_up(rng, rng.choice((1, 2, 2, 3)))
        case "colour":
            shade = rng.random()
            return ("dark " if shade < 0.1 else "light " if shade < 0.2 else "") + rng.choice(COLOURS)
        case "number":
            return str(rng.randrange(10 ** rng.choice((1, 2, 2, 3, 4, 4, 5, 6))))
        case "food":
            return rng.choice(FOODS)
        case "job":
            return rng.choice(JOBS)
        case "animal":
            return rng.choice(ANIMALS)
        case "day":
            return rng.choice(DAYS) + rng.choice(("", "", " morning", " evening", " at noon", f" at {rng.randrange(1, 13)}"))
        case "date":
            return f"{rng.choice(MONTHS)} {rng.randrange(1, 31)}"
        case "list":
            pool = rng.choice((FOODS, THINGS, COLOURS, THINGS))
            items = rng.sample(pool, rng.choice((2, 3, 3, 4)))
            return ", ".join(items[:-1]) + rng.choice((" and ", ", ")) + items[-1]
    raise ValueError(f"{kind!r} is no kind; they are {', '.join(KINDS)}.")
