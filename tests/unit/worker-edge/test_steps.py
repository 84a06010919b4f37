"""Answers with the steps that lead to them."""

import json

import jsonschema
import pytest

from fusewire.contracts import Message
from fusewire_worker_edge.steps import ask_for_steps, split_answer, steps_schema

ANSWER = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/City"}},
    "required": ["city"],
    "$defs": {"City": {"enum": ["Paris", "Lima"]}},
}


def test_the_steps_come_before_the_answer_and_the_answer_keeps_its_schema() -> None:
    schema = steps_schema(ANSWER)

    assert list(schema["properties"]) == ["reason", "answer"]
    jsonschema.validate({"reason": "Andes.", "answer": {"city": "Lima"}}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"reason": "Andes.", "answer": {"city": "Rome"}}, schema)


@pytest.mark.parametrize(
    ("text", "is_text", "expected"),
    [
        ('{"reason": "3 - 1", "answer": "2"}', True, ("2", "3 - 1")),
        ('{"reason": "x", "answer": {"a": "é"}}', False, ('{"a": "é"}', "x")),
        ('{"reason": "x", "answer": 7}', False, ("7", "x")),
        ('{"reason": "it goes on and', True, None),
        ("", True, None),
    ],
)
def test_the_answer_is_taken_out(
    text: str, is_text: bool, expected: tuple[str, str] | None
) -> None:
    assert split_answer(text, is_text=is_text) == expected


def test_the_form_is_asked_for_after_what_the_system_prompt_says() -> None:
    user = Message(role="user", content="Hot?")
    system = Message(role="system", content="Be brief.")
    alone, with_system = ask_for_steps([user]), ask_for_steps([system, user])

    assert [m.role for m in alone] == [m.role for m in with_system] == ["system", "user"]
    assert with_system[0].content.startswith("Be brief.\n\n")
    assert json.dumps("reason") in alone[0].content
