"""The scheduler: many chains at once, their requests packed into full decode batches."""

from fastpower.scheduler.scheduler import Scheduler

__all__ = ["Scheduler"]
