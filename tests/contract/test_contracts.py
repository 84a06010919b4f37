"""The wire contracts: the golden JSON of every version is read for ever, and written as it is."""

import json
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fusewire.contracts import (
    CONTROL,
    Answer,
    Call,
    CallFailure,
    Candidate,
    ContractError,
    ExcludedMember,
    Gold,
    Image,
    Message,
    Outcome,
    Plan,
    PlannedJudge,
    PlannedMember,
    Policy,
    Prompt,
    RecordedAnswer,
    Round,
    Route,
    Sampling,
    StoredQuery,
    StoredReply,
    Tasks,
    TextReference,
    Token,
    Tool,
    ToolCall,
    Usage,
    Verdict,
    Wire,
)
from fusewire.contracts.base import Part
from fusewire.contracts.task import PackedTask

GOLDEN = Path(__file__).parent / "golden"
OLD = GOLDEN / "old"
"""What earlier releases wrote."""
FUSION = "f0123456789abcdefghijklmnop"
SUBMITTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PLANNED = datetime(2026, 1, 2, 3, 4, 5, 250_000, tzinfo=UTC)
PANEL_END = datetime(2026, 1, 2, 3, 4, 50, tzinfo=UTC)
DEADLINE = datetime(2026, 1, 2, 3, 5, 5, tzinfo=UTC)
SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}
CALL = ToolCall(id="c1A2b3C4d", name="get_weather", arguments='{"city":"Köln","days":2}')
TOOL = Tool(name="get_weather", description="The weather “now”.", parameters=SCHEMA)
MESSAGES = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Was kostet die Welt? “€”\n\\u0000 🌍"),
    Message(
        role="assistant", content="", tool_calls=(CALL,), reasoning="It depends on the weather."
    ),
    Message(role="tool", content="21 °C", tool_call_id="c1A2b3C4d"),
    Message(role="assistant", content="Nothing."),
    Message(
        role="user",
        name="ann",
        content="Really?",
        images=(Image(url="https://a.test/b.png", detail="low", at=3),),
        texts=(TextReference(name="a0" * 32, chars=9000, size=9100, at=4),),
    ),
)
SAMPLING = Sampling(
    max_tokens=64,
    temperature=0.5,
    top_p=0.9,
    seed=11,
    stop=("\n\n", "END"),
    top_k=40,
    min_p=0.05,
    frequency_penalty=0.5,
    presence_penalty=-0.5,
    repetition_penalty=1.1,
    logit_bias={"50256": -100.0},
    response_schema=SCHEMA,
)
SPENT = Usage(prompt_tokens=10, completion_tokens=2, cached_tokens=4, reasoning_tokens=1)

