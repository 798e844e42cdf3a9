"""Resampling moves particles, not their K/V: no tensor operation touches the cache, only parts of pages are copied."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastpower import PowerTarget
from fastpower.chains.job import Job
from fastpower.decoders.cache import kernels
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.samplers import PowerSMC
from fastpower.scheduler import Scheduler
from tests.tiny_models import tiny_model

PAGE, PARTICLES, HORIZON = 16, 32, 72
PROMPT = [5 + i * 7 % 300 for i in range(133)]


class CacheWatch(TorchDispatchMode):
    """Names of the tensor operations that read or write the memory of the K/V cache."""

    def __init__(self, decoder: TransformersDecoder) -> None:
        super().__init__()
        self.storages = {t.untyped_storage().data_ptr() for t in (decoder.cache.k, decoder.cache.v)}
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, torch.Tensor)]
        if any(t.untyped_storage().data_ptr() in self.storages for t in tensors):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_resampling_gathers_no_cache_and_copies_only_partly_filled_pages(monkeypatch):
    copied: list[int] = []
    copy_pages = kernels.copy_pages

    def counting(k, v, source, target, tokens, **options):
        copied.extend(tokens.tolist())
        copy_pages(k, v, source, target, tokens, **options)

    monkeypatch.setattr(kernels, "copy_pages", counting)
    sampler = PowerSMC(PowerTarget(4.0, HORIZON), particles=PARTICLES, block=4, threshold=0.95, ramp=0)
    with TransformersDecoder(tiny_model("llama"), cache_tokens=16384) as decoder:
        forks = []
        fork = decoder.fork
        monkeypatch.setattr(decoder, "fork", lambda *arguments: forks.append(1) or fork(*arguments))
        decoder.eos_ids = frozenset()
        with CacheWatch(decoder) as watch:
            decoder.cache.k[0, 0, 0].clone()
            assert watch.seen, "a gather of the cache would go unnoticed"
            watch.seen.clear()
            [finished] = Scheduler(decoder).run([Job(sampler, PROMPT, 3)])
        assert finished.error is None, finished.error
    resampled = [line["position"] for line in finished.outcome.trace if line["resampled"]]
    assert len(resampled) >= 5
    assert watch.seen == []
    assert copied and all(0 < tokens < PAGE for tokens in copied)
    assert len(copied) <= len(forks)
    # Gathered by ancestor, every resampling would have moved the K/V of all particles.
    assert sum(copied) < 0.1 * sum(PARTICLES * (len(PROMPT) + position) for position in resampled)
