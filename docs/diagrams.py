"""Mermaid diagrams as pictures, drawn when the site is built: one for light pages, one for dark ones.

So a page loads no script from another host. GitHub draws the same blocks itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import mmdr
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

# By the class that the theme shows: Mermaid's theme, and the colour of furo's page, on which labels cover lines.
_THEMES = {"only-light": ("neutral", "#ffffff"), "only-dark": ("dark", "#131416")}


class Mermaid(SphinxDirective):
    """A fenced block `mermaid`."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        code = "\n".join(self.content)
        return [self._picture(code, kind, *theme) for kind, theme in _THEMES.items()]

    def _picture(self, code: str, kind: str, theme: str, page: str) -> nodes.image:
        look = {"theme": theme, "themeVariables": {"edgeLabelBackground": page}}
        try:
            svg = mmdr.render(f"%%{{init: {json.dumps(look)}}}%%\n{code}").svg()
        except Exception as error:  # whatever the renderer raises is about the diagram
            raise self.error(f"The diagram cannot be drawn: {error}") from error
        name = f"diagram-{hashlib.sha256(svg.encode()).hexdigest()[:12]}.svg"
        folder = Path(self.env.app.doctreedir) / "diagrams"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(svg, encoding="utf-8")
        title = next((line[len("%% ") :] for line in code.splitlines() if line.startswith("%% ")), "Diagram")
        uri = os.path.relpath(folder / name, Path(self.env.doc2path(self.env.docname)).parent)
        return nodes.image(uri=uri, alt=title, classes=[kind, "diagram"])


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("mermaid", Mermaid)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
