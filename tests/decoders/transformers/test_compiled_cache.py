"""Graphs of the compiled decode step outlive the process that compiled them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DECODE = """
import json, sys
import torch
from torch._dynamo.utils import counters
from fastpower.decoders import Work
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.measure.throughput import _forward
from tests.decoders.transformers.conftest import ARCHITECTURES, build

model = build(ARCHITECTURES["llama"]())
with TransformersDecoder(model, cache_tokens=200, compile=True, verify=False) as decoder:
    sequence = decoder.add()
    _forward(decoder, [sequence], [[5, 6, 7]], 3)
    drawn = [_forward(decoder, [sequence], [[8 + i]], 4 + i) for i in range(2)]
found, graphs = counters["inductor"], counters["aot_autograd"]
print(json.dumps({
    "hits": found["fxgraph_cache_hit"] + graphs["autograd_cache_hit"],
    "misses": found["fxgraph_cache_miss"] + graphs["autograd_cache_miss"],
    "logp": [float(d.logp[0]) for d in drawn],
}))
"""


def decode_in_a_process(cache: Path) -> dict[str, object]:
    environment = {k: v for k, v in os.environ.items() if k != "CC"} | {
        "TORCHINDUCTOR_CACHE_DIR": str(cache), "CXX": "g++", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    run = subprocess.run([sys.executable, "-c", DECODE], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_second_process_finds_the_compiled_graph_on_disk(tmp_path):
    first = decode_in_a_process(tmp_path / "inductor")
    assert first["hits"] == 0 and first["misses"] > 0
    second = decode_in_a_process(tmp_path / "inductor")
    assert second["hits"] > 0 and second["misses"] == 0
    assert second["logp"] == first["logp"]
