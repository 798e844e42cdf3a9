"""The samplers, by the names the command line uses."""

from fastpower.samplers.baselines import LowTemperature, Plain
from fastpower.samplers.metropolis import MetropolisHastings

__all__ = ["LowTemperature", "MetropolisHastings", "Plain"]
