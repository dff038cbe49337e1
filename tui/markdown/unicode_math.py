r"""LaTeX formulas as Unicode text: Greek letters, operators, super- and subscripts, simple fractions and roots. Pure.

A formula is converted whole or not at all: anything without a Unicode form (a matrix, an unknown command) leaves it as
typed, so nothing is lost and `a/(b c)` never becomes `a/b c`. Spaces stay as typed. Own code, since the libraries for
this drop what they do not know and the brackets of fractions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache

_LONGEST = 2000  # characters of a formula
_DEEPEST = 16  # groups within groups
_DELIMITERS = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"))
_TOKEN = re.compile(r"\\[a-zA-Z]+\*?|\\\n|\\.|\s+|.", re.DOTALL)
_PROSE = re.compile(r"[\w,;:.!?'-]+(?: +[\w,;:.!?'-]+)+")
_ENVIRONMENTS = ("align", "aligned", "alignat", "gather", "gathered", "split", "equation")
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi "
    "psi omega"
)
_SYMBOLS = """
leq ≤ le ≤ geq ≥ ge ≥ neq ≠ ne ≠ approx ≈ equiv ≡ sim ∼ simeq ≃ cong ≅ propto ∝ ll ≪ gg ≫ prec ≺ succ ≻ doteq ≐
times × div ÷ cdot · ast ∗ star ⋆ circ ∘ bullet • pm ± mp ∓ oplus ⊕ ominus ⊖ otimes ⊗ odot ⊙ wedge ∧ land ∧ vee ∨
lor ∨ neg ¬ lnot ¬ setminus ∖ cap ∩ cup ∪ in ∈ notin ∉ ni ∋ subset ⊂ supset ⊃ subseteq ⊆ supseteq ⊇ emptyset ∅
varnothing ∅ forall ∀ exists ∃ nexists ∄ infty ∞ partial ∂ nabla ∇ sum ∑ prod ∏ int ∫ iint ∬ iiint ∭ oint ∮
bigcup ⋃ bigcap ⋂ bigoplus ⨁ bigotimes ⨂ to → rightarrow → leftarrow ← gets ← leftrightarrow ↔ Rightarrow ⇒
Leftarrow ⇐ Leftrightarrow ⇔ implies ⟹ iff ⟺ impliedby ⟸ mapsto ↦ longrightarrow ⟶ Longrightarrow ⟹ uparrow ↑
downarrow ↓ hookrightarrow ↪ rightleftharpoons ⇌ ldots … dots … cdots ⋯ vdots ⋮ ddots ⋱ prime ′ perp ⊥ bot ⊥ top ⊤
parallel ∥ mid | vert | lvert | rvert | Vert ‖ lVert ‖ rVert ‖ angle ∠ triangle △ langle ⟨ rangle ⟩ lfloor ⌊ rfloor ⌋
lceil ⌈ rceil ⌉ lbrace { rbrace } lbrack [ rbrack ] hbar ℏ ell ℓ Re ℜ Im ℑ aleph ℵ wp ℘ varepsilon ε vartheta ϑ varphi φ
varpi ϖ varrho ϱ varsigma ς therefore ∴ because ∵ vdash ⊢ models ⊨ degree ° dagger † checkmark ✓ square □ blacksquare ■
colon : coloneqq ≔ backslash \\ imath ı jmath ȷ
"""
_WORDS = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp lim limsup liminf max min sup inf arg "
    "argmax argmin det dim ker deg gcd hom Pr bmod mod"
)
_SPACES = {",": " ", ";": " ", ":": " ", ">": " ", " ": " ", "!": "", "quad": "   ", "qquad": "   ", "thinspace": " "}
_LITERAL = "{}$%&#_"
_IGNORED = (
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr middle displaystyle textstyle limits nolimits "
    "nonumber"
)
_PLAIN = "mathrm mathbf mathit mathsf mathtt boldsymbol bm operatorname operatorname* boxed mathop mathbin mathrel"
_TEXTS = "text textbf textit textrm texttt textsf mbox"
_ALPHABETS = {"mathbb": "DOUBLE-STRUCK", "mathcal": "SCRIPT", "mathscr": "SCRIPT", "mathfrak": "FRAKTUR"}
_ACCENTS = {
    "hat": "\u0302", "widehat": "\u0302", "bar": "\u0304", "overline": "\u0304", "vec": "\u20d7", "tilde": "\u0303",
    "widetilde": "\u0303", "dot": "\u0307", "ddot": "\u0308",
}  # fmt: skip
_ROOTS = {"": "√", "3": "∛", "4": "∜"}
_SCRIPTS = (  # where Unicode has super- and subscripts
    "\u00aa\u00b2\u00b3\u00b9\u00ba", (0x2B0, 0x2E5), (0x1D2C, 0x1D6B), (0x1D78, 0x1DC0), (0x2070, 0x20A0),
    (0x2C7C, 0x2C7E),
)  # fmt: skip
_PREFIX = re.compile("[∂∀∃¬][²³⁴ⁿ]?$")  # belongs to what follows
_OPERATOR = re.compile(r"[\s+*/=<>,;−±×÷·-]")


def unicode_math(formula: str) -> str | None:
    """`formula`, with its delimiters, as Unicode text; None if it has no such form or is no closed formula."""
    for opening, closing in _DELIMITERS:
        if formula.startswith(opening) and formula.endswith(closing) and len(formula) >= len(opening + closing):
            inner = formula[len(opening) : -len(closing)].strip()
            break
    else:
        return None
    if not inner or len(inner) > _LONGEST or (opening == "$" and _PROSE.fullmatch(inner)):
        return None
    try:
        text = _Reader(_TOKEN.findall(inner), opening in ("$$", "\\[")).all()
    except _NoFormError:
        return None
    lines = (re.sub(" {3,}", "  ", re.sub("(?<! )  (?! )", " ", line)).strip() for line in text.split("\n"))
    return "\n".join(filter(None, lines)) or None


class _NoFormError(Exception):
    """A part of a formula has no Unicode form."""


class _Reader:
    """Reads tokens from left to right. `is_display`: a formula of its own, which may have several lines."""

    def __init__(self, tokens: list[str], is_display: bool) -> None:
        self._tokens, self._at, self._is_display, self._depth = tokens, 0, is_display, 0

    def all(self) -> str:
        text = self._until("")
        if self._at < len(self._tokens):
            raise _NoFormError
        return text

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1] if self._at <= len(self._tokens) else ""

    def _until(self, end: str) -> str:
        out = ""
        while (token := self._peek()) != end:
            if not token or token == "}":
                raise _NoFormError
            part = self._script(self._next()) if token in "^_" else self._part()
            if part == " " and _PREFIX.search(out):
                continue
            is_word_here = token[1:] in _words() and token[0] == "\\"
            if part and out and out[-1].isalpha() and is_word_here:
                out += " "
            out += part
            if is_word_here and (self._peek()[:1].isalnum() or re.match(r"\\[a-zA-Z]", self._peek())):
                out += " "
        return out

    def _part(self) -> str:
        """The next character, command or group."""
        token = self._next()
        if token.isspace():
            return " "
        if token == "{":
            return self._group()
        if token[0] != "\\" or len(token) == 1:
            return {"": "", "'": "′", "~": " ", "&": ""}.get(token, token)
        name = token[1:]
        if name in _LITERAL:
            return name
        if name in _SPACES:
            return _SPACES[name]
        if name == "\\" and self._is_display:
            return "\n"
        return _symbols()[name] if name in _symbols() else self._command(name)

    def _command(self, name: str) -> str:
        if name in _words():
            return name.removesuffix("*")
        if name == "|":
            return "‖"
        if name in _IGNORED.split():
            if self._peek() == "." and name in ("left", "right"):
                self._next()
            return ""
        if name in _PLAIN.split():
            return self._argument()
        if name in _TEXTS.split():
            return self._raw()
        if name in _ALPHABETS:
            return "".join(_letter(_ALPHABETS[name], c) for c in self._argument())
        if name in _ACCENTS:
            base = self._argument()
            if len(base) != 1:
                raise _NoFormError
            return unicodedata.normalize("NFC", base + _ACCENTS[name])
        if name in ("frac", "dfrac", "tfrac"):
            above, below = self._argument(), self._argument()
            return f"{_bracketed(above, product=True)}/{_bracketed(below)}"
        if name == "sqrt":
            degree = self._optional()
            if degree not in _ROOTS:
                raise _NoFormError
            return f"{_ROOTS[degree]}{_bracketed(self._argument())}"
        if name == "tag":
            return f"  ({self._raw()})"
        if name in ("begin", "end") and self._is_display and self._raw().removesuffix("*") in _ENVIRONMENTS:
            return "\n"
        raise _NoFormError

    def _argument(self) -> str:
        while self._peek().isspace():
            self._next()
        if self._peek() in ("", "}", "^", "_"):
            raise _NoFormError
        return self._part().strip()

    def _group(self) -> str:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _NoFormError
        text = self._until("}")
        self._depth -= 1
        self._next()
        return text

    def _raw(self) -> str:
        """A group whose content is text."""
        if self._next() != "{":
            raise _NoFormError
        out = []
        while (token := self._next()) != "}":
            if not token or token == "{" or (token[0] == "\\" and token[1:] not in (*_LITERAL, " ", ",")):
                raise _NoFormError
            out.append(token.removeprefix("\\").replace(",", " ") if token[0] == "\\" else token)
        return "".join(out)

    def _optional(self) -> str:
        if self._peek() != "[":
            return ""
        self._next()
        out = ""
        while (token := self._next()) != "]":
            if not token or len(out) > 2:
                raise _NoFormError
            out += token
        return out

    def _script(self, sign: str) -> str:
        """A super- or subscript, of characters that have that form; else behind its sign."""
        text = self._argument()
        if sign == "^" and text in ("∘", "′", "*", "∗", "†"):
            return {"∘": "°", "∗": "*"}.get(text, text)
        table = _scripts("<super>" if sign == "^" else "<sub>")
        bare = "".join(text.split())
        if all(c in table for c in bare):
            return "".join(table[c] for c in bare)
        return f"{sign}{text}" if len(text) == 1 else f"{sign}({text})"


def _bracketed(text: str, *, product: bool = False) -> str:
    """`text` in brackets, unless it is one factor. `product`: several factors may do without."""
    if _factor().fullmatch(text):
        return text
    if product and not (_OPERATOR.search(text) or "(" in text or "^" in text):
        return text
    return f"({text})"


def _letter(alphabet: str, letter: str) -> str:
    """A letter of one of Unicode's mathematical alphabets."""
    case = "CAPITAL" if letter.isupper() else "SMALL"
    older = "BLACK-LETTER" if alphabet == "FRAKTUR" else alphabet
    for name in (f"{older} {case} {letter.upper()}", f"MATHEMATICAL {alphabet} {case} {letter.upper()}"):
        try:
            return unicodedata.lookup(name)
        except KeyError:
            continue
    raise _NoFormError


