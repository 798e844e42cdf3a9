"""The server keeps what its OpenAPI document promises, whatever is sent to it."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")
schemathesis = pytest.importorskip("schemathesis")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

from .served import served  # noqa: E402

OPERATIONS = [
    "GET /health",
    "GET /metrics",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "POST /v1/chat/completions",
    "POST /v1/completions",
]


@pytest.fixture(scope="module")
def server():
    with served() as running:
        yield running


@pytest.fixture(scope="module")
def document(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_the_document_has_every_operation(document):
    assert sorted(operation.ok().label for operation in document.get_all_operations()) == sorted(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_sent_is_answered_or_refused_as_the_document_says(document, operation):
    method, path = operation.split()
    cases = document[path][method].as_strategy()

    @settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def run(data):
        # A prompt of the right type may still be too long for the model: not every well-formed request is accepted.
        data.draw(cases).call_and_validate(excluded_checks=[positive_data_acceptance])

    run()
