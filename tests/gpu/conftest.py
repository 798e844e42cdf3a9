"""FASTPOWER_GPU=1 (`make gpu`): everything is to run on the device that is there; a skipped test is a failed one."""

import os

import pytest

REQUIRED = os.environ.get("FASTPOWER_GPU") == "1"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    optional = "flash" in item.nodeid or "is no logit" in str(report.longrepr)
    if REQUIRED and report.skipped and not optional:
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"skipped where nothing may be: {reason}"
