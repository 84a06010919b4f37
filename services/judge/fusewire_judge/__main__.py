"""`python -m fusewire_judge`."""

from fusewire.service import main
from fusewire_judge.service import build

main("judge", build)
