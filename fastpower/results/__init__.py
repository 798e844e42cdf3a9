"""Results: finished runs, what can be read off them, and what they are turned into."""

from fastpower.results.result import Result
from fastpower.results.results import Results

__all__ = ["Result", "Results"]
