"""Ready-made potentials φ for ``PowerTarget(potential=…)``: the target becomes p(x)^α φ(x). One file each.

Examples:
    >>> from fastpower.potentials import Matches
    >>> from fastpower.target import PowerTarget
    >>> PowerTarget(alpha=2.0, horizon=64, potential=Matches("[0-9]+"))
    PowerTarget(alpha=2.0, horizon=64, schedule=(), potential=Matches(pattern='[0-9]+', log_weight=None))
"""

from fastpower.potential import Answer, OfTokens, Potential
from fastpower.potentials.closed import Closed
from fastpower.potentials.holds import Holds
from fastpower.potentials.length import LengthWindow
from fastpower.potentials.matches import Matches
from fastpower.potentials.product import Product
from fastpower.potentials.reward import Reward
from fastpower.potentials.text import OfText
from fastpower.potentials.unit_tests import UnitTests

__all__ = [
    "Answer",
    "Closed",
    "Holds",
    "LengthWindow",
    "Matches",
    "OfText",
    "OfTokens",
    "Potential",
    "Product",
    "Reward",
    "UnitTests",
]
