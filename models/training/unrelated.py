"""Questions tutor cannot answer, and the one reply to all of them. The held-out ones are in cases.py. Pure and seeded."""

from __future__ import annotations

import random

from .words import ANIMALS, COLOURS, DAYS, FOODS, JOBS, MONTHS, PLACES, THINGS, made_up

REPLY = (
    "I am a small model and only know mlxkv, KV caching and what you tell me. "
    "For anything else load a bigger model: mlxkv models ls lists some, /model switches to one."
)

_PEOPLE = """Napoleon/Einstein/Shakespeare/Mozart/Beethoven/Picasso/Cleopatra/Caesar/Newton/Darwin/Galileo/Marie Curie/Gandhi/Churchill/
Lincoln/Washington/Columbus/Plato/Aristotle/Tolstoy/Kafka/Goethe/Bach/Rembrandt/van Gogh/Freud/Marx/Kant/Tesla/Edison/the king of Spain/
the president of France/the prime minister of Japan/the pope/the mayor of Boston/Elvis/Madonna/Messi/Pele/Homer/Dante""".replace("\n", "").split("/")
_COUNTRIES = """France Germany Italy Spain Portugal Greece Poland Sweden Norway Finland Denmark Austria Hungary Romania Bulgaria Turkey Egypt
Kenya Nigeria Ghana Morocco India China Japan Korea Vietnam Thailand Indonesia Australia Canada Mexico Brazil Peru Chile Argentina Cuba Iceland
Ireland Scotland Belgium Croatia Serbia Ukraine Russia Iran Iraq Israel Nepal""".split()
_SUBJECTS = """gravity/photosynthesis/evolution/the moon/the sun/black holes/electricity/magnetism/democracy/inflation/the French revolution/
the Roman empire/world war two/the middle ages/the stock market/bitcoin/football/chess/tennis/basketball/the olympic games/jazz/opera/rock music/
poetry/philosophy/chemistry/biology/physics/geometry/algebra/calculus/statistics/history/economics/psychology/medicine/law/religion/volcanoes/
earthquakes/hurricanes/the weather/climate change/dinosaurs/whales/sharks/bees/butterflies/cats/dogs/horses/birds/trees/mushrooms/roses/vitamins/
protein/cancer/diabetes/the flu/a headache/sleep/dreams/yoga/running/swimming/cooking/baking/gardening/painting/photography/knitting/fishing/
sailing/flying/cars/trains/bicycles/airplanes/rockets/space travel/Mars/Jupiter/Saturn/stars/galaxies/time travel/robots/smartphones/television/
the internet/Linux/Windows/Java/JavaScript/HTML/CSS/Rust/Docker/Kubernetes/SQL/Excel/Photoshop/blockchain/quantum computers/databases/compilers/
operating systems/wifi/bluetooth/email/taxes/mortgages/insurance/marriage/love/happiness/fear/war/peace/money/the meaning of life/coffee/wine/
beer/chocolate/cheese/gold/diamonds/oil/water/fire/ice/rain/snow/clouds/rivers/oceans/deserts/islands/mountains/the Alps/the Nile/the Amazon/
Mount Everest/the Eiffel tower/the great wall/the pyramids/Christmas/Easter/Halloween/birthdays/weddings/school/university/homework/exams/
languages/Latin/grammar/verbs/novels/movies/comics/cartoons/video games/magic tricks/jokes/riddles/DNA/atoms/electrons/light/sound/heat/energy/
the heart/the brain/the liver/blood/bones/muscles/the skin/teeth/hair""".replace("\n", "").split("/")
_LANGUAGES = "French German Spanish Italian Latin Russian Chinese Japanese Arabic Greek Turkish Polish Dutch Swedish Hindi Korean".split()
_WORKS = """Hamlet/Faust/the Odyssey/War and Peace/the Mona Lisa/Star Wars/the Bible/Harry Potter/Moby Dick/Don Quixote/the Iliad/Frankenstein/
Dracula/the ninth symphony/the Magic Flute/Guernica/Casablanca/Titanic/the telephone/the light bulb/the steam engine/the printing press/penicillin/
paper/the radio/the bicycle/gunpowder/the compass/the airplane""".replace("\n", "").split("/")
_ACTS = """bake a cake/cook rice/boil an egg/fix a bike/paint a wall/plant a tree/learn to swim/lose weight/build a house/grow tomatoes/tie a tie/
write a novel/play the guitar/learn French/clean a window/wash a car/repair a phone/draw a horse/train a dog/feed a cat/make pancakes/make coffee/
sleep better/get rich/find a job/write a letter/apply for a visa/book a flight/change a tire/knit a sweater/catch a fish/climb a mountain/
sing better/dance tango/meditate/remove a stain/sharpen a knife/brew beer/raise a child/buy a house/sell a car/invest money/cure a cold/
stop smoking/ride a horse/sail a boat/fold a paper plane/juggle/solve a cube/win at chess/iron a shirt/pack a suitcase/peel a mango/
start a fire/milk a cow/cut hair/build a website/make a video game/sort a list in Java/center a div/reverse a string/write a sql query/
fix my printer/reset my phone/clean my keyboard/speed up windows/save money/save the planet/store potatoes/keep cats happy/cache cash""".replace("\n", "").split("/")

