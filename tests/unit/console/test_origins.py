"""Whose sentences a merge is closest to."""

from fusewire_console.figures.origins import MOST_PAIRS, sentences, trace

ANSWERS = {
    "alpha": "Water boils at 100 degrees at sea level. It is wet.",
    "beta": "On a mountain, water boils at a lower temperature.",
}


def test_each_sentence_names_the_member_with_the_closest_sentence() -> None:
    merge = (
        "Water boils at 100 degrees at sea level. On a mountain water boils at a lower"
        " temperature. Salt raises this point a little bit too. Yes."
    )
    parts = trace(merge, ANSWERS)
    assert parts is not None
    assert [part.members for part in parts] == [("alpha",), ("beta",), (), ()]
    assert [part.share for part in parts][:2] == [1.0, 1.0]
    assert parts[2].share is not None
    assert parts[2].share < 0.6
    assert parts[3].share is None, "too short to tell"


def test_a_sentence_that_two_members_have_names_both() -> None:
    text = "The capital of France is Paris."
    parts = trace(text, {"alpha": text, "beta": f"Well. {text}", "gamma": ""})
    assert parts is not None
    assert parts[0].members == ("alpha", "beta")


def test_a_text_of_too_many_sentences_is_not_compared() -> None:
    long_text = "a. " * (MOST_PAIRS // 10 + 1)
    assert trace("It is so and not otherwise. " * 10, {"alpha": long_text}) is None


def test_no_text_has_no_sentences() -> None:
    assert sentences(" \n ") == []
    assert trace("", ANSWERS) == []
