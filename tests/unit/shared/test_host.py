"""The loop that runs services."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator

import pytest

from fusewire import lifeline, service
from fusewire.errors import StartupError, Transient
from fusewire.http_server import listen
from fusewire.service import GARBAGE_THRESHOLDS, Host, Service
from fusewire.settings import Http


class FakeService(Service):
    """A service that does nothing, and has the faults that it is given."""

    name = "stub"
    drain_s = 1.0

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.is_stopped = False

    async def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def stop(self) -> None:
        self.is_stopped = True

    def faults(self) -> list[str]:
        return self.reasons

    def unready(self) -> list[str]:
        return []

    def app(self) -> None:
        return None


@pytest.fixture
def stub() -> FakeService:
    return FakeService()


@pytest.fixture(autouse=True)
def _collects_as_before() -> Iterator[None]:
    before = gc.get_threshold()
    gc.unfreeze()
    yield
    gc.set_threshold(*before)


@pytest.fixture
async def host(stub: FakeService) -> AsyncIterator[Host]:
    """Started, on a port of its own."""
    host = Host([stub], listen(Http(port=0)))
    await host.start()
    yield host
    await host.stop()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FAULTY_S", 0.1)


async def test_a_service_that_does_not_start_is_stopped_with_those_that_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, third = FakeService(), FakeService(), FakeService()

    async def fails() -> None:
        raise StartupError("no", "mend it")

    monkeypatch.setattr(second, "start", fails)
    with pytest.raises(StartupError):
        await Host([first, second, third], listen(Http(port=0))).start()

    assert [stub.is_stopped for stub in (first, second, third)] == [True, True, False]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StartupError("the disk is gone", "mend it"), 2),
        (StartupError("the disk is gone", "mend it", 5), 5),
        (Transient("the disk is gone"), 1),
    ],
)
def test_a_service_that_cannot_start_ends_with_a_message_and_its_own_code(
    stub: FakeService,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
) -> None:
    async def fails() -> None:
        raise error

    monkeypatch.setattr(stub, "start", fails)
    monkeypatch.setenv("FUSEWIRE_HTTP__PORT", "0")
    monkeypatch.setattr("fusewire.telemetry.configure", lambda *_, **__: None)
    with pytest.raises(SystemExit) as exit_info:
        service.main("stub", lambda _: stub)

    assert exit_info.value.code == code
    assert capsys.readouterr().err.startswith("fusewire: the disk is gone\n")


@pytest.mark.usefixtures("host")
async def test_host_that_has_started_collects_garbage_rarely() -> None:
    assert gc.get_threshold() == GARBAGE_THRESHOLDS
    assert gc.get_freeze_count() > 0


@pytest.mark.usefixtures("_impatient")
async def test_a_fault_that_stays_is_told(host: Host, stub: FakeService) -> None:
    telling = asyncio.create_task(host.faulty())
    for _ in range(10):  # one that passes is not
        stub.reasons = ["it stands still"] * (not stub.reasons)
        await asyncio.sleep(0.02)
    assert not telling.done()

    stub.reasons = ["it stands still"]

    assert await telling == ["stub: it stands still"]


@pytest.mark.usefixtures("_impatient")
async def test_a_process_whose_service_is_faulty_drains_and_ends(
    stub: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[float] = []
    monkeypatch.setattr(lifeline, "end_within", ends.append)
    stall_watches: list[object] = []
    monkeypatch.setattr(lifeline, "on_stall", lambda *args: stall_watches.append(args))
    stub.reasons = ["it stands still"]

    assert await service.run([stub], Http(port=0)) == ["stub: it stands still"]

    assert stub.is_stopped
    assert stall_watches == [(asyncio.get_running_loop(), service.end_stalled)]
    assert ends == [1 + lifeline.STOP_S], "it is ended by force where it does not end by itself"
