"""`python -m fusewire_worker_remote`."""

from fusewire.service import main
from fusewire_worker_remote.service import build

main("worker-remote", build)
