"""A suite and a replay are checked whole before anything is asked."""

import json
from typing import Any

import pytest

from fusewire.contracts import Gold
from fusewire_cli.eval.suite import Question, read_replay, read_suite, slug
from fusewire_ingest.admission.admit import PoolRule
from fusewire_ingest.admission.model_names import ModelNames

POOLS = {"default": PoolRule("best-of", "any", 60, 600, ModelNames.of({"j": None}))}
GOOD = {"custom_id": "one", "prompt": "1 + 1?", "answer": "2", "match": "number"}
SAID = {"custom_id": "one", "model": "m", "content": "A: 2"}


def lines(*rows: Any) -> bytes:
    return (
        b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
        + b"\n"
    )


def suite(*rows: Any) -> tuple[list[Question], list[str]]:
    questions, faults = read_suite(
        lines(*rows), "s.jsonl", pool="default", mode="best-of", judge="j", pools=POOLS, limit=2000
    )
    return questions, [str(fault) for fault in faults]


def test_a_question_keeps_what_its_submission_needs() -> None:
    messages = [{"role": "user", "content": "which?"}]
    more = {
        "custom_id": "two",
        "messages": messages,
        "answer": "b",
        "match": "choice",
        "max_tokens": 5,
    }
    questions, faults = suite(GOOD, b"", b"\xef\xbb\xbf".strip(), more)
    assert not [fault for fault in faults if ":1:" in fault or ":4:" in fault]
    assert [(q.line, q.custom_id, q.body, q.gold) for q in questions] == [
        (1, "one", {"custom_id": "one", "prompt": "1 + 1?"}, Gold(answer="2", match="number")),
        (
            4,
            "two",
            {"custom_id": "two", "messages": messages, "max_tokens": 5},
            Gold(answer="b", match="choice"),
        ),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"custom_id": ', "not valid JSON at column"),
        (b"\xff", "not UTF-8"),
        (b"[1]", "no JSON object"),
        (b"[" * 50_000, "not valid JSON"),
        (GOOD, "custom_id 'one' stands in line 1 already"),
        ({**GOOD, "custom_id": None}, "'custom_id' is missing"),
        ({**GOOD, "custom_id": "x" * 300}, "custom_id"),
        ({**GOOD, "custom_id": "x", "answer": 2}, "'answer'"),
        ({**GOOD, "custom_id": "x", "match": "regex"}, "'match'"),
        ({**GOOD, "custom_id": "x", "prompt": None}, "give either `prompt` or `messages`"),
        ({**GOOD, "custom_id": "x", "prompt": "y" * 3000}, "the limit is 2000"),
        ({**GOOD, "custom_id": "x", "prompt": "\x00"}, "NUL"),
        ({**GOOD, "custom_id": "x", "temprature": 1}, "did you mean 'temperature'?"),
        ({**GOOD, "custom_id": "x", "pool": "p"}, "'pool' is set by the evaluation"),
        ({**GOOD, "custom_id": "x", "gold": {}}, "'gold' is set by the evaluation"),
    ],
)
def test_a_bad_question_is_told_by_its_line(row: Any, message: str) -> None:
    questions, faults = suite(GOOD, row)
    assert len(questions) == 1
    assert len(faults) == 1
    assert faults[0].startswith("s.jsonl:2: ")
    assert message in faults[0]


def test_an_empty_suite_is_a_fault() -> None:
    assert "no questions" in suite(b"", b"  ")[1][0]


def replay(*rows: Any, question_count: int = 1) -> tuple[Any, list[str]]:
    more = [{**GOOD, "custom_id": f"q{n}"} for n in range(2, question_count + 1)]
    questions, _ = suite(GOOD, *more)
    answers, faults = read_replay(
        lines(*rows), "r.jsonl", questions, suite="s.jsonl", models={"plain": "smol"}
    )
    return answers, [str(fault) for fault in faults]


def test_a_replay_becomes_recorded_answers() -> None:
    answers, faults = replay(
        {
            **SAID,
            "model": "org/GPT-4.1",
            "usage": {"prompt_tokens": 3, "completion_tokens": 4},
            "cost_usd": 0.5,
        },
        {
            "custom_id": "one",
            "model": "plain",
            "error_code": "timeout",
            "latency_ms": 9,
            "is_correct": False,
        },
    )
    assert faults == []
    assert answers.titles == {"org-gpt-4-1": "org/GPT-4.1", "plain": "plain"}
    first, second = answers.replies["one"]
    assert (first.tokens, first.latency_ms, first.cost_usd) == (7, None, 0.5)
    assert (first.recorded.member, first.recorded.content, first.recorded.weight) == (
        "org-gpt-4-1",
        "A: 2",
        1.0,
    )
    assert (second.tokens, second.latency_ms, second.cost_usd) == (None, 9, None)
    # A member of the pool is named, so its model can be asked again in a debate.
    assert (second.recorded.model, second.recorded.error_code) == ("smol", "timeout")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (SAID, "'m' answered 'one' in line 1 already"),
        ({**SAID, "model": "M"}, "the same member name as 'm'"),
        ({**SAID, "model": "?"}, "no letter or digit"),
        ({**SAID, "custom_id": "onne"}, "is not in s.jsonl; did you mean 'one'?"),
        ({**SAID, "custom_id": "zzzzz"}, "remove the line"),
        ({**SAID, "model": "n", "content": None}, "either `content` or"),
        ({**SAID, "model": "n", "error_code": "timeout"}, "either `content` or"),
        ({**SAID, "model": "n", "cost_usd": -1}, "'cost_usd'"),
        ({**SAID, "model": "n", "usage": {"prompt_tokens": "many"}}, "'usage.prompt_tokens'"),
        (b'{"custom_id": "one", "model": "n", "content": "x", "latency_ms": NaN}', "'latency_ms'"),
        (b"nope", "not valid JSON"),
    ],
)
def test_a_bad_reply_is_told_by_its_line(row: Any, message: str) -> None:
    _, faults = replay(SAID, row)
    assert len(faults) == 1
    assert faults[0].startswith("r.jsonl:2: ")
    assert message in faults[0]


def test_a_question_without_an_answer_is_a_fault_of_the_suite() -> None:
    _, faults = replay(SAID, question_count=2)
    assert faults == ["s.jsonl:2: 'q2' has no answer in r.jsonl; add one, or remove the question"]


def test_a_pool_has_sixteen_members() -> None:
    _, faults = replay(*({**SAID, "model": f"m{n}"} for n in range(17)))
    assert len(faults) == 1
    assert "at most 16" in faults[0]


@pytest.mark.parametrize(
    ("model", "member"),
    [("gpt", "gpt"), ("A/B:c", "a-b-c"), ("_x_", "x"), ("é", None), ("x" * 99, "x" * 63)],
)
def test_a_model_is_named_as_a_member_can_be(model: str, member: str | None) -> None:
    assert slug(model) == member