_TEMPLATES = """What is {s}?|What is {s}?|What are {things}?|Explain {s}.|Explain {s} to me.|Tell me about {s}.|How does {s} work?|Why is {s} important?|
What do you know about {s}?|Who invented {s}?|When did {s} begin?|Where does {s} come from?|Is {s} dangerous?|Do you like {s}?|Give me facts about {s}.|
Write an essay about {s}.|Write a poem about {s}.|Write a song about {s}.|What is the history of {s}?|Summarize {s}.|Can you teach me {s}?|
What is the best book about {s}?|How old is {s}?|What causes {s}?|Is {s} good for me?|How can I learn more about {s}?|{s}|{s}?|
What is the capital of {c}?|capital of {c}|How many people live in {c}?|What language is spoken in {c}?|Who is the president of {c}?|What is the currency of {c}?|
Where is {c}?|How big is {c}?|What do people eat in {c}?|What is the flag of {c}?|When was {c} founded?|Is {c} in Europe?|Tell me about {c}.|
What is the longest river in {c}?|What is the highest mountain of {c}?|When is the best time to visit {c}?|Which countries border {c}?|
Who was {p}?|When was {p} born?|When did {p} die?|Where did {p} live?|What did {p} do?|Why is {p} famous?|How old is {p}?|Who is {p}?|Tell me about {p}.|
Who wrote {w}?|Who made {w}?|Who invented {w}?|What is {w} about?|When was {w} made?|Have you read {w}?|Who painted {w}?|
How do I {a}?|How do I {a}?|How can I {a}?|How to {a}?|Can you help me {a}?|What is the best way to {a}?|I want to {a}.|Teach me how to {a}.|How long does it take to {a}?|
Is it hard to {a}?|Should I {a}?|What do I need to {a}?|Can you {a}?|Why should I {a}?|Where can I {a}?|Give me tips to {a}.|
What is {n} plus {m}?|What is {n} times {m}?|What is {n} minus {m}?|{n} + {m}|{n} * {m}|Calculate {n} divided by {m}.|What is the square root of {n}?|Solve x + {n} = {m}.|
{n}+{m}=?|Is {n} a prime number?|How much is {n} percent of {m}?|Convert {n} miles to kilometers.|How many grams are {n} ounces?|What is {n} squared?|
Translate {t} to {l}.|How do you say {t} in {l}?|What does {t} mean in {l}?|What is the {l} word for {t}?|Do you speak {l}?|Say hello in {l}.|Write a sentence in {l}.|
What is the weather in {city}?|Will it rain in {city}?|How far is {city} from {city2}?|What time is it in {city}?|Where is {city}?|What can I do in {city}?|
Which restaurant in {city} is good?|How do I get to {city}?|Find me a hotel in {city}.|Is {city} expensive?|How warm is it in {city}?|Who is the mayor of {city}?|
What is the recipe for {f}?|How do I cook {f}?|Is {f} healthy?|How many calories are in {f}?|What goes well with {f}?|Where can I buy {f}?|Which wine goes with {f}?|
What does a {an} eat?|How long does a {an} live?|How fast is a {an}?|Where do {an}s live?|How heavy is a {an}?|Can a {an} swim?|What sound does a {an} make?|Draw a {an}.|
What color is a {t}?|How much does a {t} cost?|What is a {t} made of?|Where do I buy a {t}?|Who invented the {t}?|What is a {t}?|Describe a {t}.|
What rhymes with {t}?|Spell {t} backwards.|Give me a synonym for {t}.|Write a haiku about a {t}.|Write a poem about a {t}.|Tell me a joke about a {t}.|
How much does a {j} earn?|What does a {j} do?|How do I become a {j}?|Is {j} a good job?|Write a letter to my {j}.|Find a {j} near me.|
What day is it today?|What is today's date?|What is the time?|What happened on {mo} {d}?|What happened in {y}?|Who won the world cup in {y}?|What was invented in {y}?|
Who was president in {y}?|What is on tv on {day}?|What should I do on {day}?|What is the news?|What is the price of {t2}?|Recommend a movie.|Recommend a book about {s}.|
Which {co} flowers are there?|Mix {co} and {co2}.|What does {co} stand for?|Why is the sky {co}?|Why is the {t} {co}?|
Write code that sorts numbers.|Write a program that prints {t}.|Write a function to {a}.|Fix this code: {x}.|What is wrong with my {t}?|Review my essay.|
What is {x}?|What is a {x}?|Who is {X}?|Where is {X}?|What does {x} mean?|Define {x}.|Tell me about {X}.|Explain {x}.|Have you heard of {X}?|{x}|{x} {x2}|What is the {x} of {X}?|
Do you have feelings?|Do you dream?|Do you have friends?|What is love?|Are you happy?|What is the meaning of life?|Do you like music?|Which is better, {t} or {t2}?|
Imagine you are a {j}.|Pretend to be {p}.|Act as a {j}.|Play a game with me.|Let us play chess.|Sing a song.|Write me an email to my {j}.|Plan my trip to {city}.|
Make a list of {an}s.|Name ten {things}.|List five {things}.|What should I eat today?|What should I cook with {f} and {f2}?|Should I buy a {t}?|Where is my {t}?|
I feel sad.|I am bored.|My {t} is broken.|I have a headache.|I do not like {f}.|I think {s} is boring.|The {an} ate the {t}.|Help me with my homework.|Can you see me?|
Who will win the election?|What is the population of {city}?|How tall is {p}?|What is the boiling point of {t2}?|What is the speed of light?|How far is the moon?|
How many {things} are in a {t}?|How many {an}s are in {c}?|What is the difference between a {an} and a {an2}?|What is the difference between {s} and {s2}?|Compare {s} with {s2}.|
Why do {an}s {v}?|Why do people {v}?|Can {an}s {v}?|Do you {v}?|Did {p} {v}?|When do {things} {v}?|Tell me why {an}s {v}.|What makes {things} {v}?"""
_VERBS = "sleep sing dance dream fly swim cry laugh lie fight jump grow burn melt fall float glow shine freeze bark sneeze yawn blush snore".split()
_THINGS = "flowers planets rivers bridges cars stones lamps clouds stars songs books trees bones doors coins boats leaves bells shoes chairs".split()


