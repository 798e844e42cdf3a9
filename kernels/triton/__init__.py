"""Triton twins of ``fastpower.kernels.reference``: same file names, same function names.

Importing this package needs only triton and torch; nothing is compiled until a kernel is launched.
"""
