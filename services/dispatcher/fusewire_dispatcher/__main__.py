"""`python -m fusewire_dispatcher`."""

from fusewire.service import main
from fusewire_dispatcher.service import build

main("dispatcher", build)
