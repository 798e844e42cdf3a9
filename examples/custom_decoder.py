"""A decoder of your own: samplers run on any model that maps token ids (1, T) to logits (1, T, V).

    python examples/custom_decoder.py

This one keeps no cache and computes every prefix again: slow, but right for models whose state cannot be forked or
truncated (a recurrent network here). An engine with a cache has the same methods and keeps more than lists of tokens.
"""

from itertools import count

import numpy as np
import torch

import fastpower
from fastpower.decoders import SequenceScores, TokenDraws
from fastpower.errors import InvalidLogits, UnknownSequence
from fastpower.kernels import sample_tokens, score_tokens


class RecomputingDecoder:
    batch_invariant = True  # rows are computed one by one: the bits of one depend on its prefix alone

    def __init__(self, model, vocab_size, eos_ids, max_length=2048):
        self.model, self.vocab_size, self.eos_ids, self.max_length = model, vocab_size, frozenset(eos_ids), max_length
        self.sequences, self.handles = {}, count(1)

    def add(self):
        self.sequences[handle := next(self.handles)] = []
        return handle

    def fork(self, sequence, length):
        child = self.add()
        self.sequences[child] = self.sequences[sequence][:length]
        return child

    def truncate(self, sequence, length):
        del self.sequences[sequence][length:]

    def free(self, sequence):
        del self.sequences[sequence]

    def length(self, sequence):
        return len(self.sequences[sequence])

    def append(self, work):
        """The logits of every row's new tokens. Everything is checked and computed before a sequence changes."""
        if len({sequence for sequence, _ in work}) != len(work) or not all(len(tokens) for _, tokens in work):
            raise ValueError("a batch holds every sequence once, with at least one token")
        if unknown := [sequence for sequence, _ in work if sequence not in self.sequences]:
            raise UnknownSequence(f"sequences {unknown} were never added or are freed")
        longer = {sequence: [*self.sequences[sequence], *tokens] for sequence, tokens in work}
        with torch.inference_mode():
            rows = [self.model(torch.tensor([longer[s]]))[0, -len(tokens) :].float() for s, tokens in work]
        self.sequences.update(longer)
        return rows

    def forward(self, work, draws):
        logits = torch.stack([rows[-1] for rows in self.append(work)])
        arguments = draws._replace(keys=draws.keys.view(np.int64))  # torch has no unsigned keys
        return TokenDraws(*(x.numpy() for x in sample_tokens(logits, *map(torch.from_numpy, arguments))))

    def score(self, work, exponents):
        results = []
        for (_, tokens), rows in zip(work, self.append(work), strict=True):
            targets = torch.tensor([*tokens[1:], 0])  # nothing follows the last row: its logp is dropped
            logp, logz, entropy, status = score_tokens(rows, targets, torch.from_numpy(exponents))
            if status.any():
                raise InvalidLogits("the model returned NaN, or a row without a finite entry")
            results.append(SequenceScores(logp.numpy()[:-1], logz.numpy(), entropy.numpy()))
        return results

    def encode(self, text):
        return [int(word) for word in text.split()]

    def decode(self, tokens):
        return " ".join(str(token) for token in tokens if token not in self.eos_ids)

    def stats(self):
        return {"free_tokens": 1 << 62}  # lists grow: there is always room


class RecurrentModel(torch.nn.Module):
    """A GRU of random weights: its state holds the whole past and cannot be cut back."""

    def __init__(self, vocab_size, width=48):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(vocab_size, width)
        self.cell = torch.nn.GRU(width, width, batch_first=True)
        self.head = torch.nn.Linear(width, vocab_size)

    def forward(self, ids):
        return 5 * self.head(self.cell(self.embedding(ids))[0])


def main():
    decoder = RecomputingDecoder(RecurrentModel(29), 29, eos_ids=[0])
    target = fastpower.PowerTarget(alpha=3, horizon=20)
    results = fastpower.generate(
        decoder, "5 6 7", fastpower.MetropolisHastings(target, block=5, moves=4), seed=1, chains=4
    )
    for result in results:
        print(f"log p = {result.logp:.2f}, acceptance {result.acceptance:.2f}: {result.text}")


if __name__ == "__main__":
    main()
