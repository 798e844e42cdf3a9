"""Sequences, lengths and tokens are whole numbers: anything else is refused, and nothing has changed then."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from fastpower import _C
from fastpower.decoders import Work
from fastpower.decoders.base import Draws
from fastpower.decoders.cache import PagedCache
from fastpower.decoders.integers import integers
from fastpower.decoders.toy import ToyDecoder
from fastpower.decoders.transformers import TransformersDecoder
from tests.tiny_models import tiny_model

BROKEN = [
    *(2.9, 2.0, np.float32(2.9), np.float64(2.0), Fraction(5, 2), torch.tensor(2.9), "2"),
    *(True, np.True_, torch.tensor(2), torch.tensor([2]), None, [2], 2j),
]


@pytest.fixture
def cache():
    cache = PagedCache(1, 1, 8, num_pages=4)
    sequence = cache.add()
    cache.commit(cache.reserve([sequence], [20]))
    return cache, sequence


CALLS = {
    "fork": lambda cache, s, n: cache.fork(s, n),
    "fork_many": lambda cache, s, n: cache.fork_many([s], [n]),
    "truncate": lambda cache, s, n: cache.truncate(s, n),
    "reserve": lambda cache, s, n: cache.reserve([s], [n]),
    "pages_needed": lambda cache, s, n: cache.pages_needed([s], [n]),
    "remember": lambda cache, s, n: cache.remember(s, [5, n]),
    "match": lambda cache, s, n: cache.match([5, n]),
    "free": lambda cache, s, n: cache.free(n),
    "free_many": lambda cache, s, n: cache.free_many([s, n]),
    "length": lambda cache, s, n: cache.length(n),
    "lengths": lambda cache, s, n: cache.lengths([n]),
    "page_tables": lambda cache, s, n: cache.page_tables([n]),
    "max_length": lambda cache, s, n: cache.reserve([s], [1], max_length=n if n is not None else 2.5),
}


@pytest.mark.parametrize("number", BROKEN, ids=repr)
@pytest.mark.parametrize("call", CALLS)
def test_the_books_take_whole_numbers_only(cache, call, number):
    cache, sequence = cache
    before = cache.stats()
    with pytest.raises(TypeError, match="whole number"):
        CALLS[call](cache, sequence, number)
    assert cache.stats() == before
    cache.check()


#: name of the argument in the message → call of the C++ books with ``n`` for it
BOOKS = {
    "sequence": lambda t, s, n: t.fork(n, 1),
    "length": lambda t, s, n: t.truncate(s, n),
    "sequences": lambda t, s, n: t.free_many([n]),
    "lengths": lambda t, s, n: t.fork_many([s], (n,)),
    "n_new": lambda t, s, n: t.reserve([s], [n]),
    "n_query": lambda t, s, n: t.shared_runs([s], [n]),
    "tokens": lambda t, s, n: t.remember(s, [n]),
    "plan": lambda t, s, n: t.commit(n),
    "max_length": lambda t, s, n: t.reserve_step([s], [1], n),
    "num_pages": lambda t, s, n: _C.SequenceTable(n, 16),
    "page_size": lambda t, s, n: _C.SequenceTable(4, n),
    "page": lambda t, s, n: _C.PagePool(4).retain(n),
    "expected": lambda t, s, n: _C.PagePool(1).check([n]),
}


@pytest.mark.parametrize("number", [n for n in BROKEN if n != [2]], ids=repr)
@pytest.mark.parametrize("name", BOOKS)
def test_the_books_of_cpp_name_the_number_that_is_not_whole(name, number):
    table = _C.SequenceTable(4, 16)
    sequence = table.add()
    table.commit(table.reserve([sequence], [20])[0])
    before = table.stats()
    with pytest.raises((TypeError, ValueError), match=f"^{name} must (be a whole number|have one dimension)"):
        BOOKS[name](table, sequence, number)
    assert table.stats() == before
    table.check()


@pytest.mark.parametrize(
    "values", [np.array([2.9]), np.array([True]), np.array(["2"]), torch.ones(1), 3, None, "2", {2}]
)
def test_the_books_of_cpp_take_arrays_of_whole_numbers_only(values):
    table = _C.SequenceTable(4, 16)
    with pytest.raises(TypeError, match=r"^sequences must hold whole numbers of 64 bits, got"):
        table.lengths(values)


def test_the_books_of_cpp_take_every_kind_of_whole_number():
    table = _C.SequenceTable(4, 16)
    s = table.add()
    for kind in (np.int8, np.uint8, np.int32, np.uint64):
        table.rollback(table.reserve(np.array([s, 0], np.uint64)[:1], np.array([[3, 5]], kind)[0, ::2])[0])
        assert table.length(np.int64(s)) == 0
    with pytest.raises(TypeError, match="must hold whole numbers of 64 bits"):
        table.lengths(np.array([2**63], np.uint64))
    with pytest.raises(TypeError, match="sequence must fit 64 bits"):
        table.length(2**63)


TOY = {
    "sequence": [lambda d, s, n: d.fork(n, 1), lambda d, s, n: d.truncate(n, 1), lambda d, s, n: d.free(n),
                 lambda d, s, n: d.length(n), lambda d, s, n: d.score([Work(n, [1])], np.ones(1, np.float32))],
    "length": [lambda d, s, n: d.fork(s, n), lambda d, s, n: d.truncate(s, n)],
    "a token": [lambda d, s, n: d.score([Work(s, [1, n])], np.ones(1, np.float32)),
                lambda d, s, n: d.log_probabilities([n])],
    "rows": [lambda d, s, n: d.verify([Work(s, [1, 2])], [n], draws())],
    "vocab_size": [lambda d, s, n: ToyDecoder(lambda prefix: [0.0] * 3, n)],
    "eos_ids": [lambda d, s, n: ToyDecoder(lambda prefix: [0.0] * 3, 3, [n])],
    "max_length": [lambda d, s, n: ToyDecoder(lambda prefix: [0.0] * 3, 3, max_length=n)],
}  # fmt: skip


def draws(**changes) -> Draws:
    one = np.ones(1, np.int64)
    good = Draws(np.ones(1, np.float32), np.ones(1, np.float32), one - 1, one.astype(np.uint64), one, one - 2)
    return good._replace(**changes)


@pytest.mark.parametrize("number", BROKEN, ids=repr)
@pytest.mark.parametrize("name", TOY)
def test_the_toy_takes_whole_numbers_only(name, number):
    decoder = ToyDecoder(lambda prefix: [0.0] * 3, 3)
    sequence = decoder.add()
    decoder.forward([Work(sequence, [1, 2])], draws())
    before = decoder.stats(), decoder.length(sequence)
    for call in TOY[name]:
        with pytest.raises(TypeError, match=rf"^{name}.* must be a whole number"):
            call(decoder, sequence, number)
        assert (decoder.stats(), decoder.length(sequence)) == before


@pytest.mark.parametrize("make", ["toy", "llama"])
@pytest.mark.parametrize("name", Draws._fields)
def test_draws_of_another_dtype_are_named_and_not_read_as_other_bits(name, make):
    model = tiny_model("llama") if make == "llama" else None
    decoder = ToyDecoder(lambda prefix: [0.0] * 3, 3) if model is None else TransformersDecoder(
        model, cache_tokens=100, verify=False
    )  # fmt: skip
    sequence = decoder.add()
    good = draws()
    right = getattr(good, name)
    wrong = [right.astype(np.float64), right.tolist(), torch.from_numpy(right.astype(np.int64)), right.astype(np.int32)]
    for array in wrong:
        for call in (decoder.forward, lambda work, d: decoder.verify(work, [1], d)):
            with pytest.raises(TypeError, match=rf"draws\.{name} must be a NumPy array of \w+\d+, got"):
                call([Work(sequence, [1])], draws(**{name: array}))
    with pytest.raises(ValueError, match=rf"draws\.{name} must have one dimension"):
        decoder.forward([Work(sequence, [1])], draws(**{name: right[None]}))
    assert decoder.length(sequence) == 0
    decoder.forward([Work(sequence, [1])], good)


@pytest.mark.parametrize("number", BROKEN, ids=repr)
def test_a_row_of_work_takes_whole_tokens_only(number):
    with TransformersDecoder(tiny_model("llama"), cache_tokens=100, verify=False) as decoder:
        sequence = decoder.add()
        for work in ([Work(sequence, [3, number])], [Work(sequence + 0.0, [3, 2])]):
            with pytest.raises(TypeError):
                decoder.score(work, np.ones(1, np.float32))
        assert decoder.stats()["tokens"] == 0 and decoder.stats()["open_plans"] == 0


@pytest.mark.parametrize(
    "values",
    [[1, 2], (), [], np.array([3], np.int32), np.array([3], np.uint64), np.array([[1], [2]], np.int8), range(4)],
    ids=repr,
)
def test_whole_numbers_of_any_kind_pass_unchanged(values):
    found = integers("lengths", values)
    assert found.dtype == np.int64 and found.tolist() == np.asarray(values).tolist()


def test_a_number_beyond_64_bits_is_named_not_wrapped():
    for values in ([2**63], [2**70], [-(2**63) - 1], np.array([2**64 - 1], np.uint64)):
        with pytest.raises(TypeError, match=r"lengths must hold whole numbers of 64 bits, got .*\d{19}"):
            integers("lengths", values)
