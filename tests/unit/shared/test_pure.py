"""The small pure pieces that everything is built on."""

import re
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.msg import Msg

from fusewire import ids, topology
from fusewire.bus import Delivery, fault, retry_delay_s
from fusewire.contracts import ContractError
from fusewire.errors import StartupError, Transient, UnacceptableMessage
from fusewire.provision import TopologyChange, summary, wider
from fusewire.testing.factories import make_prompt

# -- ids --------------------------------------------------------------------------------------


def test_an_id_is_always_the_same_and_safe_in_a_subject() -> None:
    fusion_id = ids.fusion_id("acme", "b1", "row 1")

    assert fusion_id == "f" + fusion_id[1:] == ids.fusion_id("acme", "b1", "row 1")
    assert re.fullmatch(r"f[a-v0-9]{26}", fusion_id)
    assert re.fullmatch(r"b[a-v0-9]{26}", ids.batch_id("acme", "file.jsonl", "default", "merge"))
    assert ids.task_id(fusion_id, 1, "verdict") == f"{fusion_id}-1-verdict"


def test_ids_are_what_earlier_releases_made() -> None:
    """A changed id would make a second fusion of a prompt that was submitted before the upgrade."""
    assert ids.fusion_id("default", None, "one") == "fdfb4947qqkd5qf16o30teb8iqj"
    assert ids.seed("7", "a") == 742661631


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_no_two_lists_share_a_digest(a: list[str], b: list[str]) -> None:
    assert (ids.digest(*a) == ids.digest(*b)) == (a == b)


def test_a_batch_without_a_name_is_no_batch_of_the_empty_name() -> None:
    assert ids.fusion_id("acme", None, "x") == ids.fusion_id("acme", "", "x")
    assert ids.fusion_id("acme", "x", "") != ids.fusion_id("acme", "", "x")


@given(st.text(max_size=8), st.text(max_size=8))
def test_a_seed_fits_every_provider(a: str, b: str) -> None:
    assert 0 <= ids.seed(a, b) < 2**31


# -- limits -----------------------------------------------------------------------------------

WIDER: list[tuple[float | None, float | None, float | None]] = [
    (1, 2, 2),
    (2, 1, 2),
    (None, 5, None),
    (0, 5, 0),
    (-1, 5, -1),
    (5, -1, -1),
    (5, None, None),
    (5, 0, 0),
    (-1, 0, -1),
    (3.5, 3.5, 3.5),
]


@pytest.mark.parametrize(("have", "want", "expected"), WIDER)
def test_the_wider_of_two_limits(
    have: float | None, want: float | None, expected: float | None
) -> None:
    assert wider(have, want) == expected


@given(*[st.none() | st.sampled_from([-1, 0]) | st.integers(1, 100)] * 2)
def test_what_an_operator_has_is_never_narrowed(have: int | None, want: int | None) -> None:
    no_limit = (None, 0, -1)
    limit = wider(have, want)

    if have in no_limit:
        assert limit == have
    elif limit not in no_limit:
        assert have is not None
        assert limit is not None
        assert limit >= have


def test_a_summary_counts_each_action() -> None:
    changes = [
        TopologyChange("stream", "A", "created"),
        TopologyChange("durable", "B", "created"),
        TopologyChange("bucket", "C", "unchanged"),
    ]

    assert summary(changes) == {"created": 2, "updated": 0, "removed": 0, "unchanged": 1}


# -- topology ---------------------------------------------------------------------------------


