"""Which prefixes have their K/V in the decoder's cache, and who gives way when it is full.

Lanes being decoded hold their sequences; everything else in the cache belongs to branches that samplers keep. Those
are the first to go, least recently used first: their tokens stay, so they can be recomputed when they are used again.
A decoder that remembers prefixes keeps what prompts, parked and evicted sequences held for as long as nobody needs the
memory, so that equal beginnings, of other prompts and later runs too, are computed once.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Sequence

from fastpower.chains.requests import Branch
from fastpower.decoders.base import Decoder, PrefixDecoder
from fastpower.errors import CacheFull
from fastpower.scheduler.lanes import Lane


class Residence:
    """The decoder's sequences, by owner. resume=False keeps none but those being decoded: every lane starts empty."""

    def __init__(self, decoder: Decoder, *, resume: bool = True) -> None:
        self.decoder = decoder
        self.resume = resume
        reusable = resume and isinstance(decoder, PrefixDecoder) and decoder.batch_invariant
        self._prefixes: PrefixDecoder | None = decoder if reusable else None  # type: ignore[assignment]
        self.evictions = 0
        self.running = False  # a scheduler is at work and will ``flush``
        self._idle: dict[int, weakref.ref[Branch]] = {}  # decoder sequence → branch, least recently used first
        self._released: list[int] = []
        self._roots: weakref.WeakValueDictionary[tuple[int, ...], Branch] = weakref.WeakValueDictionary()

    def root(self, prompt: Sequence[int]) -> Branch:
        """The branch of a prompt; equal prompts share one for as long as anybody uses it."""
        tokens = tuple(int(token) for token in prompt)
        branch = self._roots.get(tokens)
        if branch is None:
            branch = self._roots[tokens] = Branch(tokens, release=self._release)
        return branch

    def branch(self, lane: Lane, tokens: Sequence[int]) -> Branch:
        """A new branch of ``tokens`` sharing what the lane has in the cache (it starts evicted if that is full)."""
        root: Branch | None = lane.parent.root or lane.parent
        if root is not None and lane.length < len(root.tokens):
            root = None  # it left the prompt before its end: the prompt's K/V behind that are not its own
        branch = Branch(tokens, root, release=self._release)
        assert lane.sequence is not None
        if self.resume:
            with contextlib.suppress(CacheFull):
                self._keep(branch, self.decoder.fork(lane.sequence, lane.fed), lane.fed)
        return branch

    def materialise(self, lane: Lane) -> None:
        """Give a lane a sequence holding as much of its prefix as the cache has, all but its last token at most."""
        for source in (lane.parent, lane.parent.root):
            if source is None or source.sequence is None:
                continue
            shared = lane.length if source is lane.parent else min(lane.length, len(source.tokens))
            shared = min(shared, source.held, len(lane.tokens) - 1)
            lane.sequence = self.decoder.fork(source.sequence, shared)
            lane.fed = lane.resumed = shared
            self._idle[source.sequence] = self._idle.pop(source.sequence)
            return
        if self._prefixes is not None:
            lane.sequence, lane.fed = self._prefixes.match(lane.tokens[:-1])
            lane.resumed = lane.fed
        else:
            lane.sequence, lane.fed = self.decoder.add(), 0

    def share(self, lane: Lane) -> None:
        """After a prefill: let the lane's parent (a prompt, or an evicted record) have what was computed."""
        parent, held = lane.parent, min(lane.fed, lane.length)
        if lane.sequence is not None and held > 0:
            self._remember(lane.sequence, lane.tokens[:held])
        if lane.sequence is not None and parent.sequence is None and held > 0 and self.resume:
            with contextlib.suppress(CacheFull):
                self._keep(parent, self.decoder.fork(lane.sequence, held), held)

    def drop(self, lane: Lane) -> None:
        """Take a lane out of the cache; its tokens stay."""
        if lane.sequence is not None:
            self.decoder.free(lane.sequence)
            lane.sequence, lane.fed = None, 0

    def park(self, lane: Lane) -> None:
        """``drop`` for a lane that will be back."""
        if lane.sequence is not None:
            self._remember(lane.sequence, lane.tokens[: lane.fed])
        self.drop(lane)

    def flush(self) -> bool:
        """Free the sequences of branches that are gone; True if there were any."""
        freed = bool(self._released)
        while self._released:
            sequence = self._released.pop()
            self._idle.pop(sequence, None)
            self.decoder.free(sequence)
        return freed

    def evict(self) -> bool:
        """Make room: free what is gone, else the least recently used branch. False if there is nothing to free."""
        if self.flush():
            return True
        for sequence, reference in self._idle.items():
            branch = reference()
            if branch is None:
                continue  # its destructor is about to run
            del self._idle[sequence]
            self._remember(sequence, branch.tokens[: branch.held])
            branch.sequence, branch.held = None, 0
            self.decoder.free(sequence)
            self.evictions += 1
            return True
        return False

    def _keep(self, branch: Branch, sequence: int, held: int) -> None:
        branch.sequence, branch.held = sequence, held
        self._idle[sequence] = weakref.ref(branch)

    def _remember(self, sequence: int, tokens: Sequence[int]) -> None:
        if self._prefixes is not None:
            self._prefixes.remember(sequence, tokens)

    def _release(self, sequence: int) -> None:
        # Called from a destructor. While a scheduler runs that may be in the middle of a forward: only note it down.
        if self.running:
            self._released.append(sequence)
        else:
            self._idle.pop(sequence, None)
            self.decoder.free(sequence)
