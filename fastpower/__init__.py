"""fastpower: exact, fast sampling from the power distribution p(x)^alpha of a language model.

    model = fastpower.load()  # the packaged SmolLM2-135M-Instruct; or a path, a hub id, a loaded model
    fastpower.generate(model, "What is 7 * 8?", seed=1)[0].text

Examples:
    The same on a toy whose law can be written down: p = (0.3, 0.7), so p^2 gives token 1 with 0.49 / 0.58 = 0.845.

    >>> import math, fastpower
    >>> from fastpower.decoders.toy import ToyDecoder
    >>> model = fastpower.load(ToyDecoder(lambda prefix: [math.log(0.3), math.log(0.7)], 2, eos_ids=[1]))
    >>> sampler = fastpower.MetropolisHastings(fastpower.PowerTarget(alpha=2.0, horizon=1), block=1, moves=4)
    >>> results = fastpower.generate(model, [[0]], sampler, seed=1, chains=400)
    >>> abs(sum(result.token_ids[0] for result in results) / 400 - 0.845) < 0.06
    True
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from fastpower.moved import MovedModules

__version__ = "0.1.0"

sys.meta_path.append(MovedModules)  # asked last: import paths of earlier versions

if TYPE_CHECKING:
    from fastpower.generation import generate, stream
    from fastpower.integrations.transformers import custom_generate
    from fastpower.language_model import LanguageModel, load
    from fastpower.results import Result, Results
    from fastpower.samplers import LowTemperature, MetropolisHastings, Plain, make_sampler
    from fastpower.target import PowerTarget

# Names are imported on first use: `import fastpower` and `fastpower --help` must not wait for torch.
_HOME = {
    "LanguageModel": "language_model",
    "LowTemperature": "samplers",
    "MetropolisHastings": "samplers",
    "Plain": "samplers",
    "PowerTarget": "target",
    "Result": "results",
    "Results": "results",
    "custom_generate": "integrations.transformers",
    "generate": "generation",
    "load": "language_model",
    "make_sampler": "samplers",
    "stream": "generation",
}

__all__ = [
    "LanguageModel",
    "LowTemperature",
    "MetropolisHastings",
    "Plain",
    "PowerTarget",
    "Result",
    "Results",
    "custom_generate",
    "generate",
    "load",
    "make_sampler",
    "stream",
]


if not TYPE_CHECKING:  # a type checker would take any misspelt name for one that is found here

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'fastpower' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"fastpower.{_HOME[name]}"), name)
        globals()[name] = value
        return value
