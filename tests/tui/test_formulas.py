"""Formulas are shown in Unicode or as they were typed, whole or half, and nothing else is taken for one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxkv.tui.markdown.block_renderer import Colours, Renderer
from mlxkv.tui.markdown.formulas import OPEN
from mlxkv.tui.markdown.renderer import Lines, make_parser
from mlxkv.tui.markdown.stream_splitter import Splitter, split
from mlxkv.tui.markdown.unicode_math import unicode_math
from mlxkv.tui.state.transcript.blocks import Block
from mlxkv.tui.widgets.copying import message_text

FORMULAS = [
    r"\(a^2\)", r"\( a_1 + b_1 \, c \; d \! e \)", r"\[ \frac{a}{b} \{x\} \\ y \s \]", "$x*y*z$", "$a_1 + b_1$",
    r"$\{a\}\_b \$c$", "$$x*y*z$$", r"$$a \\ b \s$$", r"\(\text{a *b* c}\)", r"\(x \[y\] z\)", r"\(f(\(x\)", r"\(`a`\)",
    "$<b>&amp;$", r"$2x*y*z = 3 \sin x$", "$x$", "$(x*y)^2*z$", "${x*y}*z$", "$[0, 1]*z$", "$$ x*y = z*w $$",
]  # fmt: skip


def shown(blocks: list[Block], width: int = 100) -> list[str]:
    """Lines with ink, without our margin."""
    renderer = Renderer(Colours())
    return [strip.text.strip() for block in blocks for strip in renderer.strips(block, width) if strip.text.strip()]


def ink(text: str) -> str:
    return "".join(text.split())


@pytest.mark.slow
@pytest.mark.parametrize("formula", FORMULAS)
def test_nothing_in_a_formula_is_markdown(formula: str) -> None:
    r"""`\(` lost its backslash, `\,` and `\{` too, and `x*y*z` its stars."""
    form = unicode_math(formula) or formula
    for before, after in (("", ""), ("so ", ", then *z*"), ("(", ")"), ("**b** ", " is it")):
        (line,) = shown(split(f"{before}{formula}{after}"))
        assert line == f"{before.replace('**', '')}{form}{after.replace('*', '')}"
    for source, line in (
        (f"# {formula}", form), (f"- {formula}", f"• {form}"), (f"> {formula}", f"▌ {form}"),
        (f"**is {formula}**", f"is {form}"), (f"[a {formula}](x)", f"a {form} (x)"),
    ):  # fmt: skip
        assert shown(split(source)) == [line]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (r"\*not bold\* and \_this\_ \\ \# \{", r"*not bold* and _this_ \ # {"),
        ("$5 and *$6*", "$5 and $6"),
        ("costs $5, *or* $6.50 or 7$", "costs $5, or $6.50 or 7$"),
        ("US$5*2*3$", "US$523$"),
        ("set $HOME and *use* $PATH", "set $HOME and use $PATH"),
        ("($HOME) *or* ($PATH)", "($HOME) or ($PATH)"),
        (r"\$5 *or* 6$", "$5 or 6$"),
        ("$ a *b* $", "$ a b $"),
        (r"`\(a\)` and ``$x*y*z$``", r"\(a\) and $x*y*z$"),
        ("a$b*c*d$e", "a$bcd$e"),
        ("$a$*b*$", "ab$"),
        ("$a$b *C*=${PATH}", "$a$b C=${PATH}"),  # was a formula up to the brace
        ("$a$b`C`=${PATH}", "$a$bC=${PATH}"),
        ("${PATH} *or* ${HOME}", "${PATH} or ${HOME}"),
        ("${A}*b*${C}:$(*pwd*)", "${A}b${C}:$(pwd)"),
        ("$HOME/*x*/$USER", "$HOME/x/$USER"),
        ("PATH=$HOME/*bin*:$PATH;x=$(ls)", "PATH=$HOME/bin:$PATH;x=$(ls)"),
        ("$a `b$` *c*", "$a b$ c"),
        ("from $5 *to* $6, or 7 $ *a* b$", "from $5 to $6, or 7 $ a b$"),
        ("$5/*month*, $6", "$5/month, $6"),
        ("it is $$ *and* not $$", "it is $$ and not $$"),
    ],
)
def test_what_is_no_formula(source: str, line: str) -> None:
    assert shown(split(source)) == [line]


def test_a_formula_of_many_lines_is_no_list_and_no_heading() -> None:
    source = "So:\n\\[\n\\a\n- b\n+ c\n= d\n=\n# e \\\\\n> f\n\\]\nwith *x*\n\n1. $$\n   \\a\n   - y\n   $$"
    assert shown(split(source)) == [
        "So:", r"\[", r"\a", "- b", "+ c", "= d", "=", r"# e \\", "> f", r"\]", "with x", "1. $$", r"\a", "- y", "$$",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (r"\alpha^2 + \beta_{ij} \leq \Omega", "α² + βᵢⱼ ≤ Ω"),
        (r"\frac{x+1}{2y} = \frac{a}{b c} - \frac12", "(x+1)/(2y) = a/(b c) - 1/2"),
        (r"\sum_{i=1}^{n} x_i \to \int_0^\infty e^{-x}\,dx", "∑ᵢ₌₁ⁿ xᵢ → ∫₀^∞ e⁻ˣ dx"),
        (r"\mathrm{softmax}\left(\frac{QK^\top}{\sqrt{d_k}}\right)V", "softmax(QKᵀ/√dₖ)V"),
        (r"\frac{\partial^2 u}{\partial x^2}", "∂²u/∂x²"),
        (r"O(n \log n), \sin\theta, 90^\circ, f'(x), 5\%", "O(n log n), sin θ, 90°, f′(x), 5%"),
        (r"\hat{y} \in \mathbb{R}^n, \text{if } x_\text{max} > 0", "ŷ ∈ ℝⁿ, if xₘₐₓ > 0"),
        (r"e^{-\frac{(x-\mu)^2}{2\sigma^2}}", "e^(-(x-μ)²/(2σ²))"),
        (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", None),
        (r"\unknown{x}", None), ("x^", None), ("{a", None), ("a}", None), (r"\frac{a}", None), (r"a \\ b", None),
        ("{" * 99 + "x" + "}" * 99, None), ("x" * 3000, None), ("the price", None), ("", None),
    ],
)  # fmt: skip
def test_what_has_a_unicode_form_is_shown_in_it(formula: str, text: str | None) -> None:
    assert unicode_math(f"${formula}$") == text


def test_the_source_of_a_formula_is_copied() -> None:
    source = "so\n\\[\n\\begin{aligned} a &= b \\\\ &= c \\end{aligned}\n\\]\nand $x_1$"
    blocks = split(source)
    assert shown(blocks) == ["so", "a = b", "= c", "and x₁"]
    assert message_text(blocks) == source


def test_a_formula_that_was_cut_keeps_what_there_is() -> None:
    assert shown(split(r"so \(a_1 \, x*y*z \{")) == [r"so \(a_1 \, x*y*z \{"]
    assert shown(split("so\n\\[\n- a \\,")) == ["so", r"\[", r"- a \,"]
    assert shown(split("$$\n- a\n\n*b*")) == ["$$", "- a", "b"]


STREAM = (  # with a command that has no Unicode form
    "so \\(a_1 + x*y*z \\, b \\s\\) and $x*y*z \\; w \\s$ then\n\\[\n- a_1 \\\\\n+ \\{b*c*d\\} \\s\n\\]\n"
    "or $$x*y*z \\s$$ end\n\n$$\n= e_1 \\! f \\s\n$$\n"
)


@pytest.mark.slow
def test_half_a_formula_neither_loses_characters_nor_flickers() -> None:
    for end in range(len(STREAM) + 1):
        splitter = Splitter()
        blocks = splitter.feed(STREAM[:end]) + splitter.preview()
        if not STREAM[:end].endswith(("\n-", "\n+", "\n=", "\n- ", "\n+ ", "\n= ")):  # may be a list: waits for more
            assert ink("".join(shown(blocks, 200))) == ink(STREAM[:end]), STREAM[:end]


PIECES = st.sampled_from(
    ["\\[", "\\]", "$$", "x \\\\", "+ b", "- a", "= c", "", "text", "\\[a*b*c\\]", "$$ a_1", "so $x*y$ and *z*",
     "\\(a*b*c\\)", "**b \\(a*", "costs $5", "- $y$ *b*", "# $$z", "> q"]
)  # fmt: skip


@pytest.mark.slow
@given(st.lists(PIECES, max_size=12).map("\n".join))
def test_blocks_one_by_one_show_what_the_whole_does(source: str) -> None:
    colours = Colours()
    renderer = Renderer(colours)
    whole = Lines(source, make_parser(), renderer._styles).lines(100)
    expected = [line for segments, _ in whole if (line := "".join(s.text for s in segments).strip())]
    got = [ink(line) for line in shown(split(source), 120)]
    assert got == [ink(line) for line in expected]


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["$a ", "\\(", "[\\(", "$$x$a", "$5 or ", "a$ ", "\\)", "$$", "\\[ "])
def test_twice_as_much_takes_twice_as_long(piece: str) -> None:
    """However hostile: no sign looks for its end through the whole text by itself."""

    def cost(count: int) -> float:
        def once() -> float:
            begun = time.process_time()
            make_parser().parse(piece * count, {OPEN: False})
            return time.process_time() - begun

        return min(once() for _ in range(3))

    assert cost(8000) < 10 * cost(2000) + 0.01
