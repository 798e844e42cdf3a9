"""``fastpower sample``: answers to prompts."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from fastpower.commands.configuration import add_config
from fastpower.commands.options import add_model_arguments, add_sampler_arguments, load_from, sampler_from
from fastpower.errors import Interrupted

if TYPE_CHECKING:
    from fastpower.results import Result

EPILOG = """\
examples:
  fastpower sample "What is 17 * 24?"                         exact Metropolis-Hastings, alpha = 4
  fastpower sample "..." --method plain                       the model itself
  fastpower sample "..." "..." --chains 4 --json > out.jsonl  one JSON object per answer
  echo "..." | fastpower sample -                             the prompt from standard input

An answer depends on the model, the prompt, the seed and the chain number only, not on what is sampled beside it.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "sample",
        help="answer prompts",
        description="Draw answers from p(x)^alpha of a language model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="text; - reads one prompt from standard input")
    parser.add_argument("--chains", type=int, default=1, help="independent answers per prompt (default 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object per answer on standard output")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_sampler_arguments(parser)
    add_model_arguments(parser)
    parser.set_defaults(run=run)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    from fastpower.generation import generate

    prompts = [sys.stdin.read().strip() if prompt == "-" else prompt for prompt in args.prompts]
    sampler = sampler_from(args)  # before the model: bad settings should not wait for it
    if any(not prompt for prompt in prompts):
        raise ValueError("a PROMPT is empty: give at least one character")
    model = load_from(args)
    try:
        results = generate(
            model,
            prompts,
            sampler,
            seed=args.seed,
            chains=args.chains,
            max_rows=args.max_rows,
            progress=not args.quiet,
        )
    except Interrupted as stop:
        _print(stop.results, args.json)
        raise
    except Exception as error:
        _print(getattr(error, "results", ()), args.json)
        raise
    _print(results, args.json)
    return 0


def _print(results: object, as_json: bool) -> None:
    for result in results:  # type: ignore[attr-defined]
        print(json.dumps(result.to_dict(), ensure_ascii=False) if as_json else _text(result))
    sys.stdout.flush()


def _text(result: Result) -> str:
    facts = [f"{result.method}, alpha {result.alpha:g}, seed {result.seed}", f"log p {result.logp:.2f}"]
    if "initial_logp" in result.diagnostics:
        facts[-1] += f" (before the last stage's moves {result.diagnostics['initial_logp']:.2f})"
    if result.acceptance is not None:
        facts.append(f"acceptance {result.acceptance:.2f} of {result.moves} moves")
    facts.append(f"{len(result.token_ids)} tokens kept, {result.decoded_tokens} decoded")
    facts.append(f"{result.seconds:.1f} s")
    if not result.ended:
        facts.append("cut off at the horizon")
    if not result.complete:
        facts.append("interrupted")
    return f"{result.text.strip()}\n  [{'; '.join(facts)}]\n"
