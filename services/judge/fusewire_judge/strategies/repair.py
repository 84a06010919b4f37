"""Answers that say something and not in the form that was asked: one of them is written anew in it. Pure."""

from collections.abc import Generator

from fusewire.contracts import Call
from fusewire_judge.judging.prompts import lineup, reform
from fusewire_judge.model import Case, Draft, Panel, Replies, Wanted, wanted
from fusewire_judge.scoring.answers import canonical, medoid, unwrapped

CALL = "repair"
"""The name of the call."""


def is_off_schema(panel: Panel) -> bool:
    """Whether there are answers, and none of them satisfies the prompt's schema."""
    return bool(panel.answers) and all(
        panel.flaws.get(one.member) == "off_schema" for one in panel.answers
    )


def repair(case: Case, panel: Panel) -> Generator[Wanted, Replies, Draft | None]:
    """Ask the judge's model, once and held to the schema, to write the answer most like the others in that form.

    Yields:
        The call to make.

    Returns:
        None where there is no judge, or what it wrote does not satisfy the schema either.
    """
    judge, sampling = case.plan.judge, case.prompt.sampling
    if judge is None:
        return None
    chosen = medoid(panel.answers)
    shown = lineup((chosen,), case.plan.seed, CALL)
    call = Call(
        name=CALL,
        kind="write",
        model=judge.model,
        messages=reform(case.prompt, shown),
        sampling=sampling.model_copy(update={"temperature": None, "top_p": None, "seed": None}),
    )
    replies = yield wanted(call)
    reply = replies.get(CALL)
    text = unwrapped((reply.content or "") if reply and reply.ok else "", sampling.response_schema)
    if canonical(text, sampling.response_schema) is None:
        return None
    reason = f"what {chosen.member} said, in the form that was asked"
    return Draft("fused", text, chosen.member, panel.answers, reason=reason)
