"""Run folders of ``fastpower eval`` → ``bench/studies/results/NAME.json``.

python -m bench.studies.collect humaneval_05b runs/a runs/b --model FILE.gguf --named "Qwen2.5-Coder-0.5B-Instruct"

Folders are of one task, model, horizon and exponent; an answer that two of them hold is taken once. Weights are not
kept: FILE is read for its SHA-256 only.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import cpu_name
from bench.studies.answers import row_of
from bench.studies.study import Study, columns_of
from fastpower.evaluate.runs import read_config, read_records
from fastpower.evaluate.statistics import FEW

#: entropy (nats) that parts cut positions into kinds
BOUNDS = (0.05, 0.5)


def collect(name: str, folders: Sequence[Path], model: Path, named: str, commit: str, examples: Sequence[str]) -> Study:
    """One study from several run folders. ``examples``: ids of records whose text and entropies are kept.

    Raises ValueError where the folders are not of one task, horizon, exponent and seed.
    """
    configs = [read_config(folder) for folder in folders]
    for key in ("task", "max_new_tokens", "alpha"):
        values = {str(found["config"][key]) for found in configs}
        if len(values) > 1:
            raise ValueError(f"the run folders have different {key}: {', '.join(sorted(values))}")
    records: dict[str, dict[str, Any]] = {}
    finished: list[float] = []
    read = [read_records(folder, timings=True) for folder in folders]
    order = sorted({record["problem"] for found in read for record in found}, key=by_number)
    commands = []
    for folder, found, everything in zip(folders, configs, read, strict=True):
        new = [r for r in complete(everything, found["config"], order, folder) if r["id"] not in records]
        records |= {record["id"]: dict(record) for record in new}
        finished += [float(record["finished"]) for record in new if record.get("finished")]
        if new:
            commands.append(command_of(found["config"], {record["method"] for record in new}, model.name))
    problems = list(dict.fromkeys(record["problem"] for record in records.values()))
    problems.sort(key=by_number)
    number = {problem: i for i, problem in enumerate(problems)}
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records.values():
        groups.setdefault(record["method"], []).append(record)
    methods = {}
    for method, group in groups.items():
        rows = [row_of(record, number[record["problem"]]) for record in group]
        methods[method] = columns_of(sorted(rows, key=lambda row: (row["problem"], row["chain"])))
    facts = {
        "model": named,
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "task": configs[0]["config"]["task"],
        "max_new_tokens": configs[0]["config"]["max_new_tokens"],
        "alpha": configs[0]["config"]["alpha"],
        "seed": configs[0]["config"]["seed"],
        "weights_and_kv": f"those of the file, K/V in {configs[0]['config']['model']['dtype']}",
        "commit": commit,
        "dates": [_date(min(finished)), _date(max(finished))] if finished else [],
        "machine": f"{cpu_name()}, 2 cores",
        "versions": configs[0]["versions"],
        "commands": commands,
    }
    extra: dict[str, Any] = {"moves": {m: moves_of(g) for m, g in groups.items() if any(r["trace"] for r in g)}}
    extra["moves"] = {method: found for method, found in extra["moves"].items() if found is not None}
    long = [chain for group in groups.values() for record in group if (chain := long_chain(record)) is not None]
    if long:
        extra["long"] = long
    if examples:
        extra["examples"] = [example_of(records[name]) for name in examples]
    return Study(name, facts, problems, methods, extra)


def complete(
    records: Sequence[Mapping[str, Any]], config: Mapping[str, Any], order: Sequence[str], folder: Path
) -> list[Mapping[str, Any]]:
    """Records of a folder's methods on the first problems of which every answer is there: short answers finish first,
    so that the others of an unfinished method are not like the rest; none where these are few. ``order``: all problems
    of the task, in its order.
    """
    kept = []
    for method in (found["label"] for found in config["methods"]):
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for record in records:
            if record["method"] == method:
                groups.setdefault(record["problem"], []).append(record)
        counts = [len(groups.get(problem, [])) for problem in order[: config["problems"]]]
        whole = order[: next((i for i, count in enumerate(counts) if count < config["chains"]), len(counts))]
        if len(whole) < min(FEW, config["problems"]):
            whole = []
        kept += [record for problem in whole for record in groups[problem]]
        left = sum(map(len, groups.values())) - len(whole) * config["chains"]
        if left:
            print(
                f"{method} of {folder.name}: the first {len(whole)} problems; {left} answers behind them are left out"
            )
    return kept


def by_number(problem: str) -> list[Any]:
    """A key that sorts HumanEval/9 before HumanEval/10."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in problem.replace("-", "/").split("/")]


