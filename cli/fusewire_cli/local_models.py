"""Whether models can be read and run here, which takes the extra `fusewire-cli[local]`.

The tools image is without it: what it brings is larger than all the rest.
"""

from importlib.util import find_spec

PACKAGE = "fusewire_worker_edge"
WHAT = "models cannot be read or run here: fusewire-cli[local] is not installed"
MEND = "install it, or run the command where it is; images for operators are without"


def are_supported() -> bool:
    """Whether the extra is installed."""
    return find_spec(PACKAGE) is not None


def is_absence(exc: BaseException) -> bool:
    """Whether an error says that the extra is not installed."""
    return isinstance(exc, ModuleNotFoundError) and (exc.name or "").partition(".")[0] == PACKAGE
