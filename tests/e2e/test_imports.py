"""What is imported when, in a new interpreter."""

import subprocess
import sys

from fusewire.testing.eventually import PATIENCE_S


def imported(code: str) -> set[str]:
    """Top-level modules that are loaded after `code` has run."""
    show = "\nimport sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code + show],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_pulling_and_serving_an_edge_model_import_no_engine() -> None:
    found = imported(
        "import fusewire_worker_edge.generate, fusewire_worker_edge.pull, "
        "fusewire_worker_edge.folder"
    )
    assert not {"onnx", "onnxruntime", "numpy", "gguf", "tokenizers", "llguidance"} & found


def test_the_help_imports_no_settings() -> None:
    found = imported("import fusewire_cli.main")
    assert not {"pydantic", "pydantic_settings", "structlog", "sqlalchemy", "nats"} & found


def test_checking_the_configuration_imports_neither_database_nor_bus() -> None:
    found = imported("from fusewire_cli import config; config.check(None)")
    assert (
        not {
            "sqlalchemy",
            "alembic",
            "nats",
            "faststream",
            "fastapi",
            "structlog",
            "aiohttp",
            "uvicorn",
        }
        & found
    )


def test_a_client_s_command_imports_neither_database_nor_bus() -> None:
    found = imported(
        "import fusewire_cli.main, fusewire_cli.batch.command, fusewire_cli.session, "
        "fusewire_cli.client"
    )
    assert not {"sqlalchemy", "alembic", "nats", "faststream", "fastapi"} & found


def test_a_stack_whose_database_is_up_to_date_imports_no_migrations() -> None:
    found = imported("import fusewire_cli.serve, fusewire_ingest.service, fusewire_judge.service")
    assert "alembic" not in found
