"""Sequences, lengths and tokens are whole numbers: anything else is refused, and nothing has changed then."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from fastpower.decoders import Work
from fastpower.decoders.cache import PagedCache
from fastpower.decoders.integers import integers
from fastpower.decoders.transformers import TransformersDecoder
from tests.tiny_models import tiny_model

BROKEN = [2.9, 2.0, np.float32(2.9), np.float64(2.0), Fraction(5, 2), torch.tensor(2.9), "2"]


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
    "free of a handle": lambda cache, s, n: cache.free(s + (n if not isinstance(n, str) else "")),
}


@pytest.mark.parametrize("number", BROKEN, ids=repr)
@pytest.mark.parametrize("call", CALLS)
def test_the_books_take_whole_numbers_only(cache, call, number):
    cache, sequence = cache
    before = cache.stats()
    with pytest.raises(TypeError):
        CALLS[call](cache, sequence, number)
    assert cache.stats() == before
    cache.check()


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
    for values in ([2**63], [2**70], np.array([2**64 - 1], np.uint64)):
        with pytest.raises(TypeError, match=r"lengths must hold whole numbers of 64 bits, got .*\d{19}"):
            integers("lengths", values)