# No real message has all of this at once; what matters here is that each field is there, and not as
# its default.
MESSAGES_V1: tuple[Wire, ...] = (
    Prompt(
        fusion_id=FUSION,
        tenant="acme",
        key_id="0abcdefg",
        batch_id="b1",
        custom_id="row 1",
        pool="default",
        mode="debate",
        messages=MESSAGES,
        sampling=SAMPLING,
        tools=(TOOL,),
        tool_choice="get_weather",
        parallel_tool_calls=False,
        members=("small", "gpt"),
        preset="high",
        judge="gpt",
        criteria="Be strict about units.",
        recorded=(
            RecordedAnswer(
                member="small",
                model="edge-small",
                family="smollm",
                weight=1.5,
                content="Nichts, “gratis” 🌍",
                tool_calls=(CALL,),
                error_code="timeout",
                prompt_tokens=10,
                completion_tokens=2,
                latency_ms=812.5,
                cost_usd=0.00125,
            ),
        ),
        gold=Gold(answer="42", match="number"),
        is_streamed=True,
        store_id="0f1e2d3c",
        depth=1,
        is_complete=True,
        residency="edge-only",
        priority="low",
        seed=7,
        submitted_at=SUBMITTED,
        deadline_at=DEADLINE,
    ),
    Plan(
        fusion_id=FUSION,
        tenant="acme",
        pool="default",
        mode="debate",
        members=(
            PlannedMember(
                name="small",
                model="edge-small",
                tier="edge",
                family="smollm",
                weight=1.5,
                learned={"number": 1.25, "open": 0.5},
                is_required=True,
                samples=3,
                wave=1,
                is_replay_only=True,
                hedge_after_s=2.5,
            ),
        ),
        judge=PlannedJudge(
            model="edge-big",
            tier="edge",
            family="qwen",
            by_margin=True,
            sees_own=True,
            pass_edge=0.7,
            fail_edge=-1.1,
            verdict_edge=0.9,
        ),
        jury=(
            PlannedJudge(
                model="edge-big",
                tier="edge",
                family="qwen",
                by_margin=True,
                sees_own=True,
                pass_edge=0.7,
                fail_edge=-1.1,
                verdict_edge=0.9,
            ),
            PlannedJudge(model="edge-mid", tier="edge", family="phi"),
        ),
        policy=Policy(
            early_stop=0.99,
            grace_most_s=5.0,
            gate="edge-first",
            gate_confidence=0.75,
            hedge=0.05,
            guard=False,
            debate_families=3,
            checks=2,
            control_share=0.25,
            max_cost_usd=0.5,
            max_total_tokens=4096,
            route="learned",
            route_loss_points=0.5,
            route_explore=0.25,
            criteria="Be strict about units.",
        ),
        route=Route(members=("small",), reason="predicted", loss_points=0.25),
        excluded=(ExcludedMember(name="gpt", reason="residency", weight=2.5),),
        quorum=0.67,
        debate_rounds=2,
        residency="edge-only",
        priority="low",
        seed=7,
        submitted_at=SUBMITTED,
        planned_at=PLANNED,
        panel_deadline_at=PANEL_END,
        deadline_at=DEADLINE,
        config_hash="0123456789ab",
    ),
    Tasks(
        fusion_id=FUSION,
        round=0,
        tier="edge",
        queue="edge-small",
        tenant="acme",
        messages=MESSAGES,
        tools=(TOOL,),
        tasks=(
            PackedTask(
                call="small",
                kind="answer",
                member="small",
                model="edge-small",
                messages=(0, 1, 2, 3, 4, 5),
                tools=(0,),
                sampling=SAMPLING,
                expected_tokens=256,
                choices=("B", "K"),
                tool_choice="required",
                parallel_tool_calls=False,
                is_in_steps=True,
                is_streamed=True,
            ),
        ),
        depth=1,
        residency="edge-only",
        priority="low",
        deadline_at=PANEL_END,
    ),
    StoredQuery(fusion_id=FUSION, round=1, calls=("small", "gpt")),
    StoredReply(calls=("gpt",)),
    Candidate(
        task_id=f"{FUSION}-1-small",
        fusion_id=FUSION,
        round=1,
        call="small",
        member="small",
        model="gpt",
        tier="remote",
        provider="openai",
        content="Paris, “naturally” 🌍",
        tool_calls=(CALL,),
        error=CallFailure(
            code="rate_limited",
            message="429, tried 3 times",
            retryable=True,
            status=429,
            provider_code="rate_limit_exceeded",
            param="messages[0].content",
            retry_after_s=2.5,
        ),
        finish_reason="tool_calls",
        provider_reason="tool_use",
        reasoning="Hm.",
        usage=SPENT,
        cost_usd=0.00125,
        cost_prompt_usd=0.0005,
        price_version="genai-prices 0.2.3",
        attempts=3,
        confidence=0.875,
        logprob_mean=-0.125,
        logprob_min=-2.5,
        logprob_margin=3.25,
        logprob_margin_min=0.5,
        choice_logprobs=(-0.25, -1.5),
        maybe_paid_twice=True,
        started_at=PLANNED,
        finished_at=PANEL_END,
    ),
    Round(
        fusion_id=FUSION,
        round=1,
        tenant="acme",
        pool="default",
        calls=(
            Call(
                name="small",
                kind="answer",
                model="edge-small",
                member="small",
                messages=MESSAGES,
                sampling=SAMPLING,
                expected_tokens=256,
                choices=("B", "K"),
                tools=(TOOL,),
                tool_choice="none",
                parallel_tool_calls=False,
                is_streamed=True,
            ),
            Call(name="verdict", kind="verdict", model="edge-big", messages=MESSAGES[:1]),
        ),
        residency="edge-only",
        priority="low",
        seed=7,
        depth=1,
        store_id="0f1e2d3c",
        deadline_at=DEADLINE,
    ),
    Outcome(
        fusion_id=FUSION,
        status="fused",
        is_degraded=True,
        degraded_reasons=("excluded:gpt:residency", "judge_failed:empty"),
        content="Paris, “naturally” 🌍",
        tool_calls=(CALL,),
        reasoning="It is on the Seine.",
        tenant="acme",
        batch_id="b1",
        custom_id="row 1",
        pool="default",
        mode="debate",
        winner="small",
        answer_kind="number",
        closed_by="certain",
        missing_weight=0.25,
        guard="ungrounded",
        swap_consistent=False,
        verdicts=(
            Verdict(
                call="verdict-1",
                kind="pair",
                judge_model="edge-big",
                shown=("small", CONTROL),
                chars=(20, 31),
                control="wrong_number",
                winner="small",
                rung="repaired",
                logprobs=(-0.25, -1.5),
                void="control_won",
                is_consistent=True,
            ),
        ),
        hedges=1,
        is_replay=True,
        accepted=True,
        judge_model="edge-big",
        judge_rung="reasked",
        reason="A names it.",
        analysis={"consensus": ["Paris"], "blind_spots": []},
        agreement=0.5,
        rounds=2,
        answers=(
            Answer(
                member="small",
                model="edge-small",
                tier="edge",
                status="ok",
                round=1,
                call="small=2",
                content="Paris.",
                tool_calls=(CALL,),
                finish_reason="length",
                weight=1.875,
                agreed=False,
                vote_group=1,
                is_right=True,
                is_winner=True,
                shown_position=1,
                latency_ms=812.5,
                usage=SPENT,
                cost_usd=0.0,
            ),
            Answer(
                member="big",
                model="edge-big",
                tier="edge",
                status="error",
                round=0,
                error_code="engine_failed",
                error_status=503,
                provider_code="overloaded",
                provider_param="model",
                retry_after_s=2.5,
            ),
        ),
        usage=Usage(prompt_tokens=20, completion_tokens=4, cached_tokens=8),
        cost_usd=0.00125,
        cost_prompt_usd=0.0005,
        error="no judge answered",
        submitted_at=SUBMITTED,
        finished_at=PANEL_END,
        panel_ms=900.0,
        judge_ms=100.5,
        config_hash="0123456789ab",
        route=Route(members=("small",), reason="explored", loss_points=0.5),
    ),
    Token(fusion_id=FUSION, round=2, call="write", attempt=2, offset=14, text=" “naturally” 🌍"),
)

