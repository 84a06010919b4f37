"""Answers with the steps that lead to them."""

import json

import jsonschema
import pytest

from fusewire.contracts import Message
from fusewire_worker_edge.steps import asked, parted, schema_of

ANSWER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}},
    "required": ["city"],
    "$defs": {"City": {"enum": ["Paris", "Lima"]}},
}


def test_the_steps_come_before_the_answer_and_the_answer_keeps_its_schema() -> None:
    schema = schema_of(ANSWER)

    assert list(schema["properties"]) == ["reason", "answer"]
    jsonschema.validate({"reason": "Andes.", "answer": {"city": "Lima"}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"reason": "Andes.", "answer": {"city": "Rome"}}, schema)


@pytest.mark.parametrize(
    ("written", "is_text", "expected"),
    [
        ('{"reason": "3 - 1", "answer": "2"}', True, ("2", "3 - 1")),
        ('{"reason": "x", "answer": {"a": "é"}}', False, ('{"a": "é"}', "x")),
        ('{"reason": "x", "answer": 7}', False, ("7", "x")),
        ('{"reason": "it goes on and', True, None),
        ("", True, None),
    ],
)
def test_the_answer_is_taken_out(
    written: str, is_text: bool, expected: tuple[str, str] | None
) -> None:
    assert parted(written, is_text=is_text) == expected


def test_the_form_is_asked_for_after_what_the_system_prompt_says() -> None:
    user = Message(role="user", content="Hot?")
    alone, led = asked([user]), asked([Message(role="system", content="Be brief."), user])

    assert [m.role for m in alone] == [m.role for m in led] == ["system", "user"]
    assert led[0].content.startswith("Be brief.\n\n")
    assert json.dumps("reason") in alone[0].content
