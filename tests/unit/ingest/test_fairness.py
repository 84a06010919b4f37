"""Fair queue of tenants: whose lines are submitted next."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fusewire_ingest.fair_queue import QUANTUM, FairQueue, PendingLine


def lines(batch: str, count: int, cost: int = 100) -> list[PendingLine]:
    return [PendingLine(batch, number, cost) for number in range(1, count + 1)]


def by_batch(chosen_lines: list[PendingLine]) -> Counter[str]:
    return Counter(line.batch_id for line in chosen_lines)


def test_one_tenant_has_all_the_room() -> None:
    assert FairQueue().choose({"a": lines("x", 9)}, 5, {}) == lines("x", 5)


def test_a_tenant_with_much_waiting_does_not_hold_up_another() -> None:
    chosen_lines = FairQueue().choose(
        {"a": lines("x", 1000, QUANTUM), "b": lines("y", 10, QUANTUM)}, 20, {}
    )

    assert by_batch(chosen_lines) == {"x": 10, "y": 10}


def test_long_lines_have_fewer_turns_over_time() -> None:
    queue, count = FairQueue(), Counter[str]()
    for _ in range(300):
        count += by_batch(
            queue.choose({"a": lines("x", 1, 4 * QUANTUM), "b": lines("y", 1, QUANTUM)}, 1, {})
        )

    assert 3 <= count["y"] / count["x"] <= 5


def test_a_share_is_kept_over_time() -> None:
    queue, count = FairQueue(), Counter[str]()
    for _ in range(300):
        waiting = {"a": lines("x", 1, QUANTUM), "b": lines("y", 1, QUANTUM)}
        count += by_batch(queue.choose(waiting, 1, {"b": 3.0}))

    assert 2 <= count["y"] / count["x"] <= 4


def test_a_tenant_with_nothing_waiting_gains_nothing() -> None:
    queue = FairQueue()
    for _ in range(100):
        queue.choose({"a": lines("x", 1, QUANTUM)}, 1, {})
    chosen_lines = queue.choose(
        {"a": lines("x", 50, QUANTUM), "b": lines("y", 50, QUANTUM)}, 20, {}
    )

    assert by_batch(chosen_lines) == {"x": 10, "y": 10}


@given(
    st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(1, 300_000), max_size=8)),
    st.integers(0, 20),
    st.dictionaries(st.sampled_from("abcd"), st.floats(0.01, 100)),
)
def test_no_room_is_left_while_something_waits(
    costs: dict[str, list[int]], room: int, shares: dict[str, float]
) -> None:
    waiting: dict[str, list[PendingLine]] = {}
    for tenant, line_costs in costs.items():
        waiting[tenant] = [PendingLine(tenant, n, cost) for n, cost in enumerate(line_costs)]

    chosen_lines = FairQueue().choose(waiting, room, shares)

    assert len(chosen_lines) == min(room, sum(map(len, waiting.values())))
    for tenant, tenant_lines in waiting.items():
        submitted_lines = [line for line in chosen_lines if line.batch_id == tenant]
        expected = tenant_lines[: len(submitted_lines)]
        assert submitted_lines == expected, "each tenant's lines go in their order"
