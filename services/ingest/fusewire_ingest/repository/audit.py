"""The audit log, as far as ingest writes to it by itself."""

from datetime import datetime

from sqlalchemy import select

from fusewire.store.audit import Action, insert_action
from fusewire.store.engine import Store
from fusewire.store.tables import audit_log

CONFIGURATION_LOADED = "configuration.loaded"
_LAST_CONFIGURATION = (
    select(audit_log.c.target)
    .where(audit_log.c.action == CONFIGURATION_LOADED)
    .order_by(audit_log.c.at.desc())
    .limit(1)
)


async def record_configuration(store: Store, rules_hash: str, now: datetime) -> bool:
    """Record that ingest runs with a configuration, unless the last one that it loaded is equal.

    Args:
        store: the database.
        rules_hash: equal for equal rules (`Settings.rules_hash`).
        now: the time.

    Returns:
        Whether it is another configuration than the last one.
    """
    action = Action(now, "service:ingest", CONFIGURATION_LOADED, target=rules_hash)
    async with store.write() as connection:
        if (await connection.execute(_LAST_CONFIGURATION)).scalar() == rules_hash:
            return False
        await connection.execute(insert_action(action))
        return True
