"""Components of the OpenAPI document: each name says one thing."""

import json

import pytest
from typing_extensions import TypedDict

from fusewire.contracts import ToolCall
from fusewire_ingest.api import schemas


class Call(TypedDict):
    name: str


class Wire(TypedDict):
    call: Call


def test_parts_of_components_are_components() -> None:
    components = schemas.components(Outer=Wire)

    assert set(components) == {"Outer", "Call"}
    assert components["Outer"]["properties"]["call"] == {"$ref": "#/components/schemas/Call"}


def test_two_that_are_called_alike_are_refused() -> None:
    with pytest.raises(ValueError, match="two components are called Call; rename one"):
        schemas.components(Outer=Wire, Call=ToolCall)


def test_every_reference_leads_somewhere() -> None:
    document = json.dumps(schemas.SCHEMAS)
    names = {part.partition('"')[0] for part in document.split("#/components/schemas/")[1:]}

    assert names <= set(schemas.SCHEMAS)
