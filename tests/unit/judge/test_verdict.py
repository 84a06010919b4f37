"""The ladder by which a judge's output is read."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire_judge.judging.parse import MOST_CHARS, MOST_REPAIRED, Read, UnreadableVerdict, read
from fusewire_judge.judging.prompts import analysis_schema, rebuttal_schema, verdict_schema

SCHEMA = verdict_schema("AB")
REASON = "It alone answers what was asked."
FOR_A = json.dumps({"reason": REASON, "winner": "A"})
FOR_B = json.dumps({"reason": REASON, "winner": "B"})

READ = [
    ("as it was asked for", FOR_A, "strict"),
    ("with blanks around", f"\n  {FOR_A} \n", "strict"),
    ("fenced", f"```json\n{FOR_A}\n```", "repaired"),
    ("fenced without a language", f"```\n{FOR_A}\n```\n", "repaired"),
    (
        "fenced, with words around",
        f"Here it is:\n```json\n{FOR_A}\n```\nI hope this helps!",
        "repaired",
    ),
    ("words before", f"Sure! {FOR_A}", "repaired"),
    ("cut before the last brace", FOR_A[:-1], "repaired"),
    ("cut before the last quote", FOR_A[:-2], "repaired"),
    ("single quotes", FOR_A.replace('"', "'"), "repaired"),
    ("a comma too many", FOR_A[:-1] + ",}", "repaired"),
    ("keys without quotes", f'{{reason: "{REASON}", winner: "A"}}', "repaired"),
    ("an escape for a whole character", FOR_A.replace("It", "\\ud83d\\ude00"), "strict"),
]


@pytest.mark.parametrize(("text", "rung"), [row[1:] for row in READ], ids=[row[0] for row in READ])
def test_it_is_read(text: str, rung: str) -> None:
    output = read(text, SCHEMA)

    assert isinstance(output, Read), output
    assert (output.value["winner"], output.parse_stage) == ("A", rung)


REFUSED = [
    ("nothing", "", "empty"),
    ("blanks", " \n", "empty"),
    ("None", None, "empty"),
    ("prose", "The first one is better.", "not_json"),
    ("a bare letter", "A", "not_json"),
    ("two objects", FOR_A + FOR_B, "not_json"),
    ("two objects on two lines", f"{FOR_A}\n{FOR_B}", "not_json"),
    ("two objects and words", f"Either {FOR_A} or {FOR_B}", "not_json"),
    ("two fences", f"```json\n{FOR_A}\n```\n```json\n{FOR_B}\n```", "not_json"),
    ("two objects in one fence", f"```json\n{FOR_A}\n{FOR_B}\n```", "not_json"),
    ("one inside and one outside a fence", f"{FOR_A}\n```json\n{FOR_B}\n```", "not_json"),
    ("two winners", '{"winner":"A",' + FOR_B[1:], "ambiguous"),
    ("an unknown label", FOR_A.replace('"A"', '"C"'), "schema_mismatch"),
    ("a label in lower case", FOR_A.replace('"A"', '"a"'), "schema_mismatch"),
    ("a list around it", f"[{FOR_A}]", "schema_mismatch"),
    ("no winner", json.dumps({"reason": REASON}), "schema_mismatch"),
    ("no reason", '{"winner": "A"}', "schema_mismatch"),
    ("more than was asked for", FOR_A[:-1] + ', "note": "x"}', "schema_mismatch"),
    ("cut within the reason", FOR_A[:20], "not_json"),
    ("null", "null", "schema_mismatch"),
    ("too long", " " * MOST_CHARS + FOR_A, "too_long"),
    ("brackets without end", "[" * 90_000, "not_json"),
    ("objects without end", '{"a":' * 15_000, "not_json"),
    ("an escaped NUL", FOR_A.replace("It", "\\u0000"), "schema_mismatch"),
    ("an escaped half of a surrogate pair", FOR_A.replace("It", "\\ud83d"), "schema_mismatch"),
]


@pytest.mark.parametrize(
    ("text", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_it_is_not_guessed(text: str | None, reason: str) -> None:
    assert read(text, SCHEMA) == UnreadableVerdict(reason)


def test_only_so_much_is_mended() -> None:
    """What mends takes the square of the length in time."""
    assert isinstance(read(FOR_A[:-1] + " " * 1000, SCHEMA), Read)
    assert read(FOR_A[:-1] + " " * MOST_REPAIRED, SCHEMA) == UnreadableVerdict("not_json")


def test_an_analysis_is_read_whole() -> None:
    value = {
        "consensus": ["All say Paris."],
        "contradictions": [{"topic": "size", "stances": [{"model": "A", "stance": "big"}]}],
        "partial_coverage": [],
        "unique_insights": [{"model": "B", "insight": "The river."}],
        "blind_spots": [],
    }

    assert read(json.dumps(value), analysis_schema()) == Read(value, "strict")
    assert isinstance(
        read(json.dumps(value | {"consensus": "Paris"}), analysis_schema()), UnreadableVerdict
    )


@pytest.mark.parametrize(
    "wrong_verdict", [{"$ref": "#/nowhere"}, {"$ref": "https://example.org/x"}]
)
def test_a_client_s_schema_that_leads_nowhere_is_satisfied_by_nothing(
    wrong_verdict: dict[str, Any],
) -> None:
    reply = json.dumps({"error": "I misread what was asked.", "answer": "4"})

    assert read(reply, rebuttal_schema(wrong_verdict)) == UnreadableVerdict("schema_mismatch")


@given(st.text(max_size=80) | st.text(alphabet='{}[]":,AB\\`\n winner reason', max_size=80))
def test_whatever_a_judge_writes_it_is_read_or_refused(text: str) -> None:
    output = read(text, SCHEMA)

    if isinstance(output, Read):
        assert output.value["winner"] in ("A", "B")
        json.dumps(output.value, ensure_ascii=False).encode()


@given(
    st.integers(0, len(FOR_B)),
    st.integers(0, len(FOR_B)),
    st.sampled_from(["", '"', "}", "A", "\n"]),
)
def test_a_damaged_verdict_names_its_winner_or_nobody(start: int, end: int, put: str) -> None:
    output = read(FOR_B[:start] + put + FOR_B[max(start, end) :], SCHEMA)

    if isinstance(output, Read) and put != "A":
        assert output.value["winner"] == "B"
