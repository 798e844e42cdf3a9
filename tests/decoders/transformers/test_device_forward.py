"""The forward of devices and its steps in static buffers, on the CPU: a call in place of a graph's replay."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastpower
from fastpower.chains.job import Job
from fastpower.decoders.base import Draws, Work
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.decoders.transformers.static_step import StaticStep, bucket_of
from fastpower.errors import UnsupportedModel
from fastpower.samplers import MetropolisHastings, PowerSMC
from fastpower.scheduler import Scheduler
from fastpower.target import PowerTarget
from tests.tiny_models import tiny_model

KINDS = ["llama", "llama3", "mistral", "qwen2", "qwen3", "gemma3"]
TEXT = [(37 * i + 5) % 331 for i in range(40)]


def logits(decoder):
    sequence = decoder.add()
    with decoder._packer.reserved([Work(sequence, TEXT)]) as batch, torch.inference_mode():
        return decoder._all_logits(batch, 0, len(TEXT)).clone()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_fused_forward(kind):
    model = tiny_model(kind)
    found = [logits(TransformersDecoder(model, cache_tokens=512, graphs=graphs)) for graphs in (True, False)]
    torch.testing.assert_close(*found, atol=5e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma3"])
def test_sixteen_bits_are_rounded_no_more_than_by_transformers(kind):
    """Against the same weights in float32; logits are float32."""
    model = tiny_model(kind, torch.bfloat16)
    own = logits(TransformersDecoder(model, cache_tokens=512, graphs=True))
    theirs = logits(TransformersDecoder(model, cache_tokens=512, accelerate=False)).float()
    exact = logits(TransformersDecoder(model.float(), cache_tokens=512))
    assert own.dtype == torch.float32
    assert (own - exact).abs().mean() <= (theirs - exact).abs().mean()


def draws(rows, position, exponents=(3.0,)):
    each = np.arange(rows)
    alpha, keys = np.full(rows, 3.0, np.float32), each.astype(np.uint64)
    return Draws(alpha, np.array(exponents, np.float32), each, keys, np.full(rows, position), np.full(rows, -1))


@pytest.mark.parametrize("rows", [1, 3, 9])
def test_steps_in_static_buffers_have_the_bits_of_plain_ones(rows):
    """Past the end of a page and of a page table's first bucket, with pages copied on write."""
    model, outs, decoders = tiny_model("qwen2"), [], []
    for ahead in (True, False):
        decoder = TransformersDecoder(model, cache_tokens=8192, graphs=True, page_size=4)
        if not ahead:
            decoder._ahead = None
        first = decoder.add()
        decoder.forward([Work(first, TEXT[:18])], draws(1, 18))
        sequences = [first, *(decoder.fork(first, 18) for _ in range(rows - 1))]
        tokens, out = [5] * rows, []
        for position in range(19, 31):
            step = decoder.forward(
                [Work(s, [t]) for s, t in zip(sequences, tokens, strict=True)], draws(rows, position)
            )
            tokens = step.token.tolist()
            assert decoder.length(sequences[-1]) == position
            out += [array.tobytes() for array in step]
        outs.append(out)
        decoders.append(decoder)
    assert outs[0] == outs[1]
    assert decoders[0]._ahead.used == 11 * rows
    for decoder in decoders:
        decoder.cache.check()


def records(decoder, sampler, seeds, **options):
    found = {}
    for finished in Scheduler(decoder, **options).run(Job(sampler, TEXT[:7], seed, seed % 2) for seed in seeds):
        assert finished.error is None, finished.error
        record = finished.outcome.record
        found[finished.job.seed] = (record.tokens, record.logp.tobytes(), record.logz.tobytes(), record.ended)
    return found


@pytest.mark.parametrize("cache_tokens", [4096, 160], ids=["room", "pressure"])
@pytest.mark.parametrize("name", ["mh", "smc"])
def test_records_under_the_scheduler_are_those_of_plain_steps(name, cache_tokens):
    target = PowerTarget(3.0, 12)
    samplers = {"mh": MetropolisHastings(target, block=6, moves=2), "smc": PowerSMC(target, particles=3, block=6)}
    model, found = tiny_model("llama"), []
    for graphs in (True, "plain"):
        decoder = TransformersDecoder(model, cache_tokens=cache_tokens, graphs=True, verify=False)
        if graphs == "plain":
            decoder._ahead = None
        found.append(records(decoder, samplers[name], range(6), max_rows=8))
        assert decoder.stats()["sequences"] == 0
        decoder.cache.check()
    assert found[0] == found[1]


def test_sizes_for_which_the_device_has_no_room_run_eagerly_and_one_line_says_so(monkeypatch):
    model, capture, tried = tiny_model("llama"), StaticStep._capture, []

    def crowded(self, graph, rows):
        tried.append(rows)
        if rows >= 4:
            raise torch.OutOfMemoryError("out of memory")
        capture(self, graph, rows)

    sampler = MetropolisHastings(PowerTarget(3.0, 12), block=6, moves=2)
    plain = records(TransformersDecoder(model, cache_tokens=4096, graphs=True, verify=False), sampler, range(6))
    monkeypatch.setattr(StaticStep, "_capture", crowded)
    decoder = TransformersDecoder(model, cache_tokens=4096, graphs=True, verify=False)
    with pytest.warns(UserWarning, match="no room on cpu for a graph of 8 rows: steps of that size run eagerly"):
        assert records(decoder, sampler, range(6)) == plain
    assert tried.count(8) == 1 and decoder.stats()["sequences"] == 0
    decoder.cache.check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mh", "ec_mh", "egps", "mtm", "smc", "csmc", "tempering", "sps"])
