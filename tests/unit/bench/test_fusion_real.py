"""The recorded answers are whole, and what is measured on them is cross-validated."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fusewire.contracts import Gold, Message, RecordedAnswer
from fusewire_cli.eval.suite import read_replay, read_suite
from fusewire_ingest.admission.admit import PoolRule

BENCH = Path(__file__).parents[2] / "bench"
SEED = "real-1"
MACHINE_PATH = re.compile(r"/(?:root|home|work|tmp|usr|mnt|Users)/")


@pytest.fixture(scope="module")
def real() -> Iterator[Any]:
    """The bench is a package beside its folder's other scripts; nothing else imports it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        names = ("dataset", "prompts", "record", "replaying", "__main__")
        yield SimpleNamespace(
            **{name.strip("_"): import_module(f"fusion.real.{name}") for name in names}
        )


@pytest.fixture(scope="module", params=["suite", "open"])
def recorded(request: pytest.FixtureRequest, real: Any) -> SimpleNamespace:
    """Prompts and answers, with a right answer or without."""
    files = {"suite": ("SUITE", "REPLAY"), "open": ("OPEN", "OPEN_REPLAY")}[request.param]
    prompts, answers = (
        real.dataset.read(real.dataset.HERE / getattr(real.dataset, n)) for n in files
    )
    return SimpleNamespace(name=request.param, prompts=prompts, answers=answers)


def test_the_prompts_are_those_that_the_script_makes(real: Any, recorded: Any) -> None:
    make = {"suite": real.prompts.suite, "open": real.prompts.open_prompts}[recorded.name]
    ids = {line["custom_id"] for line in recorded.prompts}
    assert recorded.prompts == [line for line in make(SEED) if line["custom_id"] in ids]
    assert make("another seed") != make(SEED)


def test_ids_are_unique_and_gold_is_where_it_is_promised(recorded: Any) -> None:
    ids = [line["custom_id"] for line in recorded.prompts]
    assert ids
    assert len(set(ids)) == len(ids)
    for line in recorded.prompts:
        if recorded.name == "suite":
            assert Gold(answer=line["answer"], match=line["match"]).answer.strip()
        else:
            assert not {"answer", "match"} & line.keys()


def test_every_member_answered_or_failed_with_a_reason(recorded: Any) -> None:
    members = {line["model"] for line in recorded.answers}
    assert len(members) >= 3
    by_id: dict[str, list[str]] = {}
    for line in recorded.answers:
        by_id.setdefault(line["custom_id"], []).append(line["model"])
        assert ("content" in line) != ("error_code" in line), line
        assert line.get("content", line.get("error_code")) is not None
    assert by_id.keys() == {line["custom_id"] for line in recorded.prompts}
    for custom_id, own in by_id.items():
        assert Counter(own) == Counter(members), custom_id


def test_no_path_of_a_machine_is_recorded(real: Any) -> None:
    for path in sorted(real.dataset.HERE.glob("*.jsonl")):
        assert not MACHINE_PATH.search(path.read_text(encoding="utf-8")), path.name


def test_the_data_set_is_small(real: Any) -> None:
    sizes = [path.stat().st_size for path in real.dataset.HERE.glob("*.jsonl")]
    assert sum(sizes) < 1_500_000


def test_the_files_are_those_that_eval_run_takes(real: Any) -> None:
    here = real.dataset.HERE
    answered = {line["custom_id"] for line in real.dataset.read(here / "replay.jsonl")}
    lines = real.dataset.read(here / "suite.jsonl")
    data = "\n".join(json.dumps(line) for line in lines if line["custom_id"] in answered).encode()
    questions, faults = read_suite(
        data,
        "suite.jsonl",
        pool="default",
        mode="best-of",
        judge=None,
        pools={"default": PoolRule("best-of", "any", 60, 600)},
        limit=100_000,
    )
    assert not faults
    replay = (here / "replay.jsonl").read_bytes()
    assert not read_replay(replay, "replay.jsonl", questions, suite="suite.jsonl", models={})[1]


