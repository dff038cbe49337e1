"""Ask four questions at once, with asyncio, while another task reads a story; then cancel that, and chat.

python examples/four_questions.py [MODEL [QUESTION ...]]
"""

import asyncio
import sys

import mlxkv

QUESTIONS = ("What is a KV cache?", "What is 7 plus 5?", "What are sinks?", "What is decode?")


async def story(model: mlxkv.AsyncModel, begun: asyncio.Event) -> None:
    async for event in model.stream("Once upon a time", max_tokens=100_000):
        if isinstance(event, mlxkv.TextDelta):
            begun.set()


async def answer(model: mlxkv.AsyncModel, question: str) -> None:
    reply = await model.generate([{"role": "user", "content": question}], max_tokens=60, temperature=0)
    print(f"{question}\n    {reply.text}\n    [{len(reply.tokens)} tokens, batched: {reply.stats.batched}]", flush=True)


async def main(name: str = "tutor", *asked: str) -> None:
    async with mlxkv.open_async(name) as model:
        begun = asyncio.Event()
        endless = asyncio.create_task(story(model, begun))
        await begun.wait()
        await asyncio.gather(*(answer(model, question) for question in asked or QUESTIONS))
        endless.cancel()
        chat = model.chat("You are terse.", temperature=0, max_tokens=40)
        print((await chat.ask("My name is Ada.")).text)
        print((await chat.ask("What is my name?")).text, f"[{chat.stats.cached_tokens} cached]")


asyncio.run(main(*sys.argv[1:]))
