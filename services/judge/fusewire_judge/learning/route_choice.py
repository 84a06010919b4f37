"""Which members a plan asks, by what was learned; stamped on it when the judge takes it. Pure."""

from fusewire import ids
from fusewire.contracts import Plan, Prompt, Route
from fusewire_judge.learning.prompt_features import prompt_features
from fusewire_judge.learning.router import Router


def choose_route(plan: Plan, prompt: Prompt, router: Router | None) -> Plan:
    """Return the plan with the members that its pool's route has chosen.

    A plan without a route stays as it is.

    Args:
        plan: as the dispatcher made it.
        prompt: that it answers.
        router: what was learned of its pool; None if too little is known.
    """
    if not plan.is_routed:
        return plan
    names = tuple(member.name for member in plan.members)
    if is_explored(plan):
        # Members that are not waited for teach nothing: those that are quick would be compared on
        # easy prompts.
        policy = plan.policy.model_copy(update={"early_stop": 1.0})
        route = Route(members=names, reason="explored")
        return plan.model_copy(update={"route": route, "policy": policy})
    if router is None or router.bound is None:
        return plan.model_copy(update={"route": Route(members=names, reason="unlearned")})
    required_names = [member.name for member in plan.members if member.is_required]
    prediction = router.predict(prompt_features(prompt), names, required_names)
    if prediction is None:
        return plan.model_copy(update={"route": Route(members=names, reason="too_risky")})
    route = Route(
        members=prediction.members,
        reason="predicted",
        loss_points=round(100 * prediction.loss, 2),
    )
    plan = plan.model_copy(update={"route": route})
    return _without_hedge(plan) if prompt.is_streamed and len(route.members) == 1 else plan


def is_explored(plan: Plan) -> bool:
    """Tell whether all are asked to learn from it: the same whenever the fusion is taken.

    >>> from fusewire.testing.factories import make_plan
    >>> plans = [make_plan(seed=seed) for seed in range(1000)]
    >>> sum(map(is_explored, plans))
    43
    """
    draw = ids.seed(str(plan.seed), plan.fusion_id, "explore") / 2**31
    return draw < plan.policy.route_explore


def _without_hedge(plan: Plan) -> Plan:
    """Return the plan without second calls: they write another text than what is shown already."""
    members = tuple(m.model_copy(update={"hedge_after_s": None}) for m in plan.members)
    return plan.model_copy(update={"members": members})
