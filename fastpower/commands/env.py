"""``fastpower env``: what this machine offers, which backends are live, and why the others are not."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
from typing import Any


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "env", help="show backends, versions and models", description="Show what fastpower can use on this machine."
    )
    parser.add_argument(
        "--model",
        metavar="PATH_OR_NAME",
        help="also load this model and show the bytes that a step reads, the floor they imply and what is reached",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    facts = environment()
    if args.model:
        facts["decode step"] = decode_step(args.model)
    if args.json:
        print(json.dumps(facts))
        return 0
    for section, values in facts.items():
        print(section)
        for name, value in values.items():
            print(f"  {name:<16} {value}")
    return 0


def decode_step(name: str, seconds: float = 2.0) -> dict[str, Any]:
    """One row of plain decoding, held against the memory."""
    from fastpower.language_model import load
    from fastpower.measure.machine import device_bandwidth
    from fastpower.measure.throughput import decode_rate
    from fastpower.models.memory import gib

    model = load(name, cache_tokens=1024)
    bandwidth = device_bandwidth(str(getattr(getattr(model.decoder, "layout", None), "device", "cpu")))
    rate = decode_rate(model.decoder, 1, prompt=32, seconds=seconds, bandwidth=bandwidth)
    weights = getattr(model.decoder, "weights", None)
    facts: dict[str, Any] = {"model": name, "weights": "float32" if weights is None else weights.formats}
    if rate.step_bytes is not None and rate.floor_ms is not None and rate.floor is not None:
        floor = f"{rate.floor_ms:.2f} ms, {1e3 / rate.floor_ms:.1f} tokens/s"
        facts |= {"reads": gib(rate.step_bytes), "memory": f"{bandwidth:.1f} GB/s", "floor": floor}
        facts |= {"reached": f"{rate.step_ms:.2f} ms, {rate.tokens_per_second:.1f} tokens/s, {rate.floor:.0%}"}
    return facts


def environment() -> dict[str, dict[str, Any]]:
    """Facts by section, JSON-able."""
    import torch

    import fastpower
    from fastpower.errors import ModelNotFound
    from fastpower.kernels import backends
    from fastpower.models import PACKAGED_MODELS, cache_folder, packaged_files

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    def model(packaged: Any) -> str:
        try:
            packaged_files(packaged)
        except Exception:
            return f"not installed: {packaged.install}"
        return "installed"

    def cache() -> str:
        try:
            return str(cache_folder())
        except ModelNotFound as error:
            return f"none: {error}"

    machine: dict[str, Any] = {"system": platform.platform(), "torch threads": torch.get_num_threads()}
    try:
        from fastpower import _C

        machine |= {"kernel threads": _C.num_threads(), "CPU kernels": _C.isa()}
    except ImportError as error:
        machine["CPU kernels"] = f"not built ({error})"
    if torch.cuda.is_available():
        machine["GPU"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    else:
        machine["GPU"] = "none seen by torch"
    names = ("torch", "transformers", "triton", "flash-attn", "numpy")
    return {
        "versions": {"fastpower": fastpower.__version__, "python": platform.python_version()}
        | {name: version(name) for name in names},
        "machine": machine,
        "backends": {name: "live" if why is None else f"no: {why}" for name, why in backends().items()},
        "models": {packaged.name: model(packaged) for packaged in PACKAGED_MODELS} | {"cache": cache()},
    }
