"""``fastpower sample``: answers to prompts."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastpower.commands.configuration import add_config
from fastpower.commands.options import (
    add_model_arguments,
    add_preset,
    add_sampler_arguments,
    load_from,
    model_facts,
    sampler_from,
)
from fastpower.commands.prompt_files import Asked, read_prompts, with_prefill, with_system
from fastpower.errors import Interrupted
from fastpower.terminal import json_line, shown

if TYPE_CHECKING:
    from fastpower.chains.job import Job
    from fastpower.language_model import LanguageModel
    from fastpower.results import Result

EPILOG = """\
examples:
  fastpower sample "What is 17 * 24?"                         exact Metropolis-Hastings, alpha = 4
  fastpower sample "..." --method plain                       the model itself
  fastpower sample "..." "..." --chains 4 --json > out.jsonl  one JSON object per answer
  echo "..." | fastpower sample -                             the prompt from standard input
  fastpower sample --prompts prompts.jsonl --out answers.jsonl  a file; the same command goes on where it stopped
  fastpower sample "..." --system "Be brief." --prefill "The answer is"
  fastpower sample "..." --preset karan-du                    a paper's settings

A line of --prompts is text, or {"prompt": text} or {"messages": [...]}, with "id" and "system" if you like. Answers
appear as they finish. An answer depends on the model, the prompt, the seed and the chain number only, not on what is
sampled beside it.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "sample",
        help="answer prompts",
        description="Draw answers from p(x)^alpha of a language model.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("texts", nargs="*", metavar="PROMPT", help="text; - reads one prompt from standard input")
    parser.add_argument("--prompts", metavar="FILE", help="prompts, one a line, text or JSON; - is standard input")
    parser.add_argument("--system", metavar="TEXT", help="a system message before every prompt")
    parser.add_argument("--prefill", metavar="TEXT", help="how every answer begins")
    parser.add_argument("--chains", type=int, default=1, help="independent answers per prompt (default 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object per answer on standard output")
    parser.add_argument("--out", metavar="FILE", help="write answers as JSON lines, and go on with what is there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_sampler_arguments(parser)
    add_model_arguments(parser)
    parser.set_defaults(run=run)
    add_preset(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    from fastpower.commands.answers_file import AnswersFile

    asked = asked_for(args)
    sampler = sampler_from(args)  # before the model: bad settings should not wait for it
    settings = {
        "model": model_facts(args),
        "sampler": repr(sampler),
        "seed": args.seed,
    }
    with AnswersFile(args.out, settings) if args.out else contextlib.nullcontext() as out:
        model = load_from(args)
        jobs = jobs_of(model, asked, sampler, args)
        if out is not None:
            jobs = [job for job in jobs if job.id not in out.done]
        several = args.prompts is not None or len(asked) * args.chains > 1
        show = _Show(as_json=args.json, silent=args.out is not None and not args.json, names=several)
        try:
            _draw(model, jobs, show, out, args)
        except Interrupted as stop:
            for result in stop.results:
                if not result.complete:
                    show(result)
            raise
    return 0


def asked_for(args: argparse.Namespace) -> list[Asked]:
    """The prompts of the command line and of its file, with system message and prefill.

    Raises:
        ValueError: There is none, or an empty one.
    """
    asked = [Asked(sys.stdin.read().strip() if text == "-" else text) for text in args.texts]
    if any(not item.prompt for item in asked):
        raise ValueError("a PROMPT is empty: give at least one character")
    if args.prompts is not None:
        asked += read_prompts(args.prompts)
    if not asked:
        raise ValueError("no prompt: give one as an argument, or a file of them with --prompts FILE")
    if args.system is not None:
        asked = [Asked(with_system(item.prompt, args.system), item.name) for item in asked]
    if args.prefill is not None:
        asked = [Asked(with_prefill(item.prompt, args.prefill), item.name) for item in asked]
    return asked


def jobs_of(model: LanguageModel, asked: Sequence[Asked], sampler: Any, args: argparse.Namespace) -> list[Job]:
    """One job per prompt and chain; prompts without a name are named by their tokens."""
    from fastpower.chains.job import prompt_id
    from fastpower.generation import plan

    names = [prompt_id(model.tokens(item.prompt)) if item.name is None else item.name for item in asked]
    prompts = [item.prompt for item in asked]
    return plan(model, prompts, sampler, seed=args.seed, chains=args.chains, prompt_ids=names)


def _draw(model: LanguageModel, jobs: Sequence[Job], show: _Show, out: Any, args: argparse.Namespace) -> None:
    from fastpower.generation import run_jobs

    for _, result in run_jobs(model, jobs, max_rows=args.max_rows, progress=not args.quiet):
        if out is not None:
            out.append(result.to_dict())
        show(result)


class _Show:
    """Answers on standard output, as they finish."""

    def __init__(self, *, as_json: bool, silent: bool, names: bool) -> None:
        self.as_json, self.silent, self.names = as_json, silent, names

    def __call__(self, result: Result) -> None:
        if self.silent:
            return
        if self.as_json:
            print(json_line(result.to_dict()), flush=True)
        else:
            print(shown((f"{result.id}:\n" if self.names else "") + _text(result)), flush=True)


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
