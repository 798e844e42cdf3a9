"""Results for other tools: a pandas table, and Markov chains as ArviZ takes them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from fastpower.errors import FastpowerError
from fastpower.interfaces import require
from fastpower.results.traces import moves_of

if TYPE_CHECKING:
    from fastpower.results.result import Result


def to_pandas(results: Sequence[Result]) -> Any:
    """See ``Results.to_pandas``."""
    try:
        import pandas
    except ImportError:
        raise FastpowerError("to_pandas needs pandas: `pip install '.[arviz]'` in fastpower's checkout") from None
    from fastpower.results.result import Result

    return pandas.DataFrame([result.to_dict() for result in results], columns=[field.name for field in fields(Result)])


def to_arviz(results: Sequence[Result]) -> Any:
    """See ``Results.to_arviz``."""
    try:
        import arviz
    except ImportError:
        raise FastpowerError("to_arviz needs ArviZ: `pip install '.[arviz]'` in fastpower's checkout") from None
    prompts = _by_prompt(results)
    first = results[0]
    moves = [[_final_moves(result) for result in chains] for chains in prompts.values()]
    draws = {len(chain) for chains in moves for chain in chains}
    if len(draws) > 1:
        raise ValueError(
            f"chains made between {min(draws)} and {max(draws)} moves at the full horizon, and all must make as many: "
            "leave out those with complete = False"
        )

    def gather(value: Any) -> np.ndarray[Any, Any]:
        array = np.array([[[value(move) for move in chain] for chain in chains] for chains in moves])
        return array[0] if len(prompts) == 1 else array.transpose(1, 2, 0)  # (chain, draw) or (chain, draw, prompt)

    posterior = {"logp": gather(lambda m: float(m["logp"])), "length": gather(lambda m: int(m["length"]))}
    statistics = {
        "lp": first.alpha * posterior["logp"],
        "accepted": gather(lambda m: bool(m["accepted"])),
    }
    if all("cut" in move for chains in moves for chain in chains for move in chain):
        statistics["cut"] = gather(lambda m: -1 if m["cut"] is None else int(m["cut"]))
    groups = {"posterior": posterior, "sample_stats": statistics}
    several = len(prompts) > 1
    options: dict[str, Any] = {
        "coords": {"chain": [result.chain for result in next(iter(prompts.values()))]}
        | ({"prompt": list(prompts)} if several else {}),
        "dims": {name: ["prompt"] for group in groups.values() for name in group} if several else {},
    }
    # ArviZ 1 takes the groups in one dictionary and returns an xarray DataTree, earlier versions took them as keywords
    from_dict = require(arviz, "from_dict", "arviz")
    keywords = "posterior" in inspect.signature(from_dict).parameters
    data = from_dict(**groups, **options) if keywords else from_dict(groups, **options)
    facts = {"sampler": first.method, "alpha": first.alpha, "max_new_tokens": first.max_new_tokens, "seed": first.seed}
    data["posterior"].attrs.update(facts | {"inference_library": "fastpower"})
    return data


def _by_prompt(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Chains of every prompt.

    Raises:
        ValueError: They are not chains of one sampler, as many for every prompt.
    """
    if not results:
        raise ValueError("to_arviz needs at least one result")
    prompts: dict[str, list[Result]] = {}
    for result in results:
        prompts.setdefault(result.prompt_id, []).append(result)
    for name in ("method", "alpha", "max_new_tokens"):
        values = list(dict.fromkeys(getattr(result, name) for result in results))
        if len(values) > 1:
            raise ValueError(
                f"to_arviz takes results of one sampler; these have {name} = {', '.join(map(str, values))}"
            )
    chains = {prompt: [result.chain for result in group] for prompt, group in prompts.items()}
    if len(set(map(tuple, chains.values()))) > 1:
        raise ValueError(f"every prompt must have the same chains, got {chains}")
    if len(set(chains[results[0].prompt_id])) < len(chains[results[0].prompt_id]):
        raise ValueError(f"chain numbers repeat, got {chains}: results of several runs cannot be told apart")
    return prompts


def _final_moves(result: Result) -> list[dict[str, Any]]:
    """The moves whose target is the power distribution itself; those at shorter horizons are a warm-up."""
    moves = moves_of(result.to_dict())
    if not moves:
        raise ValueError(
            f"method {result.method!r} makes no moves, so there is no Markov chain to analyse; see result.trace"
        )
    return [move for move in moves if move.get("horizon", result.max_new_tokens) == result.max_new_tokens]
