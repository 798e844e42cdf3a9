"""The sandbox: programs that a model wrote, run contained."""

from fastpower.evaluate.sandbox.sandbox import Outcome, SandboxUnavailable, containment, require_sandbox, run_python

__all__ = ["Outcome", "SandboxUnavailable", "containment", "require_sandbox", "run_python"]
