"""``fastpower advise``: would p^alpha help on this task, at which alpha, and what would each sampler cost?"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastpower.commands.configuration import add_config
from fastpower.commands.options import add_model_arguments, load_from, model_facts
from fastpower.terminal import console, json_line

if TYPE_CHECKING:
    from fastpower.evaluate.advice import Prediction

EPILOG = """\
examples:
  fastpower advise --task arithmetic --n 20 --pool 16
  fastpower advise --task gsm8k --data gsm8k.jsonl --model model.gguf --dtype bfloat16 --alphas 1.5,2,4
  fastpower advise --task arithmetic --n 20 --pool 16 --costs mh,smc   and what these cost, on two problems

Draws a pool per problem, half from the model and half at temperature 1/alpha, and reweights it: for every alpha the
accuracy that p^alpha would have, and the effective number of answers behind it (ESS). No figure where fewer than half
of the problems have 3 effective answers; where that is so at --alpha, a short smc(particles=16) is measured instead.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "advise",
        help="whether to sharpen at all, before paying for it",
        description="Predict from cheap pools what p^alpha would do on a task.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", help="as in fastpower eval")
    parser.add_argument("--data", metavar="PATH", help="the task's problems")
    parser.add_argument("--task-options", metavar="K=V,…", help="options of the task")
    parser.add_argument("--n", type=int, default=20, metavar="N", help="problems (default 20)")
    parser.add_argument("--pool", type=int, default=16, metavar="M", help="answers per problem (default 16)")
    parser.add_argument("--alpha", type=float, default=4.0, help="exponent of the cooler half (default 4)")
    parser.add_argument("--alphas", default="1,1.5,2,3,4", help="exponents asked about (default 1,1.5,2,3,4)")
    parser.add_argument("--no-smc", action="store_true", help="measure nothing where the pools cannot tell")
    parser.add_argument("--costs", metavar="METHODS", help="also measure these on two problems: mh,smc(particles=16)")
    parser.add_argument("--max-new-tokens", type=int, metavar="T", help="horizon (default: the task's)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same pools (default 0)")
    parser.add_argument("--out", metavar="RUN", help="keep the pools as a run folder, and go on from it")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    add_model_arguments(parser)
    parser.set_defaults(run=run)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    from fastpower.commands.eval import Talker
    from fastpower.evaluate.advice import predict, verdict
    from fastpower.evaluate.engine import local_engine
    from fastpower.evaluate.evaluation import Evaluation, evaluate
    from fastpower.evaluate.runs import read_records
    from fastpower.evaluate.statistics import accuracy
    from fastpower.evaluate.tasks import is_procedural, load_task
    from fastpower.samplers.methods import parse_methods, parse_options

    if args.task is None:
        raise ValueError("--task is needed: for example --task arithmetic")
    if args.pool < 2:
        raise ValueError(f"--pool must be at least 2 answers per problem, got {args.pool}")
    alphas = _numbers(args.alphas)
    options = parse_options(args.task_options or "")
    if is_procedural(args.task):
        options.setdefault("size", args.n)
    task = load_task(args.task, data=args.data, **options)
    common: dict[str, Any] = {
        "model": model_facts(args),
        "alpha": args.alpha,
        "max_new_tokens": args.max_new_tokens,
        "seed": args.seed,
    }
    methods = parse_methods("plain,low_temperature")
    pools = Evaluation(task, methods, chains=args.pool // 2, limit=args.n, **common)
    extra = {}
    if args.costs:
        extra["costs"] = Evaluation(task, parse_methods(args.costs), limit=min(2, args.n), **common)
    engine = local_engine(lambda: load_from(args), max_rows=args.max_rows, progress=not args.quiet)
    say = Talker(args.quiet)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(args.out) if args.out else Path(scratch) / "pools"
        evaluate(pools, engine, out, on_phase=say.phase)
        records = read_records(out)
        predictions = [predict(records, alpha) for alpha in alphas]
        if predict(records, args.alpha).accuracy is None and not args.no_smc:
            extra["smc"] = Evaluation(task, parse_methods("smc(particles=16)"), limit=args.n, **common)
        drawn: dict[str, list[dict[str, Any]]] = {"costs": [], "smc": []}
        for name, evaluation in extra.items():
            where = out.with_name(f"{out.name}-{name}")
            evaluate(evaluation, engine, where, on_phase=say.phase)
            drawn[name] = [dict(record) for record in read_records(where)]
    halves = [[r for r in records if r["method"].startswith(name)] for name in ("plain", "low_temperature")]
    plain, cooled = (accuracy(half) for half in halves)
    advice = verdict(predictions, plain.mean, cooled.mean)
    cost = _costs([*(dict(r) for r in records), *drawn["costs"], *drawn["smc"]])
    measured = accuracy(drawn["smc"]) if drawn["smc"] else None
    if args.json:
        found = {
            "task": task.name,
            "plain": plain._asdict(),
            "low_temperature": cooled._asdict(),
            "predictions": [asdict(p) for p in predictions],
            "smc": None if measured is None else measured._asdict(),
            "tokens_per_answer": cost,
            "advice": advice,
        }
        print(json_line(found))
    else:
        _show(predictions, str(plain), str(cooled), cost, args.alpha)
        if measured is not None:
            print(f"measured, where the pools cannot tell: smc(particles=16) at alpha = {args.alpha:g}: {measured}")
        print(advice)
    sys.stdout.flush()
    return 0


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in str(text).split(",")]
    except ValueError:
        raise ValueError(f"--alphas must be numbers separated by commas, got {text!r}") from None
    if not all(0 < number < float("inf") for number in numbers):
        raise ValueError(f"--alphas must be positive, got {text!r}")
    return numbers


def _costs(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    totals: dict[str, list[int]] = {}
    for record in records:
        totals.setdefault(str(record["method"]), []).append(int(record["decoded_tokens"]))
    return {method: sum(tokens) / len(tokens) for method, tokens in totals.items()}


def _show(predictions: Sequence[Prediction], plain: str, cooled: str, cost: dict[str, float], alpha: float) -> None:
    from rich.table import Table

    table = Table(title="what p^alpha would do", title_justify="left")
    for column in ("alpha", "accuracy", "95 %", "ESS", "readable", "tokens", "cut off", "log Z"):
        table.add_column(column, justify="right")
    for p in predictions:
        stated = p.accuracy is not None
        table.add_row(
            f"{p.alpha:g}",
            f"{p.accuracy:.2f}" if p.accuracy is not None else "–",
            f"{p.low:.2f}–{p.high:.2f}" if stated else "",
            f"{p.ess:.1f}",
            f"{p.readable}/{p.problems}",
            f"{p.length:.0f}",
            f"{100 * p.cut:.0f} %",
            f"{p.log_z:.1f}",
        )
    out = console(120)
    out.print(f"measured: plain {plain}, low temperature (1/{alpha:g}) {cooled}")
    out.print(table)
    out.print("tokens per answer: " + ", ".join(f"{method} {tokens:.0f}" for method, tokens in cost.items()))
