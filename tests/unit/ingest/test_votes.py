"""What may be voted for, and by what a voter is known."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.contracts import ANSWERED
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.admission.strict_json import parse_object
from fusewire_ingest.admission.votes import check, choices, parse, voter_hash

PEPPER = b"0123456789abcdef"
NAMES = st.none() | st.text(min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({}, "choice", "'choice': it is missing"),
        ({"choice": None}, "choice", "'choice': it must be a text, and not null"),
        ({"choice": ["a"]}, "choice", "'choice': it must be a text"),
        ({"choice": "a", "voter": 7}, "voter", "'voter': it must be a text"),
        ({"choice": "a", "voter": ""}, "voter", "at least 1 character"),
        ({"choice": "a", "voter": "secret" * 43}, "voter", "at most 256 characters"),
        ({"choice": "a", "votre": "b"}, "votre", "did you mean 'voter'?"),
    ],
)
def test_a_vote_that_is_malformed_is_refused_without_the_voter(
    fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        parse(fields)

    assert (caught.value.code, caught.value.param) == ("invalid_request", param)
    assert message in caught.value.message
    assert "secret" not in caught.value.message


def test_a_voter_may_have_any_name_of_256_characters() -> None:
    for voter in ("名" * 256, " ", None):
        body = json.dumps({"choice": "a", "voter": voter})
        assert parse(parse_object(body, 8192)).voter == voter


def test_a_choice_is_a_member_that_answered_or_one_of_three() -> None:
    assert choices(["a", "b"]) == ("a", "b", "fused", "tie", "none")
    for choice in choices(["a", "b"]):
        for status in ANSWERED:
            check(choice, status, ["a", "b"])
    for choice in ("c", "A", "", "a "):
        with pytest.raises(RefusedError) as caught:
            check(choice, "selected", ["a", "b"])
        assert (caught.value.code, caught.value.param) == ("unknown_choice", "choice")
        assert caught.value.message.endswith("known: a, b, fused, none, tie")


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    with pytest.raises(RefusedError, match="did you mean 'fused'"):
        check("fusd", "selected", ["a"])


@pytest.mark.parametrize("status", ["failed", "expired", "cancelled"])
def test_an_outcome_without_an_answer_has_no_choice(status: str) -> None:
    for choice in ("a", "none"):
        with pytest.raises(RefusedError, match=f"is '{status}'") as caught:
            check(choice, status, ["a"])
        assert caught.value.code == "no_answer"


def test_a_voter_s_hash_is_an_hmac_with_the_pepper() -> None:
    # openssl dgst -sha256 -binary PARTS | openssl dgst -sha256 -hmac 0123456789abcdef, where PARTS
    # are vote, t, voter and Ann, each after its length in 8 bytes.
    assert (
        voter_hash(PEPPER, "t", "Ann", "k1")
        == "030d628988da236605fdacd43314758bf8107382432dd6001d1565597acbaa21"
    )
    assert voter_hash(PEPPER + b"x", "t", "Ann", None) != voter_hash(PEPPER, "t", "Ann", None)


def test_the_key_is_the_voter_only_if_none_is_named() -> None:
    def hashed(voter: str | None, key_id: str | None, tenant: str = "t") -> str:
        return voter_hash(PEPPER, tenant, voter, key_id)

    assert hashed("Ann", "k1") == hashed("Ann", "k2") == hashed("Ann", None)
    assert hashed(None, "k1") != hashed(None, "k2")
    assert hashed("k1", None) != hashed(None, "k1"), "a voter who is called like a key"
    assert hashed("local", None) != hashed(None, None)
    assert hashed("Ann", None, "u") != hashed("Ann", None)


@given(st.lists(st.tuples(st.text(max_size=8), NAMES, NAMES), min_size=2, max_size=2))
def test_other_voters_have_other_hashes(identities: list[tuple[str, Any, Any]]) -> None:
    first, second = (
        (tenant, ("voter", voter) if voter is not None else ("key", key_id))
        for tenant, voter, key_id in identities
    )
    first_hash, second_hash = (voter_hash(PEPPER, *identity) for identity in identities)

    assert (first_hash == second_hash) == (first == second)
