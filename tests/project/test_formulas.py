"""Formulas of the documentation are MathML when the site is built; a page takes nothing from the network."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType
from typing import Any

import pytest

from tests.project.code_blocks import ROOT

pytest.importorskip("latex2mathml", reason="the documentation's tools are not installed: pip install '.[docs]'")
arithmatex = pytest.importorskip("pymdownx.arithmatex")


def _hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("formulas", ROOT / "docs" / "hooks" / "formulas.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


formulas = _hook()


def rendered(text: str) -> str:
    import markdown

    extensions: list[Any] = ["tables", "pymdownx.arithmatex", "pymdownx.superfences"]
    options = {"pymdownx.arithmatex": {"generic": True}}
    return str(formulas.mathml(markdown.markdown(text, extensions=extensions, extension_configs=options)))


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.stem)
def test_no_latex_is_left_on_a_page(page: Any) -> None:
    text = page.read_text(encoding="utf-8")
    made = rendered(text)
    prose = re.sub(r"<(code|pre)\b.*?</\1>", "", made, flags=re.DOTALL)
    assert "arithmatex" not in prose and not re.search(r"\\[(\[]|\$\$|\\(?:frac|sum|alpha|pi)\b", prose)
    assert made.count("<math") == made.count("</math>")
    if page.stem == "mathematics":
        assert made.count('display="block"') >= 9 and made.count('display="inline"') > 50


def test_signs_that_html_escapes_are_converted() -> None:
    made = rendered("where $a < b \\& c$ and $\\log p$")
    assert "&#x0003C;" in made and "&amp;lt;" not in made and "<mspace" in made


def test_latex_that_cannot_be_converted_is_an_error_of_the_page() -> None:
    with pytest.raises(ValueError, match=r"page: .*nosuchcommand"):
        rendered("$\\nosuchcommand x$")


def test_the_site_asks_nothing_of_the_network() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "://" not in settings and "font: false" in settings
