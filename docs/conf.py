"""The documentation site: `make docs` builds it into build/site, and fails on any warning.

Owns the order of the pages and what turns Markdown that GitHub shows as well into pages of the site: links that leave
docs/, pictures for light and dark pages, Mermaid diagrams. The pages themselves are plain Markdown. No page loads
anything from another host.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import mlxkv  # noqa: E402

URLS = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
REPOSITORY = URLS["Repository"]

project = "mlxkv"
author = "the mlxkv maintainers"
release = version = mlxkv.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "diagrams"]
html_theme = "furo"
html_title = f"mlxkv {release}"
html_baseurl = URLS["Documentation"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}
highlight_language = "none"

myst_heading_anchors = 4
myst_fence_as_directive = ["mermaid"]

# A single backtick in a docstring is a name: a link if the reference has it, else code.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:class", r"tuple\[.*"),  # the type of an attribute, cut at its comma
    ("py:class", r"(collections|datetime|os|threading|pathlib)\..*"),  # Python's own, which is not linked
    (
        "py:class",
        r"(mlxkv\.token_ids\.)?(PromptIds|IdArray)|mlxkv\.(config|models(\.\w+)+|store\.session_store|store\.records|cache\.planning\.plan)\.\w+",
    ),  # no part of the API
    (
        "py:class",
        r"Folders|LoadProgress|Hub|Prompt|Normalize|_Opening|(mlxkv\.engine\.open_async\.async_model\.)?R",
    ),  # the same, short
]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# The sidebar. A page that is not here fails the build.
NAVIGATION = {
    "": ["get-started", "chat", "prompt-caches", "batches", "scripting", "python", "server", "distributed", "models"],
    "How it works": ["how-it-works", "files", "security"],
    "Look things up": ["api", "settings", "troubleshooting", "glossary"],
    "For developers": ["architecture", "session-format", "positions"],
}


def _links_that_leave(text: str) -> str:
    """`../CHANGELOG.md` of a page is a file of the repository, which the site links on its host."""
    return re.sub(r"\]\(\.\./([^)#]+)", rf"]({REPOSITORY}/blob/main/\1", text)


_PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="([^"]+)">\s*'
    r'<img alt="([^"]*)" src="([^"]+)">\s*</picture>'
)


def _pictures(text: str) -> str:
    """A `<picture>` becomes two images; the theme shows the one for the page's colours."""

    def images(match: re.Match[str]) -> str:
        dark, alt, light = match.groups()
        kinds = (("only-light", light), ("only-dark", dark))
        return "\n".join(f"```{{image}} {path}\n:alt: {alt}\n:class: {kind}\n```\n" for kind, path in kinds)

    return _PICTURE.sub(images, text)


def _toctrees() -> str:
    blocks = [
        "\n".join(["```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else []), "", *pages, "```", ""])
        for caption, pages in NAVIGATION.items()
    ]
    return "\n\n" + "\n".join(blocks)


def prepare(app: Any, page: str, source: list[str]) -> None:
    """Turn the Markdown of a page into the site's."""
    text = re.sub(r"<!--.*?-->", "", source[0], flags=re.DOTALL)
    source[0] = _pictures(_links_that_leave(text)) + (_toctrees() if page == "index" else "")


def setup(app: Any) -> None:
    app.connect("source-read", prepare)
