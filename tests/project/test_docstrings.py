"""Docstrings are plain Google style, which griffe reads for the reference.

Ruff keeps their layout (pydocstyle, convention "google"); here is what it does not look at.
"""

from __future__ import annotations

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "fastpower"
SECTION = re.compile(r"^(Args|Attributes|Examples|Raises|Returns|Warning|Yields):$", re.MULTILINE)

#: what stood in docstrings once, in front of their sections
PROSE = {
    "an error belongs into Raises": re.compile(r"\b[Rr]aises? (?:``)?[A-Z]\w+"),
    "an example belongs into Examples": re.compile(r"^ *>>> ", re.MULTILINE),
    "names in a column belong into Args or Attributes": re.compile(r"^[\w*][\w*., ]*? {2,}\S", re.MULTILINE),
}


def docstrings(source: str) -> Iterator[tuple[ast.AST, str]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text is not None:
                yield node, text


def names(node: ast.AST) -> set[str]:
    """Parameters of a function; of a class those of its ``__init__``, and its annotated attributes."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        a = node.args
        return {x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x is not None} - {"self"}
    found: set[str] = set()
    for child in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            found.add(child.target.id)
        elif isinstance(child, ast.FunctionDef) and child.name == "__init__":
            found |= names(child)
    return found


def complaints(source: str) -> list[str]:
    found = []
    for node, text in docstrings(source):
        head = SECTION.split(text)[0]
        wrong = [what for what, sign in PROSE.items() if sign.search(head)]
        known = names(node)
        if known:
            entry = rf"(?:^|[.;] )(?:``)?(?:{'|'.join(map(re.escape, sorted(known)))})(?:``)?(?:, \w+)*: "
            if re.search(entry, head, re.MULTILINE):
                wrong.append("the meaning of a name belongs into Args or Attributes")
        found += [f"{getattr(node, 'name', 'module')}: {what}" for what in wrong]
    return found


@pytest.mark.parametrize("wing", sorted({p.relative_to(PACKAGE).parts[0] for p in PACKAGE.rglob("*.py")}))
def test_docstrings_say_in_sections_what_sections_are_for(wing: str) -> None:
    files = [PACKAGE / wing] if wing.endswith(".py") else sorted((PACKAGE / wing).rglob("*.py"))
    wrong = {str(f.relative_to(PACKAGE)): c for f in files if (c := complaints(f.read_text(encoding="utf-8")))}
    assert not wrong


@pytest.mark.parametrize(
    ("docstring", "complaint"),
    [
        ("Does it.\n\n    Raises ValueError for less.", "Raises"),
        ("Does it.\n\n    >>> f(1)\n    1", "Examples"),
        ("Does it.\n\n    x     what it takes\n    more  of it", "column"),
        ("Does it. x: what it takes.", "meaning"),
        ("x: what it takes.", "meaning"),
        ("Does it.\n\n    Args:\n        x: What it takes.\n\n    Raises:\n        ValueError: For less.", ""),
        ("Does it: x, and nothing else.", ""),
    ],
)
def test_what_is_no_section_is_seen(docstring: str, complaint: str) -> None:
    found = complaints(f'def f(x: int) -> None:\n    """{docstring}"""')
    assert len(found) == bool(complaint) and all(complaint in text for text in found)


def test_the_reference_s_reader_understands_every_docstring(caplog: pytest.LogCaptureFixture) -> None:
    griffe = pytest.importorskip("griffe", reason="the documentation's tools are not installed: pip install '.[docs]'")
    pytest.importorskip("griffe_sphinx")
    with caplog.at_level(logging.WARNING):
        package = griffe.load(
            "fastpower",
            search_paths=[PACKAGE.parent],
            allow_inspection=False,
            extensions=griffe.load_extensions("griffe_sphinx"),
            docstring_parser="google",
            docstring_options={"returns_multiple_items": False, "returns_named_value": False},
        )
        sections = [section.kind.value for found in _objects(package) for section in found.docstring.parsed]
    assert not [record.getMessage() for record in caplog.records]
    assert {"parameters", "returns", "raises", "attributes", "examples"} <= set(sections)
    logp = package["kernels.sampling.TokenSamples.logp"]
    assert logp.docstring.value.startswith("(D,) float32")  # from the comment behind it


def _objects(parent: object) -> Iterator[object]:
    if parent.docstring is not None:  # type: ignore[attr-defined]
        yield parent
    for member in parent.members.values():  # type: ignore[attr-defined]
        if not member.is_alias:
            yield from _objects(member)
