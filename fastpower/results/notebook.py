"""How answers look in a notebook: HTML without scripts or files, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from fastpower.terminal import escaped

if TYPE_CHECKING:
    from fastpower.results.result import Result

TOKENS = 1500  #: tokens of an answer that are shown
ROWS = 100  #: answers of a table that are shown
BRIEF = 160  #: characters of an answer in a table
_HEAT = "217, 119, 6"  # of the ground behind a token; its opacity says how uncertain the model was
_COLUMNS = ("prompt", "chain", "method", "answer", "log p", "tokens", "decoded", "accepted", "")


def result_html(result: Result) -> str:
    """One answer: its facts, and its tokens on a ground that is darker where the entropy is higher.

    A token's tip says its position, entropy and log-probability in nats.
    """
    facts = " · ".join(_facts(result))
    shown = _texts(result)[:TOKENS]
    tokens = "".join(_token(result, i, text) for i, text in enumerate(shown))
    more = len(result.token_ids) - len(shown)
    rest = f"<i> … {more} more tokens</i>" if more else ""
    return (
        f'<div><div style="opacity: 0.75">{escape(facts)}</div>'
        f'<div style="white-space: pre-wrap; overflow-wrap: anywhere; margin-top: 0.4em">{tokens}{rest}</div></div>'
    )


def results_html(results: Sequence[Result]) -> str:
    """A table with a row per answer, the text behind a fold."""
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    rows = "".join(_row(result) for result in results[:ROWS])
    rest = f"<div>… {len(results) - ROWS} more answers</div>" if len(results) > ROWS else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{rest}"


def _facts(result: Result) -> list[str]:
    facts = [
        result.id,
        f"alpha {result.alpha:g}",
        f"log p {result.logp:.2f}",
        f"{len(result.token_ids)} tokens, {result.decoded_tokens} decoded",
    ]
    if result.acceptance is not None:
        facts.append(f"{result.accepted} of {result.moves} moves accepted")
    return [*facts, f"{result.seconds:.1f} s", *_notes(result)]


def _notes(result: Result) -> list[str]:
    """What a reader must not overlook."""
    notes = [] if result.ended else ["cut off at the horizon"]
    if not result.complete:
        notes.append("interrupted")
    return notes if result.exact else [*notes, "approximate method"]


def _prompt(result: Result) -> str:
    """The prompt's own words, if it was given as text; else its name."""
    return _brief(result.prompt, 60) if isinstance(result.prompt, str) else result.prompt_id


def _brief(text: str, longest: int) -> str:
    words = " ".join(_visible(text).split())
    return words if len(words) <= longest else words[: longest - 1] + "…"


def _row(result: Result) -> str:
    brief = escape(_brief(result.text or " ".join(map(str, result.token_ids)), BRIEF))
    answer = f'<td style="text-align: left"><details><summary>{brief}</summary>{result_html(result)}</details></td>'
    accepted = "" if result.acceptance is None else f"{result.accepted}/{result.moves}"
    cells = [
        *(f"<td>{escape(str(cell))}</td>" for cell in (_prompt(result), result.chain, result.method)),
        answer,
        *(
            f"<td>{cell}</td>"
            for cell in (f"{result.logp:.2f}", len(result.token_ids), result.decoded_tokens, accepted)
        ),
        f"<td>{escape(', '.join(_notes(result)))}</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _texts(result: Result) -> list[str]:
    """Of every token; its id where the model has no tokenizer."""
    known = result.text and len(result.token_text) == len(result.token_ids)
    return result.token_text if known else [f"[{token}]" for token in result.token_ids]


def _visible(text: str) -> str:
    """Line ends and tabs stay, other control characters become escapes."""
    return "\n".join("\t".join(map(escaped, line.split("\t"))) for line in text.split("\n"))


def _token(result: Result, i: int, text: str) -> str:
    entropy = result.entropy[i]
    tip = f"token {i}: entropy {entropy:.2f}, log p {result.token_logp[i]:.2f}"
    style = f"background: rgba({_HEAT}, {min(0.8, entropy / 4):.2f})"
    return f'<span title="{tip}" style="{style}">{escape(_visible(text))}</span>'
