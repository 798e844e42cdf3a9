"""The papers' settings by name: what to type to run a method as its authors did, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastpower.suggestions import unknown


@dataclass(frozen=True)
class Preset:
    """A method with its authors' settings.

    Attributes:
        method: Name of the sampler.
        source: Whose settings they are.
        settings: Of the sampler; what the paper leaves open keeps our default.
    """

    method: str
    source: str
    alpha: float = 4.0
    max_new_tokens: int = 3072
    settings: Mapping[str, Any] = field(default_factory=dict)


PRESETS = {
    "karan-du": Preset("mh", "Karan & Du, arXiv 2510.14901", settings={"block": 192, "moves": 10}),
    "power-smc": Preset("smc", "Azizi et al.", settings={"particles": 64, "block": 32, "ramp": 100, "threshold": 0.5}),
    "entropy-cut": Preset("ec_mh", "Zhou, Mehrotra, Liu, arXiv 2605.30327", settings={"block": 192, "moves": 10}),
    "egps": Preset(
        "egps", "the EGPS paper's blocks; its moves and thresholds are our reading", settings={"block": 192}
    ),
}


def preset(name: str) -> Preset:
    """A preset by name.

    Raises:
        ValueError: An unknown name; the nearest ones are suggested.
    """
    if name not in PRESETS:
        raise ValueError(unknown("preset", name, PRESETS))
    return PRESETS[name]
