"""What to say of a setting that is allowed and rarely meant. Pure; any thread."""

from __future__ import annotations

FEW_TOKENS, SMALL_WINDOW, SMALL_DISK = 16, 256, 0.1  # tokens, tokens, GB


def remark(name: str, value: object) -> str:
    """One sentence about `value` of the setting `name`; "" where there is nothing unusual about it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    match name:
        case "temperature" if value > 2:
            return "Above 2 replies are mostly random tokens; 0.6 to 1 is usual."
        case "top_p" if value == 0:
            return "0 turns this cut off, as 1 does; a small number such as 0.1 keeps the likeliest tokens."
        case "top_k" if value == 1:
            return "That always takes the likeliest token, as temp 0 does."
        case "min_p" if value == 1:
            return "That always takes the likeliest token, as temp 0 does."
        case "max_tokens" if value < FEW_TOKENS:
            return "Replies are cut after a few words; /continue lets one grow."
        case "window" if value < SMALL_WINDOW:
            last = "token" if value == 1 else f"{value:,} tokens"
            return f"The model attends only the last {last} and the pinned ones; 2,048 or more is usual."
        case "sinks" if value == 0:
            return (
                "With nothing pinned the system prompt is evicted too, and replies get worse once the window is full."
            )
        case "disk_limit" if value < SMALL_DISK:
            return "Next to no KV cache is kept on disk: a chat is prefilled again when it is resumed."
    return ""
