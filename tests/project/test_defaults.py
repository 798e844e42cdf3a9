"""torch's default dtype and device belong to the user: nothing public gives another result, or breaks, under them."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from fastpower import generate, kernels, load, make_sampler
from fastpower.decoders.base import Draws, Work
from fastpower.decoders.cache import PagedCache
from fastpower.decoders.toy import ToyDecoder, random_logits
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.kernels.quantised import FORMATS, PanelMemory
from fastpower.samplers import METHODS
from tests.kernels.quantised_inputs import random_blocks
from tests.kernels.test_shared_memory import KINDS, arguments, run
from tests.tiny_models import tiny_model

SETTINGS = ["bfloat16", "float16", "float64", "meta"]


@contextlib.contextmanager
def defaults(setting):
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    try:
        if setting == "meta":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(getattr(torch, setting))
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)


def kernel(op, backend):
    """An operator on arguments that were made before the defaults changed."""
    dtype = KINDS[op][0]
    given = arguments(op, dtype)
    packed = kernels.pack_linear(torch.ones(40, 16))

    def call():
        mine = {name: t.clone() for name, t in given.items()}
        if op == "linear":
            return kernels.linear(mine["x"], packed, backend=backend)
        if op in ("pack_linear", "quantise"):
            made = run(op, mine)
            return [made.weight(), made.bias] if op == "pack_linear" else [made.blocks, made.dequantise()]
        return [run(op, mine, backend), *mine.values()]

    return call


def quantised(format):
    blocks = random_blocks(format, 8, 256)
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))

    def call():
        packed = kernels.pack_linear(blocks, memory=PanelMemory())
        return [kernels.linear(x, packed, backend=b) for b in ("cpu", "reference")] + [packed.weight()]

    return call


def toy(name):
    def call():
        decoder = ToyDecoder(random_logits(4, 1, eos=3), 4, [3])
        sampler = make_sampler(name, max_new_tokens=6)
        return [(r.token_ids, r.token_logp) for r in generate(load(decoder), [[0], [1, 2]], sampler, seed=1)]

    return call


def model(name):
    def call():
        sampler = make_sampler(name, max_new_tokens=6)
        return [(r.token_ids, r.token_logp) for r in generate(load(MODELS[0]), [[3, 5], [7]], sampler, seed=1)]

    return call


def decoder(architecture):
    def call():
        with TransformersDecoder(MODELS[architecture], cache_tokens=200) as decoder:
            sequence = decoder.add()
            scored = decoder.score([Work(sequence, [3, 5, 7])], np.ones(2, np.float32))
            fork, one = decoder.fork(sequence, 2), np.ones(1, np.int64)
            draws = Draws(np.ones(1, np.float32), np.ones(1, np.float32), one - 1, one.astype(np.uint64), one, one - 2)
            return [*scored[0], *decoder.forward([Work(fork, [4])], draws)]

    return call


def cache():
    cache = PagedCache(2, 1, 8, num_pages=6)
    cache.k.zero_(), cache.v.zero_()
    sequence = cache.add()
    cache.commit(cache.reserve([sequence], [20]))
    fork = cache.fork(sequence, 18)
    cache.commit(cache.reserve([sequence, fork], [1, 3]))
    return [*cache.page_tables([sequence, fork]), cache.k.dtype, cache.k.device]


MODELS = [tiny_model("llama"), tiny_model("gemma3")]
SURFACE = {
    **{f"kernels.{op}, {backend}": kernel(op, backend) for op in KINDS for backend in ("auto", "reference")},
    **{f"linear of {format}": quantised(format) for format in FORMATS},
    **{f"{name} on the toy": toy(name) for name in METHODS},
    **{f"{name} on a model": model(name) for name in ("plain", "mh", "smc")},
    "decoder of llama": decoder(0),
    "decoder of gemma3": decoder(1),
    "PagedCache": cache,
}
EXPECTED: dict[str, object] = {}


def flat(value):
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in flat(part)]
    return [value]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", SURFACE)
def test_no_result_depends_on_torchs_defaults(name, setting):
    if name not in EXPECTED:
        EXPECTED[name] = flat(SURFACE[name]())
    with defaults(setting):
        found = flat(SURFACE[name]())
    expected = EXPECTED[name]
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, (torch.Tensor, np.ndarray)):
            assert type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape
            assert bytes(np.asarray(torch.as_tensor(a, device="cpu").contiguous().view(torch.uint8))) == bytes(
                np.asarray(torch.as_tensor(b, device="cpu").contiguous().view(torch.uint8))
            )
        else:
            assert a == b
