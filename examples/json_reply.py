"""Sort letters: the reply to each is JSON of one form, whatever the model, so that a program can use it.

python examples/json_reply.py [MODEL [FOLDER]]     needs pip install 'mlxkv[schema]'
"""

import json
import re
import sys
from pathlib import Path

import mlxkv

FORM = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["question", "thanks", "complaint"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["kind", "stars"],
    "additionalProperties": False,
}


LETTERS = Path(__file__).with_name("letters")


def main(name: str = "tutor", folder: str | Path = LETTERS) -> None:
    model = mlxkv.load(name)
    for path in sorted(Path(folder).glob("*.txt")):
        chat = model.chat(system="Answer with JSON.", temperature=0, max_tokens=120)
        reply = chat.ask(path.read_text(encoding="utf-8"), schema=FORM)
        letter = json.loads(reply.text)  # it is cut only if `reply.finish_reason` is "length"
        code = model.generate(f"The code of {path.stem} is", schema=re.compile(" [A-Z]{2}-[0-9]{4}"), seed=1).text
        print(f"{path.name}: {letter['kind']}, {letter['stars']} of 5 stars, code{code}")


main(*sys.argv[1:])
