"""Formulas as MathML, made when the site is built: a reader needs neither a network nor a script to see them."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

#: what pymdownx.arithmatex makes of $…$ and $$…$$
_MARKED = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
#: a function's name, which browsers set without the thin space that TeX puts around it
_FUNCTION = re.compile(r"(<mi>(?:log|exp|ln|det|sup|inf)</mi>)(?!\s*<mo[^>]*>&#x00028;)")
_SPACE = '<mspace width="0.17em"></mspace>'


def mathml(page: str, name: str = "page") -> str:
    """``page`` (HTML) with every formula as MathML. Raises ValueError for LaTeX that cannot be converted."""

    def convert_one(found: re.Match[str]) -> str:
        source = html.unescape(found[2]).strip()
        if source[:2] not in (r"\(", r"\["):
            raise ValueError(f"{name}: {source!r} is not a formula as arithmatex marks it")
        try:
            made = convert(source[2:-2].strip(), display="block" if source.startswith(r"\[") else "inline")
        except Exception as error:
            raise ValueError(f"{name}: {source!r} cannot be converted: {type(error).__name__}: {error}") from error
        if re.search(r"<m(?:i|text|o)>\s*\\", made):
            raise ValueError(f"{name}: {source!r} holds a command that was not converted: {made}")
        made = _FUNCTION.sub(rf"{_SPACE}\1{_SPACE}", made)
        return f'<{found[1]} class="formula">{made}</{found[1]}>'

    return _MARKED.sub(convert_one, page)


def on_page_content(content: str, *, page: Any, **_: Any) -> str:
    """MkDocs calls this with a page's HTML."""
    return mathml(content, page.file.src_path)
