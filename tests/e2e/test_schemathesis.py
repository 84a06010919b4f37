"""Requests that fit the API's own document, or nearly: none breaks it, and each reply fits too."""

import contextlib
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from fusewire.testing.model_script import Script
from fusewire.testing.served import RunningStack

SHAPE = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def api(served: RunningStack) -> BaseSchema:
    served.script(Script())
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def test_no_request_breaks_the_server(api: BaseSchema) -> None:
    asked = {
        found.label: sum(_ask(found, mode) for mode in schemathesis.GenerationMode)
        for found in (one.ok() for one in api.get_all_operations() if isinstance(one, Ok))
    }

    assert {
        "POST /v1/chat/completions",
        "POST /v1/files",
        "POST /v1/batches",
        "POST /v1/outcomes/{outcome_id}/votes",
        "GET /v1/outcomes/{outcome_id}/votes",
    } <= asked.keys()
    assert min(asked.values()) > 0, asked


def _ask(operation: APIOperation[Any, Any, Any, Any], mode: schemathesis.GenerationMode) -> int:
    """Returns how many requests were made."""
    count = 0

    @hypothesis.settings(
        max_examples=12,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        nonlocal count
        count += 1
        # A connection that is cut raises here.
        response = case.call(timeout=120)

        assert response.status_code != 500, response.text
        assert response.headers["x-request-id"]
        case.validate_response(
            response, checks=[content_type_conformance, response_schema_conformance]
        )
        if response.status_code >= 400:
            assert set(response.json()["error"]) == SHAPE

    # What takes no parameters cannot be asked in a wrong way.
    with contextlib.suppress(hypothesis.errors.Unsatisfiable):
        ask()
    return count
