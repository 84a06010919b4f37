"""`python -m fusewire_console`."""

from fusewire.service import main
from fusewire_console.service import build

main("console", build)
