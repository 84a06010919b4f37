"""The slots of a model: the most urgent waiter is next, and none is lost."""

import asyncio

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
    slots, served = SlotQueue(3, last_rank=2, reserve=1), list[str]()
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
