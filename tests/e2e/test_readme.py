"""What README tells to run is run."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from fusewire.testing.command_line import Cli

README = Path(__file__).parents[2] / "README.md"


def test_the_snippet_for_those_who_come_from_openrouter(cli: Cli) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert snippet.count("http://localhost:8484") == 1
    with cli.start("up"):
        run, until = cli.folder / ".fusewire" / "up.json", time.monotonic() + 60
        while not run.exists():
            assert time.monotonic() < until, "it never came up"
            time.sleep(0.05)
        url = json.loads(run.read_text())["url"]
        done = subprocess.run(
            [sys.executable, "-c", snippet.replace("http://localhost:8484", url)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    answer, told = done.stdout.strip().rsplit("\n", 1)
    assert answer
    assert re.fullmatch(r"f[a-v0-9]{26} (fused|voted) \S+", told)
