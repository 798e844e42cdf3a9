"""Bits do not change by accident: a fixed set of runs on the toy, token by token and move by move.

Only what every machine draws alike enters (tokens and decisions; log-probabilities differ in their last bits between
vector instruction sets). A change that is meant, a new default say, is written down by
``python -m tests.exact.test_golden``, and its commit says why.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from fastpower import generate, make_sampler
from fastpower.samplers import METHODS
from tests.evaluate.toys import toy_model

FILE = Path(__file__).with_name("golden.json")
STAGED: dict[str, Any] = {"moves": 3, "block": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "low_temperature": {},
    "best_of_n": {"n": 3},
    "smc": {"particles": 5, "block": 3, "ramp": 4, "islands": 2},
    "pimh": {"particles": 4, "block": 3, "moves": 3},
    "csmc": {"particles": 4, "block": 3, "moves": 3},
    "sps": {"block": 4, "candidates": 4, "keep": 2, "rollouts": 2, "lookahead": 3},
    "apps": {"particles": 4, "block": 3, "rollouts": 2, "lookahead": 3},
    "marginal": {"delimiter": "1", "particles": 4, "block": 2},
}
#: exponents, where not those on both sides of 1: so many traces
ALPHAS = {"marginal": (2.0, 3.0)}


#: settings that were once the default, and what they drew
BEFORE: dict[str, dict[str, Any]] = {"egps": STAGED | {"window": 0, "neighbourhood": 0}}
DREW = {"egps": "9e5ad9a567871b4e"}


def digest(method: str, settings: dict[str, Any] | None = None) -> str:
    """Of prompts that share a name, two seeds, and exponents on both sides of 1 where there are such."""
    settings = SETTINGS.get(method, STAGED) if settings is None else settings
    facts = []
    for alpha, seed in zip(ALPHAS.get(method, (2.5, 0.7)), (4, 2**63), strict=True):
        sampler = make_sampler(method, alpha=alpha, max_new_tokens=11, **settings)
        results = generate(toy_model(), ["1 2", "3", [1, 2]], sampler, seed=seed, chains=3)
        facts += [[r.id, r.token_ids, r.ended, [event.get("accepted") for event in r.trace]] for r in results]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()


@pytest.mark.parametrize("method", METHODS)
def test_a_sampler_draws_what_it_always_drew(method: str) -> None:
    assert digest(method) == json.loads(FILE.read_text())[method]


@pytest.mark.parametrize("method", BEFORE)
def test_with_the_settings_of_before_it_draws_what_it_drew_before(method: str) -> None:
    assert digest(method, BEFORE[method]) == DREW[method]


if __name__ == "__main__":
    FILE.write_text(json.dumps({method: digest(method) for method in METHODS}, indent=2) + "\n")
