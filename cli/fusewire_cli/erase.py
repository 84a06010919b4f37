"""`fusewire erase`: erase a tenant, or one custom_id of it, from everything that Fusewire stores.

Works on the database and the broker directly, like `fusewire db` and `fusewire dead`.
"""

import asyncio
import hashlib
import hmac
import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from fusewire.bus import Bus
from fusewire.contracts import NAME
from fusewire.crash_points import CrashPoint, reach
from fusewire.erasure import BrokerEraser, MessageOrigin
from fusewire.errors import Transient
from fusewire.ids import fusion_id
from fusewire.settings import Nats, Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.store.file_rewrite import rewrite_files
from fusewire.topology import cancel_subject
from fusewire_cli.keys import operator
from fusewire_cli.local import run_file
from fusewire_cli.local.guard import Guard
from fusewire_cli.local.nats import EmbeddedNats
from fusewire_cli.screen import RowFormat, fail, note, rows
from fusewire_cli.session import settings
from fusewire_ingest.pepper import pepper
from fusewire_ingest.repository.erasures import TOUCHED, Erasure, Erasures, ErasureTarget
from fusewire_ingest.repository.line_erasure import erase_lines
from fusewire_ingest.repository.submissions import Submissions

WAIT_S = 30.0
"""How long to wait for cancelled fusions to end."""
POLL_S = 0.25
COLUMNS = ("erasure_id", "tenant", "custom_id_hash", "requested_at", "completed_at", "counts")
NOT_REACHED = (
    "backups and archives of the database and of its write-ahead log",
    "the outboxes of edge sites, until their messages have been forwarded",
    "what providers log of the calls that were made to them",
    "files that were exported or written by `fusewire batch` earlier",
)


def erase(
    tenant: str, custom_id: str | None, batch: str | None, *, is_sure: bool, as_json: bool
) -> None:
    """Erase, after a question unless `is_sure`; print the report."""
    if not re.fullmatch(NAME, tenant):
        fail(f"'{tenant[:63]}' is no name of a tenant", "see `fusewire keys list` for the names")
    if batch is not None and custom_id is None:
        fail("--batch names the batch of a custom_id", "add --custom-id, or leave --batch out")
    if not is_sure and not sys.stdin.isatty():
        fail("an erasure cannot be undone, and nobody can be asked here", "add --yes")
    target = ErasureTarget(tenant, custom_id, batch)
    report = asyncio.run(_run(settings(), target, is_sure=is_sure))
    if report is None:
        note("nothing was erased")
        return
    if as_json:
        print(json.dumps(report))
        return
    print(f"{report['erasure_id']} completed at {report['completed_at']}")
    for kind, count in report["counts"].items():
        print(f"  {kind:22} {count}")
    for remainder in report["remains"]:
        print(f"  still there: {remainder}")
    print("not reached:\n" + "\n".join(f"  {place}" for place in report["not_reached"]))


def show(form: RowFormat) -> None:
    """Print all erasures, without what they erased."""

    async def read(store: Store) -> list[Erasure]:
        return await Erasures(store).all()

    all_erasures = asyncio.run(_with_store(settings(), read))
    cells = [_cells(erasure) for erasure in all_erasures]
    if form is not RowFormat.json:
        cells = [{**row, "counts": json.dumps(row["counts"])} for row in cells]
    rows(COLUMNS, [list(row.values()) for row in cells], form)


def _cells(erasure: Erasure) -> dict[str, Any]:
    times = {
        name: at.isoformat(timespec="seconds") if at else None
        for name, at in (
            ("requested_at", erasure.requested_at),
            ("completed_at", erasure.completed_at),
        )
    }
    return {**asdict(erasure), **times}


async def _with_store(config: Settings, work: Callable[[Store], Awaitable[Any]]) -> Any:
    """Run work on a database of this version's schema."""
    store = Store(config.database, is_patient=True)
    try:
        await store.ping()
        # A newer schema may have tables with texts that this code does not know.
        await migrate.check(store, exact=True)
        return await work(store)
    finally:
        await store.close()


