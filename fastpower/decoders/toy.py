"""A tiny enumerable language model with EOS and variable length: exactness tests run on it.

Any function from a prefix to a logits row is a language model here. Prefixes live in a trie, so forking, truncating
and decoding cost nothing that depends on their length, and every conditional is evaluated once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fastpower.decoders.base import Draws, PooledDraws, SequenceScores, TokenDraws, Work, check_draws, check_rows
from fastpower.errors import CacheFull, InvalidLogits, UnknownSequence
from fastpower.kernels import sample_pooled, sample_tokens, score_tokens
from fastpower.kernels.arguments import whole_number
from fastpower.random import derive, uniforms

Logits = Callable[[tuple[int, ...]], Sequence[float]]


class _Node:
    """A prefix in the trie."""

    __slots__ = ("children", "depth", "parent", "row", "token")

    def __init__(self, parent: _Node | None, token: int) -> None:
        self.parent = parent
        self.token = token
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.children: dict[int, _Node] = {}
        self.row: NDArray[np.float32] | None = None

    def child(self, token: int) -> _Node:
        node = self.children.get(token)
        if node is None:
            node = self.children[token] = _Node(self, token)
        return node

    def ancestor(self, depth: int) -> _Node:
        node = self
        while node.depth > depth:
            assert node.parent is not None
            node = node.parent
        return node

    def prefix(self) -> tuple[int, ...]:
        tokens: list[int] = []
        node = self
        while node.parent is not None:
            tokens.append(node.token)
            node = node.parent
        return tuple(reversed(tokens))


class ToyDecoder:
    """A ``Decoder`` over ``logits(prefix) -> (vocab_size,)``; −inf entries are tokens of probability zero.

    Args:
        logits: The language model: any function of a prefix.
        vocab_size: Entries of its rows.
        eos_ids: Tokens that end an answer.
        max_length: Of the context.
        cache_tokens: Tokens all sequences may hold together (None: no limit). Sharing is not modelled: a fork counts in
            full, which makes the toy stricter than a paged cache and memory pressure easy to provoke in tests.
        backend: Of the kernels, see ``fastpower.kernels.backends``.
    """

    batch_invariant = True

    def __init__(
        self,
        logits: Logits,
        vocab_size: int,
        eos_ids: Iterable[int] = (),
        *,
        max_length: int = 1 << 30,
        cache_tokens: int | None = None,
        backend: str = "auto",
    ) -> None:
        if whole_number("vocab_size", vocab_size) < 1:
            raise ValueError(f"vocab_size must be at least 1, got {vocab_size}")
        self.vocab_size = vocab_size
        self.eos_ids = frozenset(whole_number("eos_ids", token) for token in eos_ids)
        if not all(0 <= token < vocab_size for token in self.eos_ids):
            raise ValueError(f"eos_ids must lie in [0, {vocab_size}), got {sorted(self.eos_ids)}")
        self.max_length = whole_number("max_length", max_length)
        self.cache_tokens = None if cache_tokens is None else whole_number("cache_tokens", cache_tokens)
        self.rows = 0  #: tokens fed to rows whose logits were wanted, so far
        self._backend = backend
        self._logits = logits
        self._root = _Node(None, -1)
        self._sequences: dict[int, _Node] = {}
        self._held = 0
        self._next = 1

    # -- sequences ---------------------------------------------------------------------------------------------

    def _node(self, sequence: int) -> _Node:
        try:
            return self._sequences[whole_number("sequence", sequence)]
        except KeyError:
            raise UnknownSequence(f"sequence {sequence} does not exist (never added, or already freed)") from None

    def _insert(self, node: _Node) -> int:
        self._held += node.depth
        handle, self._next = self._next, self._next + 1
        self._sequences[handle] = node
        return handle

    def add(self) -> int:
        return self._insert(self._root)

    def fork(self, sequence: int, length: int) -> int:
        node = self._node(sequence)
        if not 0 <= whole_number("length", length) <= node.depth:
            raise ValueError(f"length must lie in [0, {node.depth}], got {length}")
        if self.cache_tokens is not None and self._held + length > self.cache_tokens:
            raise CacheFull(f"fork needs {length} tokens, {self.cache_tokens - self._held} are free")
        return self._insert(node.ancestor(length))

    def truncate(self, sequence: int, length: int) -> None:
        node = self._node(sequence)
        if not 0 <= whole_number("length", length) <= node.depth:
            raise ValueError(f"length must lie in [0, {node.depth}], got {length}")
        self._held -= node.depth - length
        self._sequences[sequence] = node.ancestor(length)

    def free(self, sequence: int) -> None:
        self._held -= self._node(sequence).depth
        del self._sequences[sequence]

    def length(self, sequence: int) -> int:
        return self._node(sequence).depth

    def stats(self) -> dict[str, int]:
        free = (1 << 62) if self.cache_tokens is None else self.cache_tokens - self._held
        return {"free_tokens": free, "held_tokens": self._held, "sequences": len(self._sequences)}

    # -- forward -----------------------------------------------------------------------------------------------

    def row(self, node: _Node) -> NDArray[np.float32]:
        if node.row is None:
            node.row = np.asarray(self._logits(node.prefix()), dtype=np.float32)
            if node.row.shape != (self.vocab_size,):
                raise ValueError(f"logits(prefix) must have shape ({self.vocab_size},), got {node.row.shape}")
        return node.row

    def _append(self, work: Sequence[Work]) -> list[list[_Node]]:
        """The nodes each row visits, token by token; sequences are advanced only when everything fits."""
        needed = sum(len(tokens) for _, tokens in work)
        if self.cache_tokens is not None and self._held + needed > self.cache_tokens:
            raise CacheFull(
                f"needs {needed} more tokens, {self.cache_tokens - self._held} of {self.cache_tokens} are free; "
                "free sequences or raise cache_tokens"
            )
        paths = []
        for sequence, tokens in work:
            node, path = self._node(sequence), []
            if not len(tokens):
                raise ValueError(f"work for sequence {sequence} has no tokens")
            for token in tokens:
                node = node.child(whole_number("a token", token))
                path.append(node)
            paths.append(path)
        if len({w.sequence for w in work}) != len(work):
            raise ValueError("a sequence may appear only once in a batch")
        for (sequence, _), path in zip(work, paths, strict=True):
            self._sequences[sequence] = path[-1]
        self._held += needed
        return paths

    def forward(self, work: Sequence[Work], draws: Draws) -> TokenDraws:
        return self.verify(work, [1] * len(work), draws)

    def verify(self, work: Sequence[Work], rows: Sequence[int], draws: Draws) -> TokenDraws:
        check_rows(work, rows)
        check_draws(draws)
        paths = self._append(work)
        self.rows += sum(rows)
        logits = np.stack([self.row(node) for path, n in zip(paths, rows, strict=True) for node in path[-n:]])
        out = sample_tokens(
            torch.from_numpy(logits),
            torch.from_numpy(draws.alpha),
            torch.from_numpy(draws.exponents),
            torch.from_numpy(draws.rows),
            torch.from_numpy(draws.keys.view(np.int64)),
            torch.from_numpy(draws.positions),
            torch.from_numpy(draws.exclude) if (draws.exclude >= 0).any() else None,
            backend=self._backend,
        )
        return TokenDraws(*(x.numpy() for x in out))

    def forward_pooled(
        self,
        work: Sequence[Work],
        starts: NDArray[np.int64],
        keys: NDArray[np.uint64],
        positions: NDArray[np.int64],
    ) -> PooledDraws:
        paths = self._append(work)
        self.rows += len(work)
        logits = torch.from_numpy(np.stack([self.row(path[-1]) for path in paths]))
        places = [torch.from_numpy(x) for x in (starts, keys.view(np.int64), positions)]
        return PooledDraws(*(x.numpy() for x in sample_pooled(logits, *places, backend=self._backend)))

    def score(self, work: Sequence[Work], exponents: NDArray[np.float32]) -> list[SequenceScores]:
        paths = self._append(work)
        results = []
        for (_, tokens), path in zip(work, paths, strict=True):
            logits = torch.from_numpy(np.stack([self.row(node) for node in path]))
            # The last row has no token to score; token 0 is a placeholder whose logp is dropped.
            targets = torch.tensor([*tokens[1:], 0], dtype=torch.int64, device="cpu")
            out = score_tokens(logits, targets, torch.from_numpy(exponents), backend=self._backend)
            if int(out.status.max()) != 0:
                raise InvalidLogits(f"logits of sequence {work[0].sequence} hold NaN or have no finite entry")
            self.rows += len(path)
            results.append(SequenceScores(out.logp.numpy()[:-1], out.logz.numpy(), out.entropy.numpy()))
        return results

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(str(token) for token in tokens if token not in self.eos_ids)

    # -- enumeration -------------------------------------------------------------------------------------------

    def log_probabilities(self, prefix: Sequence[int]) -> NDArray[np.float64]:
        """(vocab_size,) natural log-probabilities of the next token, float64."""
        node = self._root
        for token in prefix:
            node = node.child(whole_number("a token", token))
        z = self.row(node).astype(np.float64)
        z = z - z.max()
        result: NDArray[np.float64] = z - math.log(float(np.exp(z).sum()))
        return result

    def records(self, prompt: Sequence[int], horizon: int) -> dict[tuple[int, ...], float]:
        """Every answer of at most ``horizon`` tokens with positive probability → log p, EOS factor included."""
        found: dict[tuple[int, ...], float] = {}

        def grow(answer: tuple[int, ...], logp: float) -> None:
            if (answer and answer[-1] in self.eos_ids) or len(answer) == horizon:
                found[answer] = logp
                return
            for token, value in enumerate(self.log_probabilities((*prompt, *answer))):
                if value > -math.inf:
                    grow((*answer, token), logp + float(value))

        grow((), 0.0)
        return found


def random_logits(
    vocab_size: int,
    seed: int,
    *,
    scale: float = 2.0,
    eos: int | None = None,
    eos_bias: float = 0.0,
    deterministic: Sequence[int] = (),
    forbidden: dict[int, int] | None = None,
    modes: float = 0.0,
) -> Logits:
    """A random language model whose every conditional depends on the whole prefix.

    Args:
        vocab_size: Tokens.
        seed: Equal seeds make equal models.
        scale: Spread of the logits.
        eos: The token that ends an answer; None: there is none.
        eos_bias: Added to the EOS logit.
        deterministic: Answer positions where one token takes all but about 1e-6 of the mass.
        forbidden: Position → token of probability zero there.
        modes: Extra agreement of later tokens with the first one, which makes two (or more) separated modes.
    """
    forbidden = forbidden or {}

    def logits(prefix: tuple[int, ...]) -> Sequence[float]:
        key = derive(seed, *prefix, len(prefix))
        z = scale * (2.0 * uniforms(key, 0, vocab_size, purpose=0) - 1.0)  # type: ignore[arg-type]
        position = len(prefix)
        if modes and prefix:
            z[prefix[0] % vocab_size] += modes
        if eos is not None:
            z[eos] += eos_bias
        if position in deterministic:
            z[int(np.argmax(z))] += 14.0
        if position in forbidden:
            z[forbidden[position]] = -np.inf
        return list(z)

    return logits
