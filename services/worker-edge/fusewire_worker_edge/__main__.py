"""`python -m fusewire_worker_edge`."""

from fusewire.service import main
from fusewire_worker_edge.service import build

main("worker-edge", build)
