"""`python -m fusewire_ingest`."""

from fusewire.service import main
from fusewire_ingest.service import build

main("ingest", build)