@lru_cache(1)
def _symbols() -> Mapping[str, str]:
    words = _SYMBOLS.split()
    table: dict[str, str] = dict(zip(words[::2], words[1::2], strict=True))
    for name in _GREEK.split():
        letter = "LAMDA" if name == "lambda" else name.upper()
        table[name] = unicodedata.lookup(f"GREEK SMALL LETTER {letter}")
        table[name.capitalize()] = unicodedata.lookup(f"GREEK CAPITAL LETTER {letter}")
    return table


@lru_cache(1)
def _words() -> frozenset[str]:
    return frozenset(_WORDS.split())


@lru_cache(2)
def _scripts(kind: str) -> Mapping[str, str]:
    """Characters with their super- or subscript form, from Unicode's own table."""
    signs, *ranges = _SCRIPTS
    table: dict[str, str] = {}
    for sign in [*signs, *(chr(code) for first, end in ranges for code in range(first, end))]:
        mark, _, code = unicodedata.decomposition(sign).partition(" ")
        if mark == kind and " " not in code:
            table.setdefault(chr(int(code, 16)), sign)
    return {**table, "-": table["\u2212"], "⊤": table.get("T", "⊤")} if "\u2212" in table else table


@lru_cache(1)
def _factor() -> re.Pattern[str]:
    """A number, a letter, a bracket or the root of one, with scripts; a call of a function; a partial derivative."""
    scripts = re.escape("".join([*_scripts("<super>").values(), *_scripts("<sub>").values(), "′", "°"]))
    scripted, base = f"[{scripts}]*", r"(?:\d+(?:\.\d+)?|[^\W\d_][\u0300-\u036f\u20d7]*|∞)"
    return re.compile(rf"(?:∂{scripted})?√?{base}{scripted}(?:\([^()]*\))?|√?\([^()]*\){scripted}")
