"""`fusewire ask`."""

import json
import sys
from typing import Any

from fusewire import replies
from fusewire.contracts import ANSWERED
from fusewire_cli import fusing
from fusewire_cli.screen import EXIT_SOME_FAILED, note
from fusewire_cli.session import client, settings

WAIT_S = 600


def ask(prompt: str, *, pool: str | None, mode: str | None, as_json: bool) -> None:
    """Submit a prompt, wait for its outcome, print it."""
    text = sys.stdin.read() if prompt == "-" else prompt
    body: dict[str, Any] = {"prompt": text}
    if pool:
        body["pool"] = pool
    if mode:
        body["mode"] = mode

    async def main() -> replies.fusions.Fusion:
        async with client(settings()) as api:
            return await api.submit(body, wait_s=WAIT_S)

    outcome = fusing.run(main(), goes_on=False)
    if as_json:
        print(json.dumps(outcome, ensure_ascii=False))
    else:
        show(outcome)
    if outcome["status"] not in ANSWERED:
        sys.exit(EXIT_SOME_FAILED)


def show(outcome: replies.fusions.Fusion) -> None:
    """Print the answer on stdout, and on stderr what is degraded and how the answer came about."""
    if outcome.get("is_degraded"):
        note(f"degraded: {', '.join(outcome['degraded_reasons']) or outcome['status']}")
    if outcome.get("error"):
        note(f"{outcome['status']}: {outcome['error']}")
    for answer in outcome.get("answers", ()):
        if answer["status"] == "error":
            note(failure_line(answer))
    if outcome.get("content"):
        print(outcome["content"])
    if outcome["status"] == "running":
        note(f"still running: fusion {outcome['id']}")
    else:
        winner = f" · {outcome['winner']} won" if outcome.get("winner") else ""
        seconds = outcome["latency_ms"] / 1000
        note(f"— {outcome['status']}{winner} · {outcome['reason'] or ''} · {seconds:.1f} s")


def failure_line(answer: replies.fusions.FusionAnswer) -> str:
    """A member's failure in one line, with the provider's own codes."""
    codes = (answer.get("error_status"), answer.get("provider_code"), answer.get("provider_param"))
    details = ", ".join(str(code) for code in codes if code is not None)
    failure = f"{answer['member']} failed: {answer['error_code']}"
    return f"{failure} ({details})" if details else failure