def templates() -> list[str]:
    return [t for t in _TEMPLATES.replace("\n", "").split("|") if t]


def question(rng: random.Random, pool: list[str]) -> str:
    fill = {
        "s": rng.choice(_SUBJECTS), "s2": rng.choice(_SUBJECTS), "c": rng.choice(_COUNTRIES), "p": rng.choice(_PEOPLE),
        "w": rng.choice(_WORKS), "a": rng.choice(_ACTS), "n": rng.randrange(1, 10 ** rng.choice((1, 2, 3))),
        "m": rng.randrange(1, 10 ** rng.choice((1, 2, 3))), "l": rng.choice(_LANGUAGES), "t": rng.choice(THINGS),
        "t2": rng.choice(THINGS), "city": rng.choice(PLACES), "city2": rng.choice(PLACES), "f": rng.choice(FOODS),
        "f2": rng.choice(FOODS), "an": rng.choice(ANIMALS), "an2": rng.choice(ANIMALS), "j": rng.choice(JOBS),
        "mo": rng.choice(MONTHS), "d": rng.randrange(1, 29), "y": rng.randrange(1200, 2030), "day": rng.choice(DAYS),
        "co": rng.choice(COLOURS), "co2": rng.choice(COLOURS), "v": rng.choice(_VERBS), "things": rng.choice(_THINGS),
        "x": made_up(rng, 2), "x2": made_up(rng, 2), "X": made_up(rng, 2).capitalize(),
    }  # fmt: skip
    return rng.choice(pool).format(**fill)
