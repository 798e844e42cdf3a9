"""Programs in replies: a chat model writes prose, fences and a function; a base model goes on where the prompt ends.

Fences are read as CommonMark reads them (any info string, backticks or tildes, any line ends, inside lists), and code
without fences is the longest run of lines that Python can parse.
"""

from __future__ import annotations

import ast
import re
import textwrap

from markdown_it import MarkdownIt

#: What ends a base model's continuation of the function body (Chen et al. 2021, section 2).
_STOPS = re.compile(r"\n(?:class |def |#|@|if |print\(|```|~~~)")
_BEGINS = re.compile(r"(?:def|class|import|from|async|@|[A-Za-z_][\w.]*\s*[:=])")
_MOST_LINES = 400  #: of a reply without fences that are searched for code
#: A program is no script: what stands under ``if __name__ == "__main__":`` (reading input, mostly) is not for tests.
_NAMED = 'import sys as _sys\n__name__ = "solution"\n_sys.modules[__name__] = _sys.modules["__main__"]\n'


def fences(text: str) -> list[str]:
    """Contents of the code blocks of a reply, in order; the last may be open to the end."""
    found = []
    for token in MarkdownIt("commonmark").parse(text.replace("\r\n", "\n").replace("\r", "\n")):
        if token.type == "fence":  # a document in a fence has fences of its own
            inner = fences(token.content) if token.info.strip().lower() in ("md", "markdown") else []
            found += inner or [textwrap.dedent(token.content)]
    return found


def _code_blocks(text: str) -> list[str]:
    """Contents of what stands indented, CommonMark's older way to show code."""
    return [token.content for token in MarkdownIt("commonmark").parse(text) if token.type == "code_block"]


def _cleaned(text: str) -> str:
    """A reply with plain line ends, without byte order marks, spaces of no width, and what it thought before it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "").replace("\u200b", "")
    return text.rpartition("</think>")[2] if "</think>" in text else text


def _python(code: str) -> str:
    """Code without what is none, if Python cannot read it otherwise: no-break spaces, commands of notebooks."""
    if _compiles(code):
        return code
    plain = re.sub(r"^\s*[%!]\s*\w.*$", "", code.replace("\u00a0", " "), flags=re.MULTILINE)
    return plain if _compiles(plain) else code


def solution(prompt: str, entry_point: str, text: str) -> str:
    """The program that a reply stands for.

    Args:
        prompt: The function's head and docstring, with imports and helpers before it.
        entry_point: The function's name.
        text: The reply.

    Returns:
        The last code block that defines the function (as a method of a class, too), with the prompt's imports and
        helpers before it; else code of that kind among the prose; else the prompt and the reply as its continuation.
    """
    text = _cleaned(text)
    blocks = [_python(block) for block in fences(text)]
    candidates = [block for block in blocks if _defines(block, entry_point)]
    if not candidates and (found := _among_prose(text, entry_point)):
        candidates = [found]
    if not candidates:
        candidates = [code for code in _code_blocks(text) if _defines(code, entry_point) and _compiles(code)]
    if candidates:
        return _complete(_before(prompt, entry_point), candidates[-1], entry_point)
    bodies = []
    for body in (*reversed(blocks), text):
        end = _STOPS.search(body)
        body = _indented(prompt, body[: end.start()] if end else body)
        bodies.append(body if _compiles(prompt + body) else body.expandtabs(4))  # tabs behind the prompt's spaces
    fitting = [body for body in bodies if body.strip() and _compiles(prompt + body)]
    return _together([prompt + (fitting or bodies)[0]])


def runnable(program: str) -> str:
    """The program under a name other than ``__main__``; its ``from __future__`` imports come first, as they must."""
    return _together([_NAMED, program])


def _together(parts: list[str]) -> str:
    """Parts one after the other, with the ``from __future__`` imports of all before them."""
    future: list[str] = []
    rest = []
    for part in parts:
        lines = part.split("\n")
        taken = [line for line in lines if re.match(r"from\s+__future__\s+import\b", line)]
        future += [line for line in taken if line not in future]
        rest.append("\n".join(line for line in lines if line not in taken))
    return "\n".join([*future, *rest])


def _complete(head: str, code: str, entry_point: str) -> str:
    parts = [head.rstrip() + "\n", code]
    owner = _owner(code, entry_point)
    if owner is not None:
        parts.append(f"{entry_point} = {owner}().{entry_point}\n")
    return _together(parts)


def _before(prompt: str, entry_point: str) -> str:
    match = _definition(entry_point).search(prompt)
    return prompt[: match.start()] if match else ""


def _definition(entry_point: str) -> re.Pattern[str]:
    return re.compile(rf"^[ \t]*(?:async\s+)?def\s+{re.escape(entry_point)}\b", re.MULTILINE)


def _defines(code: str, entry_point: str) -> bool:
    return bool(_definition(entry_point).search(code)) or bool(
        re.search(rf"^{re.escape(entry_point)}\s*(?::[^=\n]+)?=(?!=)", code, re.MULTILINE)
    )


def _owner(code: str, entry_point: str) -> str | None:
    """The class whose method the function is, where it is nowhere else."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    if any(isinstance(node, functions) and node.name == entry_point for node in tree.body):
        return None
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in classes:
        if any(isinstance(item, functions) and item.name == entry_point for item in node.body):
            return node.name
    return None


def _among_prose(text: str, entry_point: str) -> str | None:
    """The longest run of lines that parses and defines the function, in a reply without fences around it."""
    if not _defines(text, entry_point):
        return None
    lines = textwrap.dedent(text).split("\n")[:_MOST_LINES]
    for first in range(len(lines)):
        if not _BEGINS.match(lines[first]):
            continue
        last = len(lines)
        while last > first:
            code = "\n".join(lines[first:last])
            try:
                ast.parse(code)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                wrong = getattr(error, "lineno", None)
                # what is wrong at a line stays so with more lines behind it: go on before that line
                last = min(last - 1, first + wrong - 1) if isinstance(wrong, int) and wrong > 1 else last - 1
                continue
            if _defines(code, entry_point):
                return code
            break
    return None


def _indented(prompt: str, body: str) -> str:
    """A body as it continues the prompt: written without its indentation, it gets the function's."""
    first = next((line for line in body.split("\n") if line.strip()), "")
    if first[:1].isspace():
        return body
    deeper = "\n" + textwrap.indent(textwrap.dedent(body.lstrip("\n")), "    ")
    return deeper if _compiles(prompt + deeper) else body


def _compiles(program: str) -> bool:
    try:
        compile(program, "program", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
