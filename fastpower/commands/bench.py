"""``fastpower bench``: how fast this model decodes on this machine, and what samplers make of it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastpower.commands.configuration import add_config
from fastpower.commands.options import add_model_arguments, add_sampler_arguments, dtype_of, load_from
from fastpower.terminal import console, json_line

if TYPE_CHECKING:
    from fastpower.measure.throughput import DecodeRate, SamplerRate

EPILOG = """\
examples:
  fastpower bench                                             the packaged model, under a minute
  fastpower bench --model PATH --dtype bfloat16 --batches 1,8,32
  fastpower bench --methods "mh(moves=4),smc(particles=32)" --max-new-tokens 512 --seconds 60 --json

how to read it:
  plain decoding  Every row gets one token per step. A step has to read all weights once and the K/V of every row; the
                  floor is what that reading takes at the measured bandwidth of the memory, and reached is the floor
                  over the measured step. Near 100 % only smaller weights (a quantised GGUF file, --weights, --dtype)
                  or faster memory help. While it stays high more rows are nearly free, because they share the weights:
                  that is why samplers run many chains at once.
  samplers        Each is kept busy with chains of a few short problems until the time is over. Rows is how full its
                  batches were: with far fewer than --max-rows, give it more prompts or chains at a time. Decoded
                  counts rejected tokens, too. Rates depend on the horizon: set --max-new-tokens to yours.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure a model on this machine",
        description="Measure plain decoding by batch size, its distance to the memory's speed, and samplers' rates.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batches", default="1,4,16", metavar="B,…", help="rows of plain decoding (default 1,4,16)")
    parser.add_argument("--prompt", type=int, default=64, metavar="P", help="tokens of its prompts (default 64)")
    parser.add_argument("--methods", default="plain,mh,smc(particles=16)", help='names with settings; "" for none')
    parser.add_argument("--seconds", type=float, default=8.0, help="for each sampler (default 8); decoding gets half")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--quiet", action="store_true", help="nothing on standard error")
    add_sampler_arguments(parser, method=False, max_new_tokens=32, stop=False)
    add_model_arguments(parser, max_rows=16)
    parser.set_defaults(run=run)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    from fastpower.samplers.methods import parse_methods

    batches = _batches(args.batches)
    if not args.seconds > 0:
        raise ValueError(f"--seconds must be > 0, got {args.seconds}")
    if args.prompt < 1:
        raise ValueError(f"--prompt must be at least 1 token, got {args.prompt}")
    shared = {"block": args.block, "moves": args.moves}
    methods = parse_methods(args.methods) if args.methods else []
    samplers = {m.label: m.sampler(args.alpha, args.max_new_tokens, shared) for m in methods}

    from fastpower.evaluate.tasks import load_task
    from fastpower.measure.machine import device_bandwidth, facts
    from fastpower.measure.throughput import decode_rate, sampler_rate

    def say(text: str) -> None:
        if not args.quiet:
            print(text, file=sys.stderr, flush=True)

    say("loading the model …")
    model = load_from(args)
    device = str(getattr(getattr(model.decoder, "layout", None), "device", "cpu"))
    bandwidth = device_bandwidth(device)
    rates: list[DecodeRate] = []
    for batch in batches:
        say(f"plain decoding, {batch} rows …")
        rates.append(
            decode_rate(model.decoder, batch, prompt=args.prompt, seconds=args.seconds / 2, bandwidth=bandwidth)
        )
    prompts = [model.tokens(problem.question) for problem in load_task("math_mini").problems[:4]] if samplers else []
    found: list[SamplerRate] = []
    for label, sampler in samplers.items():
        say(f"{label} …")
        found.append(sampler_rate(model, sampler, prompts, label=label, seconds=args.seconds, max_rows=args.max_rows))
    machine = facts(bandwidth=False) | {"device": device, "bandwidth_gb_s": round(bandwidth, 1)}
    setting = {
        "model": model.name,
        "dtype": dtype_of(args),
        "formats": weight_formats(model.decoder),
        "batch_invariant": model.decoder.batch_invariant,
        "prompt": args.prompt,
        "alpha": args.alpha,
        "max_new_tokens": args.max_new_tokens,
        "max_rows": args.max_rows,
    }
    if args.json:
        parts = {"decode": [asdict(rate) for rate in rates], "samplers": [asdict(rate) for rate in found]}
        print(json_line({"machine": machine, **setting, **parts}))
    else:
        show(machine, setting, rates, found)
    return 0


def weight_formats(decoder: Any) -> dict[str, int]:
    """Matrices of each format of quantised weights; empty for others."""
    weights = getattr(decoder, "weights", None)
    return {} if weights is None else dict(weights.formats)


def _batches(text: str) -> list[int]:
    try:
        batches = [int(part) for part in str(text).split(",")]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise ValueError(f"--batches must be row counts separated by commas, such as 1,4,16; got {text!r}")
    return batches


def show(machine: dict[str, Any], setting: dict[str, Any], rates: list[DecodeRate], found: list[SamplerRate]) -> None:
    """Two tables."""
    from rich.table import Table

    from fastpower.models.memory import gib

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    out = console(120)
    where = "{device}: {cpu}, {cores} cores, {threads} threads, {isa}".format_map(machine)
    formats = ", ".join(f"{count} matrices {name}" for name, count in setting["formats"].items())
    weights = f"weights as quantised ({formats}), K/V in" if formats else "weights in"
    out.print("{model}, ".format_map(setting) + f"{weights} {setting['dtype']}", markup=False, highlight=False)
    out.print(where, markup=False, highlight=False)
    out.print(f"memory reads {machine['bandwidth_gb_s']} GB/s; load average {machine['load']}\n", highlight=False)
    title = f"plain decoding after {setting['prompt']} tokens"
    columns = ["rows", "tokens/s", "step ms", "reads", "floor ms", "reached", "prefill tokens/s"]
    table = Table(*columns, title=title, title_justify="left")
    for rate in rates:
        size = "–" if rate.step_bytes is None else gib(rate.step_bytes)
        table.add_row(
            str(rate.batch),
            f"{rate.tokens_per_second:.1f}",
            f"{rate.step_ms:.2f}",
            size,
            number(rate.floor_ms, ".2f"),
            number(rate.floor, ".0%"),
            f"{rate.prefill_tokens_per_second:.0f}",
        )
    out.print(table)
    if not found:
        return
    title = "samplers, alpha {alpha:g}, {max_new_tokens} new tokens, at most {max_rows} rows".format_map(setting)
    columns = ["method", "decoded/s", "rows", "moves/s", "accept.", "answers", "answers/h"]
    table = Table(*columns, title=title, title_justify="left")
    for row in found:
        table.add_row(
            row.method,
            f"{row.tokens_per_second:.1f}",
            f"{row.rows:.1f}",
            number(row.moves_per_second, ".2f"),
            number(row.acceptance, ".2f"),
            str(row.answers),
            number(row.answers_per_hour, ".0f"),
        )
    out.print(table)
