"""Import paths of earlier versions: each is the module that has its contents now, found only where nothing else is."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

#: old path → new path, of all that README and documentation ever named
MOVED = {
    "fastpower.cache": "fastpower.decoders.cache",
    "fastpower.chain": "fastpower.chains.chain",
    "fastpower.custom_generation": "fastpower.integrations.transformers",
    "fastpower.cuts": "fastpower.samplers.cuts",
    "fastpower.decoders.fused": "fastpower.decoders.transformers.fused",
    "fastpower.demo": "fastpower.commands.demo",
    "fastpower.diagnostics": "fastpower.results.diagnostics",
    "fastpower.distributed": "fastpower.integrations.ray",
    "fastpower.engine": "fastpower.decoders.transformers.packed_linear",
    "fastpower.evaluate.graders": "fastpower.evaluate.grading.graders",
    "fastpower.evaluate.items": "fastpower.evaluate.engine",
    "fastpower.evaluate.methods": "fastpower.samplers.methods",
    "fastpower.evaluate.lm_eval": "fastpower.integrations.lm_eval",
    "fastpower.islands": "fastpower.samplers.islands",
    "fastpower.jobs": "fastpower.chains.job",
    "fastpower.outcome": "fastpower.chains.outcome",
    "fastpower.plots": "fastpower.results.plots",
    "fastpower.proposal": "fastpower.samplers.proposal",
    "fastpower.record": "fastpower.chains.record",
    "fastpower.requests": "fastpower.chains.requests",
}


class MovedModules:
    """A finder for ``sys.meta_path``, and the loader of what it finds."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, MovedModules, origin=MOVED[name]) if name in MOVED else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is {new} now", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        # The import system has put the old name's spec on the module: give it its own again.
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state

    @staticmethod
    def get_code(name: str) -> CodeType | None:  # for ``python -m``
        spec = importlib.util.find_spec(MOVED[name])
        assert spec is not None and spec.loader is not None
        code: CodeType | None = spec.loader.get_code(MOVED[name])  # type: ignore[attr-defined]
        return code
