"""Reads the views. Every statement of a page goes through here, bound to the visitor's tenant."""

from collections.abc import Mapping
from typing import Any

from fusewire.store.analyst import NONE as NO_PARAMETERS
from fusewire.store.analyst import Analyst
from fusewire_console.access import Visitor

Rows = list[dict[str, Any]]


class OperatorsOnlyError(Exception):
    """The page adds up all tenants, and the visitor belongs to one."""


class Views:
    """Statements of our own on the views. All raise QueryError.

    Args:
        analyst: the database.
    """

    def __init__(self, analyst: Analyst) -> None:
        self._analyst = analyst

    async def of_tenant(
        self, visitor: Visitor, sql: str, parameters: Mapping[str, object] = NO_PARAMETERS
    ) -> Rows:
        """Rows of the visitor's tenant; of all tenants for an operator.

        Args:
            visitor: whose page it is.
            sql: with `{tenant}` where a condition on `tenant` stands, such as `WHERE {tenant}`, or
                `{o.tenant}` for one on the tenant of `o`.
            parameters: the values of the other conditions.
        """
        for column in ("tenant", "o.tenant"):
            condition = "1 = 1" if visitor.is_operator else f"{column} = :tenant"
            sql = sql.replace(f"{{{column}}}", condition)
        if not visitor.is_operator:
            if ":tenant" not in sql:
                raise ValueError("a statement for tenants has no condition on the tenant")
            parameters = {**parameters, "tenant": visitor.tenant}
        return await self._analyst.fetch(sql, parameters)

    async def of_all(
        self, visitor: Visitor, sql: str, parameters: Mapping[str, object] = NO_PARAMETERS
    ) -> Rows:
        """Rows of views that add up all tenants. Raises OperatorsOnlyError for a tenant's own."""
        if not visitor.is_operator:
            raise OperatorsOnlyError
        return await self._analyst.fetch(sql, parameters)

    async def of_fusion(self, fusion_id: str, sql: str) -> Rows:
        """Rows of one fusion, which the caller has found to be one that the visitor may see.

        Args:
            fusion_id: the fusion.
            sql: on views without a tenant, with a condition on `:id`.
        """
        if ":id" not in sql:
            raise ValueError("a statement for a fusion has no condition on its id")
        return await self._analyst.fetch(sql, {"id": fusion_id})

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is SQLite."""
        return self._analyst.is_sqlite
