"""Judge stored answers again without one member. No member is called."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusewire import ids
from fusewire.contracts import ANSWERED, ToolCall
from fusewire.settings import Pool
from fusewire.store.history import History
from fusewire_cli.ablate.course import StoredCase
from fusewire_cli.ablate.recomputation import Recomputation
from fusewire_cli.client import Client
from fusewire_cli.fusing import fuse
from fusewire_cli.rejudge import PolicyChange, recorded_answers, submission
from fusewire_ingest.admission.admit import MOST_BATCH_CHARS


@dataclass(frozen=True)
class ReplayPrompt:
    """A prompt that is judged again without one member."""

    member: str
    old: StoredCase
    estimate: Recomputation
    """What stands if it cannot be judged again."""
    body: str
    """The submission, in JSON."""

    @property
    def custom_id(self) -> str:
        """The old fusion's id: a custom_id may be that of prompts in several batches."""
        return self.old.case.prompt.fusion_id


@dataclass
class ReplayQueue:
    """The prompts to judge again: those of the newest fusions that need it."""

    most_prompts: int
    prompts: list[ReplayPrompt] = field(default_factory=list)
    n_fusions: int = 0

    def take(
        self, fusion: History, old: StoredCase, results: Mapping[str, Recomputation]
    ) -> set[str]:
        """Take a fusion, unless the queue is full.

        Args:
            fusion: the fusion.
            old: the same as a case.
            results: by member that is left out, what is known without a judge.

        Returns:
            The members without which it will be judged again.
        """
        if self.n_fusions >= self.most_prompts:
            return set()
        prompts = []
        for member, result in results.items():
            body = _body(fusion, member) if result.judge_calls else None
            if body is not None:
                prompts.append(ReplayPrompt(member, old, result, body))
        self.n_fusions += bool(prompts)
        self.prompts += prompts
        return {prompt.member for prompt in prompts}

    def by_member(self) -> dict[str, list[ReplayPrompt]]:
        """The prompts, by the member that is left out."""
        prompts = defaultdict(list)
        for prompt in self.prompts:
            prompts[prompt.member].append(prompt)
        return prompts


def _body(fusion: History, member: str) -> str | None:
    """The submission of the other members' answers; None if none of them answered."""
    answers = [answer for answer in recorded_answers(fusion) if answer.member != member]
    if all(answer.error_code is not None for answer in answers):
        return None
    custom_id = fusion.prompt.fusion_id
    prompt = fusion.prompt.model_copy(update={"custom_id": custom_id})
    return submission(prompt, answers, PolicyChange())


def replay_batch(pool: str, member: str, rules: str) -> str:
    """The id of the batch of a pool without a member.

    The same pool with the same rules gives the same id, so what was judged once is not judged
    again.
    """
    name = f"{pool}.without-{member}"
    digest = ids.digest("ablate", pool, member, rules).hex()[:8]
    return f"{name[: MOST_BATCH_CHARS - 16]}.ablate-{digest}"


async def replay(
    api: Client, batch: str, prompts: Sequence[ReplayPrompt], window: int
) -> list[Recomputation]:
    """Judge prompts again; returns what came out, in their order.

    Where nothing came out, the estimate stands.
    """
    bodies = {prompt.custom_id: prompt.body for prompt in prompts}
    outcomes = await fuse(api, batch, bodies, window)
    return [_result(prompt, outcomes[prompt.custom_id]) for prompt in prompts]


def _result(prompt: ReplayPrompt, outcome: Mapping[str, Any]) -> Recomputation:
    if outcome["status"] not in ANSWERED:
        return prompt.estimate
    return Recomputation(
        "rejudged",
        outcome["content"],
        tuple(ToolCall.model_validate(call) for call in outcome.get("tool_calls", ())),
        outcome.get("winner"),
    )


def rules_text(pool: Pool) -> str:
    """The rules of a configured pool, as text that changes with them."""
    return json.dumps(pool.model_dump(mode="json"), sort_keys=True)
