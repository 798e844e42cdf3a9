"""How many variants of each kernel a long run makes triton compile, each of which would stall it for seconds.

    python tests/triton/variants.py

1,500 steps as a scheduler makes them: rows come and go, contexts grow, some steps carry prefill chunks, groups share
pages, and at the end the queue drains row by row. Prints {kernel: variants} of the whole run and of its second half
alone, in which nothing may be new. Run by tests/triton/test_launchers.py in a process of its own.
"""

import json
import random
from collections import defaultdict

import null_driver
import torch

HEADS, KV_HEADS, DIM, PAGE, VOCAB, STEPS = 28, 4, 128, 16, 5003, 1500


def schedule():
    """(rows, page-table columns, tokens, groups) of every step."""
    choose, rows = random.Random(0), 64
    for i in range(STEPS):
        wandering = max(30, min(64, rows + choose.choice((-2, -1, 0, 0, 1, 2))))
        rows = wandering if i < 1100 else max(1, rows - (i % 8 == 0))
        columns = min(90, 12 + i // 15) + choose.randint(0, 2)
        tokens = rows if choose.random() < 0.8 else rows + choose.randint(1, 512)
        yield rows, columns, tokens, max(1, min(rows, rows // 4 + choose.randint(-3, 3)))


def main():
    from aot_table import load_kernels

    null_driver.activate()
    found, halves = defaultdict(set), [defaultdict(set), defaultdict(set)]
    k = load_kernels()
    cache = torch.empty(256, PAGE, KV_HEADS, DIM, dtype=torch.bfloat16)
    logits = torch.empty(64, VOCAB + -VOCAB % 8)[:, :VOCAB]
    for i, (rows, columns, tokens, groups) in enumerate(schedule()):

        def note(kernel, compile, args, options, i=i):
            seen = null_driver.variant(kernel, args, options)
            found[kernel.__name__].add(seen)
            halves[2 * i // STEPS][kernel.__name__].add(seen)

        with null_driver.launches_to(note):
            query = torch.empty(tokens, HEADS, DIM, dtype=torch.bfloat16)
            table = torch.zeros(rows, columns, dtype=torch.int32)
            starts, lengths = torch.zeros(rows + 1, dtype=torch.int32), torch.ones(rows, dtype=torch.int32)
            shared = torch.zeros(groups + 1, dtype=torch.int32), torch.zeros(groups, dtype=torch.int32)
            each, one = torch.zeros(rows, dtype=torch.int64), torch.ones(rows)
            k["append_kv"].append_kv(query[:, :KV_HEADS], query[:, :KV_HEADS], cache, cache, each)
            k["paged_attention"].paged_attention(query, cache, cache, table, starts, lengths, shared=shared)
            k["sample_tokens"].sample_tokens(logits[:rows], one, one[:1], each, each, each, each)
    late = {name: len(seen - halves[0][name]) for name, seen in halves[1].items()}
    print(json.dumps({"run": {name: len(seen) for name, seen in found.items()}, "late": late}))


if __name__ == "__main__":
    main()
