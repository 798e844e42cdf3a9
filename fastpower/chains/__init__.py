"""Chains: what one run is, what it asks for, what it gets, and what it returns."""

from fastpower.chains.chain import Chain, Counts, Port, Run, Sampler, Ticket, together
from fastpower.chains.job import Finished, Job
from fastpower.chains.outcome import Outcome
from fastpower.chains.record import Record
from fastpower.chains.requests import Branch, Pool, Pooled, Rollout, Score, Scored, Suffix, Watch

__all__ = [
    "Branch",
    "Chain",
    "Counts",
    "Finished",
    "Job",
    "Outcome",
    "Pool",
    "Pooled",
    "Port",
    "Record",
    "Rollout",
    "Run",
    "Sampler",
    "Score",
    "Scored",
    "Suffix",
    "Ticket",
    "Watch",
    "together",
]
