"""One decoder, several runs: each takes a step at a time.

Threads that sample from one model (a web server's handlers, say) each have a scheduler of their own. A step is whole:
pages are reserved, a forward runs, draws are read, and nobody else's step comes between. Records do not depend on it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

_MAKING = threading.Lock()


class Turns:
    """Whose turn it is on one decoder."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._runs: Counter[int] = Counter()  # thread → runs that it has under way
        self._changed = threading.Condition(threading.Lock())

    @staticmethod
    def of(decoder: Any) -> Turns:
        """The turns of a decoder: the same for everybody who asks."""
        with _MAKING:
            found = getattr(decoder, "_turns", None)
            if not isinstance(found, Turns):
                found = Turns()
                with contextlib.suppress(AttributeError):  # a decoder with slots sees to its threads itself
                    decoder._turns = found
        return found

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """A run is under way in this thread."""
        mine = threading.get_ident()
        with self._changed:
            self._runs[mine] += 1
        try:
            yield
        finally:
            with self._changed:
                self._runs[mine] -= 1
                self._changed.notify_all()

    def alone(self) -> bool:
        """Whether no other run is under way, in any thread."""
        with self._changed:
            return self._runs.total() <= 1

    def wait(self, seconds: float = 0.02) -> bool:
        """Wait a moment for runs of other threads to give memory back; False, at once, if there are none."""
        mine = threading.get_ident()
        with self._changed:
            if not any(count for thread, count in self._runs.items() if thread != mine):
                return False
            self._changed.wait(seconds)
            return True
