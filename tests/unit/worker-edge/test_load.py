import itertools

from fusewire import metrics
from fusewire.contracts import Message
from fusewire_worker_edge.engine.api import GenerateRequest
from fusewire_worker_edge.engine.generation import Generator
from fusewire_worker_edge.engine.load import Load, LoadReports, measure
from fusewire_worker_edge.engine.scheduler import Scheduler
from fusewire_worker_edge.load_metrics import LoadMetrics

LONG = "abcdefgh " * 9


def request(name: str, rank: int = 1, **fields: object) -> GenerateRequest:
    message = Message(role="user", content=LONG)
    return GenerateRequest.model_validate(
        {"id": name, "messages": (message,), "max_tokens": 6, "rank": rank, **fields}
    )


def fresh(generator: Generator) -> Scheduler:
    scheduler = Scheduler(generator.model, generator.model.budget, itertools.count().__next__)
    generator.scheduler = scheduler
    return scheduler


def run(scheduler: Scheduler) -> list[Load]:
    loads = [measure(scheduler)]
    while scheduler.is_busy:
        scheduler.step()
        loads.append(measure(scheduler))
    return loads


def test_the_load_tells_memory_queue_and_tokens(tiny_generator: Generator) -> None:
    scheduler = fresh(tiny_generator)
    tiny_generator.submit(request("a"))
    prompt = len(scheduler.waiting_jobs[0].prompt)
    begun, *_, ended = run(scheduler)

    assert (begun.kv_limit, begun.waiting) == (scheduler.budget, (0, 1, 0))
    assert (begun.kv_running, begun.kv_prefixes, begun.decoding) == (0, 0, 0)
    assert (ended.kv_running, ended.kv_prefixes, ended.waiting) == (0, prompt, (0, 0, 0))
    # The first token comes with the prompt.
    assert (ended.prefilled_tokens, ended.decoded_tokens, ended.cached_tokens) == (prompt, 5, 0)

    tiny_generator.submit(request("b"))
    loads = run(scheduler)
    # The last two tokens of a prompt are always computed.
    assert loads[-1].cached_tokens == prompt - 2
    assert loads[-1].prefilled_tokens == prompt + 2
    assert max(load.kv_running for load in loads) == prompt + 6
    assert max(load.decoding for load in loads) == 1


def test_what_waits_is_told_by_priority(tiny_generator: Generator) -> None:
    scheduler = fresh(tiny_generator)
    for number, rank in enumerate((0, 1, 1, 2, 7)):
        tiny_generator.submit(request(str(number), rank))

    first, *_, last = run(scheduler)

    assert (first.waiting, last.waiting) == ((1, 2, 2), (0, 0, 0))


def test_choices_count_as_computed(tiny_generator: Generator) -> None:
    scheduler = fresh(tiny_generator)
    tiny_generator.submit(request("a", choices=("yes", "no")))
    prompt = len(scheduler.waiting_jobs[0].prompt)

    last = run(scheduler)[-1]

    assert last.prefilled_tokens > prompt
    assert last.decoded_tokens == 0


def test_a_report_comes_each_second_and_at_the_end_and_never_twice(
    tiny_generator: Generator,
) -> None:
    scheduler = fresh(tiny_generator)
    times = iter([0.0, 0.5, 0.5, 0.9, 1.6, 1.7, 1.8])
    reports = LoadReports(scheduler, times.__next__)

    assert reports.take() == Load(kv_limit=scheduler.budget), "at once, with its memory"
    assert reports.take() is None, "nothing has changed"
    tiny_generator.submit(request("a"))
    assert reports.take() is None, "a second is not over"
    scheduler.step()
    assert reports.take() is None
    working = reports.take()
    assert working is not None
    assert working.kv_running > 0
    run(scheduler)
    idle = reports.take()
    assert idle is not None
    assert (idle.kv_running, idle.decoding) == (0, 0)
    assert reports.take() is None


def value(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(f"fusewire_edge_{name}", {"model": "m1", **labels})


def test_metrics_follow_the_reports_and_start_again_with_the_process() -> None:
    set_metrics = LoadMetrics("m1")
    assert value("tokens_total", kind="decode") == 0, "an increase is seen from the beginning"
    load = Load(
        kv_limit=900, kv_running=40, kv_prefixes=30, decoding=2, waiting=(3, 2, 1),
        prefilled_tokens=100, decoded_tokens=20, cached_tokens=7,
    )  # fmt: skip
    set_metrics(load)
    set_metrics(load.model_copy(update={"prefilled_tokens": 130, "decoded_tokens": 25}))

    assert [value("kv_tokens", kind=kind) for kind in ("running", "prefixes", "limit")] == [
        40,
        30,
        900,
    ]
    assert [value("queue", priority=p) for p in ("high", "normal", "low")] == [3, 2, 1]
    assert value("decoding") == 2

    set_metrics(None)
    assert [value("kv_tokens", kind=kind) for kind in ("running", "prefixes", "limit")] == [0, 0, 0]
    assert [value("queue", priority=p) for p in ("high", "normal", "low")] == [0, 0, 0]
    assert value("decoding") == 0

    set_metrics(Load(kv_limit=900, prefilled_tokens=10, decoded_tokens=4))
    counts = [value("tokens_total", kind=kind) for kind in ("prefill", "decode", "cached")]
    assert counts == [140, 29, 7]