async def _run(config: Settings, target: ErasureTarget, *, is_sure: bool) -> dict[str, Any] | None:
    """Erase. Returns the report; None if the user did not want it."""

    async def work(store: Store) -> dict[str, Any] | None:
        async with _broker(config) as (bus, has_services):
            run = ErasureRun(store, bus, target, has_services=has_services)
            counts = await run.count()
            if not is_sure and not _confirm(target, counts):
                return None
            return await run.erase(_custom_id_hash(config, target))

    report: dict[str, Any] | None = await _with_store(config, work)
    return report


def _confirm(target: ErasureTarget, counts: Mapping[str, int]) -> bool:
    subject = f"tenant '{target.tenant}'"
    if target.custom_id is not None:
        subject = f"custom_id '{target.custom_id}' of {subject}"
    note(f"this erases {subject}, for ever:")
    for kind, count in counts.items():
        note(f"  {kind:22} {count}")
    if not counts:
        note("  nothing that is stored now")
    note("type 'erase' to go on: ")
    return sys.stdin.readline().strip() == "erase"


def _custom_id_hash(config: Settings, target: ErasureTarget) -> str | None:
    """An HMAC, as custom_ids can be guessed; with the pepper, which is not in the database."""
    if target.custom_id is None:
        return None
    parts = json.dumps([target.tenant, target.batch_id, target.custom_id])
    return hmac.new(pepper(config), f"erasure {parts}".encode(), hashlib.sha256).hexdigest()


@asynccontextmanager
async def _broker(config: Settings) -> AsyncIterator[tuple[Bus | None, bool]]:
    """A connection to the broker, and whether services may be at work there.

    The embedded broker is started for the moment if no stack runs; None if it never ran.
    """
    async with _connection(config) as (nats, has_services):
        if nats is None:
            yield None, has_services
            return
        bus = Bus("ops", nats)
        try:
            await bus.connect(timeout_s=5)
            yield bus, has_services
        finally:
            await bus.stop()


@asynccontextmanager
async def _connection(config: Settings) -> AsyncIterator[tuple[Nats | None, bool]]:
    nats = run_file.broker(config)
    if nats is not None:
        yield nats, True
        return
    broker = EmbeddedNats(config.data_dir)
    if not broker.store.exists():
        yield None, False
        return
    guard = Guard()
    try:
        # If this process is killed, the broker must not live on and keep the store.
        await guard.start()
        await broker.start(guard)
        yield broker.connection(config.nats), False
    finally:
        await broker.stop()
        await guard.stop(1)


