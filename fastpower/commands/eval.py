"""``fastpower eval``: methods over a task into a run folder; the same command resumes it and shows it."""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from fastpower.commands.configuration import add_config
from fastpower.commands.options import add_model_arguments, add_sampler_arguments, load_from, model_facts
from fastpower.terminal import json_line

if TYPE_CHECKING:
    from fastpower.evaluate.engine import Engine
    from fastpower.evaluate.evaluation import Evaluation
    from fastpower.results.traces import RunLine

EPILOG = """\
examples:
  fastpower eval --task math_mini --methods plain,low_temperature,mh --out runs/mini
  fastpower eval --task math500 --data math500.json --n 20 --methods "plain,mh(moves=4)" --out runs/math
  fastpower eval --task reasoning_gym:chain_sum --task-options min_terms=2,max_terms=2 --out runs/sums
  fastpower eval --check --task gsm8k --data gsm8k.jsonl --methods mh     what it would take here, before it is begun
  fastpower eval --report runs/math                       the table again, and runs/math/report.html

The same command on the same --out goes on where it stopped; with a larger --n or --chains or further --methods it
extends the run. A folder that holds other settings is refused.
Tasks: aime, arithmetic, gpqa, gsm8k, humaneval, math500, math_mini, reasoning_gym:NAME.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "eval",
        help="compare methods on a task",
        description="Run methods over a task's problems, grade the answers, and compare.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report", metavar="RUN", help="only show a run folder: table and RUN/report.html")
    parser.add_argument("--out", metavar="RUN", help="run folder; created, or resumed if it holds the same settings")
    parser.add_argument(
        "--check",
        action="store_true",
        help="draw nothing: check data, grader, memory and context, and foretell the time",
    )
    group = parser.add_argument_group("task")
    group.add_argument("--task", help="see the end of this help")
    group.add_argument("--data", metavar="PATH", help="the task's problems: .json, .jsonl, .csv, .parquet (.gz)")
    group.add_argument("--task-options", metavar="K=V,…", help="options of the task, such as min_terms=2,max_terms=2")
    group.add_argument("--skip-bad-lines", action="store_true", help="leave malformed lines out (of a run: draw anew)")
    group.add_argument("--n", "--limit", type=int, metavar="N", help="the first N problems (default: all)")
    group.add_argument("--chains", type=int, default=1, metavar="K", help="answers per problem and method (default 1)")
    group.add_argument(
        "--methods",
        default="plain,low_temperature,mh",
        help='names with settings: "plain,mh(moves=4)"; first = baseline',
    )
    group.add_argument(
        "--match-best-of-n",
        action="store_true",
        help="also draw plain answers until they cost as many tokens as the dearest method: best-of-N at equal compute",
    )
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="the table as one JSON object per method")
    group.add_argument("--quiet", action="store_true", help="no progress on standard error")
    add_sampler_arguments(parser, method=False, task_defaults=True)
    add_model_arguments(parser)
    add_engine_arguments(parser)
    parser.set_defaults(run=run)
    add_config(parser)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scaling out")
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: one model per worker process")
    group.add_argument("--workers", type=int, metavar="N", help="workers of --engine ray (default: GPUs, else 1)")


def run(args: argparse.Namespace) -> int:
    from fastpower.evaluate.evaluation import evaluate

    if args.report is not None:
        return show(args.report, as_json=args.json, skip_bad_lines=args.skip_bad_lines)
    for name in ("task",) if args.check else ("task", "out"):
        if getattr(args, name) is None:
            raise ValueError(f"--{name} is needed (or --report RUN to look at a finished run)")
    evaluation = evaluation_from(args)
    if args.check:
        return check(evaluation, args)
    say = Talker(args.quiet)
    together = args.engine == "ray"  # its workers load the model in every call
    evaluate(
        evaluation,
        engine_from(args),
        args.out,
        on_phase=say.phase,
        on_record=say.record,
        together=together,
        skip_bad_lines=args.skip_bad_lines,
    )
    return show(args.out, as_json=args.json)


def check(evaluation: Evaluation, args: argparse.Namespace) -> int:
    """Everything that can fail after hours, now: the grader, the run folder, memory, context; and how long it takes."""
    from fastpower.commands.forecast import forecast
    from fastpower.evaluate.runs import check_writable

    evaluation.task.check()
    if args.out is not None:
        check_writable(args.out)
    found = forecast(evaluation, load_from(args), max_rows=args.max_rows)
    if args.json:
        print(json_line(asdict(found)))
        return 0
    print(
        f"{evaluation.task.name}: {found.problems} problems, prompts of up to {found.prompt} tokens; the grader works"
    )
    print(
        f"the model is loaded; {found.room} tokens of K/V are free, room for {found.rows} answers of full length at "
        f"once; {found.tokens_per_second:.0f} tokens/s with as many rows"
    )
    for method in found.methods:
        if method.tokens is None or method.hours is None:
            print(f"  {method.method}: {method.answers} answers, of a cost that depends on the model")
        else:
            print(f"  {method.method}: {method.answers} answers × {method.tokens} tokens, {_duration(method.hours)}")
    print(f"all of these: {_duration(found.hours)} if every answer fills the horizon; answers that end make it less")
    return 0


def _duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def evaluation_from(args: argparse.Namespace) -> Evaluation:
    """What the arguments ask for; data and settings are checked, the model is not touched."""
    from fastpower.evaluate.evaluation import Evaluation
    from fastpower.evaluate.tasks import is_procedural, load_task
    from fastpower.samplers.methods import parse_methods, parse_options

    options = args.task_options or {}
    options = dict(options) if isinstance(options, dict) else parse_options(options)
    if args.n is not None and is_procedural(args.task):
        options.setdefault("size", args.n)  # as many as are asked for, whatever the task's own default
    task = load_task(args.task, data=args.data, skip_bad_lines=args.skip_bad_lines or None, **options)
    return Evaluation(
        task,
        parse_methods(args.methods),
        model=model_facts(args),
        alpha=args.alpha,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        chains=args.chains,
        limit=args.n,
        shared={"block": args.block, "moves": args.moves},
        stop=args.stop or (),
        match_best_of_n=args.match_best_of_n,
    )


def engine_from(args: argparse.Namespace) -> Engine:
    """How the arguments want it run."""
    from fastpower.evaluate.engine import local_engine

    if args.engine == "ray":
        from fastpower.integrations.ray import ray_engine

        # the workers' own share of the cores decides their threads
        load = functools.partial(load_from, argparse.Namespace(**{**vars(args), "run": None, "threads": None}))
        return ray_engine(load, workers=args.workers, max_rows=args.max_rows)
    if args.workers is not None:
        raise ValueError("--workers needs --engine ray")
    return local_engine(lambda: load_from(args), max_rows=args.max_rows, progress=not args.quiet)


class Talker:
    """One line per method on standard error."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def phase(self, method: str, todo: int, done: int) -> None:
        if not self.quiet:
            rest = f" ({done} already there)" if done else ""
            print(f"{method}: {todo} answers to draw{rest}", file=sys.stderr)

    def record(self, record: RunLine) -> None:
        if not self.quiet and not sys.stderr.isatty():
            verdict = "right" if record["correct"] else "wrong"
            print(f"  {record['id']}: {verdict}, log p {record['logp']:.2f}", file=sys.stderr)


def show(path: str | Path, *, as_json: bool, skip_bad_lines: bool = False) -> int:
    """Print the table of a run and write its report."""
    from fastpower.evaluate.report import write_report
    from fastpower.evaluate.report.table import render
    from fastpower.evaluate.runs import read_config, read_records
    from fastpower.evaluate.summary import summarise

    config = read_config(path)["config"]
    records = read_records(path, timings=True, answers=True, skip_bad_lines=skip_bad_lines)
    if not records:
        raise ValueError(f"{str(path)!r} holds no finished record yet")
    rows = summarise(records, chains=config.get("chains"), match_best_of_n=bool(config.get("match_best_of_n")))
    report = write_report(path, records, rows)
    if as_json:
        for row in rows:
            print(json_line(asdict(row)))
    else:
        render(rows, config)
        print(f"report: {report}")
    return 0
