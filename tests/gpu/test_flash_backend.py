"""The flash-attn backend on a GPU, through the façade, against the float64 reference on the CPU."""

import pytest
import torch

from fastpower.kernels import backends, paged_attention
from tests.kernels.paging_inputs import make_case

REASON = backends()["flash"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REASON is not None, reason=f"backend 'flash': {REASON}")]


def on_gpu(case, **options):
    return paged_attention(*(x.cuda() for x in case), backend="flash", **options).cpu()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("options", [{}, {"window": 1}, {"window": 100}, {"softcap": 5.0}, {"scale": 0.3}], ids=str)
@pytest.mark.parametrize(
    "work",
    [{"lengths": [300, 1, 256, 700]}, {"lengths": [777], "queries": [40]}, {"lengths": [300, 20], "queries": [40, 1]}],
    ids=["decode", "prefill", "ragged, by Triton"],
)
def test_attention_is_that_of_the_reference(work, options, head_dim, dtype):
    case = make_case(**work, page_size=256, head_dim=head_dim, dtype=dtype)
    expected = paged_attention(*case, backend="reference", **options)
    torch.testing.assert_close(on_gpu(case, **options), expected, rtol=2**-6, atol=2**-7)


def test_bits_of_a_decode_row_do_not_depend_on_its_batch():
    lengths = [300, 1, 256, 700]
    case = make_case(lengths, page_size=256, dtype=torch.bfloat16)
    batch = on_gpu(case)
    for s in range(len(lengths)):
        row = slice(s, s + 1)
        alone = case._replace(
            query=case.query[row],
            page_table=case.page_table[row],
            query_starts=torch.tensor([0, 1], dtype=torch.int32),
            lengths=case.lengths[row],
        )
        assert torch.equal(on_gpu(alone), batch[row])
