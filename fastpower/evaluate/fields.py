"""What the fields of a run folder's lines may hold. A file may have been edited or damaged since it was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Check = Callable[[Any], bool]


def number(value: Any) -> bool:
    """A finite number that a float holds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300  # NaN fails, too


def count(value: Any) -> bool:
    """A whole number from 0 on that 63 bits hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def whole(value: Any) -> bool:
    """A whole number that 64 bits hold."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is(*kinds: type) -> Check:
    return lambda value: isinstance(value, kinds)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _amount(value: Any) -> bool:
    return number(value) and value >= 0


def _share(value: Any) -> bool:
    return number(value) and 0 <= value <= 1


text, flag = _is(str), _is(bool)

#: field → (what it must be, check); a trace's events and the diagnostics have tables of their own
_RECORD: Mapping[str, tuple[str, Check]] = {
    **dict.fromkeys(("id", "prompt_id", "method", "text", "task", "problem", "question", "note"), ("text", text)),
    **dict.fromkeys(("ended", "exact", "complete", "correct"), ("true or false", flag)),
    **dict.fromkeys(("chain", "moves", "accepted", "decoded_tokens", "max_new_tokens"), ("a count", count)),
    **dict.fromkeys(("forwards", "prefill_tokens", "seconds", "finished"), ("a number from 0 on", _amount)),
    "seed": ("a whole number", whole),
    "alpha": ("a number above 0", lambda value: number(value) and value > 0),
    "logp": ("a finite number", number),
    "acceptance": ("a number from 0 to 1, or null", _or_none(_share)),
    "answer": ("text or null", _or_none(text)),
    "token_ids": ("a list of token ids", _list_of(count)),
    "token_text": ("a list of texts", _list_of(text)),
    **dict.fromkeys(("token_logp", "token_logz"), ("a list of numbers", _list_of(_or_none(number)))),
    "entropy": ("a list of numbers", _list_of(_or_none(number))),
    "trace": ("a list of objects", _list_of(_is(dict))),
    "diagnostics": ("an object", _is(dict)),
    "savings": ("an object", _is(dict)),
}
_EVENT: Mapping[str, tuple[str, Check]] = {
    **dict.fromkeys(("length", "stage", "horizon", "rung", "position"), ("a count", count)),
    "cut": ("a count or null", _or_none(count)),
    "accepted": ("true, false or null", _or_none(lambda value: isinstance(value, bool) or count(value))),
    "logp": ("a finite number", number),
    "ess": ("a number from 0 on, or null", _or_none(_amount)),
    "resampled": ("true or false", flag),
    "ancestors": ("a list of places in itself", lambda value: value is None or _places(value)),
}
_DIAGNOSTICS: Mapping[str, tuple[str, Check]] = {
    "particles": ("a count", count),
    "particle": ("a count or null", _or_none(count)),
}
_CONFIG: Mapping[str, tuple[str, Check]] = {
    "task": ("text", text),
    **dict.fromkeys(("problems", "chains", "max_new_tokens"), ("a count", count)),
    "alpha": ("a number above 0", lambda value: number(value) and value > 0),
    "seed": ("a whole number", whole),
    "match_best_of_n": ("true or false", flag),
    "methods": ("a list", _is(list)),
}
#: what every answer has, for readers that need whole ones
_NEEDED = (
    *("prompt_id", "chain", "method", "problem", "correct", "token_ids"),
    *("logp", "token_logp", "entropy", "ended", "decoded_tokens"),
)
_PER_TOKEN = ("token_logp", "token_logz", "entropy", "token_text")


def _places(value: Any) -> bool:
    return isinstance(value, list) and all(count(place) and place < len(value) for place in value)


def problem_of_record(row: Mapping[str, Any], *, whole_answer: bool = False) -> str | None:
    """What is wrong with a line of records or timings, naming the field; None if nothing is.

    Args:
        row: The line.
        whole_answer: Fields that every answer has must be there.
    """
    missing = [name for name in ("id", *(_NEEDED if whole_answer else ())) if name not in row]
    if missing:
        return f"field {missing[0]!r} is missing"
    problem = _first_problem(row, _RECORD) or _first_problem(row.get("diagnostics", {}), _DIAGNOSTICS, "diagnostics.")
    if problem is not None:
        return problem
    for name in _PER_TOKEN:
        if name in row and "token_ids" in row and len(row[name]) != len(row["token_ids"]):
            return f"field {name!r} has {len(row[name])} entries for {len(row['token_ids'])} tokens"
    return _problem_of_trace(row)


def _problem_of_trace(row: Mapping[str, Any]) -> str | None:
    particles = None
    for i, event in enumerate(row.get("trace", ())):
        problem = _first_problem(event, _EVENT, f"trace[{i}].")
        if problem is not None:
            return problem
        if event.get("accepted") is not None and "logp" in event and "length" not in event:
            return f"field 'trace[{i}].length' is missing"
        if event.get("ancestors"):
            particles = particles or len(event["ancestors"])
            if len(event["ancestors"]) != particles:
                return f"field 'trace[{i}].ancestors' has {len(event['ancestors'])} entries, an earlier one {particles}"
    chosen = row.get("diagnostics", {}).get("particle")
    if chosen is not None and particles is not None and chosen >= particles:
        return f"field 'diagnostics.particle' = {chosen} is none of {particles} particles"
    return None


def problem_of_config(config: Any) -> str | None:
    """What is wrong with the settings of a run folder, naming the field; None if nothing is."""
    return _first_problem(config, _CONFIG, "config.") if isinstance(config, Mapping) else "'config' is no object"


def _first_problem(row: Mapping[str, Any], table: Mapping[str, tuple[str, Check]], prefix: str = "") -> str | None:
    for name, (kind, check) in table.items():
        if name in row and not check(row[name]):
            return f"field {prefix + name!r} = {_short(row[name])} must be {kind}"
    return None


def _short(value: Any) -> str:
    said = "a huge number" if isinstance(value, int) and abs(value) >= 2**70 else repr(value)
    return said if len(said) <= 60 else said[:57] + "..."
