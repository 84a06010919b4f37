"""Builds the ingest service from its parts."""

import secrets
from datetime import UTC, datetime
from typing import cast

from fusewire.bus import Bus
from fusewire.http_server import App
from fusewire.presence import Presence
from fusewire.settings import Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.topology import INGEST, MIB
from fusewire_ingest.access import Access
from fusewire_ingest.admission.rules import budget_limits, load_catalogue, tenant_rules
from fusewire_ingest.api import app as api
from fusewire_ingest.api.dependencies import Dependencies
from fusewire_ingest.batches.changes import BatchChanges
from fusewire_ingest.batches.check import InputCheck, LineRules, Reader
from fusewire_ingest.batches.runner import Runner
from fusewire_ingest.batches.steps import BatchSteps
from fusewire_ingest.budget_metrics import BudgetMetrics
from fusewire_ingest.capacity import StoreCapacity
from fusewire_ingest.intake import Intake
from fusewire_ingest.large_parts import LargeParts
from fusewire_ingest.memory import ByteBudget, give_back_large_buffers
from fusewire_ingest.open_requests import OpenRequests
from fusewire_ingest.outbox import Outbox
from fusewire_ingest.queues import QueueReader
from fusewire_ingest.rate_limits import RateLimits
from fusewire_ingest.repository.audit import record_configuration
from fusewire_ingest.repository.batches import Batches
from fusewire_ingest.repository.budgets import Budgets
from fusewire_ingest.repository.files import Files
from fusewire_ingest.repository.group_commit import GroupCommit
from fusewire_ingest.repository.images import Images
from fusewire_ingest.repository.keys import ApiKeys
from fusewire_ingest.repository.lines import BatchLines
from fusewire_ingest.repository.retention import Retention
from fusewire_ingest.repository.submissions import Submissions
from fusewire_ingest.retention import Cleaner
from fusewire_ingest.subscribe import BusSubscriber
from fusewire_ingest.waiting import Outcomes
from fusewire_ingest.watching import Watcher

INTAKE_CONCURRENCY = 32
HEARTBEAT_S = 10.0
"""The longest silence of a stream of server-sent events."""


