"""The toy decoder one step ahead: a step that is started is computed at once, and read later."""

import numpy as np

from fastpower.decoders.ahead import StepAhead
from fastpower.decoders.base import Work
from fastpower.decoders.toy import ToyDecoder
from fastpower.errors import CacheFull


class Computed:
    """A step that was computed when it was started."""

    def __init__(self, out):
        self.out = out

    def result(self):
        return self.out


class AheadToy(ToyDecoder):
    """ToyDecoder in front of which a ``StepAhead`` stands, as in ``TransformersDecoder``."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        own = super()

        def launch(sequences, tokens, draws, before):
            if tokens is None:
                tokens = np.maximum(before.result().token, 0)
            return Computed(own.forward([Work(s, [t]) for s, t in zip(sequences.tolist(), tokens, strict=True)], draws))

        def lengths(sequences):
            return np.array([own.length(s) for s in sequences.tolist()])

        self.ahead = StepAhead(own.forward, launch, lengths, own.truncate, self.max_length, self.eos_ids)

    def forward(self, work, draws):
        return self.ahead.forward(work, draws)

    def score(self, work, exponents):
        self.ahead.settle()
        return super().score(work, exponents)

    def fork(self, sequence, length):
        self.ahead.settle(sequence)
        try:
            return super().fork(sequence, length)
        except CacheFull:
            self.ahead.settle()
            return super().fork(sequence, length)

    def truncate(self, sequence, length):
        self.ahead.settle(sequence)
        super().truncate(sequence, length)

    def free(self, sequence):
        self.ahead.settle(sequence)
        super().free(sequence)

    def length(self, sequence):
        return super().length(sequence) - self.ahead.surplus(sequence)