every_message = pytest.mark.parametrize("message", MESSAGES_V1, ids=lambda m: m.contract)


FREE = ("logit_bias", "response_schema", "parameters", "analysis", "learned")
"""Fields whose keys nobody prescribes."""


def golden(message: Wire) -> dict[str, Any]:
    text = (GOLDEN / f"{message.contract}.v1.json").read_text(encoding="utf-8")
    body: dict[str, Any] = json.loads(text)
    return body


def required_fields(message: Wire) -> list[str]:
    return [name for name, field in type(message).model_fields.items() if field.is_required()]


def test_every_contract_has_a_golden_file() -> None:
    names = {m.contract for m in MESSAGES_V1}

    # A service may keep records of its own in the same form; those are not on the bus.
    on_the_bus = [
        cls for cls in Wire.__subclasses__() if cls.__module__.startswith("fusewire.contracts.")
    ]
    assert names == {cls.contract for cls in on_the_bus}
    for folder in (GOLDEN, OLD):
        assert {f.name for f in folder.glob("*.json")} == {f"{name}.v1.json" for name in names}


@every_message
def test_golden_json_is_read_as_the_object_it_was_written_from(message: Wire) -> None:
    assert type(message).decode(json.dumps(golden(message))) == message


@every_message
def test_a_message_is_written_as_its_golden_json(message: Wire) -> None:
    assert json.loads(message.encode()) == golden(message)


@every_message
def test_golden_json_has_every_field(message: Wire) -> None:
    assert set(golden(message)) == set(type(message).model_fields)


def parts(value: object) -> Iterator[Part]:
    """A part, and all that it holds, at every depth."""
    if isinstance(value, Part):
        yield value
        for name in type(value).model_fields:
            yield from parts(getattr(value, name))
    elif isinstance(value, tuple):
        for inner in value:
            yield from parts(inner)


@every_message
def test_golden_json_shows_every_field_at_every_depth_with_another_value_than_its_default(
    message: Wire,
) -> None:
    telling: defaultdict[type[Part], set[str]] = defaultdict(set)
    for part in parts(message):
        for name, field in type(part).model_fields.items():
            if name == "v" or getattr(part, name) != field.get_default(
                call_default_factory=True, validated_data={}
            ):
                telling[type(part)].add(name)

    assert telling == {kind: set(kind.model_fields) for kind in telling}


@every_message
def test_what_an_earlier_release_wrote_is_read(message: Wire) -> None:
    old = json.loads((OLD / f"{message.contract}.v1.json").read_text(encoding="utf-8"))

    current = type(message).decode(json.dumps(old))

    assert json.loads(current.model_dump_json(exclude_unset=True)) == old
    for name in set(type(message).model_fields) - set(old):
        assert getattr(current, name) == type(message).model_fields[name].get_default(
            call_default_factory=True
        )


def with_new_fields(value: Any) -> Any:
    """A message's JSON with a new field in each of its parts."""
    if isinstance(value, list):
        return [with_new_fields(element) for element in value]
    if not isinstance(value, dict):
        return value
    # Free-form fields keep everything; only parts of a contract have known fields.
    with_known_fields = {
        key: inner if key in FREE else with_new_fields(inner) for key, inner in value.items()
    }
    return with_known_fields | {"from_the_future": [1]}