def test_records_of_the_packaged_model_are_those_of_plain_steps(smollm2, name):
    model, found = smollm2[0], []
    sampler = fastpower.make_sampler(name, alpha=4.0, max_new_tokens=12)
    for graphs in (True, "plain"):
        decoder = TransformersDecoder(model, cache_tokens=4096, graphs=True, verify=False)
        if graphs == "plain":
            decoder._ahead = None
        found.append(records(decoder, sampler, range(5), max_rows=8))
    assert found[0] == found[1]


def test_buckets_cover_every_number_of_rows_and_are_few():
    sizes = {bucket_of(rows) for rows in range(1, 257)}
    assert all(bucket_of(rows) >= rows for rows in range(1, 1000)) and len(sizes) <= 36
    assert all(bucket_of(rows) <= max(2 * rows, rows + 8) for rows in range(1, 257))


class Operations(TorchDispatchMode):
    """Counts what reaches the dispatcher; refuses what would make a host wait for its device."""

    inside_a_kernel = False  # of ours: its specification is made of many operations
    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        if not Operations.inside_a_kernel:
            assert name not in self.WAITING, f"{name} waits for the device"
            self.seen[name] += 1
        return function(*args, **(kwargs or {}))


def test_a_step_launches_ten_kernels_a_layer_and_waits_for_none(monkeypatch):
    """What a GPU's graph would hold: own kernels once each, products by torch."""
    decoder = TransformersDecoder(tiny_model("qwen2"), cache_tokens=512, graphs=True, verify=False)
    forward, calls = decoder._device, Counter()
    for name in ("_add_norm", "_rotary", "_gate", "_attention"):
        kernel = getattr(forward, name)

        def counted(*args, name=name, kernel=kernel, **options):
            calls[name] += 1
            Operations.inside_a_kernel = True
            try:
                return kernel(*args, **options)
            finally:
                Operations.inside_a_kernel = False

        monkeypatch.setattr(forward, name, counted)
    layers, products = len(forward._layers), Counter()

    def counted_product(run):
        return lambda x: (products.update(["product"]), run(x))[1]

    for i, layer in enumerate(forward._layers):
        parts = {name: counted_product(getattr(layer, name)) for name in ("qkv", "out", "gate_up", "down")}
        forward._layers[i] = layer._replace(**parts)
    sequence = decoder.add()
    decoder.forward([Work(sequence, TEXT)], draws(1, 40))
    decoder._ahead.settle()
    calls.clear()
    products.clear()
    graph = next(iter(decoder._ahead._launch.__self__._graphs.values()))
    with torch.inference_mode(), Operations() as operations:
        graph.replay()
    assert calls == {"_add_norm": 2 * layers + 1, "_rotary": layers, "_gate": layers, "_attention": layers}
    assert products["product"] == 4 * layers
    launches = sum(calls.values()) + layers + sum(products.values())  # attention with its fold
    assert launches == 10 * layers + 1
    rest = sum(n for name, n in operations.seen.items() if name not in ("view", "slice", "_unsafe_view", "reshape"))
    assert rest <= 40 + 4 * layers  # embedding, tokens, head, statistics and draws, results joined


def test_what_cannot_be_is_refused_with_the_reason_and_the_way_out():
    for model, options, reason in (
        (tiny_model("phi3"), {}, "Phi3ForCausalLM is not one of"),
        (tiny_model("llama"), {"accelerate": False}, "accelerate=False"),
        (tiny_model("llama"), {"compile": "eager"}, "compile has graphs"),
    ):
        with pytest.raises(UnsupportedModel, match=f"{reason}.*graphs=False"):
            TransformersDecoder(model, cache_tokens=64, graphs=True, **options)
    with pytest.raises(ValueError, match="graphs must be"):
        TransformersDecoder(tiny_model("llama"), cache_tokens=64, graphs="yes")


def test_a_hook_set_later_is_called_and_nothing_is_computed_ahead():
    model = tiny_model("llama")
    decoder = TransformersDecoder(model, cache_tokens=512, graphs=True)
    sequence = decoder.add()
    out = decoder.forward([Work(sequence, TEXT[:5])], draws(1, 5))
    seen = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    decoder.forward([Work(sequence, out.token.tolist())], draws(1, 6))
    handle.remove()
    assert seen and decoder.length(sequence) == 6 and decoder.cache.length(sequence) == 6


def test_a_sixteen_bit_head_of_any_model_leaves_float32():
    """What ``widen_head`` does on a device, here with the CPU's product."""
    model = tiny_model("phi3", torch.bfloat16)
    decoder = TransformersDecoder(model, cache_tokens=512, accelerate=False)
    narrow = logits(decoder)
    decoder._substitution.widen_head()
    wide = logits(decoder)
    assert narrow.dtype == torch.bfloat16 and wide.dtype == torch.float32
    assert len(wide.unique()) > 2 * len(narrow.unique()) and "forward" not in vars(model.lm_head)
    torch.testing.assert_close(wide.bfloat16(), narrow, atol=2**-7, rtol=2**-7)
