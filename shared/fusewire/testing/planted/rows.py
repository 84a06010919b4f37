"""Rows of planted fusions, in the columns that ingest and the judge fill.

Bodies are written from templates and leave defaults out, which their contracts read as if they
were there: pydantic would take longer than all the rest.
"""

from collections.abc import Iterator
from random import Random

from fusewire import ids
from fusewire.testing.planted.draw import Question, choose, questions, replies
from fusewire.testing.planted.fusion import Fusion
from fusewire.testing.planted.messages import (
    Row,
    candidate_rows,
    fusion_row,
    prompt_row,
    round_rows,
)
from fusewire.testing.planted.results import (
    OUTCOME_COLUMNS,
    add_answers,
    add_verdicts,
    outcome_row,
)
from fusewire.testing.planted.truth import Truth

COLUMNS = {
    "prompts": "fusion_id tenant batch_id custom_id pool mode residency priority body body_hash"
    " prompt_hash submitted_at deadline_at published_at",
    "fusions": "fusion_id plan due_at is_done",
    "rounds": "fusion_id round body asked_at",
    "candidates": "fusion_id round call model tier error_code is_late after_rounds received_at"
    " body",
    "outcomes": OUTCOME_COLUMNS,
    "answers": "fusion_id member round call weight agreed vote_group is_right model tier provider"
    " status error_code shown_position is_winner attempts latency_ms tokens_in tokens_out cost_usd",
    "verdicts": "fusion_id call kind judge_model n_shown shown chars is_by_margin swap_of winner"
    " winner_position longest_position n_own_family is_own_family_winner is_control_winner rung"
    " is_consistent decided_at",
}
"""By table: the columns of its rows. The others are NULL."""

BLOCK = 1000
"""Prompts that are made, and written in one transaction, at a time."""

Rows = dict[str, list[Row]]
"""By table."""

BatchIds = dict[tuple[str, int, str], str]
"""By tenant, number of the batch, and pool."""


def planted_rows(truth: Truth, count: int, seed: int) -> Iterator[Rows]:
    """Make the rows of `count` prompts, each in all pools, a block at a time.

    Args:
        truth: what is true of them.
        count: how many prompts; outcomes are as many for each pool.
        seed: equal seeds make equal rows.
    """
    for numbers in blocks(count):
        yield block_rows(truth, count, seed, numbers)


def blocks(count: int) -> list[range]:
    """The numbers of the prompts of each block."""
    return [range(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]


def block_rows(truth: Truth, count: int, seed: int, numbers: range) -> Rows:
    """Make the rows of a block of the `count` prompts."""
    # A seed of its own for each block, so that several processes may make them.
    rng = Random(f"{seed} {numbers.start}")
    batch_ids: BatchIds = {}
    rows: Rows = {table: [] for table in COLUMNS}
    for question in questions(truth, rng, numbers, count):
        for name, pool in truth.pools.items():
            panel = replies(truth, pool, question, rng)
            choice = choose(pool, question, panel, rng)
            batch_id = _batch_id(question, name, batch_ids)
            _add(Fusion(question, (name, pool), panel, choice, batch_id), rows)
    return rows


def _batch_id(question: Question, pool: str, batch_ids: BatchIds) -> str | None:
    if question.batch is None:
        return None
    key = question.tenant, question.batch, pool
    if key not in batch_ids:
        batch_ids[key] = ids.batch_id(question.tenant, f"rows {question.batch}", pool, "best-of")
    return batch_ids[key]


def _add(fusion: Fusion, rows: Rows) -> None:
    row, prompt_hash = prompt_row(fusion)
    rows["prompts"].append(row)
    rows["fusions"].append(fusion_row(fusion))
    rows["rounds"] += round_rows(fusion)
    rows["candidates"] += candidate_rows(fusion)
    answer_bodies = add_answers(fusion, rows["answers"])
    verdict_bodies = add_verdicts(fusion, rows["verdicts"])
    rows["outcomes"].append(outcome_row(fusion, prompt_hash, answer_bodies, verdict_bodies))
