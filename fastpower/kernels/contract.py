"""What an operator asks of its arguments, stated once: checks, torch schema and fake implementation follow from it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastpower.kernels.addresses import check_memory
from fastpower.kernels.arguments import check_tensor, whole_number
from fastpower.kernels.dispatch import register

Sizes = dict[str, int]


@dataclass(frozen=True, slots=True)
class Values:
    """What entries must be, besides their dtype. Looked at on the host only: reading a device's numbers would wait.

    Attributes:
        what: In words, for the message; names in braces are sizes.
        good: (values, sizes) → bool tensor of the same shape.
    """

    what: str
    good: Callable[[Tensor, Sizes], Tensor]

    def check(self, op: str, name: str, values: Tensor, sizes: Sizes) -> None:
        """Refuse entries that are out of range.

        Raises:
            ValueError: One is; the first is named.
        """
        bad = ~self.good(values, sizes)
        if bad.any():
            at = tuple(bad.nonzero()[0].tolist())
            raise ValueError(
                f"{op}: {name}[{', '.join(map(str, at))}] must be {self.what.format_map(sizes)}, "
                f"got {values[at].item():g}"
            )


@dataclass(frozen=True, slots=True)
class Argument:
    """A tensor that an operator takes.

    Attributes:
        name: Of the parameter.
        dtypes: Those it may have, or the name of the argument whose dtype it has.
        shape: Names of sizes, "B V"; a name stands for the same number wherever it appears, "S+1" for one more. A
            first one with a question mark, "R? N", is a dimension that all arguments have or none.
        optional: None will do.
        written: The operator changes it.
        values: What its entries must be.
        label: What messages call it, if not ``name``.
    """

    name: str
    dtypes: tuple[torch.dtype, ...] | str
    shape: str
    optional: bool = False
    written: bool = False
    values: Values | None = None
    label: str = ""

    def bind(self, shape: Sequence[int], sizes: Sizes) -> bool:
        """Whether ``shape`` fits what is known of the sizes; what is new in it is added, if it fits."""
        before = len(sizes)
        dims = dims_of(self.shape, sizes, len(shape))
        if len(dims) == len(shape):
            for (name, more, fixed), size in zip(dims, shape, strict=True):
                known = sizes.get(name) if fixed is None else fixed
                if known is None:
                    if size < more:
                        break
                    sizes[name] = size - more
                elif known + more != size:
                    break
            else:
                return True
        for name in [*sizes][before:]:
            del sizes[name]
        return False

    def expected(self, sizes: Sizes) -> list[int | str]:
        """Its shape in numbers, names where a size is free."""
        found: list[int | str] = []
        for name, more, fixed in dims_of(self.shape, sizes):
            known = sizes.get(name) if fixed is None else fixed
            found.append(name + "+1" * more if known is None else known + more)
        return found


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number, word or dtype that an operator takes.

    Attributes:
        name: Of the parameter; an int's name is a size, too.
        type: In torch's schema language, "int", "float", "str", "ScalarType", "str?".
        default: In that language; none if empty.
    """

    name: str
    type: str
    default: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that an operator makes: on the first argument's device, contiguous.

    Attributes:
        dtype: Its dtype, or the name of the argument whose dtype it has, or that is its dtype.
        shape: Names of sizes, as of ``Argument``.
    """

    dtype: torch.dtype | str
    shape: str


@dataclass(frozen=True)
class Contract:
    """Shapes, dtypes and ranges of one operator.

    Attributes:
        op: Its name.
        arguments: In the order of the registered operator, whose last parameter besides is ``str backend``.
        outputs: In order; none for an operator that writes its arguments.
        rules: What cannot be said of a single argument: called with the operator's name, all arguments by name and the
            sizes found, they raise ValueError or TypeError.
        first: Arguments that are looked at before the others: they decide about sizes, the others are wrong.
        backend: Whether the registered operator has the parameter ``backend``.
    """

    op: str
    arguments: tuple[Argument | Scalar, ...]
    outputs: tuple[Output, ...] = ()
    rules: tuple[Callable[[str, Mapping[str, Any], Sizes], None], ...] = ()
    first: tuple[str, ...] = ()
    backend: bool = True

    @functools.cached_property
    def tensors(self) -> tuple[tuple[int, Argument], ...]:
        """Arguments that are tensors, with their places, as they are looked at."""
        found = [(i, a) for i, a in enumerate(self.arguments) if isinstance(a, Argument)]
        return tuple(sorted(found, key=lambda pair: pair[1].name not in self.first))

    @functools.cached_property
    def numbers(self) -> tuple[tuple[int, str], ...]:
        """Arguments that are whole numbers, with their places: sizes, too."""
        return tuple((i, a.name) for i, a in enumerate(self.arguments) if isinstance(a, Scalar) and a.type == "int")

    @functools.cached_property
    def _looked_at(self) -> tuple[tuple[int, Argument, tuple[torch.dtype, ...], int], ...]:
        """``tensors`` with their dtypes, and the place of the argument whose dtype they have instead (−1: none)."""
        return tuple(
            (i, a, (), self.names.index(a.dtypes)) if isinstance(a.dtypes, str) else (i, a, a.dtypes, -1)
            for i, a in self.tensors
        )

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of all arguments."""
        return tuple(argument.name for argument in self.arguments)

    def check(self, *values: Any) -> Sizes:
        """The sizes found in the arguments.

        Raises:
            TypeError: A wrong type or dtype; the first argument that does not fit is named.
            ValueError: A wrong shape or device, likewise.
        """
        sizes: Sizes = {}
        for i, name in self.numbers:
            sizes[name] = whole_number(f"{self.op}: {name}", values[i])
        device: torch.device | None = None
        for i, argument, dtypes, like in self._looked_at:
            tensor = values[i]
            if tensor is None and argument.optional:
                continue
            if like >= 0:
                dtypes = (values[like].dtype,)
            good = isinstance(tensor, Tensor) and tensor.dtype in dtypes and (device is None or tensor.device == device)
            if not good or not argument.bind(tensor.shape, sizes):
                name, shape = name_of(argument), argument.expected(sizes)
                check_tensor(self.op, name, tensor, dtypes, shape, device)
                raise ValueError(f"{self.op}: {name} must have shape ({argument.shape}), got {tuple(tensor.shape)}")
            device = tensor.device
            check_memory(self.op, name_of(argument), tensor)
        if self.rules:
            by_name = dict(zip(self.names, values, strict=True))
            for rule in self.rules:
                rule(self.op, by_name, sizes)
        return sizes

    def check_values(self, sizes: Sizes, *values: Any) -> None:
        """Refuse entries out of range, for backends that do not look at entries themselves.

        Raises:
            ValueError: One is; the first is named.
        """
        for i, argument in self.tensors:
            if argument.values is not None and values[i] is not None:
                argument.values.check(self.op, name_of(argument), values[i], sizes)

    @property
    def schema(self) -> str:
        """The operator in torch's schema language."""
        written = iter("abcdefgh")
        parts = []
        for argument in self.arguments:
            if isinstance(argument, Scalar):
                parts.append(f"{argument.type} {argument.name}" + (f"={argument.default}" if argument.default else ""))
                continue
            mark = f"({next(written)}!)" if argument.written else ""
            parts.append(f"Tensor{mark}{'?' if argument.optional else ''} {argument.name}")
        parts += ["str backend"] if self.backend else []
        results = ", ".join(["Tensor"] * len(self.outputs))
        return f"{self.op}({', '.join(parts)}) -> {results if len(self.outputs) == 1 else f'({results})'}"

    def fake(self, *values: Any) -> Any:
        """Outputs without contents, of the shapes and dtypes that the operator's would have."""
        sizes: Sizes = {name: values[i] for i, name in self.numbers}
        for i, argument in self.tensors:
            if values[i] is not None:
                argument.bind(values[i].shape, sizes)
        first = values[self.tensors[0][0]]
        made = [first.new_empty(self._shape(out, sizes), dtype=self._dtype(out, values)) for out in self.outputs]
        if not made:
            return None
        return made[0] if len(made) == 1 else tuple(made)

    def outputs_for(self, *values: Any) -> tuple[Tensor, ...]:
        """The outputs of a call, allocated and not yet written. Raises like ``check``."""
        self.check(*values)
        made = self.fake(*values)
        return (made,) if isinstance(made, Tensor) else tuple(made or ())

    def register(self, implementation: Callable[..., Any]) -> Any:
        """``torch.ops.fastpower.<op>``, which runs ``implementation``; see ``dispatch.register``."""
        return register(self.schema, implementation, self.fake)

    def _shape(self, output: Output, sizes: Sizes) -> list[int]:
        return [sizes[name] for name, _, _ in dims_of(output.shape, sizes)]

    def _dtype(self, output: Output, values: Sequence[Any]) -> torch.dtype:
        if isinstance(output.dtype, torch.dtype):
            return output.dtype
        value = values[self.names.index(output.dtype)]
        dtype: torch.dtype = value if isinstance(value, torch.dtype) else value.dtype
        return dtype


def name_of(argument: Argument) -> str:
    """What messages call it."""
    return argument.label or argument.name


#: the name of a size, how much more of it there is, and the size itself where it is a number
Dim = tuple[str, int, int | None]


def dims_of(shape: str, sizes: Sizes, ndim: int | None = None) -> tuple[Dim, ...]:
    """The dimensions of ``shape``.

    Whether an optional one is there is known from ``sizes``, or from ``ndim`` where nothing is known yet, and noted
    down.
    """
    dims = _parsed(shape)
    if not dims or not dims[0][0].endswith("?"):
        return dims
    optional = dims[0][0]
    if ndim is not None and optional not in sizes and ndim in (len(dims), len(dims) - 1):
        sizes[optional] = ndim == len(dims)
    there = sizes.get(optional)
    return dims if there is None else ((optional[:-1], 0, None), *dims[1:]) if there else dims[1:]


@functools.cache
def _parsed(shape: str) -> tuple[Dim, ...]:
    return tuple(
        (name.removesuffix("+1"), int(name.endswith("+1")), int(name) if name.isdigit() else None)
        for name in shape.split()
    )
