r"""LaTeX in questions and answers as MathML, which browsers set without a script or a network.

Text from models and data files passes through here: of what the converter makes, only MathML elements and a few
harmless attributes are kept; whatever else it holds (``\text{<script>…}`` comes through as an element, ``\href`` as
a link) leaves the formula as it was written.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html import escape

from markupsafe import Markup

#: $$…$$, \[…\], \(…\) and $…$; a single dollar opens before and closes after something, and no digit follows it: prices
_MARKED = re.compile(
    r"\$\$(?P<a>[^$].{0,2000}?)\$\$|\\\[(?P<b>.{1,2000}?)\\\]|\\\((?P<c>.{1,2000}?)\\\)|"
    r"(?<![\\$])\$(?P<d>[^\s$](?:[^$\n]*[^\s$\\])?)\$(?!\d)",
    re.DOTALL,
)
LONGEST = 2000  #: characters of a formula; a longer one stays as it is
_ELEMENTS = {
    "math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "ms", "mfrac", "msqrt", "mroot", "mstyle", "mpadded",
    "mphantom", "msub", "msup", "msubsup", "munder", "mover", "munderover", "mmultiscripts", "mprescripts",
    "mtable", "mtr", "mtd", "menclose",
}  # fmt: skip
_ATTRIBUTES = {
    "display", "stretchy", "fence", "form", "separator", "columnalign", "columnlines", "rowlines",
    "columnspacing", "rowspacing", "width", "height", "depth", "lspace", "rspace", "accent", "linethickness",
    "mathvariant", "movablelimits", "displaystyle", "scriptlevel", "minsize", "maxsize", "notation", "symmetric",
    "largeop",
}  # fmt: skip


def mathml(latex: str, *, display: bool = False) -> Markup | None:
    """``latex`` as one ``<math>`` element; None where it cannot be converted whole, or without latex2mathml."""
    if len(latex) > LONGEST:
        return None
    try:
        from latex2mathml.converter import convert

        tree = ElementTree.fromstring(convert(latex, display="block" if display else "inline"))
        return Markup(_serialised(tree))
    except Exception:  # of many kinds, for LaTeX of any kind
        return None


def _serialised(element: ElementTree.Element) -> str:
    name = element.tag.rpartition("}")[2]
    if name not in _ELEMENTS:
        raise ValueError(f"{name!r} is no element of a formula")
    if (element.text or "").strip().startswith("\\"):
        raise ValueError(f"{element.text!r} was not converted")
    attributes = "".join(f' {k}="{escape(v)}"' for k, v in element.attrib.items() if k in _ATTRIBUTES)
    if set(element.attrib) & {"href", "src"}:
        raise ValueError("a formula links to nothing")
    content = escape(element.text or "") + "".join(_serialised(e) + escape(e.tail or "") for e in element)
    return f"<{name}{attributes}>{content}</{name}>"


def typeset(text: str) -> Markup:
    """``text``, escaped, with its marked formulas as MathML."""
    parts, end = [], 0
    for found in _MARKED.finditer(text):
        display = found["a"] is not None or found["b"] is not None
        made = mathml(next(part for part in found.groups() if part is not None), display=display)
        if made is not None:
            parts += [escape(text[end : found.start()]), made]
            end = found.end()
    return Markup("".join([*parts, escape(text[end:])]))


def typeset_answer(text: str) -> Markup:
    r"""A short answer: bare LaTeX such as ``\frac{1}{2}`` is a formula also without dollars."""
    bare = re.search(r"\\[a-zA-Z]{2,}", text) and not re.search(r"[\n\"'$]", text)
    return (mathml(text) if bare else None) or typeset(text)
