"""How much work each sampler does for an answer, and what every lossless acceleration saves of it.

python -m bench.bench_work --data math500.json --out runs/work [--n 20] [--max-new-tokens 512] [--block 64]
python -m bench.bench_work --report runs/work          the tables again, from what is there
python -m bench.bench_work --report runs/work runs/frontier --plot work.png        mean log p against rows forwarded
python -m bench.bench_work --wall                      one Power-SMC answer against one plain decode, by the clock

A run folder of ``fastpower eval`` is filled (killed and started again, it goes on) and read. Chains are keyed by seed,
problem and chain, not by settings, so that Metropolis–Hastings with and without its accelerations makes the *same*
answers and the difference in tokens is what was saved. Two runs give all four combinations exactly:

    skip alone             the tokens of the run without acceleration less those that the full run skipped
    early rejection alone  the tokens of the full run plus those that it skipped

"Official style" is the procedure of the first paper's code at equal moves: every proposal and every extension is a
fresh ``generate`` call, so that prompt and kept prefix are fed again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

import fastpower
from fastpower.evaluate.engine import local_engine
from fastpower.evaluate.evaluation import Evaluation, evaluate
from fastpower.evaluate.runs import read_config, read_records
from fastpower.evaluate.statistics import paired_bootstrap
from fastpower.evaluate.tasks import load_task
from fastpower.samplers import Plain, PowerSMC
from fastpower.samplers.methods import parse_methods

BARE = "mh(skip=False,early_rejection=False)"
METHODS = f"plain,low_temperature,mh,egps,ec_mh,smc(particles=32,block=64),{BARE},mtm"


def moves_of(record):
    return [event for event in record["trace"] if "cut" in event]


def refed_by_official(record, prompt_length, block):
    """Tokens that fresh ``generate`` calls feed again: prompt and prefix of every extension and every proposal."""
    moves = moves_of(record)
    proposals = sum(prompt_length + move["cut"] for move in moves if move["cut"] is not None)
    # Stages are extended until the answer has ended; the last stage's horizon is the target's.
    first_whole = moves[0]["length"] if moves else len(record["token_ids"])
    longest = max([first_whole, *(move["length"] for move in moves)])
    return proposals + sum(prompt_length + start for start in range(0, longest, block))


def rows_per_step(record):
    """Rows forwarded per decode step of a population. Steps are counted to the last block's first token at least, so
    this overstates the rows."""
    ends = [event["position"] for event in record["trace"] if "position" in event]
    before_last = ends[-2] if len(ends) > 1 else 0
    return record["forwards"] / max(len(record["token_ids"]), before_last + 1)


def by_method(records):
    groups = defaultdict(list)
    for record in records:
        groups[record["method"]].append(record)
    return dict(groups)


def report(folder, prompt_lengths):
    config = read_config(folder)["config"]
    groups = by_method(read_records(folder, timings=True))
    block = int(next(m["sampler"].split("block=")[1].split(",")[0] for m in config["methods"] if "mh" in m["label"]))
    mean = lambda records, key: float(np.mean([record[key] for record in records]))  # noqa: E731
    print(f"{config['problems']} problems of {config['task']}, alpha {config['alpha']:g}, horizon "
          f"{config['max_new_tokens']}, block {block}, {config['model']['dtype']}; means per answer\n")  # fmt: skip
    print("| method | answers | decoded tokens | rows forwarded | log p | − low temperature [95 %] | acceptance |")
    print("|---|---|---|---|---|---|---|")
    for label, records in groups.items():
        gap = ""
        if "low_temperature" in groups and label != "low_temperature":
            d = paired_bootstrap(records, groups["low_temperature"], key="logp")
            gap = f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]"
        rates = [record["acceptance"] for record in records if record["acceptance"] is not None]
        print(
            f"| {label} | {len(records)} | {mean(records, 'decoded_tokens'):.0f} | {mean(records, 'forwards'):.0f} | "
            f"{mean(records, 'logp'):.1f} | {gap} | {f'{np.mean(rates):.2f}' if rates else '–'} |"
        )
    bare = next((v for k, v in groups.items() if k.startswith("mh(") and "skip=False" in k), None)
    if bare is not None and "mh" in groups:
        accelerations(bare, groups["mh"], prompt_lengths, block)
    for label, records in groups.items():
        if label.startswith("smc"):
            rows = [rows_per_step(record) for record in records]
            particles = records[0]["diagnostics"]["particles"]
            print(
                f"\n{label}: {np.mean(rows):.1f} rows per step of N = {particles} ({np.mean(rows) / particles:.2f} N; "
                f"without shared lanes {mean(records, 'decoded_tokens') / mean(records, 'forwards'):.2f}× the rows)"
            )
    if "egps" in groups and "mh" in groups:
        share = mean(groups["egps"], "forwards") / mean(groups["mh"], "forwards")
        gap = paired_bootstrap(groups["egps"], groups["mh"], key="logp")
        print(f"\negps: {share:.2f} of mh's rows; log p {gap.mean:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}] against mh's")


def accelerations(bare, full, prompt_lengths, block):
    """The table of what is saved at the same law, over the answers that both runs have."""
    without = {record["prompt_id"]: record for record in bare}
    pairs = [(without[record["prompt_id"]], record) for record in full if record["prompt_id"] in without]
    different = sum(a["token_ids"] != b["token_ids"] or a["logp"] != b["logp"] for a, b in pairs)
    nothing = float(np.mean([a["decoded_tokens"] for a, _ in pairs]))
    everything = float(np.mean([b["decoded_tokens"] for _, b in pairs]))
    skipped = float(np.mean([b["diagnostics"]["skipped_tokens"] for _, b in pairs]))
    refed = float(np.mean([refed_by_official(a, prompt_lengths[a["prompt_id"]], block) for a, _ in pairs]))
    print(f"\nMetropolis–Hastings, {len(pairs)} answers, {different} of them different with the accelerations off\n")
    print("| | tokens decoded | tokens fed again | decoded, against no acceleration |")
    print("|---|---|---|---|")
    for name, decoded, again in (
        ("official style: prefix fed again for every proposal", nothing, refed),
        ("K/V kept, no acceleration", nothing, 0.0),
        ("+ early rejection only", everything + skipped, 0.0),
        ("+ skip to the first difference only", nothing - skipped, 0.0),
        ("+ both (the default)", everything, 0.0),
    ):
        print(f"| {name} | {decoded:.0f} | {again:.0f} | {nothing / decoded:.2f}× fewer |")


def wall(arguments):
    """Median ratio of one Power-SMC answer to one plain decode of the same prompt, and of the time per decode step."""
    model = fastpower.load(arguments.model, dtype=arguments.dtype)
    target = fastpower.PowerTarget(arguments.alpha, arguments.max_new_tokens)
    plain = Plain(target)
    smc = PowerSMC(target, particles=32, block=arguments.block)
    prompts = [problem.question for problem in problems(arguments)][: arguments.n]
    answers, steps = [], []
    fastpower.generate(model, prompts[0], Plain(fastpower.PowerTarget(1.0, 8)))
    for prompt in prompts:
        timed = []
        for sampler in (plain, smc):
            start = time.perf_counter()
            result = fastpower.generate(model, prompt, sampler, seed=arguments.seed)[0]
            timed.append((time.perf_counter() - start, result))
        (a, one), (b, many) = timed
        length = max(event["position"] for event in many.trace)
        answers.append(b / a)
        steps.append((b / length) / (a / len(one.token_ids)))
        print(f"plain {a:.2f} s for {len(one.token_ids)} tokens; smc {b:.2f} s for ≤ {length} steps of "
              f"{many.forwards / length:.1f} rows: {answers[-1]:.2f}×, per step {steps[-1]:.2f}×")  # fmt: skip
    print(f"median ratio of an answer {statistics.median(answers):.2f}, of a step {statistics.median(steps):.2f}")


def plot(folders, path):
    """Mean log p against rows forwarded, with standard errors; settings of one sampler are joined."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    points = defaultdict(dict)
    for folder in folders:
        for label, records in by_method(read_records(folder, timings=True)).items():
            if label.startswith("plain") or "skip=False" in label:
                continue  # far below, and not what one would run
            logp = np.array([record["logp"] for record in records])
            rows = float(np.mean([record["forwards"] for record in records]))
            points[label.split("(")[0]][label] = (rows, logp.mean(), logp.std(ddof=1) / len(logp) ** 0.5)
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for name, settings in points.items():
        rows, mean, error = np.array(sorted(settings.values())).T
        axes.errorbar(rows, mean, error, marker="o", capsize=3, label=name.replace("_", " "))
    axes.set(xscale="log", xlabel="rows forwarded per answer", ylabel="mean total log p (nats) ± s.e.")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def problems(arguments):
    if arguments.data is None:
        return load_task("math_mini").problems
    return load_task("math500", data=arguments.data).problems


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a MATH500-style file; default: the twelve packaged problems")
    parser.add_argument("--out", default="runs/work", help="run folder")
    parser.add_argument("--report", nargs="+", metavar="RUN", help="only show run folders")
    parser.add_argument("--plot", metavar="PNG", help="with --report: draw what the rows bought")
    parser.add_argument("--wall", action="store_true", help="time Power-SMC against plain decoding instead")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--n", type=int, default=20, help="problems")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.wall:
        wall(arguments)
        return
    load = lambda: fastpower.load(arguments.model, dtype=arguments.dtype)  # noqa: E731
    if arguments.report is None:
        task = load_task("math500", data=arguments.data) if arguments.data else load_task("math_mini")
        evaluation = Evaluation(
            task, parse_methods(arguments.methods), model={"name": arguments.model or "default",
            "dtype": arguments.dtype, "raw": None}, alpha=arguments.alpha, max_new_tokens=arguments.max_new_tokens,
            seed=arguments.seed, limit=arguments.n, shared={"block": arguments.block},
        )  # fmt: skip
        evaluate(evaluation, local_engine(load, progress=True), arguments.out, on_phase=print)
    model = load()
    for folder in arguments.report or [arguments.out]:
        asked = {r["prompt_id"]: r["question"] for r in map(json.loads, (Path(folder) / "records.jsonl").open())}
        report(folder, {name: len(model.tokens(question)) for name, question in asked.items()})
    if arguments.plot:
        plot(arguments.report or [arguments.out], arguments.plot)


if __name__ == "__main__":
    main()
