"""What a judge's figures mean, in sentences."""

from typing import Any

from fusewire.analysis.reports.judge import JudgeRow, JudgeRows, judge_report
from fusewire_console.figures.judge import (
    RECENT_COLUMNS,
    agreement_figures,
    bias_figures,
    care_figures,
    with_recent,
)

KEYS = {"pool": "p", "judge_model": "j"}
COUNTS = (
    "first_wins",
    "second_wins",
    "swapped",
    "flips",
    "repaired",
    "reasked",
    *RECENT_COLUMNS,
)


def judge_row(
    verdicts: dict[str, Any] | None = None, votes: list[dict[str, Any]] | None = None, **bias: Any
) -> JudgeRow:
    """A judge without verdicts, but for what is given."""
    zeros = dict.fromkeys(("presentations", *COUNTS), 0)
    row = {**KEYS, **zeros, "fair_first_rate": None, **bias}
    sums = {**dict.fromkeys(("fair_longer", "fair_own_family", "controls", "control_wins"), 0)}
    rows = JudgeRows(
        biases=[row],
        verdicts=[{**KEYS, **sums, **(verdicts or {})}],
        votes=[{**KEYS, **vote} for vote in votes or []],
    )
    return judge_report(rows).judges[0]


def test_a_bias_is_told_in_points_from_the_fair_rate() -> None:
    row = judge_row(presentations=1000, first_wins=400, fair_first_rate=1 / 3)
    first = bias_figures(row)[1]
    assert (first.finding, first.tone, first.fair_rate) == ("bias", "warn", 1 / 3)
    assert first.sentence == "Names the first answer 6.7 points more often than fair: 3.7 to 9.7."


def test_a_bias_the_other_way_has_its_nearest_bound_first() -> None:
    row = judge_row({"fair_longer": 500.0}, longer_shown=1000, longer_wins=440)
    longest = bias_figures(row)[2]
    assert longest.sentence == (
        "Names the longest answer 6.0 points less often than fair: 2.9 to 9.0."
    )


def test_what_may_be_better_is_no_bias_for_certain() -> None:
    row = judge_row({"fair_longer": 500.0}, longer_shown=1000, longer_wins=560)
    assert bias_figures(row)[2].sentence == (
        "Names the longest answer 6.0 points more often than fair: 2.9 to 9.0."
        " Longer answers may be better ones."
    )


def test_no_bias_seen_tells_how_far_it_could_be() -> None:
    row = judge_row(presentations=1000, first_wins=510, fair_first_rate=0.5)
    first = bias_figures(row)[1]
    assert (first.finding, first.tone) == ("no bias seen", "good")
    assert first.sentence == "Names the first answer as often as fair: -2.1 to +4.1 points from it."


def test_too_few_verdicts_say_nothing() -> None:
    flips, first, longest, family = bias_figures(
        judge_row(presentations=29, first_wins=29, fair_first_rate=0.5, swapped=12, flips=3)
    )
    assert flips.sentence == "Too few pairs judged in both orders to say: 12 of the 30 it needs."
    assert (first.finding, first.tone) == ("too few", "")
    assert first.sentence == "Too few verdicts to say: 29 of the 30 it needs."
    assert longest.finding == ""
    assert family.sentence == "No line-up had answers of its own family and of others."


def test_flips_are_told_as_consistency_too() -> None:
    flips = bias_figures(judge_row(swapped=200, flips=10))[0]
    assert flips.rate
    assert (flips.rate.value, flips.rate.n) == (0.05, 200)
    assert "95.0 % have the same winner in both" in flips.sentence


def test_controls_say_whether_the_judge_is_broken() -> None:
    texts = [
        care_figures(judge_row({"controls": shown, "control_wins": wins}))[2].sentence
        for shown, wins in ((0, 0), (40, 0), (40, 1))
    ]
    assert texts == [
        "No control was shown; control_share of the pool sets how often one is.",
        "It never named the answer that only a broken judge picks.",
        "It named an answer that only a broken judge picks.",
    ]


def test_votes_have_kappa_from_thirty_on() -> None:
    votes = [
        {"choice": "a" if i % 4 else "b", "winner": "a", "agrees": i % 4 > 0} for i in range(20)
    ]
    votes += [{"choice": "b", "winner": "b", "agrees": True}] * 20
    (people,) = agreement_figures(judge_row(votes=votes))
    assert people.rate
    assert (people.rate.value, people.rate.n) == (0.875, 40)
    assert "kappa 0.75" in people.sentence
    (few,) = agreement_figures(judge_row(votes=votes[:10]))
    assert few.rate
    assert few.rate.value is None
    assert "kappa" not in few.sentence
    assert agreement_figures(judge_row()) == ()


def test_length_and_family_are_of_the_verdicts_whose_fair_rate_is_known() -> None:
    biases = [
        {"judge_model": "j", "longer_wins": 900, "longer_shown": 1000, "flips": 7},
        {"judge_model": "k", "longer_wins": 900, "longer_shown": 1000, "flips": 8},
    ]
    recent = [
        {
            "judge_model": "j",
            "longer_wins": 9,
            "longer_shown": 10,
            "own_family_wins": 1,
            "own_family_shown": 2,
        }
    ]
    first, second = with_recent(biases, recent)
    assert (first["longer_wins"], first["longer_shown"], first["flips"]) == (9, 10, 7)
    assert (second["longer_wins"], second["own_family_shown"], second["flips"]) == (0, 0, 8)