class Ingest:
    """The ingest service; see `fusewire.service.Service`."""

    name = "ingest"

    def __init__(self, settings: Settings) -> None:
        def clock() -> datetime:
            return datetime.now(UTC)

        self.drain_s = settings.limits.drain_s
        self._bus = Bus(self.name, settings.nats, drain_s=self.drain_s)
        self._store = Store(settings.database)
        self._rules_hash = settings.rules_hash()
        unknown_usd_per_mtok = settings.limits.unknown_price_usd_per_mtok
        self._budgets = Budgets(
            self._store,
            budget_limits(settings),
            lambda: load_catalogue(settings, clock(), unknown_usd_per_mtok),
            unknown_usd_per_mtok=unknown_usd_per_mtok,
        )
        self._budget_metrics = BudgetMetrics(self._budgets, clock)
        self._capacity = StoreCapacity(self._bus)
        self._presence = Presence(self.name, self._bus, self._store, clock)
        submissions = Submissions(self._store, self._budgets, self._capacity.check)
        self._commit = GroupCommit(submissions)
        large_parts = LargeParts(self._bus, Images(self._store), settings.limits, clock)
        self._outbox = Outbox(self._bus, submissions, large_parts, clock)
        self._open_requests = OpenRequests(self._bus)
        tenants = tenant_rules(settings)
        limit = settings.limits.prompt_bytes
        self._rate_limits = RateLimits(settings, clock)
        intake = Intake(
            self._commit,
            submissions,
            self._outbox,
            self._open_requests,
            rate_limits=self._rate_limits,
            tenants=tenants,
            prompt_bytes=limit,
            store_id=lambda: self._bus.last_store_id,
            clock=clock,
        )
        files, batches, lines = Files(self._store), Batches(self._store), BatchLines(self._store)
        reader = Reader(
            intake,
            LineRules(
                pools=lambda tenant: tenants(tenant).pools,
                line_bytes=limit,
                most_lines=settings.limits.batch_lines,
            ),
        )
        self._files = files
        self._cleaner = Cleaner(
            Retention(self._store),
            lambda tenant: settings.tenant(tenant).keep_days or settings.limits.keep_days,
            lambda tenant: (
                settings.tenant(tenant).keep_bodies_days or settings.limits.keep_bodies_days
            ),
            clock,
        )
        self._runner = Runner(
            self._store,
            batches,
            lines,
            submissions,
            steps=BatchSteps(batches, lines, files, submissions, reader=reader, clock=clock),
            intake=intake,
            check=InputCheck(
                files,
                batches,
                lines,
                reader=reader,
                book=lambda: load_catalogue(settings, clock()),
                clock=clock,
            ),
            shares={name: tenant.share for name, tenant in settings.tenants.items()},
            window=settings.limits.batch_window,
            clock=clock,
        )
        batching = BatchChanges(
            self._store, batches, lines, files, intake, wake=self._runner.wake, clock=clock
        )
        self._outcomes = Outcomes(self._bus, self._store, self._outcome_announced)
        self._access = Access(settings, ApiKeys(self._store), self._rate_limits, clock)
        self._app = api.build(
            Dependencies(
                settings=settings,
                store=self._store,
                intake=intake,
                large_parts=large_parts,
                body_memory=ByteBudget(settings.limits.image_memory_mb * MIB),
                outcomes=self._outcomes,
                watcher=Watcher(self._bus),
                queues=QueueReader(self._bus),
                files=files,
                batches=batches,
                lines=lines,
                batching=batching,
                access=self._access,
                rate_limits=self._rate_limits,
                budgets=self._budgets,
                pools=lambda tenant: tenants(tenant).pools,
                new_id=lambda: f"req-{secrets.token_hex(12)}",
                clock=clock,
                heartbeat_s=HEARTBEAT_S,
            )
        )
        # FastStream is fast enough here: such prompts come now and then (docs/decisions/0004).
        subscriber = BusSubscriber(intake, self._bus, by_tenant=settings.nats.nkey is not None)
        self._bus.subscribe(INGEST, subscriber.handle, concurrency=INTAKE_CONCURRENCY)

    async def start(self) -> None:
        """Check the schema and the keys, connect, then start all parts."""
        give_back_large_buffers()
        await migrate.check(self._store, wait_s=migrate.START_S)
        await self._access.start()
        await self._rate_limits.start()
        await self._budgets.ready()
        await record_configuration(self._store, self._rules_hash, datetime.now(UTC))
        await self._bus.connect()
        await self._bus.require(INGEST)
        # Before anything is published, as another stack may publish it too (docs/decisions/0044).
        await self._presence.start()
        self._commit.start()
        self._outbox.start()
        self._capacity.start()
        self._budget_metrics.start()
        await self._outcomes.start()
        await self._open_requests.start()
        await self._files.forget_torn(datetime.now(UTC))
        self._runner.start()
        self._cleaner.start()
        # Last: from here on prompts come over NATS.
        await self._bus.start()

    def _outcome_announced(self, fusion_id: str) -> None:
        self._rate_limits.end(fusion_id)
        self._runner.outcome_announced()

    def close(self) -> None:
        """End all waits for outcomes: clients get the status of now, and ask again."""
        self._outcomes.close()

    async def stop(self) -> None:
        """Stop all parts, those that submit before those that commit and publish."""
        await self._cleaner.stop()
        await self._runner.stop()
        await self._presence.stop()
        await self._bus.stop()
        await self._capacity.stop()
        await self._budget_metrics.stop()
        await self._outbox.stop()
        await self._commit.stop()
        await self._access.stop()
        await self._store.close()

    def faults(self) -> list[str]:
        """See Service."""
        return [
            *self._bus.faults(),
            *self._presence.faults(),
            *self._commit.faults(),
            *self._outbox.faults(),
            *self._capacity.faults(),
            *self._budget_metrics.faults(),
            *self._runner.faults(),
            *self._cleaner.faults(),
            *self._access.faults(),
        ]

    def unready(self) -> list[str]:
        """See Service. NATS may be down: accepted prompts are committed, and published later."""
        return self._store.unready()

    def app(self) -> App | None:
        """The API."""
        return cast("App", self._app)


def build(settings: Settings) -> Ingest:
    """The entry point `fusewire.services`."""
    return Ingest(settings)
