"""Providers' codes and wordings of errors, one file for each provider.

All tables are read together, whichever provider answered: gateways that speak one provider's
protocol pass on the errors of others (docs/decisions/0037).
"""

from fusewire_worker_remote.error_tables import (
    anthropic,
    compatible,
    google,
    minimax,
    mistral,
    openai,
)
from fusewire_worker_remote.error_tables.table import ErrorTable, MessagePattern

TABLES: tuple[ErrorTable, ...] = (
    openai.TABLE,
    anthropic.TABLE,
    google.TABLE,
    mistral.TABLE,
    minimax.TABLE,
    compatible.TABLE,
)

__all__ = ["TABLES", "ErrorTable", "MessagePattern"]
