"""griffe extension: comments ``#: …`` on the attributes of a class become the section "Attributes" of its docstring."""

from __future__ import annotations

from typing import Any

import griffe


class AttributeComments(griffe.Extension):
    """A comment stands behind its attribute, or on the line before it."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        lines = cls.lines_collection[cls.filepath]
        found = {}
        for name, member in cls.members.items():
            if isinstance(member, griffe.Attribute) and member.lineno is not None and member.endlineno is not None:
                for line in (lines[member.endlineno - 1], lines[member.lineno - 2]):
                    code, marker, comment = line.partition("#:")
                    if marker and (line is not lines[member.lineno - 2] or not code.strip()):
                        found[name] = comment.partition("# type:")[0].strip()
                        break
        if found:
            text = cls.docstring.value if cls.docstring is not None else ""
            text += "\n\nAttributes:\n" + "\n".join(f"    {name}: {comment}" for name, comment in found.items())
            cls.docstring = griffe.Docstring(text, parent=cls, lineno=cls.docstring and cls.docstring.lineno)
