"""``fastpower compare``: several methods side by side on the same prompts."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastpower.commands.configuration import add_config
from fastpower.commands.options import add_model_arguments, add_sampler_arguments, load_from
from fastpower.terminal import console, json_line, shown

if TYPE_CHECKING:
    from fastpower.results import Result

EPILOG = """\
examples:
  fastpower compare "What is 17 * 24?" --methods plain,low_temperature,mh
  fastpower compare "..." "..." --methods "mh,ec_mh,smc(particles=16)" --chains 4 --json > out.jsonl
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="several methods on the same prompts",
        description="Answer the same prompts with several methods: answers, and a table of log p, tokens and time.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="text; - reads one prompt from standard input")
    parser.add_argument(
        "--methods", default="plain,low_temperature,mh", help='names with settings: "plain,mh(moves=4)"'
    )
    parser.add_argument("--chains", type=int, default=1, help="independent answers per prompt and method (default 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object per answer on standard output")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_sampler_arguments(parser, method=False)
    add_model_arguments(parser)
    parser.set_defaults(run=run)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    from fastpower.generation import generate
    from fastpower.samplers.methods import parse_methods

    prompts = [sys.stdin.read().strip() if prompt == "-" else prompt for prompt in args.prompts]
    if any(not prompt for prompt in prompts):
        raise ValueError("a PROMPT is empty: give at least one character")
    shared = {"block": args.block, "moves": args.moves}
    samplers = {m.label: m.sampler(args.alpha, args.max_new_tokens, shared) for m in parse_methods(args.methods)}
    model = load_from(args)
    table: dict[str, tuple[Sequence[Result], float]] = {}
    for label, sampler in samplers.items():
        start = time.perf_counter()
        results = generate(
            model,
            prompts,
            sampler,
            seed=args.seed,
            chains=args.chains,
            stop=args.stop,
            max_rows=args.max_rows,
            progress=not args.quiet,
        )
        table[label] = (results, time.perf_counter() - start)
        if args.json:
            for result in results:
                print(json_line(result.to_dict() | {"method": label}), flush=True)
    if not args.json:
        show(prompts, table, args.chains)
    return 0


def show(prompts: Sequence[str], table: dict[str, tuple[Sequence[Result], float]], chains: int) -> None:
    """Answers by prompt, then one row per method."""
    import numpy as np
    from rich.markup import escape
    from rich.table import Table

    out = console(120)
    for i, prompt in enumerate(prompts):
        title = prompt if len(prompt) < 80 else prompt[:77] + "…"
        out.rule(escape(shown(title)), align="left")
        for label, (results, _) in table.items():
            for result in results[i * chains : (i + 1) * chains]:
                out.print(f"\n[bold]{escape(label)}[/bold]  log p {result.logp:.2f}", highlight=False)
                out.print(shown(result.text.strip()), markup=False, highlight=False)
        out.print()
    columns: dict[str, Any] = {
        "log p": lambda rs, s: f"{np.mean([r.logp for r in rs]):.2f}",
        "tokens": lambda rs, s: f"{np.mean([len(r.token_ids) for r in rs]):.0f}",
        "decoded": lambda rs, s: f"{np.mean([r.decoded_tokens for r in rs]):.0f}",
        "accept.": lambda rs, s: f"{np.mean(a):.2f}" if (a := [r.acceptance for r in rs if r.moves]) else "–",
        "wall s": lambda rs, s: f"{s:.1f}",
        "tok/s": lambda rs, s: f"{sum(r.decoded_tokens for r in rs) / s:.0f}",
        "law": lambda rs, s: "exact" if all(r.exact for r in rs) else "not p^alpha",
    }
    summary = Table("method", *columns, title="means per answer; wall clock of all of them", title_justify="left")
    for label, (results, seconds) in table.items():
        summary.add_row(escape(label), *(form(results, seconds) for form in columns.values()))
    out.print(summary)
