"""Prefix reuse: what a sequence held is found again by its tokens, in whole pages, until its pages are needed."""

from __future__ import annotations

import pytest

from fastpower import _C
from fastpower.errors import CacheFull

PAGE = 4


def hold(table, tokens: list[int]) -> int:
    """A sequence that holds ``tokens`` and is remembered."""
    sequence, length = table.match(tokens)
    if len(tokens) > length:
        table.commit(table.reserve([sequence], [len(tokens) - length])[0])
    table.remember(sequence, tokens)
    return sequence


def remember(table, tokens: list[int]) -> None:
    table.free(hold(table, tokens))
    table.check()


def known(table, tokens: list[int]) -> int:
    sequence, length = table.match(tokens)
    table.free(sequence)
    return length


def fill(table, pages: int) -> None:
    """Takes and gives back ``pages`` pages: what is cached has to make room."""
    sequence = table.add()
    table.commit(table.reserve([sequence], [pages * PAGE])[0])
    table.free(sequence)
    table.check()


def test_a_match_is_the_longest_remembered_prefix_in_whole_pages():
    table = _C.SequenceTable(20, PAGE)
    tokens = list(range(11))
    remember(table, tokens)
    assert known(table, tokens) == 8, "the partial page is not kept"
    assert known(table, [*range(7), 99]) == 4
    assert known(table, tokens[:8]) == 8
    assert known(table, tokens[:7]) == 4
    assert known(table, tokens[:3]) == known(table, []) == known(table, tokens[1:]) == known(table, tokens[4:]) == 0
    assert table.stats()["cached_pages"] == 2


def test_equal_pages_behind_different_beginnings_are_different():
    table = _C.SequenceTable(20, PAGE)
    remember(table, [1] * PAGE + [7] * PAGE)
    remember(table, [2] * PAGE + [7] * PAGE)
    assert table.stats()["cached_pages"] == 4
    assert known(table, [7] * PAGE) == 0


def test_a_match_shares_pages_and_appending_never_touches_them():
    table = _C.SequenceTable(20, PAGE)
    first = hold(table, list(range(8)))
    second, length = table.match([*range(8), 50])
    assert length == 8 and table.stats()["live_pages"] == 2
    table.truncate(second, 6)
    plan, _, _, source, _, _ = table.reserve([second], [1])
    assert len(source) == 1, "a remembered page must be copied before it is written"
    table.commit(plan)
    table.free(first)
    table.check()
    # The same when the tree is the only other holder.
    table.free(second)
    third, _ = table.match(list(range(8)))
    table.truncate(third, 5)
    assert table.pages_needed([third], [1]) == 1
    table.check()
    assert known(table, list(range(8))) == 8


def test_what_is_remembered_twice_is_kept_once():
    table = _C.SequenceTable(20, PAGE)
    a, b = table.add(), table.add()
    table.commit(table.reserve([a, b], [9, 12])[0])
    table.remember(a, [1] * 9)
    table.remember(b, [1] * 12)
    table.remember(b, [1] * 12)
    table.check()
    table.free_many([a, b])
    assert table.stats()["cached_pages"] == 3 and known(table, [1] * 12) == 12


def test_tokens_that_contradict_earlier_ones_are_refused_and_nothing_changes():
    table = _C.SequenceTable(20, PAGE)
    sequence = hold(table, list(range(12)))
    before = table.stats()
    with pytest.raises(ValueError, match="differ from those that were remembered"):
        table.remember(sequence, [0, 1, 2, 3, 4, 5, 6, 77, 8, 9, 10, 11])
    with pytest.raises(ValueError, match=r"at most the 12 that sequence \d+ holds, got 13"):
        table.remember(sequence, list(range(13)))
    assert table.stats() == before
    table.check()


def test_a_refusal_halfway_takes_back_what_was_added():
    table = _C.SequenceTable(20, PAGE)
    remember(table, [1] * PAGE)
    sequence = table.add()
    table.commit(table.reserve([sequence], [3 * PAGE])[0])
    table.remember(sequence, [1] * 3 * PAGE)  # its first page is not kept (there is one already), the others are
    before = table.stats()
    with pytest.raises(ValueError, match="differ from those"):
        table.remember(sequence, [2] * 3 * PAGE)
    table.check()
    assert table.stats() == before and known(table, [2] * PAGE) == 0 and known(table, [1] * 3 * PAGE) == 3 * PAGE


