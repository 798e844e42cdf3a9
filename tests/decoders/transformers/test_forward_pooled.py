"""Rows of a real forward that decode one token together."""

import numpy as np
import pytest

from fastpower.decoders.base import Draws, PoolingDecoder, Work
from fastpower.decoders.transformers import TransformersDecoder
from fastpower.errors import CacheFull
from tests.tiny_models import tiny_model


def one(value, dtype):
    return np.array([value], dtype)


def test_copies_of_a_row_pool_to_its_powers_and_other_groups_do_not_matter():
    with TransformersDecoder(tiny_model("llama"), cache_tokens=300) as decoder:
        assert isinstance(decoder, PoolingDecoder)
        prompt = [3, 5, 7]
        draws = Draws(one(2, "f4"), np.array([2, 3], "f4"), one(0, "i8"), one(9, "u8"), one(3, "i8"), one(-1, "i8"))
        alone = decoder.forward([Work(decoder.add(), prompt)], draws)
        work = [Work(decoder.add(), tokens) for tokens in (prompt, prompt, [8, 1], prompt, prompt, prompt)]
        keys, positions = np.array([9, 4, 9], "u8"), np.array([3, 2, 3])
        out = decoder.forward_pooled(work, np.array([0, 2, 3, 6]), keys, positions)
        np.testing.assert_allclose(out.log_mass[[0, 2]], alone.logz[0], atol=1e-4)
        assert abs(out.log_mass[1]) < 1e-5 and not out.status.any()
        assert out.token[0] == alone.token[0]  # p² drawn with the same key
        np.testing.assert_allclose(out.logp[0], 2 * alone.logp[0] - alone.logz[0, 0], atol=1e-4)
        assert [decoder.length(row.sequence) for row in work] == [len(row.tokens) for row in work]


def test_without_room_nothing_has_changed():
    with TransformersDecoder(tiny_model("llama"), cache_tokens=32) as decoder:
        work = [Work(decoder.add(), [3] * 20), Work(decoder.add(), [5] * 20)]
        with pytest.raises(CacheFull):
            decoder.forward_pooled(work, np.array([0, 2]), one(1, "u8"), one(0, "i8"))
        assert [decoder.length(row.sequence) for row in work] == [0, 0]
