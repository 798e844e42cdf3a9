"""A real model: FASTPOWER_TEST_GGUF=PATH of a quantised GGUF file of llama, qwen2, qwen3 or gemma3 (0.5B: minutes)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastpower
from fastpower.decoders.base import Work
from fastpower.decoders.quantised import QuantisedDecoder
from fastpower.models import load_model

PATH = os.environ.get("FASTPOWER_TEST_GGUF", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PATH, reason="FASTPOWER_TEST_GGUF names no GGUF file"),
]

#: prints the peak of resident bytes after importing what loading imports, and after loading
PEAKS = """
import sys, fastpower, torch, gguf, fastpower.decoders.quantised.loading
from transformers.integrations.gguf import convert_gguf_tokenizer
from transformers import PreTrainedTokenizerFast
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) << 10
before = peak()
model = fastpower.load(sys.argv[1], cache_tokens=64)
print(before, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_no_more_than_the_file_and_a_quarter_of_it_is_ever_resident():
    root = Path(fastpower.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, PATH], env=environment, check=True, capture_output=True, text=True
    )
    before, after = map(int, done.stdout.split())
    assert after - before <= 1.25 * Path(PATH).stat().st_size


def test_five_hundred_tokens_have_the_log_probabilities_of_transformers_in_float32():
    ready = fastpower.load(PATH, cache_tokens=4096)
    decoder = ready.decoder
    assert isinstance(decoder, QuantisedDecoder)
    text = ready.tokenizer(Path(fastpower.__file__).with_name("generation.py").read_text())["input_ids"][:500]
    assert len(text) == 500
    reference, tokenizer = load_model(PATH, dtype="float32")
    sample = "def main():\n\tprint('héllo')  # 日本語 12345"
    assert ready.tokenizer(sample)["input_ids"] == tokenizer(sample)["input_ids"]
    with torch.no_grad():
        expected = reference(torch.tensor([text])).logits[0].log_softmax(-1)
    sequence = decoder.add()
    with decoder._packer.reserved([Work(sequence, text)]) as batch, torch.inference_mode():
        ours = decoder._all_logits(batch).log_softmax(-1)
    assert torch.equal(ours.argmax(-1), expected.argmax(-1))
    picked = torch.arange(499), torch.tensor(text[1:])
    np.testing.assert_allclose(ours[picked].numpy(), expected[picked].numpy(), atol=2e-3, rtol=0)