def test_the_least_recently_used_prefix_goes_first_and_from_its_end():
    table = _C.SequenceTable(9, PAGE)
    prompts = [[i] * 3 * PAGE for i in range(3)]
    for prompt in prompts:
        remember(table, prompt)
    assert known(table, prompts[0]) == 3 * PAGE  # a use: prompt 1 is the oldest now
    fill(table, 2)
    assert [known(table, p) for p in prompts] == [12, 4, 12]
    fill(table, 2 + 2)
    # The first two pages are free already. The oldest use was of prompt 0, just above; asking was a use of all three.
    assert [known(table, p) for p in prompts] == [4, 4, 12]


def test_a_shared_beginning_outlives_its_continuations():
    table = _C.SequenceTable(8, PAGE)
    start = [9] * 2 * PAGE
    for i in range(4):
        remember(table, start + [i] * PAGE)
    assert table.stats()["cached_pages"] == 6
    fill(table, 2 + 3)
    assert [known(table, start + [i] * PAGE) for i in range(4)] == [8, 8, 8, 12]


def test_pages_of_living_sequences_are_never_evicted():
    table = _C.SequenceTable(6, PAGE)
    sequence = hold(table, [5] * 3 * PAGE)
    other = hold(table, [6] * 2 * PAGE)
    table.free(other)
    assert table.free_pages == 3
    with pytest.raises(CacheFull, match=r"needs 4 pages, 3 are free \(of 6\)"):
        table.reserve([table.add()], [4 * PAGE])
    assert known(table, [6] * 2 * PAGE) == 2 * PAGE, "a reservation that fails evicts nothing"
    fill(table, 3)
    assert known(table, [6] * PAGE) == 0 and known(table, [5] * 3 * PAGE) == 3 * PAGE
    table.free(sequence)
    assert table.stats()["cached_pages"] == 3


def test_an_idle_beginning_waits_for_a_continuation_that_is_in_use():
    table = _C.SequenceTable(8, PAGE)
    a, b = table.add(), table.add()
    table.commit(table.reserve([a, b], [PAGE, 2 * PAGE])[0])
    table.remember(a, [1] * PAGE)
    table.remember(b, [1] * 2 * PAGE)  # the first page is a's, the second b's
    table.free(a)
    assert table.stats()["cached_pages"] == 1
    assert table.free_pages == 5, "a's page is cached, but b's page hangs on it"
    with pytest.raises(CacheFull):
        table.reserve([table.add()], [6 * PAGE])
    table.free(b)
    assert table.free_pages == 8
    fill(table, 8)


def test_forget_gives_back_all_that_nobody_holds():
    table = _C.SequenceTable(9, PAGE)
    remember(table, [1] * 2 * PAGE)
    sequence = hold(table, [2] * 3 * PAGE)
    table.forget()
    table.check()
    stats = table.stats()
    assert (stats["free_pages"], stats["cached_pages"], stats["live_pages"]) == (6, 0, 3)
    assert known(table, [2] * 3 * PAGE) == 3 * PAGE
    table.free(sequence)
    table.forget()
    assert table.stats()["free_pages"] == 9


def test_rollback_of_a_reservation_that_evicted_leaves_every_sequence_as_it_was():
    table = _C.SequenceTable(6, PAGE)
    remember(table, [1] * 3 * PAGE)
    sequence = hold(table, [2] * 6)
    plan = table.reserve([sequence], [3 * PAGE])
    table.check()
    table.rollback(plan[0])
    table.check()
    assert table.length(sequence) == 6 and table.free_pages == 4 and known(table, [1] * 3 * PAGE) == PAGE


def test_one_page_tokens_and_large_ids_work():
    table = _C.SequenceTable(5, 1)
    tokens = [2**31 - 1, 0, 2**31 - 1]
    remember(table, tokens)
    assert known(table, tokens) == 3 and known(table, [0]) == 0
