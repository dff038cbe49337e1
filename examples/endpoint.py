"""Ask a running `mlxkv serve` by OpenAI's client, and see that a conversation is not prefilled twice.

Set OPENAI_BASE_URL=http://127.0.0.1:8321/v1 and OPENAI_API_KEY=any, then:
python examples/endpoint.py [MODEL [QUESTION ...]]
"""

import sys

import openai
from openai.types.chat import ChatCompletionMessageParam

client = openai.OpenAI()
messages: list[ChatCompletionMessageParam] = []
model = sys.argv[1] if len(sys.argv) > 1 else client.models.list().data[0].id
for question in sys.argv[2:] or ("What is a KV cache?", "What is a sink token?"):
    messages.append({"role": "user", "content": question})
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=40, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    text = ""
    for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        if usage := chunk.usage:  # of the last one
            cached = usage.model_dump()["prompt_tokens_details"]["cached_tokens"]
            print(f"{usage.prompt_tokens - cached:>3} prefilled + {cached} cached  {question}\n    {text}")
    messages.append({"role": "assistant", "content": text})
