"""What an evaluation submits, learns and shows."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from fusewire.contracts import Gold, RecordedAnswer
from fusewire.settings import Settings
from fusewire_cli.eval import table, weighing
from fusewire_cli.eval.asking import (
    Target,
    is_equally_weighed,
    read_replies,
    score_outcome,
    score_reply,
)
from fusewire_cli.eval.command import replay_config, restrict
from fusewire_cli.eval.suite import MemberReply, Question
from fusewire_cli.eval.table import Score
from fusewire_judge.learning.agreement_model import Pattern

TARGET = Target("default", None, "hash")


def question(number: int = 0, answer: str = "2") -> Question:
    name = f"q{number}"
    return Question(
        number + 1, name, {"custom_id": name, "prompt": "?"}, Gold(answer=answer, match="number")
    )


def reply(member: str, content: str | None, **figures: Any) -> MemberReply:
    error = None if content is not None else "timeout"
    return MemberReply(
        RecordedAnswer(member=member, model=member, content=content, error_code=error), **figures
    )


def answer(member: str, content: str | None = "2", **fields: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 0}
    whole = {
        "member": member,
        "model": f"m-{member}",
        "status": "ok",
        "error_code": None,
        "usage": usage,
    }
    return {
        **whole,
        "latency_ms": 10.0,
        "cost_usd": 0.1,
        "weight": 1.0,
        "content": content,
        "tool_calls": [],
        **fields,
    }


# -- weights ----------------------------------------------------------------------------------


def test_folds_are_stable_and_about_even() -> None:
    folds = [weighing.fold(f"q{n}") for n in range(1000)]
    assert folds[:5] == [weighing.fold(f"q{n}") for n in range(5)]
    assert all(150 < folds.count(fold) < 250 for fold in range(weighing.FOLDS))


def test_a_question_is_labelled_by_its_gold_and_by_who_agrees() -> None:
    member_replies = [
        reply("a", "A: 2"),
        reply("b", "3"),
        reply("c", "3.0"),
        reply("d", "4"),
        reply("e", None),
        reply("f", "I do not know, and that is a long story."),
        reply("g", "I do not know, and that is a long story."),
    ]

    assert weighing.label(question(), member_replies).pattern == Pattern(
        (("a",), ("b", "c"), ("d",), ("f",), ("g",)), 0
    )
    assert weighing.label(question(), member_replies[1:]).pattern.right == -1


def test_weights_are_learned_from_the_other_folds_alone() -> None:
    groups = (("strong",), ("weak",))

    def make_questions(flipped_fold: int) -> list[weighing.AnsweredQuestion]:
        questions = []
        for number in range(200):
            fold = number % weighing.FOLDS
            right = 0 if (number % 10 < 8) != (fold == flipped_fold) else 1
            questions.append(weighing.AnsweredQuestion(fold, Pattern(groups, right)))
        return questions

    plain = weighing.cross_validate(make_questions(-1))
    flipped_weights = weighing.cross_validate(make_questions(2))
    assert all(weights["strong"] > 1 > weights["weak"] for weights in plain)
    # The labels of fold 2 change the weights for all other folds, and not those for fold 2.
    assert flipped_weights[2] == plain[2]
    assert all(flipped_weights[fold] != plain[fold] for fold in (0, 1, 3, 4))


def test_few_labels_leave_all_weights_at_one() -> None:
    pattern = Pattern((("a",), ("b",)), 0)
    few = [weighing.AnsweredQuestion(n % 5, pattern) for n in range(20)]
    assert weighing.cross_validate(few) == [{"a": 1.0, "b": 1.0}] * 5


# -- submissions ------------------------------------------------------------------------------


def test_members_are_asked_once_with_the_gold_label_and_no_weights() -> None:
    assert json.loads(TARGET.ask_body(question(), "merge")) == {
        "custom_id": "q0",
        "prompt": "?",
        "pool": "default",
        "mode": "merge",
        "gold": {"answer": "2", "match": "number"},
        "complete": True,
    }


def test_answers_are_fused_again_under_the_weights_of_their_members() -> None:
    judge_target = Target("default", "j", "hash")
    body = json.loads(
        judge_target.fuse_body(
            question(), "debate", [reply("a", "2"), reply("b", None)], {"a": 2.5}
        )
    )
    assert (body["judge"], body["mode"]) == ("j", "debate")
    assert body["recorded"] == [
        {"member": "a", "model": "a", "weight": 2.5, "content": "2"},
        {"member": "b", "model": "b", "error_code": "timeout"},
    ]
    assert "complete" not in body


def test_the_id_of_a_batch_is_made_of_all_that_decides_it() -> None:
    ids = {
        TARGET.batch(["a"], "merge"),
        TARGET.batch(["b"], "merge"),
        TARGET.batch(["a"], "debate"),
        Target("other", None, "hash").batch(["a"], "merge"),
        Target("default", None, "changed").batch(["a"], "merge"),
    }
    assert len(ids) == 5
    assert TARGET.batch(["a"], "merge") in ids


# -- outcomes ---------------------------------------------------------------------------------


def test_replies_are_read_back_from_an_outcome() -> None:
    answers = [
        answer("a"),
        answer("b", None, status="error", error_code="timeout"),
        answer("c", status="missing"),
    ]
    member_replies = read_replies({"answers": answers})
    assert [
        (r.recorded.member, r.recorded.content, r.recorded.error_code) for r in member_replies
    ] == [
        ("a", "2", None),
        ("b", None, "timeout"),
        ("c", None, "missing"),
    ]
    assert (
        member_replies[0].recorded.model,
        member_replies[0].tokens,
        member_replies[0].cost_usd,
    ) == ("m-a", 3, 0.1)
    assert read_replies({"status": "refused"}) == []


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1.0, 1.0], True), ([2.0, 2.0], True), ([1.0, 2.0], False), ([None, None], False)],
)
def test_equal_weights_need_no_second_fusion(
    weights: Sequence[float | None], expected: bool
) -> None:
    answers = [answer("abc"[n], weight=weight) for n, weight in enumerate(weights)]
    assert is_equally_weighed({"answers": answers}) is expected
    assert not is_equally_weighed({})


def test_a_reply_is_scored() -> None:
    assert score_reply(
        question(), reply("a", "A: 2", cost_usd=1.0, latency_ms=5.0, tokens=3)
    ) == Score(is_right=True, cost_usd=1.0, latency_ms=5.0, tokens=3)
    # A failure that used no tokens cost nothing; how long it took is not known.
    assert score_reply(question(), reply("a", None)) == Score(
        is_right=False, is_failed=True, cost_usd=0.0
    )
    assert score_reply(question(), None).is_failed


def test_a_replayed_fusion_costs_what_its_members_cost_and_what_it_asked_itself() -> None:
    member_replies = [
        reply("a", "2", cost_usd=1.0, latency_ms=5.0, tokens=3),
        reply("b", "3", cost_usd=2.0, latency_ms=9.0, tokens=4),
    ]
    outcome = {
        "status": "fused",
        "content": "A: 2",
        "is_degraded": True,
        "is_replay": True,
        "cost_usd": 0.5,
        "judge_ms": 100.0,
        "usage": {"prompt_tokens": 10, "completion_tokens": 20},
    }
    expected = Score(is_right=True, is_degraded=True, cost_usd=3.5, latency_ms=109.0, tokens=37)
    assert score_outcome(question(), outcome, member_replies) == expected
    live = score_outcome(
        question(), {**outcome, "is_replay": False, "cost_usd": 3.5}, member_replies
    )
    assert (live.cost_usd, live.tokens) == (3.5, 30)
    dear = score_outcome(question(), outcome, [*member_replies, reply("c", "2")])
    assert (dear.cost_usd, dear.latency_ms, dear.tokens) == (None, None, None)
    failed = score_outcome(question(), {**outcome, "status": "expired"}, member_replies)
    assert (failed.is_right, failed.is_failed) == (False, True)
    assert score_outcome(question(), {"status": "refused"}, []).is_failed


# -- the table --------------------------------------------------------------------------------


def scores(rights: str, **figures: Any) -> list[Score]:
    return [Score(is_right=right == "x", **figures) for right in rights]


def test_the_table_holds_members_fusions_oracle_and_beta() -> None:
    members = {
        "weak": scores("x---" * 10),
        "strong": scores("--x-" * 10),
        "best": scores("xx--" * 10),
    }
    fusions: dict[tuple[str, table.Kind], list[Score]] = {
        ("merge", "merge"): scores("xxx-" * 10, cost_usd=0.03, latency_ms=600.0, tokens=7)
    }
    rows = {row.name: row for row in table.build(members, fusions)}
    assert list(rows) == [
        "weak",
        "strong",
        "best",
        "merge",
        "oracle (any member right)",
        "all wrong (beta)",
    ]
    assert table.best_member(members) == "best"
    assert rows["best"].difference_points is None
    merge = rows["merge"]
    assert (merge.n, merge.right, merge.accuracy, merge.difference_points) == (40, 30, 0.75, 25.0)
    assert merge.difference_low is not None
    assert merge.difference_low > 0
    assert merge.usd_per_right == pytest.approx(0.04)
    assert merge.seconds_per_right == pytest.approx(0.8)
    assert merge.tokens_per_prompt == 7
    assert (rows["weak"].usd_per_right, rows["weak"].degraded, merge.degraded) == (None, None, 0)
    assert rows["oracle (any member right)"].accuracy == 0.75
    assert rows["all wrong (beta)"].accuracy == 0.25
    assert rows["all wrong (beta)"].difference_low is None
    assert len(table.cells(merge)) == len(table.COLUMNS)
    assert "75.0%" in table.cells(merge)
    assert "+25.0" in table.cells(merge)


def test_a_rate_of_fewer_than_thirty_is_a_dash_and_its_interval_stands() -> None:
    rows = table.build({"a": scores("x" * 29), "b": scores("-" * 29)}, {})
    assert [row.accuracy for row in rows] == [None] * 4
    assert rows[1].difference_points is None
    assert table.cells(rows[0])[3:5] == ("–", "88.3% to 100.0%")
    assert table.cells(rows[1])[5:7] == ("–", "-100.0 to -82.8")
    assert "29 questions are fewer than 30" in table.notes(rows, "a")[0]
    assert table.build({"a": scores("x" * 30)}, {})[0].accuracy == 1


def test_nothing_right_has_no_price_per_right_answer() -> None:
    row = table.build({"a": scores("-" * 30, cost_usd=1.0, latency_ms=1.0, tokens=1)}, {})[0]
    assert (row.usd_per_right, row.seconds_per_right, row.tokens_per_prompt) == (None, None, 1)


# -- the configuration of a replay -------------------------------------------------------------


def make_config(**pool: Any) -> Settings:
    remote = {"kind": "remote", "base_url": "http://127.0.0.1:1/v1", "model": "m"}
    absent = {"kind": "edge", "path": "/nowhere/at/all"}
    members = ["absent", "hosted"]
    return Settings(
        models={"absent": absent, "hosted": remote, "j": remote},
        pools={"default": {"members": members, **pool}},
    )


def test_the_built_in_configuration_bends_to_a_replay() -> None:
    config, notes = replay_config(make_config(judge="absent"), "default", None)
    assert config.pools["default"].judges == ()
    assert "no judge" in notes[0]
    config, notes = replay_config(make_config(judge="j"), "default", None)
    assert (config.pools["default"].judge, notes) == ("j", [])
    config, notes = replay_config(make_config(), "mine", None)
    assert config.pools["mine"].members == ()
    assert len(config.config_hash("mine")) == 12
    assert replay_config(make_config(judge="absent"), "default", "j")[1] == []


@pytest.mark.parametrize(
    ("judge", "modes", "models"),
    [
        (None, ["best-of"], {"j"}),
        ("hosted", ["best-of", "merge"], {"hosted"}),
        (None, ["debate"], {"absent", "hosted", "j"}),
    ],
)
def test_a_replay_has_only_the_models_that_it_can_call(
    judge: str | None, modes: list[str], models: set[str]
) -> None:
    config = restrict(make_config(judge="j"), "default", judge, modes)
    assert set(config.models) == models
    assert len(config.config_hash("default")) == 12
