"""Page books on the device: truncation, fork, freeing and appending without asking the host.

Row s of the books is a sequence: lengths[s] tokens in the pages page_table[s, : ⌈lengths[s] / page_size⌉]. Page p is
held references[p] times; pages held by nobody are the stack free[: free_count]. Two launches change them, each from a
plan in device tensors, each by one program, so that its phases can be ordered by a barrier instead of the host:

    assign    row target_i ← the first length_i tokens of row source_i, all i at once
              (1) references + 1 for every page that a target will hold        sources are still untouched
              (2) references − 1 for every page that a target held; the one who takes the last reference away frees it
              (3) write the targets' pages and lengths
    reserve   one more token for every row, or for none if pages run short
              a row whose last page is full takes a free page; a row whose last page is held by others, too, gives up
              its reference, takes a free page and asks for a copy; the last holder left keeps the page

Phase 1 before phase 2 is what keeps a page alive that moves from one row to another. Truncating is source = target;
a fork, or a particle resampled over another, is source ≠ target; freeing is length 0. No K/V moves except the copies
that ``reserve`` asks for, which ``copy_pages`` must run, in stream order, before the next ``append_kv``.
"""

from typing import NamedTuple

import torch

import triton
import triton.language as tl

from .device import on_its_device
from .registers import ALL_REGISTERS

BLOCK = 1024


class PageBooks(NamedTuple):
    """The books of S rows over P pages; all int32, all updated in place."""

    page_table: torch.Tensor  # (S, max_pages), contiguous; entries past a row's pages mean nothing
    lengths: torch.Tensor  # (S,)
    references: torch.Tensor  # (P,)
    free: torch.Tensor  # (P,) a stack
    free_count: torch.Tensor  # (1,)


class Reservation(NamedTuple):
    """Where the reserved tokens go, and the page copies to run first (see ``copy_pages``); −1 = nothing."""

    slots: torch.Tensor  # (R,) int64
    source: torch.Tensor  # (R,) int64
    target: torch.Tensor  # (R,) int64
    tokens: torch.Tensor  # (R,) int64
    fits: torch.Tensor  # (1,) int32: 0 = not enough pages, nothing was changed


def page_books(sequences, max_pages, num_pages, device):
    """Books of empty rows."""
    zeros = dict(dtype=torch.int32, device=device)
    return PageBooks(
        torch.zeros((sequences, max_pages), **zeros),
        torch.zeros(sequences, **zeros),
        torch.zeros(num_pages, **zeros),
        torch.arange(num_pages - 1, -1, -1, **zeros),
        torch.full((1,), num_pages, **zeros),
    )