class ErasureRun:
    """One run of an erasure. After an interruption, another run goes on with it.

    Args:
        store: the database.
        bus: the broker; None if there is none.
        target: what is erased.
        has_services: whether services may be at work, which end cancelled fusions.
    """

    def __init__(
        self, store: Store, bus: Bus | None, target: ErasureTarget, *, has_services: bool
    ) -> None:
        self._store = store
        self._bus = bus
        self._target = target
        self._has_services = has_services
        self._erasures = Erasures(store)
        self._erasure_id = ""
        self._is_owned: dict[str, bool] = {}
        self._fusion_ids: set[str] = set()
        """Those of a custom_id, also when their rows are gone."""

    async def count(self) -> dict[str, int]:
        """Count what there is to erase."""
        await self._find_custom_id()
        counts = {f"sql.{k}": n for k, n in (await self._erasures.count(self._target)).items()}
        if self._bus:
            stream_counts = await self._broker_eraser(self._bus).count()
            counts |= {f"nats.{stream}": n for stream, n in stream_counts.items()}
        return counts

    async def erase(self, custom_id_hash: str | None) -> dict[str, Any]:
        """Erase everything, and return the report.

        NATS comes before SQL, which knows whose messages those are; what workers send in the
        meantime is dropped by the judge, and overwritten by the second look at NATS.
        """
        target, erasures = self._target, self._erasures
        await self._refuse_running_batches()
        await self._find_custom_id()
        erasure = await erasures.begin(target.tenant, custom_id_hash, datetime.now(UTC), operator())
        self._erasure_id = erasure.erasure_id
        reach(CrashPoint.ERASE_ENTERED)
        await self._end_running()
        large_parts = await erasures.large_parts(target)
        await self._erase_messages(large_parts)
        reach(CrashPoint.ERASE_MESSAGES_ERASED)
        if target.custom_id is not None:
            await erase_lines(self._store, self._erasure_id, target)
        await erasures.erase_fusions(self._erasure_id, target)
        reach(CrashPoint.ERASE_FUSIONS_ERASED)
        if target.custom_id is None:
            await erasures.erase_tenant(self._erasure_id, target.tenant)
        reach(CrashPoint.ERASE_ROWS_ERASED)
        await self._erase_messages([])
        remains = await self._tidy()
        remains += await rewrite_files(self._store, TOUCHED)
        reach(CrashPoint.ERASE_FILES_REWRITTEN)
        erasure = await erasures.complete(self._erasure_id, datetime.now(UTC), operator())
        return {**_cells(erasure), "remains": remains, "not_reached": list(NOT_REACHED)}

    async def _find_custom_id(self) -> None:
        target = self._target
        if target.custom_id is not None:
            # Its rows may be gone already, after an interruption.
            self._fusion_ids.add(fusion_id(target.tenant, target.batch_id, target.custom_id))
            self._fusion_ids |= set(await self._erasures.fusion_ids(target))

    async def _refuse_running_batches(self) -> None:
        batches = await self._erasures.running_batches(self._target)
        if batches:
            fail(
                f"batch '{batches[0]}' still runs ({len(batches)} in all)",
                "stop it with `fusewire batch cancel`, or wait for its end; then erase again",
            )

    async def _end_running(self) -> None:
        """Cancel running fusions and wait for their outcomes, if there are services to end them."""
        if not self._has_services:
            return
        deadline = asyncio.get_running_loop().time() + WAIT_S
        running_ids = await self._erasures.running(self._target)
        await Submissions(self._store).cancel(self._target.tenant, running_ids, datetime.now(UTC))
        while running_ids:
            if asyncio.get_running_loop().time() > deadline:
                raise Transient(
                    f"{len(running_ids)} fusions were cancelled, and have not ended within"
                    f" {WAIT_S:.0f} s; nothing is erased yet"
                )
            if self._bus:
                for key in running_ids:
                    await self._bus.client.publish(cancel_subject(key), b"")
            await asyncio.sleep(POLL_S)
            running_ids = await self._erasures.running(self._target)

    async def _erase_messages(self, large_parts: list[str]) -> None:
        if self._bus:
            await self._broker_eraser(self._bus).erase(large_parts)

    def _broker_eraser(self, bus: Bus) -> BrokerEraser:
        async def add(stream: str, count: int) -> None:
            await self._erasures.add(self._erasure_id, {f"nats.{stream}": count})

        return BrokerEraser(bus.js, self._target.tenant, self._is_target, add)

    async def _is_target(self, origin: MessageOrigin) -> bool:
        target = self._target
        if target.custom_id is not None:
            return self._is_custom_id(origin) or origin.fusion_id in self._fusion_ids
        if origin.tenant is not None:
            return origin.tenant == target.tenant
        return origin.fusion_id is not None and await self._owns(origin.fusion_id)

    def _is_custom_id(self, origin: MessageOrigin) -> bool:
        target = self._target
        is_same = (origin.tenant, origin.custom_id) == (target.tenant, target.custom_id)
        return is_same and target.batch_id in (None, origin.batch_id)

    async def _owns(self, key: str) -> bool:
        """Whether a fusion is the tenant's; remembered also once its row is gone."""
        if key not in self._is_owned:
            self._is_owned[key] = await self._erasures.owns(self._target, key)
        return self._is_owned[key]

    async def _tidy(self) -> list[str]:
        if self._bus is None:
            return []
        used_streams = await self._broker_eraser(self._bus).tidy()
        if not used_streams:
            return []
        streams = ", ".join(used_streams)
        remainder = (
            f"bytes of messages that were handled earlier may be in the files of {streams}, which"
            " are in use; erase again when no fusion runs"
        )
        return [remainder]
