"""Compare ways of sampling a reply; the question is prefilled once. Typed: pyright or mypy finds a misspelt parameter.

python examples/compare.py [MODEL [QUESTION]]
"""

import sys

import mlxkv

WAYS: dict[str, mlxkv.Sampling] = {
    "the likeliest": {"temperature": 0, "max_tokens": 16},
    "one of three": {"temperature": 1, "top_k": 3, "seed": 1, "max_tokens": 16},
    "no repetition": {"temperature": 0, "repetition_penalty": 1.5, "max_tokens": 16},
}


def compare(chat: mlxkv.Chat, question: str) -> None:
    for name, sampling in WAYS.items():
        for event in chat.retry(**sampling) if chat.messages else chat.send(question, **sampling):
            if isinstance(event, mlxkv.TurnFinished):
                print(f"{name}: {event.text}\n    {event.stats}")


def main(name: str = "tutor", question: str = "What is a KV cache?") -> None:
    with mlxkv.load(name) as model:  # at its end the chat is closed and the weights are freed
        chat = model.chat()
        compare(chat, question)
        print(model, chat)


main(*sys.argv[1:])
