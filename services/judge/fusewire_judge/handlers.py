"""Load, decide, save, publish: in that order, and acknowledged after the last."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta

import structlog
from sqlalchemy import Connection

from fusewire import telemetry
from fusewire.bus import Bus, Delivery, fault
from fusewire.contracts import Candidate, ContractError, Outcome, Plan, Prompt, Round
from fusewire.errors import Transient, UnacceptableMessage
from fusewire.store.engine import Store
from fusewire.topology import due_subject, outcome_subject, round_subject, schedule_subject
from fusewire_judge import outcome
from fusewire_judge.learning.statistics import REMEMBERED, Statistics, remember
from fusewire_judge.panel import recorded as replay
from fusewire_judge.recent import RecentFusions
from fusewire_judge.repository import Results, Told
from fusewire_judge.turn import TurnResult, decide_one, sendable

log = structlog.get_logger(__name__)

SWEEP_BATCH = 100
QUARANTINE = timedelta(days=1)
"""How long a judge that picked controls is left out, and how far back they are looked for."""
BROKEN_AGAIN = timedelta(seconds=5)
"""When the sweep looks again at a fusion that it could not decide; twice as late each time, up to BROKEN_LATEST."""
BROKEN_LATEST = timedelta(minutes=1)
ARRIVED_WITHIN = timedelta(seconds=15)
"""How long a fusion that is due is left alone while something of it waits in the stream, as after an outage."""
PUBLISHED_WITHIN = timedelta(seconds=5)
"""What is committed and not known to be on the broker after this long is published again."""
BROKEN_MOST = 3
"""A fusion that could not be decided this often ends as failed, and at its deadline in any case."""


class HedgeBudget:
    """How many second calls a pool may still make: a share of its first ones, saved up a little.

    It is this process's own and begins with nothing; each replica keeps to the share, so all do.
    """

    SAVED = 10.0

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def grant(self, plan: Plan) -> bool:
        """Count a plan's calls, and tell whether it may make second ones."""
        earned = plan.policy.hedge * len(plan.members)
        self._credit[plan.pool] = min(self._credit.get(plan.pool, 0.0) + earned, self.SAVED)
        return self._credit[plan.pool] >= 1

    def spend(self, asked: Iterable[Round]) -> None:
        """Count the second calls that are being made. It may go into debt, and grants nothing then."""
        for round_ in asked:
            second = sum(call.name.endswith("=h") for call in round_.calls)
            self._credit[round_.pool] = self._credit.get(round_.pool, 0.0) - second


async def _nothing_waits(_fusion_id: str) -> bool:
    return False


