"""Grading: is an answer right?"""

from fastpower.evaluate.grading.graders import Grade

__all__ = ["Grade"]
