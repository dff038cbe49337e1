"""A model that calls functions. It needs one whose chat template takes tools, such as Qwen3; others answer without.

python examples/tools.py [MODEL [QUESTION]]
"""

import sys
from datetime import date

import mlxkv


def days_until(day: str) -> int:
    """Count the days from today to a date.

    Args:
        day: the date, as 2027-01-31.
    """
    return (date.fromisoformat(day) - date.today()).days


def main(name: str = "tutor", question: str = "How many days are left until 2030-01-01?") -> None:
    model = mlxkv.load(name)
    tools = [days_until] if model.can_call_tools else []
    print(f"{model.name} calls {', '.join(tool.__name__ for tool in tools) or 'no tools'}")
    chat = model.chat(tools=tools, max_tokens=200, temperature=0)
    answer = chat.ask(question)
    while answer.tool_calls:
        for call in answer.tool_calls:
            result = chat.call_tool(call)
            print(f"{call.name}({call.arguments}) = {result}")
            chat.add("tool", result, tool_call_id=call.id)
        answer = chat.ask()
    print(answer.text)


main(*sys.argv[1:])
