"""griffe extension: this project's docstrings as Markdown.

Doctests become code blocks; parameters in two columns, and a class's settings written "name: meaning. name: meaning.",
become lists; comments ``#: …`` on the attributes of a class become its section "Attributes".
"""

from __future__ import annotations

import re
from typing import Any

import griffe

#: a doctest with its output: up to the next empty line
_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
#: "name, *name   meaning", with further lines of the meaning set in
_COLUMNS = re.compile(r"^([\w*][\w*., ]*?) {2,}(\S.*)$")
_DIRECTIVE = re.compile(r"\s*# doctest:.*")


def fenced(docstring: str) -> str:
    """Doctests in code blocks."""
    return _DOCTEST.sub(lambda found: f"```pycon\n{_DIRECTIVE.sub('', found[0])}\n```", docstring)


def listed(docstring: str) -> str:
    """Paragraphs in two columns as lists."""
    return "\n\n".join(_listed(paragraph) for paragraph in docstring.split("\n\n"))


def _listed(paragraph: str) -> str:
    items: list[str] = []
    for line in paragraph.splitlines():
        if entry := _COLUMNS.match(line):
            items.append(f"- `{entry[1]}`: {entry[2]}")
        elif items and line.startswith("    "):
            items.append(f"  {line.strip()}")
        else:
            return paragraph
    return "\n".join(items)


def settings(docstring: str, names: list[str]) -> str:
    """Paragraphs that go through attributes by name, as lists; what stands before the first name stays in front."""
    one = "|".join(names)
    entry = re.compile(rf"(?:^|(?<=[.;] ))((?:{one})(?:, (?:{one}))*)((?: \([^)]*\))?): ")
    paragraphs = []
    for paragraph in docstring.split("\n\n"):
        text = " ".join(paragraph.split())
        found = list(entry.finditer(text))
        if found and not paragraph.startswith("```"):
            ends = [match.start() for match in found[1:]] + [len(text)]
            items = [
                f"- `{match[1]}`{match[2]}: {text[match.end() : end].strip(' ;')}"
                for match, end in zip(found, ends, strict=True)
            ]
            head = text[: found[0].start()].strip()
            paragraph = (f"{head}\n\n" if head else "") + "\n".join(items)
        paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def comments(source: list[str], lines: dict[str, tuple[int, int]]) -> dict[str, str]:
    """What stands behind ``#:`` on an attribute's last line, or alone on the line before its first; by name.

    lines: name → first and last line, counted from 1.
    """
    found = {}
    for name, (first, last) in lines.items():
        for line, alone in ((source[last - 1], False), (source[first - 2], True)):
            code, marker, comment = line.partition("#:")
            if marker and not (alone and code.strip()):
                found[name] = comment.partition("# type:")[0].strip()
                break
    return found


class Docstrings(griffe.Extension):
    """Called by griffe while it reads the package."""

    def on_class_members(self, *, cls: griffe.Class, agent: Any, **_: Any) -> None:
        attributes = [m for m in cls.members.values() if isinstance(m, griffe.Attribute) and m.lineno and m.endlineno]
        found = comments(cls.lines_collection[cls.filepath], {m.name: (m.lineno, m.endlineno) for m in attributes})
        if cls.docstring is not None and attributes:
            cls.docstring.value = settings(cls.docstring.value, [member.name for member in attributes])
        if found:
            section = "Attributes:\n" + "\n".join(f"    {name}: {comment}" for name, comment in found.items())
            if cls.docstring is not None:
                cls.docstring.value += f"\n\n{section}"
            else:
                cls.docstring = griffe.Docstring(section, parent=cls, parser=agent.docstring_parser)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = listed(fenced(obj.docstring.value))
