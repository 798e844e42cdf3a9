"""Every launcher, up to the launch: arguments are bound and specialised as on a device and compiled for sm_90.

    python tests/triton/launches.py

The ahead-of-time table compiles signatures that it states itself; this takes them from the launchers' own calls, with
sizes of 1 turned into constants and addresses divisible by 16. A driver without a device stands in for CUDA's. Prints
the kernels compiled. Run by tests/triton/test_ahead_of_time.py in a process of its own.
"""

import tempfile

import null_driver
import torch
import triton


def main():
    from aot_table import load_kernels

    from tests.kernels.paging_inputs import make_case as make_paged
    from tests.kernels.sampling_inputs import make_case

    null_driver.activate()
    compiled = []

    def compile_only(kernel, compile, args, options):
        compiled.append(kernel.__name__)
        return compile()

    null_driver.on_launch(compile_only)
    k = load_kernels()
    for rows in (1, 3):
        case = make_case(rows=rows, vocab=5003, draws=rows)
        k["sample_tokens"].sample_tokens(*case)
        k["sample_tokens"].sample_tokens(*case._replace(exclude=torch.zeros(rows, dtype=torch.int64)))
        k["score_tokens"].score_tokens(case.logits, torch.zeros(rows, dtype=torch.int64), case.exponents)
        k["pool_rows"].pool_rows(case.logits, torch.tensor([0, rows]))
    attend = k["paged_attention"].paged_attention
    one, many = make_paged([1], kv_heads=1, q_heads=1), make_paged([300, 530], [1, 2], shared_tokens=272)
    shared = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([17], dtype=torch.int32)
    for options in ({}, {"window": 1}, {"window": 40, "softcap": 2.0}, {"shared": shared}):
        attend(*many, **options)
    attend(*one)
    attend(*many, ancestors=torch.ones(3, dtype=torch.int64))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for head_dim in (8, 16, 24, 40, 192, 256):
            attend(*make_paged([600], head_dim=head_dim, dtype=dtype))
    caches = torch.zeros(2, 2, 4, 16, 1, 8, dtype=torch.bfloat16)
    key = torch.zeros(1, 1, 8, dtype=torch.bfloat16)
    zero = torch.zeros(1, dtype=torch.int64)
    k["append_kv"].append_kv(key, key, caches[0, 0], caches[1, 0], zero)
    k["copy_pages"].copy_pages(*caches, zero, zero + 1, zero)
    weight, residual = torch.ones(24), torch.zeros(1, 24)
    for x, inner in ((None, None), (residual, None), (residual, weight)):
        k["add_rms_norm"].add_rms_norm(residual, x, weight, eps=1e-6, dtype=torch.bfloat16, inner=inner)
    tables = torch.zeros(2, 4), torch.zeros(2, 4)
    for norms in ({}, dict(q_norm=weight[:8], k_norm=weight[8:16], eps=1e-6)):
        k["rotary_append"].rotary_append(
            key.view(1, 8).repeat(1, 4), *tables, zero, zero, *caches[:, 0], heads=2, **norms
        )
    for gelu in (False, True):
        k["gated_activation"].gated_activation(key.view(1, 8), gelu=gelu)
    for scheme in k["resample"].SCHEMES:
        for n in (1, 1500):
            uniforms = torch.zeros(1 if scheme == "systematic" else n, dtype=torch.float64)
            k["resample"].resample(torch.zeros(n, dtype=torch.float64), uniforms, scheme=scheme)
    for rows in (1, 3):
        books, plan = k["page_books"].page_books(rows, rows, 4, "cpu"), torch.zeros(rows, dtype=torch.int32)
        k["page_books"].assign(books, plan, plan, plan, 16)
        k["page_books"].reserve(books, plan, 1)
    print(*sorted(set(compiled)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="triton_launches_") as cache:
        triton.knobs.cache.dir = cache
        main()
