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
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    facts = environment()
    if args.json:
        print(json.dumps(facts))
        return 0
    for section, values in facts.items():
        print(section)
        for name, value in values.items():
            print(f"  {name:<16} {value}")
    return 0


def environment() -> dict[str, dict[str, Any]]:
    """Facts by section, JSON-able."""
    import torch

    import fastpower
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
        "models": {packaged.name: model(packaged) for packaged in PACKAGED_MODELS} | {"cache": str(cache_folder())},
    }