@triton.jit(do_not_specialize=["R", "max_pages", "page_size"])
def assign_kernel(
    page_table_ptr,
    lengths_ptr,
    references_ptr,
    free_ptr,
    free_count_ptr,
    source_ptr,  # (R,) int32
    target_ptr,  # (R,) int32, distinct, −1 = no change
    length_ptr,  # (R,) int32
    staged_ptr,  # (R, max_pages) int32
    R,
    max_pages,
    page_size,
    ROWS: tl.constexpr,  # power of two ≥ R
    BLOCK: tl.constexpr,
):
    """One program."""
    o_row = tl.arange(0, ROWS)
    m_row = o_row < R
    b_target = tl.load(target_ptr + o_row, mask=m_row, other=-1)
    m_row = m_row & (b_target >= 0)
    b_longest = tl.maximum(
        tl.load(length_ptr + o_row, mask=m_row, other=0), tl.load(lengths_ptr + b_target, mask=m_row, other=0)
    )
    # No row of the plan holds or will hold more pages: the tiles below are rows × this many columns.
    columns = (tl.max(b_longest, axis=0) + page_size - 1) // page_size
    cells = R * columns  # loops up to it are `while`s: Triton 3.6's interpreter has no `range` up to a loaded number

    start = 0
    while start < cells:
        o = start + tl.arange(0, BLOCK)
        mask = o < cells
        o_plan = o // columns
        o_column = o % columns
        b_kept = (tl.load(length_ptr + o_plan, mask=mask, other=0) + page_size - 1) // page_size
        mask = mask & (o_column < b_kept) & (tl.load(target_ptr + o_plan, mask=mask, other=-1) >= 0)
        b_source = tl.load(source_ptr + o_plan, mask=mask, other=0).to(tl.int64)
        b_page = tl.load(page_table_ptr + b_source * max_pages + o_column, mask=mask, other=0)
        tl.atomic_add(references_ptr + b_page, 1, mask=mask)
        tl.store(staged_ptr + o_plan.to(tl.int64) * max_pages + o_column, b_page, mask=mask)
        start += BLOCK
    tl.debug_barrier()
    count = tl.load(free_count_ptr)
    start = 0
    while start < cells:
        o = start + tl.arange(0, BLOCK)
        mask = o < cells
        o_column = o % columns
        b_row = tl.load(target_ptr + o // columns, mask=mask, other=-1)
        mask = mask & (b_row >= 0)
        b_held = (tl.load(lengths_ptr + b_row, mask=mask, other=0) + page_size - 1) // page_size
        mask = mask & (o_column < b_held)
        b_page = tl.load(page_table_ptr + b_row.to(tl.int64) * max_pages + o_column, mask=mask, other=0)
        m_freed = (tl.atomic_add(references_ptr + b_page, -1, mask=mask) == 1) & mask
        b_place = count + tl.cumsum(m_freed.to(tl.int32), axis=0) - 1
        tl.store(free_ptr + b_place, b_page, mask=m_freed)
        count += tl.sum(m_freed.to(tl.int32), axis=0)
        start += BLOCK
    tl.debug_barrier()
    tl.store(free_count_ptr, count)
    start = 0
    while start < cells:
        o = start + tl.arange(0, BLOCK)
        mask = o < cells
        o_plan = o // columns
        o_column = o % columns
        b_row = tl.load(target_ptr + o_plan, mask=mask, other=-1)
        b_kept = (tl.load(length_ptr + o_plan, mask=mask, other=0) + page_size - 1) // page_size
        mask = mask & (b_row >= 0) & (o_column < b_kept)
        b_page = tl.load(staged_ptr + o_plan.to(tl.int64) * max_pages + o_column, mask=mask, other=0)
        tl.store(page_table_ptr + b_row.to(tl.int64) * max_pages + o_column, b_page, mask=mask)
        start += BLOCK
    tl.store(lengths_ptr + b_target, tl.load(length_ptr + o_row, mask=m_row, other=0), mask=m_row)


@triton.jit(do_not_specialize=["R", "max_pages", "page_size"])
def reserve_kernel(
    page_table_ptr,
    lengths_ptr,
    references_ptr,
    free_ptr,
    free_count_ptr,
    rows_ptr,  # (R,) int32, distinct, −1 = none
    slots_ptr,  # (R,) int64 out
    source_ptr,
    target_ptr,
    tokens_ptr,
    fits_ptr,  # (1,) int32 out
    R,
    max_pages,
    page_size,
    ROWS: tl.constexpr,
):
    """One program."""
    o = tl.arange(0, ROWS)
    mask = o < R
    b_row = tl.load(rows_ptr + o, mask=mask, other=-1)
    m_row = mask & (b_row >= 0)
    b_length = tl.load(lengths_ptr + b_row, mask=m_row, other=0)
    b_column = b_length // page_size
    b_offset = b_length % page_size
    p_entry = page_table_ptr + b_row.to(tl.int64) * max_pages + b_column
    m_partial = m_row & (b_offset > 0)
    b_last = tl.load(p_entry, mask=m_partial, other=0)
    # Everyone lets go of a partly filled page; whoever was its last holder keeps it.
    b_holders = tl.atomic_add(references_ptr + b_last, -1, mask=m_partial)
    m_copy = m_partial & (b_holders > 1)
    m_new = m_copy | (m_row & (b_offset == 0))
    count = tl.load(free_count_ptr)
    needed = tl.sum(m_new.to(tl.int32), axis=0)
    is_wide = tl.max(tl.where(m_row, b_column, -1), axis=0) < max_pages
    fits = (needed <= count) & is_wide
    m_fits = o < tl.where(fits, R, 0)  # interpreters take no broadcast of a single bit for a mask
    tl.debug_barrier()
    tl.atomic_add(references_ptr + b_last, 1, mask=m_partial & ((m_copy == 0) | (m_fits == 0)))
    m_new = m_new & m_fits
    b_place = count - tl.cumsum(m_new.to(tl.int32), axis=0)
    b_page = tl.where(m_new, tl.load(free_ptr + b_place, mask=m_new, other=0), b_last)
    tl.store(references_ptr + b_page, 1, mask=m_new)
    tl.store(p_entry, b_page, mask=m_new)
    tl.store(lengths_ptr + b_row, b_length + 1, mask=m_row & m_fits)
    slot = b_page.to(tl.int64) * page_size + b_offset
    m_copy = m_copy & m_fits
    tl.store(slots_ptr + o, tl.where(m_row & m_fits, slot, -1), mask=mask)
    tl.store(source_ptr + o, tl.where(m_copy, b_last, -1).to(tl.int64), mask=mask)
    tl.store(target_ptr + o, tl.where(m_copy, b_page, -1).to(tl.int64), mask=mask)
    tl.store(tokens_ptr + o, tl.where(m_copy, b_offset, 0).to(tl.int64), mask=mask)
    tl.debug_barrier()
    tl.store(free_count_ptr, tl.where(fits, count - needed, count))
    tl.store(fits_ptr, fits.to(tl.int32))


@on_its_device
def assign(books, source, target, length, page_size):
    """Row target[i] becomes the first length[i] tokens of row source[i], for all i at once; in place, one launch.

    source, target, length (R,) int32 on the books' device. Targets are distinct, −1 leaves everything as it is; a row
    may be a source any number of times and a target as well (what it was before counts).
    0 ≤ length[i] ≤ lengths[source[i]]. Arguments are trusted. Which of several pages is on top of the free stack
    afterwards is not determined; nothing else is left open.
    """
    R = source.shape[0]
    if R == 0:
        return
    max_pages = books.page_table.shape[1]
    staged = torch.empty((R, max_pages), dtype=torch.int32, device=source.device)
    assign_kernel[(1,)](
        *(*books, source, target, length, staged, R, max_pages, page_size),
        **dict(ROWS=triton.next_power_of_2(R), BLOCK=BLOCK, num_warps=8, **ALL_REGISTERS),
    )


@on_its_device
def reserve(books, rows, page_size):
    """One more token for each of ``rows`` (R,) int32, distinct, −1 = none; in place, one launch → Reservation.

    All or nothing: if pages (or columns of the page table) do not suffice, ``fits`` is 0, every slot is −1 and the
    books are unchanged. Run ``copy_pages`` on the reservation, then ``append_kv``: both skip entries of −1.
    """
    R, device = rows.shape[0], rows.device
    plan = torch.empty((4, R), dtype=torch.int64, device=device)
    fits = torch.ones(1, dtype=torch.int32, device=device)
    if R > 0:
        reserve_kernel[(1,)](
            *(*books, rows, *plan, fits, R, books.page_table.shape[1], page_size),
            **dict(ROWS=triton.next_power_of_2(R), num_warps=4),
        )
    return Reservation(*plan, fits)
