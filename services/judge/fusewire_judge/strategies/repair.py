"""Repair answers none of which satisfies the prompt's schema: rewrite one of them. Pure."""

from collections.abc import Generator

from fusewire.contracts import Call
from fusewire_judge.judging.prompts import make_lineup, repair_messages
from fusewire_judge.model import Case, Draft, MakeCalls, Panel, Replies, ready_calls
from fusewire_judge.scoring.answers import canonical, medoid, unwrap_json

CALL = "repair"
"""The name of the call."""


def is_off_schema(panel: Panel) -> bool:
    """Whether there are answers, and none of them satisfies the prompt's schema."""
    return bool(panel.answers) and all(
        panel.flaws.get(answer.member) == "off_schema" for answer in panel.answers
    )


def repair(case: Case, panel: Panel) -> Generator[MakeCalls, Replies, Draft | None]:
    """Ask the judge's model once to rewrite the answer most like the others (docs/decisions/0039).

    The call demands the prompt's schema.

    Yields:
        The call to make.

    Returns:
        None if there is no judge, or if what it wrote does not satisfy the schema either.
    """
    judge, sampling = case.plan.judge, case.prompt.sampling
    if judge is None:
        return None
    answer = medoid(panel.answers)
    lineup = make_lineup((answer,), case.plan.seed, CALL)
    call = Call(
        name=CALL,
        kind="write",
        model=judge.model,
        messages=repair_messages(case.prompt, lineup),
        sampling=sampling.model_copy(update={"temperature": None, "top_p": None, "seed": None}),
    )
    replies = yield ready_calls(call)
    reply = replies.get(CALL)
    content = reply.content if reply is not None and reply.ok else None
    text = unwrap_json(content or "", sampling.response_schema)
    if canonical(text, sampling.response_schema) is None:
        return None
    reason = f"what {answer.member} said, in the form that was asked"
    return Draft("fused", text, answer.member, panel.answers, reason=reason)
