"""The checks of `deploy/` are a package of their own, beside what they check."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "deploy"))
