"""Unit tests that the code in an answer is to pass, run in the sandbox."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from fastpower.evaluate.grading.replies import fences, runnable
from fastpower.evaluate.sandbox import run_python
from fastpower.potential import Answer, Potential
from fastpower.potentials.penalty import check_log_weight, penalty


def program(text: str) -> str:
    """The longest code block of a text, or all of the text where it has none."""
    return max(fences(text), key=len, default=text)


@dataclass(frozen=True)
class UnitTests(Potential):
    """φ = 1 where the code in the answer passes all tests.

    Attributes:
        tests: Source that raises where the code before it is wrong, such as ``"assert double(2) == 4"``.
        log_weight: Nats that each test is worth; None rules out answers that fail one.
        code: Text of an answer → program; by default its code block, or all of it.
        timeout: Seconds of wall clock a test.
        workers: Programs that run at a time.
    """

    tests: tuple[str, ...]
    log_weight: float | None = None
    code: Callable[[str], str] = program
    timeout: float = 3.0
    workers: int = 2
    upper: ClassVar[float] = 0.0
    needs_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_log_weight(self.log_weight)
        object.__setattr__(self, "tests", (self.tests,) if isinstance(self.tests, str) else tuple(self.tests))
        if not self.tests:
            raise ValueError("tests must hold at least one test, such as 'assert double(2) == 4'")

    def log_values(self, answers: Sequence[Answer]) -> Sequence[float]:
        programs = [self.code(answer.text) for answer in answers]
        with ThreadPoolExecutor(self.workers, thread_name_prefix="unit-test") as pool:
            return list(pool.map(self._value, programs))

    def _value(self, code: str) -> float:
        if self.log_weight is None:  # one failure says it all
            return penalty(all(passes(code, test, self.timeout) for test in self.tests), None)
        return sum(penalty(passes(code, test, self.timeout), self.log_weight) for test in self.tests)


@lru_cache(maxsize=4096)
def passes(code: str, test: str, timeout: float) -> bool:
    """Whether ``test`` runs to its end behind ``code``; asked once for equal programs, since chains return to them."""
    return run_python(runnable(f"{code}\n\n{test}\n"), timeout=timeout).passed
