"""Every error that fastpower raises on purpose. Messages name the argument, the value and the remedy."""

from __future__ import annotations

from typing import Any


class FastpowerError(Exception):
    """Base class."""


class CacheFull(FastpowerError, RuntimeError):
    """The paged cache has too few free pages for a request. Nothing was changed."""


class UnknownSequence(FastpowerError, KeyError):
    """A sequence handle that was never given out or was already freed."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class UnsupportedModel(FastpowerError, ValueError):
    """The model cannot run on the paged path (state that is not a plain K/V cache, …)."""


class ModelNotFound(FastpowerError, FileNotFoundError):
    """A model that is not there: a wrong path or name, or a package that is not installed."""


class InvalidModelFile(FastpowerError, ValueError):
    """A model file that is there but broken, incomplete or not to be trusted; the message names file and remedy."""


class OutOfMemory(FastpowerError, MemoryError):
    """Something does not fit, found before it is loaded or allocated; the message names bytes needed and available."""


class NotWritten(FastpowerError, OSError):
    """A result that the disk did not take. Nothing half-written stays; what was written before is safe."""


class PromptTooLong(FastpowerError, ValueError):
    """Prompt and horizon do not fit into the model's context."""


class InvalidLogits(FastpowerError, ArithmeticError):
    """A logits row held NaN or +inf, or had no finite entry: no token can be drawn from it."""


class InvalidGuess(FastpowerError, ValueError):
    """A guesser raised, or returned a token outside the vocabulary. Only the chain it guessed for ends."""


class InvalidPotential(FastpowerError, ValueError):
    """A potential raised, or gave what is no log φ. Only the answer that it was asked for ends."""


class BackendUnavailable(FastpowerError, RuntimeError):
    """A kernel backend that cannot run in this process or on these tensors; the message says why."""


class Ended(FastpowerError, RuntimeError):
    """A job that was ended from outside before it had anything to return."""


class InterfaceChanged(FastpowerError, RuntimeError):
    """Another library no longer has a name that fastpower relies on; see ``fastpower.interfaces``."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C. Like KeyboardInterrupt it is no Exception, so that nothing goes on after it by mistake.

    ``results`` holds what was finished, and unfinished chains as they stood (``complete`` is False).
    """

    def __init__(self, message: str, results: Any = ()) -> None:
        super().__init__(message)
        self.results = results
