"""The answers of one call, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

from fastpower.results.notebook import results_html
from fastpower.results.pools import Reweighted, reweight
from fastpower.results.result import Result


class Results(Sequence[Result]):
    """Answers in the order of prompts, then chains.

    Examples:
        >>> from fastpower import generate, load, make_sampler
        >>> from fastpower.decoders.toy import ToyDecoder, random_logits
        >>> model = load(ToyDecoder(random_logits(5, seed=7, eos=0), 5, [0]))
        >>> results = generate(model, ["1 2", "3"], make_sampler("mh", max_new_tokens=9), seed=4, chains=2)
        >>> results, [result.chain for result in results], results[0].ended
        (Results(4 answers), [0, 1, 0, 1], True)
    """

    def __init__(self, items: Sequence[Result]) -> None:
        self._items = list(items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._items)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> Results: ...
    def __getitem__(self, index: int | slice) -> Result | Results:
        return Results(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __repr__(self) -> str:
        return f"Results({len(self)} answers)"

    def _repr_html_(self) -> str:
        """A table in a notebook, a row per answer."""
        return results_html(self)

    def reweight(self, alpha: float) -> dict[str, Reweighted]:
        """What p^alpha would make of answers that were drawn by ``plain`` or ``low_temperature``, without model calls.

        Args:
            alpha: Any exponent, whatever these were drawn for.

        Returns:
            For each prompt id, the weights of its answers (in order), their effective number and log Ẑ(alpha); see
            ``fastpower.results.pools``.

        Raises:
            ValueError: Answers of other methods, or pools that cannot be combined.
        """
        groups: dict[str, list[Result]] = {}
        for result in self:
            groups.setdefault(result.prompt_id, []).append(result)
        return {prompt: reweight(group, alpha) for prompt, group in groups.items()}

    def to_dict(self) -> list[dict[str, Any]]:
        """JSON-able dictionaries, one per answer."""
        return [result.to_dict() for result in self]

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``, one row per answer, with the fields of ``Result`` as columns.

        What has a value per token or per move (``token_logp``, ``trace``, …) is a list in its cell.

        Raises:
            FastpowerError: Pandas is missing; the message names what to install.
        """
        from fastpower.results.export import to_pandas

        return to_pandas(self)

    def to_arviz(self) -> Any:
        """The Markov chains for ArviZ: its ``InferenceData``, or an xarray ``DataTree`` from ArviZ 1 on.

        A draw is the answer after a move at the full horizon; moves of warm-up stages have another target and are left
        out. Dimensions are (chain, draw), and prompt where there are several. ``posterior`` holds ``logp`` (nats, of
        the model itself) and ``length`` (tokens); ``sample_stats`` holds ``lp`` = alpha · logp (log of the target, up
        to its constant), ``accepted``, and ``cut`` (position, −1 where the move had none) for samplers that cut.

        Raises:
            ValueError: A method without moves, results of several methods, horizons or exponents, and chains that are
                not equally long.
            FastpowerError: ArviZ is missing; the message names what to install.
        """
        from fastpower.results.export import to_arviz

        return to_arviz(self)