def command_of(config: Mapping[str, Any], kept: Collection[str], model: str) -> str:
    """The command that fills such a run folder, with names of files instead of their paths."""
    methods = ",".join(method["label"] for method in config["methods"] if method["label"] in kept)
    if any(method["label"].startswith("published_mh") for method in config["methods"]):
        start = "python -m bench.studies.published"
    else:
        start = "fastpower eval"
    return (
        f"{start} --task {config['task']} --data {config['task']}.jsonl --n {config['problems']} "
        f"--chains {config['chains']} --seed {config['seed']} --alpha {config['alpha']:g} "
        f'--max-new-tokens {config["max_new_tokens"]} --methods "{methods}" '
        f"--dtype {config['model']['dtype']} --model {model} --out RUN"
    )


def moves_of(group: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Where moves at the full horizon were tried and accepted: by tenth of the answer, and by the entropy at the cut
    (of the answer as it was in the end, where the cut lies within it); None without such moves."""
    tried, made = np.zeros(10, int), np.zeros(10, int)
    at, won = np.zeros(3, int), np.zeros(3, int)
    total = positions = 0
    share = np.zeros(3)
    for record in group:
        entropy = np.asarray(record["entropy"], float)
        kind = np.digitize(entropy, BOUNDS)
        share += np.bincount(kind, minlength=3)
        positions += len(kind)
        for line in record["trace"]:
            if line.get("cut") is None or line.get("rung", 0) != max(e.get("rung", 0) for e in record["trace"][:4]):
                continue
            if line["horizon"] != record["max_new_tokens"]:
                continue
            total += 1
            tenth = min(9, int(10 * line["cut"] / max(1, line["length"])))
            tried[tenth] += 1
            made[tenth] += bool(line["accepted"])
            if line["cut"] < len(kind):
                at[kind[line["cut"]]] += 1
                won[kind[line["cut"]]] += bool(line["accepted"])
    if not total:
        return None
    return {
        "tried_by_tenth": tried.tolist(),
        "accepted_by_tenth": made.tolist(),
        "entropy_bounds": list(BOUNDS),
        "positions_by_entropy": [round(float(s), 4) for s in share / positions],
        "tried_by_entropy": at.tolist(),
        "accepted_by_entropy": won.tolist(),
    }


def long_chain(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """log p and acceptances of a chain that makes all its moves, 30 or more, at the full horizon; None of any other."""
    moves = record["trace"]
    if len(moves) < 30 or any(line.get("horizon") != record["max_new_tokens"] or "rung" in line for line in moves):
        return None
    return {
        "problem": record["problem"],
        "chain": record["chain"],
        "start": round(float(record["diagnostics"]["initial_logp"]), 2),
        "logp": [round(float(line["logp"]), 2) for line in moves],
        "accepted": [int(bool(line["accepted"])) for line in moves],
    }


def example_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """An answer to be looked at: its pieces of text with their entropies."""
    return {
        "id": record["id"],
        "problem": record["problem"],
        "method": record["method"],
        "chain": record["chain"],
        "correct": bool(record["correct"]),
        "answer": record["answer"],
        "reference": record["reference"] if record["task"] != "humaneval" else None,
        "note": record["note"],
        "question": record["question"],
        "logp": round(float(record["logp"]), 2),
        "text": list(record["token_text"]),
        "entropy": [round(float(h), 2) for h in record["entropy"]],
    }


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the study")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--model", type=Path, required=True, help="the model file that the runs used")
    parser.add_argument("--named", required=True, help="the model's public name")
    parser.add_argument("--commit", help="that the runs are of (default: HEAD)")
    parser.add_argument("--examples", default="", metavar="ID;…", help="records whose text is kept")
    args = parser.parse_args()
    commit = (
        args.commit
        or subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    )
    examples = [name for name in args.examples.split(";") if name]
    path = collect(args.name, args.runs, args.model, args.named, commit, examples).save()
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
