"""Seconds per answer alone and together, nothing else running → ``bench/studies/results/NAME.json``.

python -m bench.studies.seconds seconds_05b --data FILE --model FILE.gguf --named MODEL --methods "plain,mh(moves=6)"

*alone*: the first ``--alone`` problems, one answer at a time, each from its prompt to its last token. *together*: the
first ``--together`` problems at once. A method may have a call of its own, so that a machine can be kept quiet for it;
results are added to the file.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import time
from pathlib import Path

from bench.machine import cpu_name
from bench.studies.study import RESULTS, Study
from fastpower import load
from fastpower.evaluate.engine import records
from fastpower.evaluate.evaluation import Evaluation
from fastpower.evaluate.tasks import load_task
from fastpower.samplers.methods import parse_methods


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--task", default="humaneval")
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--named", required=True, help="the model's public name")
    parser.add_argument("--methods", required=True)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--alone", type=int, default=3)
    parser.add_argument("--together", type=int, default=16)
    parser.add_argument("--max-rows", type=int, default=64)
    parser.add_argument("--commit", default="", help="that is measured")
    args = parser.parse_args()
    model = load(str(args.model))
    if (RESULTS / f"{args.name}.json").exists():
        study = Study.load(args.name)
    else:
        digest = hashlib.sha256(args.model.read_bytes()).hexdigest()
        facts = {
            "model": args.named,
            "sha256": digest,
            "weights_and_kv": "those of the file, K/V in float32",
            "task": args.task,
            "max_new_tokens": args.max_new_tokens,
            "alpha": 4.0,
            "seed": 0,
            "commit": args.commit,
            "dates": [datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")],
            "machine": f"{cpu_name()}, 2 cores",
            "commands": [],
        }
        study = Study(args.name, facts, [], {}, {"seconds": {}})
    for method in parse_methods(args.methods):
        found: dict[str, object] = {"alone": [], "count": args.together}
        for count in (args.alone, args.together):
            task = load_task(args.task, data=args.data)
            [jobs] = Evaluation(task, [method], max_new_tokens=args.max_new_tokens, limit=count).plan()
            if count == args.alone:
                took = []
                for job in jobs:
                    start = time.perf_counter()
                    list(records(model, [job]))
                    took.append(round(time.perf_counter() - start, 3))
                found["alone"] = took
            else:
                start = time.perf_counter()
                list(records(model, jobs, max_rows=args.max_rows))
                found["together"] = round(time.perf_counter() - start, 3)
        study.extra["seconds"][method.label] = found
        study.facts["commands"].append(
            f'python -m bench.studies.seconds {args.name} --data HumanEval.jsonl --methods "{method.label}" '
            f"--alone {args.alone} --together {args.together} --model {args.model.name}"
        )
        print(method.label, found, flush=True)
        study.save()


if __name__ == "__main__":
    main()
