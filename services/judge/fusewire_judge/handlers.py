"""Load, decide, save, publish: in that order, and acknowledged after the last."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType

import structlog
from sqlalchemy import Connection

from fusewire import metrics, telemetry
from fusewire.bus import Bus, Delivery, fault
from fusewire.contracts import Candidate, ContractError, Outcome, Plan, Round
from fusewire.crash_points import CrashPoint, reach
from fusewire.errors import Transient, UnacceptableMessage
from fusewire.store.engine import Store
from fusewire.topology import due_subject, outcome_subject, round_subject, schedule_subject
from fusewire_judge import outcome
from fusewire_judge.learner import Learner, RoutedPool
from fusewire_judge.learning.hedge_budget import HedgeBudget
from fusewire_judge.panel import recorded
from fusewire_judge.recent import RecentFusions
from fusewire_judge.repository.results import EncodedCandidate, Results
from fusewire_judge.turn import TurnResult, decide_fusion, sendable_rounds

log = structlog.get_logger(__name__)

SWEEP_BATCH = 100
RETRY_AFTER = timedelta(seconds=5)
"""When the sweep looks again at a fusion that it could not decide; the pause doubles each time."""
RETRY_AFTER_MOST = timedelta(minutes=1)
"""The longest such pause."""
GIVE_UP_AFTER = 3
"""A fusion that could not be decided this often fails, and at its deadline in any case."""
ARRIVED_WITHIN = timedelta(seconds=15)
"""How long the sweep leaves a due fusion alone while messages of it wait in the stream, as after
an outage."""
PUBLISHED_WITHIN = timedelta(seconds=5)
"""What is committed and not known to be on the broker after this long is published again."""


NO_POOLS: Mapping[str, Mapping[str, float]] = MappingProxyType({})


async def _has_none_pending(_fusion_id: str) -> bool:
    return False


class Handlers:
    """What the judge does with plans, candidates and due times."""

    def __init__(
        self,
        bus: Bus,
        store: Store,
        clock: Callable[[], datetime],
        pools: Mapping[str, Mapping[str, float]] = NO_POOLS,
        has_pending: Callable[[str], Awaitable[bool]] = _has_none_pending,
        *,
        routed_pools: Iterable[RoutedPool] = (),
    ) -> None:
        self._bus = bus
        self._store = store
        self._clock = clock
        self._has_pending = has_pending
        """Tells whether messages of a fusion wait in the stream."""
        self._learner = Learner(store, clock, pools, routed_pools)
        self._recent = RecentFusions()
        self._hedges = HedgeBudget()
        self._failures: Counter[str] = Counter()
        """By fusion, how often it could not be decided here."""
        self._published_marks: dict[str, datetime] = {}
        """Marks to remove, by fusion: what they stand for is on the broker."""

    async def update_statistics(self) -> None:
        """Learn anew from the newest stored outcomes."""
        await self._learner.update()

    async def on_batch(self, batch: Sequence[Delivery]) -> None:
        """Handle plans and candidates, as many as there are, in one turn."""
        plans: dict[str, Plan] = {}
        candidates: list[EncodedCandidate] = []
        traces: dict[str, str] = {}
        for delivery in batch:
            if "traceparent" in delivery.headers:
                traces[_fusion_id(delivery)] = delivery.headers["traceparent"]
            if delivery.subject.startswith("fw.plan."):
                plan = Plan.decode(delivery.data)
                plans[plan.fusion_id] = plan
            else:
                body = delivery.data.decode()
                candidate = Candidate.decode(body)
                _check_subject(candidate, delivery.subject)
                candidates.append((candidate, body))
        await self._run_turn(plans, candidates, traces=traces)

    async def on_due(self, batch: Sequence[Delivery]) -> None:
        """Handle timers that have fired."""
        fusion_ids = [_fusion_id(delivery) for delivery in batch]
        # A fusion with pending messages is decided by these, or else by the sweep.
        pending_ids = await self._pending(fusion_ids)
        ready_ids = [key for key in fusion_ids if key not in pending_ids]
        if ready_ids:
            await self._run_turn({}, [], due_ids=ready_ids, timer_fired=True)
            reach(CrashPoint.JUDGE_TIMER_DONE)

    async def _pending(self, fusion_ids: Sequence[str]) -> set[str]:
        """Return those fusions of which messages wait in the stream."""
        flags = await asyncio.gather(*(self._has_pending(key) for key in fusion_ids))
        return {key for key, is_pending in zip(fusion_ids, flags, strict=True) if is_pending}

    async def publish_again(self) -> int:
        """Publish what is committed and not known to be on the broker; return of how many fusions.

        The broker or this process may have ended between the commit and the acknowledgement.
        """
        marks, self._published_marks = self._published_marks, {}

        def find_unpublished(connection: Connection) -> TurnResult:
            results = Results(connection)
            results.set_published(marks)
            turn = TurnResult(self._clock(), timer_fired=False)
            turn.marks = results.marks(turn.now - PUBLISHED_WITHIN, SWEEP_BATCH)
            if turn.marks:
                rounds = sendable_rounds(results.open_rounds(turn.marks))
                turn.repeats = [*rounds, *results.outcomes(turn.marks)]
            return turn

        try:
            turn = await self._store.run(find_unpublished, write=True)
        except BaseException:
            # Otherwise what the broker has would be published once more.
            self._published_marks = {**marks, **self._published_marks}
            raise
        if turn.marks:
            reach(CrashPoint.JUDGE_REPEATS_READ)
            log.warning(
                "judge.published_again", fusions=len(turn.marks), messages=len(turn.repeats)
            )
        await self._publish(turn, {})
        return len(turn.marks)

    async def sweep(self) -> int:
        """Decide every fusion that is due, timer or no timer; return how many."""
        now = self._clock()
        due = await self._store.run(
            lambda connection: Results(connection).due(now, SWEEP_BATCH), write=False
        )
        if not due:
            return 0
        pending_ids = await self._pending(
            [key for key, due_at in due.items() if now - due_at < ARRIVED_WITHIN]
        )
        due_ids: list[str] = []

        def advance(connection: Connection) -> TurnResult:
            results = Results(connection)
            # Read again, to lock them.
            due_ids.extend(key for key in results.due(now, SWEEP_BATCH) if key not in pending_ids)
            if not due_ids:
                return TurnResult(self._clock(), timer_fired=True)
            return self._advance(results, {}, [], set(due_ids), timer_fired=True)

        try:
            turn = await self._store.run(advance, write=True)
        except Transient:
            raise
        except Exception:
            if not due_ids:
                raise
            await self._sweep_each(due_ids)
        else:
            reach(CrashPoint.JUDGE_SWEPT)
            self._keep_recent(turn)
            await self._publish(turn, {})
        return len(due_ids)

    async def _sweep_each(self, fusion_ids: Iterable[str]) -> None:
        """Decide due fusions one by one, so that one that cannot be decided stops no other."""
        for key in fusion_ids:
            try:
                await self._run_turn({}, [], due_ids=[key], timer_fired=True)
            except Transient:
                raise
            except Exception as exc:  # noqa: BLE001 - whatever it is, it is this fusion's alone
                self._failures[key] += 1
                log.error("judge.fusion_broken", fusion_id=key, fault=fault(exc))  # noqa: TRY400 - no text of its
                await self._postpone(key)
                # A prompt that cannot be read has no outcome: it does not say whose it would be.
                with contextlib.suppress(ContractError):
                    await self._give_up(key, fault(exc))
            else:
                del self._failures[key]

    async def _postpone(self, fusion_id: str) -> None:
        """Have the sweep look again at a fusion that could not be decided, ever later."""
        pause = min(RETRY_AFTER_MOST, RETRY_AFTER * 2 ** (self._failures[fusion_id] - 1))
        due = {fusion_id: (self._clock() + pause, None)}
        await self._store.run(lambda connection: Results(connection).set_due(due), write=True)

    async def _give_up(self, fusion_id: str, reason: str) -> None:
        """End a fusion as failed if it could not be decided too often, or its deadline is over."""
        turn = TurnResult(self._clock(), timer_fired=True)

        def end(connection: Connection) -> None:
            results = Results(connection)
            results.lock({fusion_id}, self._recent)
            record = results.open_records().get(fusion_id)
            if record is None:
                return
            is_late = turn.now >= record.prompt.deadline_at
            if self._failures[fusion_id] < GIVE_UP_AFTER and not is_late:
                return
            failure = outcome.build_undecidable(record.prompt, turn.now, reason)
            turn.outcomes.append((failure, record))
            self._save(results, turn)

        await self._store.run(end, write=True)
        self._keep_recent(turn)
        await self._publish(turn, {})

    async def _run_turn(
        self,
        plans: dict[str, Plan],
        candidates: list[EncodedCandidate],
        *,
        due_ids: Iterable[str] = (),
        traces: Mapping[str, str] | None = None,
        timer_fired: bool = False,
    ) -> None:
        """Decide the fusions that messages concern, or that are due, and publish the results."""
        keys = {*plans, *(candidate.fusion_id for candidate, _ in candidates), *due_ids}
        with telemetry.span("judge turn", set((traces or {}).values()), fusions=len(keys)):
            turn = await self._store.run(
                lambda connection: self._advance(
                    Results(connection), plans, candidates, keys, timer_fired=timer_fired
                ),
                write=True,
            )
            if turn.marks:
                reach(CrashPoint.JUDGE_COMMITTED)
            self._keep_recent(turn)
            await self._publish(turn, traces or {})

    def _keep_recent(self, turn: TurnResult) -> None:
        """Update the cache of open fusions, once the turn's transaction is committed."""
        self._recent.keep(turn.open_records)
        self._recent.drop(final.fusion_id for final, _ in turn.outcomes)

    def _advance(
        self,
        results: Results,
        plans: dict[str, Plan],
        candidates: list[EncodedCandidate],
        keys: set[str],
        *,
        timer_fired: bool,
    ) -> TurnResult:
        """Do everything that happens inside the transaction."""
        turn = TurnResult(self._clock(), timer_fired, self._bus.last_store_id)
        results.lock(keys, self._recent)
        reach(CrashPoint.JUDGE_LOADED)
        unknown_ids = keys - results.locked_fusions.keys()
        for key in sorted(unknown_ids):
            # Nobody accepted a prompt of this id: the message is forged, or its tenant was erased
            # (docs/decisions/0003).
            log.warning("judge.unknown_fusion", fusion_id=key)
        recorded_candidates = self._add_plans(results, plans, turn.now)
        known_candidates = [
            (candidate, body)
            for candidate, body in candidates
            if candidate.fusion_id not in unknown_ids
        ]
        results.add_candidates([*known_candidates, *recorded_candidates], turn.now)
        records = results.open_records()
        for key, record in records.items():
            decide_fusion(key, record, turn)
        self._hedges.spend(round_ for round_, _ in turn.rounds)
        self._save(results, turn)
        turn.repeats += results.messages_to_repeat(plans.keys() - unknown_ids, records)
        reach(CrashPoint.JUDGE_STORED)
        ended_ids = {final.fusion_id for final, _ in turn.outcomes}
        turn.open_records = {
            key: record for key, record in results.open_records().items() if key not in ended_ids
        }
        return turn

    def _add_plans(
        self, results: Results, plans: Mapping[str, Plan], now: datetime
    ) -> list[EncodedCandidate]:
        """Store the plans of open fusions that have none, with the statistics of now.

        Returns:
            The answers that were recorded with their prompts, as candidates.
        """
        records = results.open_records()
        new_plans: dict[str, Plan] = {}
        for key, plan in plans.items():
            record = records.get(key)
            if record and record.plan is None:
                # A replayed strategy must see the same weights each time (docs/decisions/0012).
                new_plans[key] = self._learner.stamp(
                    plan, record.prompt, may_hedge=self._hedges.grant(plan)
                )
        results.add_plans(new_plans)
        candidates: list[EncodedCandidate] = []
        for key, plan in new_plans.items():
            recorded_candidates = recorded.candidates(records[key].prompt, plan, now)
            candidates += [(c, c.model_dump_json()) for c in recorded_candidates]
        return candidates

    @staticmethod
    def _save(results: Results, turn: TurnResult) -> None:
        """Store what was decided."""
        for encoded_round, failures in turn.oversized_rounds:
            results.add_rounds([encoded_round], turn.now)
            results.add_candidates([(c, c.model_dump_json()) for c in failures], turn.now)
        results.add_rounds(turn.rounds, turn.now)
        results.add_outcomes(turn.outcomes, turn.now)
        results.set_due(turn.due)
        turn.marks |= dict.fromkeys((round_.fusion_id for round_, _ in turn.rounds), turn.now)
        turn.marks |= dict.fromkeys((final.fusion_id for final, _ in turn.outcomes), turn.now)

    async def _publish(self, turn: TurnResult, traces: Mapping[str, str]) -> None:
        """Publish what a turn stored, and what earlier ones did, once it is committed."""
        for final, _ in turn.outcomes:
            _report(final)
        messages = [
            *(final for final, _ in turn.outcomes),
            *(round_ for round_, _ in turn.rounds),
            *turn.repeats,
        ]
        await asyncio.gather(
            *(self._announce(message, traces) for message in messages),
            *(self._set_timer(key, timer_at) for key, timer_at in turn.timers.items()),
        )
        if turn.marks:
            reach(CrashPoint.JUDGE_PUBLISHED)
        self._published_marks |= turn.marks

    async def _announce(self, message: Round | Outcome, traces: Mapping[str, str]) -> None:
        if isinstance(message, Round):
            subject = round_subject(message.fusion_id)
            msg_id = f"{message.fusion_id}-{message.round}"
        else:
            subject = outcome_subject(message.tenant, message.fusion_id)
            msg_id = message.fusion_id
        trace = traces.get(message.fusion_id)
        await self._bus.publish(
            subject, message, msg_id=msg_id, headers={"traceparent": trace} if trace else None
        )
        reach(CrashPoint.JUDGE_ANNOUNCED)

    async def _set_timer(self, fusion_id: str, timer_at: datetime) -> None:
        # No message id: setting the same timer again must not be swallowed as a duplicate.
        headers = {
            "Nats-Schedule": f"@at {timer_at.isoformat(timespec='milliseconds')}",
            "Nats-Schedule-Target": due_subject(fusion_id),
        }
        await self._bus.publish(schedule_subject(fusion_id), b"{}", headers=headers)
        reach(CrashPoint.JUDGE_TIMER_SET)


def _fusion_id(delivery: Delivery) -> str:
    """Return the fusion that a subject names.

    The subject is `fw.plan.<fusion>`, `fw.due.<fusion>` or `fw.candidate.<fusion>.…`.
    """
    return delivery.subject.split(".")[2]


def _check_subject(candidate: Candidate, subject: str) -> None:
    """Check that a candidate is of the task that its subject names: permissions guard subjects.

    Raises:
        UnacceptableMessage: it is not.
    """
    if subject != f"fw.candidate.{candidate.fusion_id}.{candidate.round}.{candidate.call}":
        raise UnacceptableMessage("the candidate names another task than its subject")


def _report(final: Outcome) -> None:
    """Count an outcome in the metrics, and log it."""
    metrics.count_outcome(final)
    log.info(
        "judge.decided",
        fusion_id=final.fusion_id,
        is_degraded=final.is_degraded,
        status=final.status,
        mode=final.mode,
        rounds=final.rounds,
        rung=final.judge_rung,
        closed_by=final.closed_by,
        guard=final.guard,
        latency_ms=round(final.latency_ms, 1),
    )
