"""People's votes in SQL: each as it stands, and every change of it. Written here and nowhere else.

A voter is only known by a hash (`admission.votes.voter_hash`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import BindParameter, Connection, bindparam, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from fusewire.contracts import ANSWERED
from fusewire.store.engine import Store
from fusewire.store.tables import answers, outcomes, prompts, vote_changes, votes
from fusewire_ingest.admission.refusal import RefusedError
from fusewire_ingest.admission.votes import check, choices

# Parameters must not be named like the columns: SQLAlchemy reserves those names in an UPDATE.
_ID: BindParameter[str] = bindparam("id")
_TENANT: BindParameter[str] = bindparam("of")
_VOTER: BindParameter[str] = bindparam("by")
_STATUS = select(outcomes.c.status).where(outcomes.c.fusion_id == _ID, outcomes.c.tenant == _TENANT)
# On PostgreSQL, what deletes an outcome waits for its votes that are being stored, and then deletes
# them too.
_LOCKED_STATUS = _STATUS.with_for_update(read=True, key_share=True)
_IS_PROMPT = select(prompts.c.fusion_id).where(
    prompts.c.fusion_id == _ID, prompts.c.tenant == _TENANT
)
_MEMBERS = (
    select(answers.c.member)
    .where(answers.c.fusion_id == _ID, answers.c.status == "ok")
    .order_by(answers.c.member)
)
_ADD = {
    "sqlite": sqlite.insert(votes).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(votes).on_conflict_do_nothing(),
}
_IS_VOTERS = (votes.c.fusion_id == _ID, votes.c.voter_hash == _VOTER)
_VOTE = select(votes).where(*_IS_VOTERS).with_for_update()
_CHANGE = (
    update(votes)
    .where(*_IS_VOTERS)
    .values(
        choice=bindparam("new_choice"), changed_at=bindparam("at", type_=votes.c.changed_at.type)
    )
)
_LAST_NUMBER = select(func.coalesce(func.max(vote_changes.c.number), 0)).where(
    vote_changes.c.fusion_id == _ID, vote_changes.c.voter_hash == _VOTER
)
_COUNTS = (
    select(votes.c.choice, func.count()).where(votes.c.fusion_id == _ID).group_by(votes.c.choice)
)


@dataclass(frozen=True)
class Vote:
    """A vote that somebody gives.

    Attributes:
        fusion_id: the fusion whose outcome it is for.
        voter_hash: the voter.
        choice: a member, `fused`, `tie` or `none`.
        key_id: the API key that it came with.
        voted_at: when.
    """

    fusion_id: str
    voter_hash: str
    choice: str
    key_id: str | None
    voted_at: datetime


@dataclass(frozen=True)
class StoredVote:
    """A vote as it stands.

    Attributes:
        choice: the last one.
        created_at: when the voter first voted.
        changed_at: when the voter chose it.
        is_new: whether it is the voter's first for the outcome.
        is_changed: whether an earlier choice was replaced.
    """

    choice: str
    created_at: datetime
    changed_at: datetime
    is_new: bool = False
    is_changed: bool = False


class Votes:
    """The `votes` and `vote_changes` tables.

    Every method raises Transient if the database does not answer, and RefusedError for a fusion
    that has no outcome yet.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def store(self, tenant: str, vote: Vote) -> StoredVote | None:
        """Store a voter's first vote for an outcome, or change the earlier one.

        The same choice again changes nothing.

        Returns:
            None if the tenant has no such fusion.

        Raises:
            RefusedError: the outcome has no answer, or there is no such choice.
        """
        return await self._store.run(
            lambda connection: self.store_in(connection, tenant, vote), write=True
        )

    def store_in(self, connection: Connection, tenant: str, vote: Vote) -> StoredVote | None:
        """Do the same as `store` within a transaction of the caller."""
        key = {"id": vote.fusion_id, "of": tenant}
        status = connection.execute(_LOCKED_STATUS, key).scalar()
        if status is None:
            _check_unknown(connection, tenant, vote.fusion_id)
            return None
        check(vote.choice, status, _members(connection, vote.fusion_id))
        return _store(connection, vote)

    async def counts(self, tenant: str, fusion_id: str) -> dict[str, int] | None:
        """Count an outcome's votes, by each valid choice; of an outcome without an answer, none.

        Returns:
            None if the tenant has no such fusion.
        """

        def work(connection: Connection) -> dict[str, int] | None:
            status = connection.execute(_STATUS, {"id": fusion_id, "of": tenant}).scalar()
            if status is None:
                _check_unknown(connection, tenant, fusion_id)
                return None
            if status not in ANSWERED:
                return {}
            counts = dict.fromkeys(choices(_members(connection, fusion_id)), 0)
            rows = connection.execute(_COUNTS, {"id": fusion_id})
            return counts | {row[0]: row[1] for row in rows}

        return await self._store.run(work, write=False)


def _check_unknown(connection: Connection, tenant: str, fusion_id: str) -> None:
    """Raise RefusedError if the tenant has a fusion of that id, which has no outcome yet."""
    row = connection.execute(_IS_PROMPT, {"id": fusion_id, "of": tenant}).first()
    if row is not None:
        raise RefusedError(
            "outcome_pending",
            "the fusion has no outcome yet; GET /v1/fusions/{id}?wait_s=60 waits for it",
        )


def _members(connection: Connection, fusion_id: str) -> Sequence[str]:
    return connection.execute(_MEMBERS, {"id": fusion_id}).scalars().all()


def _store(connection: Connection, vote: Vote) -> StoredVote:
    row = {
        "fusion_id": vote.fusion_id,
        "voter_hash": vote.voter_hash,
        "choice": vote.choice,
        "created_at": vote.voted_at,
        "changed_at": vote.voted_at,
    }
    # Of two first votes of a voter at once, the second waits here for the commit of the first.
    if connection.execute(_ADD[connection.dialect.name], row).rowcount:
        _add_change(connection, vote)
        return StoredVote(vote.choice, vote.voted_at, vote.voted_at, is_new=True)
    key = {"id": vote.fusion_id, "by": vote.voter_hash}
    # Locked, so that two changes at once are numbered one after the other.
    earlier = connection.execute(_VOTE, key).one()
    if earlier.choice == vote.choice:
        return StoredVote(earlier.choice, earlier.created_at, earlier.changed_at)
    connection.execute(_CHANGE, {**key, "new_choice": vote.choice, "at": vote.voted_at})
    _add_change(connection, vote)
    return StoredVote(vote.choice, earlier.created_at, vote.voted_at, is_changed=True)


def _add_change(connection: Connection, vote: Vote) -> None:
    key = {"id": vote.fusion_id, "by": vote.voter_hash}
    number = connection.execute(_LAST_NUMBER, key).scalar_one() + 1
    connection.execute(insert(vote_changes), {**vars(vote), "number": number})
