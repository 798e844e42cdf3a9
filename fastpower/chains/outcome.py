"""What a sampler returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastpower.chains.record import Record

#: one JSON-able dict per move or per resampling, in order
Trace = list[dict[str, Any]]


@dataclass(slots=True)
class Outcome:
    """The answer of one run, and how the sampler got there.

    Attributes:
        trace: One JSON-able dict per move or per resampling, in order.
        diagnostics: JSON-able summary.
        exact: False for samplers whose law is only approximately the power distribution.
        complete: False if the run was interrupted.
    """

    record: Record
    trace: Trace = field(default_factory=list)
    diagnostics: dict[str, Any] = field(default_factory=dict)
    exact: bool = True
    complete: bool = True
