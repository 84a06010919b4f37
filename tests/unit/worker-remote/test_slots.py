"""The slots of a model: the most urgent waiter is next, and none is lost."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from fusewire_worker_remote.slots import SlotQueue


async def wait_for(slots: SlotQueue, rank: int, name: str, served: list[str]) -> asyncio.Task[None]:
    """A task that waits for a slot, and does so already."""

    async def take() -> None:
        await slots.acquire(rank)
        served.append(name)

    task = asyncio.create_task(take())
    await asyncio.sleep(0)
    return task


async def test_the_most_urgent_is_next_and_equals_keep_their_order() -> None:
    slots, served = SlotQueue(1, last_rank=2), list[str]()
    await slots.acquire(2)
    waiters = [("low-1", 2), ("low-2", 2), ("normal-1", 1), ("high", 0), ("normal-2", 1)]
    tasks = [await wait_for(slots, rank, name, served) for name, rank in waiters]

    for _ in waiters:
        slots.release()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    await asyncio.gather(*tasks)
    assert served == ["high", "normal-1", "normal-2", "low-1", "low-2"]


async def test_as_many_as_there_are_slots_have_one_at_once() -> None:
    slots, served = SlotQueue(2, last_rank=2), list[str]()
    tasks = [await wait_for(slots, 1, str(number), served) for number in range(4)]
    assert served == ["0", "1"]

    slots.release()
    slots.release()
    await asyncio.gather(*tasks)
    assert served == ["0", "1", "2", "3"]


async def test_who_no_longer_waits_takes_no_slot() -> None:
    slots, served = SlotQueue(1, last_rank=2), list[str]()
    await slots.acquire(1)
    gone = await wait_for(slots, 0, "gone", served)
    late = await wait_for(slots, 0, "late", served)
    stays = await wait_for(slots, 1, "stays", served)

    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    slots.release()
    # It has been given the slot, and is cancelled before it could run.
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)

    await stays
    assert served == ["stays"]


async def test_the_least_urgent_leave_some_free() -> None:
    slots, served = SlotQueue(3, last_rank=2, reserve=lambda _: 1), list[str]()
    low = [await wait_for(slots, 2, f"low-{number}", served) for number in range(4)]
    assert served == ["low-0", "low-1"]

    normal = [await wait_for(slots, 1, f"normal-{number}", served) for number in range(2)]
    assert served == ["low-0", "low-1", "normal-0"]
    slots.release()
    await normal[1]
    # Two slots are in use by others, so none of these begins before two are free.
    slots.release()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert served[3:] == ["normal-1"]
    slots.release()
    await low[2]
    slots.release()
    await low[3]
    assert served[4:] == ["low-2", "low-3"]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_with_fewer_slots_nobody_loses_one_and_nobody_gets_one_too_many() -> None:
    slots, served = SlotQueue(4, last_rank=2), list[str]()
    for _ in range(4):
        await slots.acquire(1)
    slots.resize(2)
    assert slots.taken_count == 4
    waiter = await wait_for(slots, 0, "waiter", served)
    for taken_count in (3, 2):
        slots.release()
        await settle()
        assert (slots.taken_count, served) == (taken_count, [])
    slots.release()
    await waiter
    assert (slots.taken_count, served) == (2, ["waiter"])


async def test_with_more_slots_the_most_urgent_are_served_and_the_reserve_grows_too() -> None:
    slots, served = SlotQueue(1, last_rank=2, reserve=lambda count: count // 4), list[str]()
    await slots.acquire(1)
    waiters = [("low-1", 2), ("high", 0), ("low-2", 2), ("normal", 1), ("low-3", 2)]
    tasks = [await wait_for(slots, rank, name, served) for name, rank in waiters]

    slots.resize(4)
    await settle()
    assert served == ["high", "normal"], "the last of four is not for those of low priority"
    slots.resize(8)
    await settle()
    assert served == ["high", "normal", "low-1", "low-2", "low-3"]
    await asyncio.gather(*tasks)


async def test_dismissed_waiters_have_no_slot() -> None:
    slots = SlotQueue(1, last_rank=2)
    assert await slots.acquire(1)
    waiters = [asyncio.create_task(slots.acquire(rank)) for rank in (2, 1, 0)]
    await settle()
    slots.dismiss_waiters()
    waiters[0].cancel()  # has been dismissed, and is cancelled before it could run
    assert await asyncio.gather(*waiters[1:]) == [False, False]
    await asyncio.gather(waiters[0], return_exceptions=True)
    assert slots.taken_count == 1
    slots.release()
    assert await slots.acquire(2)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["take", "release", "resize", "leave"]), st.integers(0, 8)),
        max_size=60,
    )
)
@settings(max_examples=100, deadline=None)
async def test_whatever_is_resized_the_most_urgent_are_served_and_no_slot_is_lost(
    steps: list[tuple[str, int]],
) -> None:
    slots, count, held = SlotQueue(3, last_rank=2), 3, 0
    waiting: list[asyncio.Task[bool]] = []
    for kind, number in steps:
        if kind == "take":
            waiting.append(asyncio.create_task(slots.acquire(number % 3)))
        elif kind == "release" and held:
            slots.release()
            held -= 1
        elif kind == "resize":
            count = number + 1
            slots.resize(count)
        elif kind == "leave" and waiting:
            waiting.pop(number % len(waiting)).cancel()
        await settle()
        held += sum(task.done() for task in waiting)
        waiting = [task for task in waiting if not task.done()]
        assert slots.taken_count == held
        assert not waiting or held >= count, "somebody waits beside a free slot"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
