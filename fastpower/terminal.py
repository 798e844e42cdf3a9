"""What standard output and standard error are: a terminal or not, and which characters they take."""

from __future__ import annotations

import codecs
import json
import os
import re
import select
import sys
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

#: what could move the cursor, retitle the window, answer for the keyboard or turn text around; not tab and newline
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def on_terminal() -> bool:
    """Whether stderr is a terminal, and so whether a bar may be drawn there; everything that draws one asks here."""
    return _is_terminal(sys.stderr)


def shown(text: str, stream: IO[str] | None = None) -> str:
    r"""``text`` as it may be written to ``stream`` (default: stdout).

    On a terminal, control characters are written as escapes (ESC as ``\x1b``): text of a model, or of a file, must not
    command the reader's terminal. Elsewhere the text stays as it is, for programs that read it.
    """
    if not _is_terminal(sys.stdout if stream is None else stream):
        return text
    return escaped(text)


def escaped(text: str) -> str:
    r"""``text`` with its control characters as Python escapes; line ends of every kind become ``\n``."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r\n", "\n"))


def json_line(value: Any) -> str:
    """``value`` as one line of JSON that stdout can encode: in ASCII, unless stdout is UTF-8."""
    return json.dumps(value, ensure_ascii=not _is_utf8(sys.stdout))


def write_what_cannot_be_encoded_as_escapes() -> None:
    """From now on a character that stdout's encoding lacks is written as an escape: no answer is lost for its sake."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # None: closed, or replaced by whoever calls us
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def flush_stdout() -> None:
    """Write what is buffered now, where a full disk or a closed pipe can still be reported.

    Raises:
        OSError: It cannot be written.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def console(width: int) -> Console:
    """A rich console on stdout; ``width`` columns where that is no terminal."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise  # as print does, rather than end the process

    return Output() if _is_terminal(sys.stdout) else Output(width=width)


def nobody_reads_stdout() -> bool:
    """Whether whoever read our output has gone (``fastpower … | head``)."""
    try:
        waiting = select.poll()
        waiting.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in waiting.poll(0))
    except (OSError, ValueError, AttributeError):  # closed, or replaced by whoever calls us
        return False


def give_stdout_up() -> None:
    """Let the rest go nowhere: the interpreter would try to write it once more when it exits, and complain."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        return


def _is_terminal(stream: IO[str] | None) -> bool:
    return bool(getattr(stream, "isatty", lambda: False)())


def _is_utf8(stream: IO[str] | None) -> bool:
    try:
        return codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name == "utf-8"
    except LookupError:
        return False
