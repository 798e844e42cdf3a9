"""The decoder on a GPU: the own forward, eagerly and in graphs, against the float32 forward of the CPU."""

import numpy as np
import pytest
import torch

from fastpower.decoders.base import Draws, Work
from fastpower.decoders.transformers import TransformersDecoder
from tests.tiny_models import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
TEXT = [(37 * i + 5) % 331 for i in range(300)]


def steps(decoder, rows=3, count=20):
    """Tokens and log-probabilities of a few steps after one prompt, forked."""
    first = decoder.add()
    decoder.forward([Work(first, TEXT)], draws(1, len(TEXT)))
    sequences = [first, *(decoder.fork(first, len(TEXT)) for _ in range(rows - 1))]
    tokens, found = [5] * rows, []
    for position in range(len(TEXT) + 1, len(TEXT) + 1 + count):
        work = [Work(s, [t]) for s, t in zip(sequences, tokens, strict=True)]
        out = decoder.forward(work, draws(rows, position))
        tokens = out.token.tolist()
        found.append((tokens, out.logp, out.logz, out.entropy))
    return found


def draws(rows, position):
    each, alpha = np.arange(rows), np.full(rows, 3.0, np.float32)
    exponents = np.array([3.0], np.float32)
    return Draws(alpha, exponents, each, each.astype(np.uint64), np.full(rows, position), np.full(rows, -1))


@pytest.mark.parametrize("device", [f"cuda:{i}" for i in range(max(1, torch.cuda.device_count()))])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_steps_are_those_of_the_cpu(kind, graphs, device):
    expected = steps(TransformersDecoder(tiny_model(kind), cache_tokens=4096))
    decoder = TransformersDecoder(tiny_model(kind).to(device), cache_tokens=4096, graphs=graphs)
    found = steps(decoder)
    assert not graphs or decoder._ahead.used > 0
    for (tokens, *numbers), (right, *wanted) in zip(found, expected, strict=True):
        assert tokens == right
        for mine, other in zip(numbers, wanted, strict=True):
            np.testing.assert_allclose(mine, other, atol=2e-3)