class Handlers:
    """What the judge does with plans, candidates and due times."""

    def __init__(
        self,
        bus: Bus,
        store: Store,
        clock: Callable[[], datetime],
        pools: Iterable[str] = (),
        waits: Callable[[str], Awaitable[bool]] = _nothing_waits,
    ) -> None:
        self._waits = waits
        self._bus = bus
        self._store = store
        self._clock = clock
        self._pools = tuple(pools)
        self._memory = Statistics()
        self._recent = RecentFusions()
        self._hedges = HedgeBudget()
        self._broken: Counter[str] = Counter()
        """How often each fusion could not be decided here."""
        self._published: dict[str, datetime] = {}
        """The marks that can be taken off."""

    async def remember(self) -> None:
        """Learn anew from what is stored."""
        since = self._clock() - QUARANTINE

        def look(connection: Connection) -> Statistics:
            results = Results(connection)
            seen = [one for pool in self._pools for one in results.seen(pool, REMEMBERED)]
            return remember(seen, results.controls(since))

        memory = await self._store.run(look, write=False)
        for judge in memory.quarantined - self._memory.quarantined:
            log.warning("judge.quarantined", model=judge)
        self._memory = memory

    async def on_batch(self, batch: Sequence[Delivery]) -> None:
        """Plans and candidates, as many as there were."""
        plans: dict[str, Plan] = {}
        said: list[Told] = []
        traces = {_fusion(d): d.headers["traceparent"] for d in batch if "traceparent" in d.headers}
        for delivery in batch:
            if delivery.subject.startswith("fw.plan."):
                plan = Plan.decode(delivery.data)
                plans[plan.fusion_id] = plan
            else:
                body = delivery.data.decode()
                candidate = _genuine(Candidate.decode(body), delivery.subject)
                said.append((candidate, body))
        await self._turn(plans, said, traces=traces)

    async def on_due(self, batch: Sequence[Delivery]) -> None:
        """Timers that have fired."""
        touched = [_fusion(d) for d in batch]
        # What has arrived decides it, or the sweep does.
        held = await self._waiting(touched)
        if free := [key for key in touched if key not in held]:
            await self._turn({}, [], touched=free, fired=True)

    async def _waiting(self, keys: Sequence[str]) -> set[str]:
        """Those of which something waits in the stream."""
        found = await asyncio.gather(*(self._waits(key) for key in keys))
        return {key for key, waits in zip(keys, found, strict=True) if waits}

    async def publish_again(self) -> int:
        """Publish what is committed and not on the broker, as far as is known; returns of how many fusions.

        The broker or this process may have ended between the commit and the acknowledgement.
        """
        published, self._published = self._published, {}

        def look(connection: Connection) -> TurnResult:
            results = Results(connection)
            results.set_published(published)
            work = TurnResult(self._clock(), fired=False)
            work.marks = results.unpublished(work.now - PUBLISHED_WITHIN, SWEEP_BATCH)
            if work.marks:
                work.again = [
                    *sendable(results.open_rounds(work.marks)),
                    *results.outcomes(work.marks),
                ]
            return work

        try:
            work = await self._store.run(look, write=True)
        except BaseException:
            self._published = {**published, **self._published}
            raise
        if work.marks:
            log.warning("judge.published_again", fusions=len(work.marks), messages=len(work.again))
        await self._publish(work, {})
        return len(work.marks)

    async def sweep(self) -> int:
        """Look at every fusion whose time has come, timer or no timer; returns how many."""
        due: list[str] = []
        now = self._clock()
        passed = await self._store.run(
            lambda connection: Results(connection).due(now, SWEEP_BATCH), write=False
        )
        if not passed:
            return 0
        held = await self._waiting([key for key, at in passed.items() if now - at < ARRIVED_WITHIN])

        def advance(connection: Connection) -> TurnResult:
            results = Results(connection)
            due.extend(key for key in results.due(now, SWEEP_BATCH) if key not in held)
            if not due:
                return TurnResult(self._clock(), fired=True)
            return self._advance(results, {}, [], set(due), fired=True)

        try:
            work = await self._store.run(advance, write=True)
        except Transient:
            raise
        except Exception:
            if not due:
                raise
            await self._sweep_apart(due)
        else:
            self._remember_cases(work)
            await self._publish(work, {})
        return len(due)

    async def _sweep_apart(self, due: Iterable[str]) -> None:
        """One by one, so that a fusion that cannot be decided keeps no other from its end."""
        for key in due:
            try:
                await self._turn({}, [], touched=[key], fired=True)
            except Transient:
                raise
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is this fusion's alone
                self._broken[key] += 1
                log.error("judge.fusion_broken", fusion_id=key, fault=fault(exc))  # noqa: TRY400 - no text of its
                await self._look_again(key)
                with contextlib.suppress(
                    ContractError
                ):  # what was submitted cannot be read: then nothing can be told
                    await self._give_up(key, fault(exc))
            else:
                del self._broken[key]

    async def _look_again(self, key: str) -> None:
        pause = min(BROKEN_LATEST, BROKEN_AGAIN * 2 ** (self._broken[key] - 1))
        due = {key: (self._clock() + pause, None)}
        await self._store.run(lambda connection: Results(connection).set_due(due), write=True)

    async def _give_up(self, key: str, reason: str) -> None:
        """End a fusion that cannot be decided as failed, if trying again helps no more or there is no more time."""
        work = TurnResult(self._clock(), fired=True)

        def end(connection: Connection) -> None:
            results = Results(connection)
            results.lock({key}, self._recent)
            record = results.open().get(key)
            if record is None or (
                self._broken[key] < BROKEN_MOST and work.now < record.prompt.deadline_at
            ):
                return
            work.made.append((outcome.undecidable(record.prompt, work.now, reason), record))
            self._save(results, work)

        await self._store.run(end, write=True)
        self._remember_cases(work)
        await self._publish(work, {})

    async def _turn(
        self,
        plans: dict[str, Plan],
        said: list[Told],
        *,
        touched: Iterable[str] = (),
        traces: Mapping[str, str] | None = None,
        fired: bool = False,
    ) -> None:
        keys = {*plans, *(c.fusion_id for c, _ in said), *touched}
        with telemetry.span("judge turn", set((traces or {}).values()), fusions=len(keys)):
            work = await self._store.run(
                lambda connection: self._advance(
                    Results(connection), plans, said, keys, fired=fired
                ),
                write=True,
            )
            self._remember_cases(work)
            await self._publish(work, traces or {})

    def _remember_cases(self, work: TurnResult) -> None:
        """Once its transaction is committed."""
        self._recent.keep(work.left)
        self._recent.drop(done.fusion_id for done, _ in work.made)

    def _advance(
        self,
        results: Results,
        plans: dict[str, Plan],
        said: list[Told],
        keys: set[str],
        *,
        fired: bool,
    ) -> TurnResult:
        """Everything that happens inside the transaction."""
        work = TurnResult(self._clock(), fired, self._bus.last_store_id)
        results.lock(keys, self._recent)
        unknown = keys - results.locked.keys()
        for key in sorted(unknown):
            # Nobody accepted a prompt of this id: the message is forged, or its tenant was erased.
            log.warning("judge.unknown_fusion", fusion_id=key)
        repeated = {key for key in plans.keys() - unknown if results.locked[key].is_planned}
        opened = results.open()
        fresh = {
            k: self._stamped(p, opened[k].prompt)
            for k, p in plans.items()
            if k in opened and not opened[k].plan
        }
        results.add_plans(fresh)
        replayed = [
            (c, c.model_dump_json())
            for k, p in fresh.items()
            for c in replay.candidates(opened[k].prompt, p, work.now)
        ]
        results.add_candidates(
            [*(c for c in said if c[0].fusion_id not in unknown), *replayed], work.now
        )
        records = results.open()
        for key, record in records.items():
            decide_one(key, record, work)
        self._hedges.spend(round_ for round_, _ in work.asked)
        self._save(results, work)
        wanted = sorted(key for key in repeated & records.keys() if not records[key].is_cancelled)
        work.again += sendable(
            (r, r.model_dump_json()) for key in wanted for r in records[key].rounds
        )
        if done := repeated - records.keys():
            work.again += results.outcomes(done)
        made = {done.fusion_id for done, _ in work.made}
        work.left = {key: record for key, record in results.open().items() if key not in made}
        return work

    @staticmethod
    def _save(results: Results, work: TurnResult) -> None:
        """Store what was decided."""
        for written, failures in work.unsent:
            results.add_rounds([written], work.now)
            results.add_candidates([(c, c.model_dump_json()) for c in failures], work.now)
        results.add_rounds(work.asked, work.now)
        results.add_outcomes(work.made, work.now)
        results.set_due(work.due)
        work.marks |= dict.fromkeys((r.fusion_id for r, _ in work.asked), work.now)
        work.marks |= dict.fromkeys((o.fusion_id for o, _ in work.made), work.now)

    def _stamped(self, plan: Plan, prompt: Prompt) -> Plan:
        return self._memory.stamp(
            plan, may_hedge=self._hedges.grant(plan), is_replay=bool(prompt.recorded)
        )

    async def _publish(self, work: TurnResult, traces: Mapping[str, str]) -> None:
        for done, _ in work.made:
            _report(done)
        await asyncio.gather(
            *(self._announce(o, traces) for o, _ in work.made),
            *(self._announce(r, traces) for r, _ in work.asked),
            *(self._announce(m, traces) for m in work.again),
            *(self._set_timer(key, at) for key, at in work.timers.items()),
        )
        self._published |= work.marks

    async def _announce(self, message: Round | Outcome, traces: Mapping[str, str]) -> None:
        if isinstance(message, Round):
            subject, msg_id = (
                round_subject(message.fusion_id),
                f"{message.fusion_id}-{message.round}",
            )
        else:
            subject, msg_id = outcome_subject(message.tenant, message.fusion_id), message.fusion_id
        trace = traces.get(message.fusion_id)
        await self._bus.publish(
            subject, message, msg_id=msg_id, headers={"traceparent": trace} if trace else None
        )

    async def _set_timer(self, key: str, at: datetime) -> None:
        # No message id: setting the same timer again must not be swallowed as a duplicate.
        headers = {
            "Nats-Schedule": f"@at {at.isoformat(timespec='milliseconds')}",
            "Nats-Schedule-Target": due_subject(key),
        }
        await self._bus.publish(schedule_subject(key), b"{}", headers=headers)


def _fusion(delivery: Delivery) -> str:
    """The fusion that a subject names: `fw.plan.<fusion>`, `fw.due.<fusion>`, `fw.candidate.<fusion>.…`."""
    return delivery.subject.split(".")[2]


def _genuine(candidate: Candidate, subject: str) -> Candidate:
    """A candidate must be what its subject says: the subject is what permissions guard."""
    if subject != f"fw.candidate.{candidate.fusion_id}.{candidate.round}.{candidate.call}":
        raise UnacceptableMessage("the candidate names another task than its subject")
    return candidate


def _report(done: Outcome) -> None:
    telemetry.OUTCOMES.labels(
        done.pool, done.mode, done.status, str(done.is_degraded).lower()
    ).inc()
    telemetry.OUTCOME_SECONDS.labels(done.pool, done.mode).observe(done.latency_ms / 1000)
    log.info(
        "judge.decided",
        fusion_id=done.fusion_id,
        is_degraded=done.is_degraded,
        status=done.status,
        mode=done.mode,
        rounds=done.rounds,
        rung=done.judge_rung,
        closed_by=done.closed_by,
        guard=done.guard,
        latency_ms=round(done.latency_ms, 1),
    )