def test_every_edge_model_and_every_pool_has_a_durable_per_priority() -> None:
    durables = topology.topology({"tiny": "edge", "gpt": "remote"}, ["default"]).durables

    assert {(d.stream, d.name, d.subject) for d in durables if "TASK" in d.stream} == {
        ("FW_TASK_EDGE", f"tiny-{p}", f"fw.task.edge.tiny.{p}") for p in ("high", "normal", "low")
    } | {
        ("FW_TASK_REMOTE", f"default-{p}", f"fw.task.remote.default.{p}")
        for p in ("high", "normal", "low")
    }


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject matches a pattern, as NATS defines it."""
    parts, tokens = pattern.split("."), subject.split(".")
    if parts[-1] == ">":
        return len(tokens) >= len(parts) and matches(
            ".".join(parts[:-1]), ".".join(tokens[: len(parts) - 1])
        )
    return len(parts) == len(tokens) and all(
        part in ("*", token) for part, token in zip(parts, tokens, strict=True)
    )


FUSION = make_prompt().fusion_id
SUBJECTS = [
    (topology.prompt_subject("low", "acme"), "FW_PROMPT"),
    (topology.round_subject(FUSION), "FW_ROUND"),
    (topology.task_subject("edge", "tiny", "low"), "FW_TASK_EDGE"),
    (topology.task_subject("remote", "default", "high"), "FW_TASK_REMOTE"),
    (topology.plan_subject(FUSION), "FW_CANDIDATE"),
    (topology.candidate_subject(FUSION, 1, "verdict-again"), "FW_CANDIDATE"),
    (topology.schedule_subject(FUSION), "FW_TIMER"),
    (topology.due_subject(FUSION), "FW_TIMER"),
    (topology.outcome_subject("acme", FUSION), "FW_OUTCOME"),
    (topology.intake_subject("acme"), "FW_IN"),
    (topology.dead_subject("judge", "FW_CANDIDATE"), "FW_DEAD"),
]


@pytest.mark.parametrize(("subject", "stream"), SUBJECTS, ids=[s for _, s in SUBJECTS])
def test_each_subject_is_held_by_one_stream(subject: str, stream: str) -> None:
    def takes(candidate: topology.Stream) -> bool:
        return any(matches(pattern, subject) for pattern in candidate.subjects)

    assert [candidate.name for candidate in filter(takes, topology.STREAMS)] == [stream]


def test_an_edge_task_matches_nothing_that_a_remote_worker_reads() -> None:
    edge = topology.task_subject("edge", "default", "high")

    for durable in topology.topology({"gpt": "remote"}, ["default"]).durables:
        if durable.stream == "FW_TASK_REMOTE":
            assert not matches(durable.subject, edge)


ACKS = {
    "without a domain": "$JS.ACK.FW_PROMPT.dispatcher.3.17.5.1700000000000000000.4",
    "with a domain": "$JS.ACK.hub.AHASH.FW_PROMPT.dispatcher.3.17.5.1700000000000000000.4.Xyz",
}


@pytest.mark.parametrize("reply", ACKS.values(), ids=ACKS)
def test_what_the_server_says_of_a_message_is_read(reply: str) -> None:
    delivery = Delivery.from_message(
        Msg(cast("Any", None), subject="fw.prompt.low.acme", reply=reply, data=b"x")
    )

    assert (delivery.stream, delivery.deliveries, delivery.sequence) == ("FW_PROMPT", 3, 17)
    assert (delivery.subject, delivery.data, delivery.headers) == ("fw.prompt.low.acme", b"x", {})


# -- faults and retries -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deliveries", "whole"), [(1, 0.5), (2, 1), (3, 2), (6, 16), (7, 30), (50, 30)]
)
def test_retries_come_ever_later_but_not_for_ever_later(deliveries: int, whole: float) -> None:
    assert retry_delay_s(deliveries, 1.0) == whole
    assert retry_delay_s(deliveries, 0.0) == whole / 2


def test_a_fault_is_named_without_its_text() -> None:
    def fails() -> None:
        raise ValueError("the prompt was: s3cr3t")

    with pytest.raises(ValueError, match="s3cr3t") as error:
        fails()

    assert re.fullmatch(r"ValueError at fails:\d+", fault(error.value))
    assert fault(ValueError("s3cr3t")) == "ValueError"


OURS = [
    Transient("NATS is down"),
    UnacceptableMessage("unknown model"),
    ContractError("task", "$.v", "missing"),
    StartupError("no NATS", "start it"),
]


@pytest.mark.parametrize("exc", OURS, ids=lambda e: type(e).__name__)
def test_a_fault_of_our_own_words_is_told_in_them(exc: Exception) -> None:
    assert fault(exc) == str(exc)