@every_message
def test_unknown_fields_are_ignored_at_every_depth(message: Wire) -> None:
    assert type(message).decode(json.dumps(with_new_fields(golden(message)))) == message


def test_a_plan_with_the_former_name_of_a_field_is_read() -> None:
    plan = next(m for m in MESSAGES_V1 if isinstance(m, Plan))
    body = golden(plan)
    (member,) = body["members"]
    member["is_mute"] = member.pop("is_replay_only")

    assert Plan.decode(json.dumps(body)) == plan


@every_message
def test_a_missing_field_is_refused_with_its_path(message: Wire) -> None:
    for name in required_fields(message):
        body = golden(message)
        del body[name]

        with pytest.raises(ContractError) as error:
            type(message).decode(json.dumps(body))

        assert (error.value.contract, error.value.path) == (message.contract, f"$.{name}")
        assert "required" in error.value.reason


NESTED = [
    ("prompt", ("messages", 1, "content"), "$.messages[1].content"),
    ("plan", ("members", 0, "weight"), "$.members[0].weight"),
    ("plan", ("judge", "family"), "$.judge.family"),
    ("plan", ("excluded", 0, "reason"), "$.excluded[0].reason"),
    ("tasks", ("tasks", 0, "model"), "$.tasks[0].model"),
    ("tasks", ("messages", 0, "role"), "$.messages[0].role"),
    ("candidate", ("error", "code"), "$.error.code"),
    ("round", ("calls", 1, "name"), "$.calls[1].name"),
    ("round", ("calls", 0, "messages", 2, "content"), "$.calls[0].messages[2].content"),
    ("outcome", ("answers", 1, "member"), "$.answers[1].member"),
    (
        "prompt",
        ("messages", 2, "tool_calls", 0, "arguments"),
        "$.messages[2].tool_calls[0].arguments",
    ),
    ("prompt", ("tools", 0, "name"), "$.tools[0].name"),
    ("prompt", ("recorded", 0, "member"), "$.recorded[0].member"),
    ("prompt", ("gold", "match"), "$.gold.match"),
    ("plan", ("jury", 1, "model"), "$.jury[1].model"),
    ("candidate", ("tool_calls", 0, "id"), "$.tool_calls[0].id"),
    ("outcome", ("verdicts", 0, "shown"), "$.verdicts[0].shown"),
]


@pytest.mark.parametrize(("contract", "keys", "path"), NESTED)
def test_a_missing_field_inside_is_refused_with_its_path(
    contract: str, keys: tuple[Any, ...], path: str
) -> None:
    message = next(m for m in MESSAGES_V1 if m.contract == contract)
    body = golden(message)
    inner: Any = body
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]

    with pytest.raises(ContractError) as error:
        type(message).decode(json.dumps(body))

    assert error.value.path == path


@every_message
def test_a_message_without_a_version_is_refused(message: Wire) -> None:
    body = golden(message)
    del body["v"]

    with pytest.raises(ContractError, match=r"\$\.v: missing"):
        type(message).decode(json.dumps(body))


@every_message
@pytest.mark.parametrize("version", [0, 2, "one", None])
def test_an_unknown_version_is_refused(message: Wire, version: object) -> None:
    with pytest.raises(ContractError) as error:
        type(message).decode(json.dumps(golden(message) | {"v": version}))

    assert error.value.path == "$.v"


@every_message
@pytest.mark.parametrize("data", [b"", b"not json", b"[]", b"null", b'{"v":1', b"\xff\xfe"])
def test_what_is_no_message_is_refused(message: Wire, data: bytes) -> None:
    with pytest.raises(ContractError) as error:
        type(message).decode(data)

    assert error.value.path.startswith("$")


@every_message
def test_a_refusal_never_repeats_what_was_in_the_message(message: Wire) -> None:
    for name in type(message).model_fields:
        body = golden(message) | {name: ["s3cr3t text"], "v": "s3cr3t text"}
        with pytest.raises(ContractError) as error:
            type(message).decode(json.dumps(body))
        assert "s3cr3t" not in str(error.value)


@every_message
def test_a_message_cannot_be_changed(message: Wire) -> None:
    with pytest.raises(ValueError, match="frozen"):
        message.fusion_id = "other"  # type: ignore[attr-defined]


@pytest.mark.parametrize("field", ["submitted_at", "deadline_at"])
def test_a_time_without_a_zone_is_refused(field: str) -> None:
    body = golden(MESSAGES_V1[0]) | {field: "2026-01-02T03:04:05"}

    with pytest.raises(ContractError) as error:
        Prompt.decode(json.dumps(body))

    assert error.value.path == f"$.{field}"