# -- the measurement ------------------------------------------------------------------------------


def question(real: Any, number: int, answers: dict[str, str], gold: str = "7") -> Any:
    return real.dataset.Question(
        custom_id=f"sum-{number:03}",
        messages=(Message(role="user", content="3 + 4?"),),
        gold=Gold(answer=gold, match="number"),
        answers=tuple(
            RecordedAnswer(member=member, model=member, content=text)
            for member, text in answers.items()
        ),
    )


def test_a_small_part_of_the_data_is_measured(real: Any) -> None:
    part = real.dataset.load(real.dataset.HERE)[:40]
    results = real.main.report(part, "1", 1)
    overall = results["overall"]
    assert overall == real.main.report(part, "1", 1)["overall"]
    accuracy = overall["accuracy"]
    assert all(0 <= share <= 1 for share in accuracy.values())
    assert accuracy["oracle"] >= max(accuracy.values())
    assert overall["members"].keys() == {a.member for q in part for a in q.answers}
    json.dumps(results)


def test_two_that_agree_outvote_a_third(real: Any) -> None:
    q = question(real, 1, {"a": "6", "b": "7", "c": "Answer: 7"})
    outcome = real.replaying.fuse(q, {})
    assert outcome.content in {"7", "Answer: 7"}
    assert real.replaying.is_fusion_right(q, outcome)
    decisive = {"number": {"a": 3.0, "b": 1.0, "c": 1.0}}
    assert real.replaying.fuse(q, decisive).winner == "a"


def test_a_failure_has_no_vote_and_is_not_right(real: Any) -> None:
    q = question(real, 1, {"a": "7", "b": "7"})
    failed = RecordedAnswer(member="c", model="c", error_code="timeout")
    with_failure = real.dataset.Question(q.custom_id, q.messages, q.gold, (*q.answers, failed))
    assert not with_failure.is_right("c")
    assert real.replaying.fuse(with_failure, {}).winner in {"a", "b"}


def test_recorded_margins_decide_an_open_prompt(real: Any) -> None:
    texts = {"a": "The sea is wide and blue.", "b": "Salt and wind and an early boat."}
    q = question(real, 1, texts)
    chosen = [
        real.replaying.fuse(
            real.dataset.Question(
                q.custom_id, q.messages, None, q.answers, logprobs={texts[m]: -0.1, texts[n]: -2.0}
            ),
            {},
            is_judged=True,
        ).winner
        for m, n in (("a", "b"), ("b", "a"))
    ]
    assert chosen == ["a", "b"]


def test_nothing_is_learned_from_the_question_it_is_used_on(
    real: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    schemes_of = real.main.Schemes

    def watch(questions: Any, outcomes: Any) -> Any:
        schemes = schemes_of(questions, outcomes)
        known = {q.custom_id for q in questions}

        def apply(q: Any) -> Any:
            assert q.custom_id not in known
            checked.append(q.custom_id)
            return schemes.apply(q)

        return SimpleNamespace(apply=apply)

    monkeypatch.setattr(real.main, "Schemes", watch)
    questions = [question(real, n, {"a": "7", "b": str(n), "c": "7"}) for n in range(30)]
    real.main.measure(questions, "1", 2)
    assert Counter(checked) == Counter({q.custom_id: 2 for q in questions})


def test_labels_give_the_best_member_its_weight(real: Any) -> None:
    questions = [
        question(real, n, {"good": "7", "bad": str(n + 10), "worse": str(n + 10)})
        for n in range(60)
    ]
    overall = real.main.report(questions, "1", 1)["overall"]
    assert overall["accuracy"]["equal weights"] == 0
    assert overall["accuracy"]["labels"] == 1
    assert overall["labels less best member"]["value"] == 0
    assert overall["equal weights less random member"]["met"] is False
