"""`fusewire ask`."""

import json
import sys
from typing import Any

from fusewire import replies
from fusewire_cli import fusing
from fusewire_cli.screen import EXIT_SOME_FAILED, note
from fusewire_cli.session import client, settings

WAIT_S = 600


def ask(prompt: str, *, pool: str | None, mode: str | None, as_json: bool) -> None:
    """Submit, wait, print."""
    text = sys.stdin.read() if prompt == "-" else prompt
    body: dict[str, Any] = {"prompt": text}
    body |= {key: value for key, value in (("pool", pool), ("mode", mode)) if value}

    async def main() -> replies.fusions.Fusion:
        async with client(settings()) as api:
            return await api.submit(body, wait_s=WAIT_S)

    outcome = fusing.run(main(), goes_on=False)
    if as_json:
        print(json.dumps(outcome, ensure_ascii=False))
    else:
        show(outcome)
    if outcome["status"] not in ("fused", "voted", "single"):
        sys.exit(EXIT_SOME_FAILED)


def show(outcome: replies.fusions.Fusion) -> None:
    """The answer on stdout; what is degraded before it, and how it came to be after it, on stderr."""
    if outcome.get("is_degraded"):
        note(f"degraded: {', '.join(outcome['degraded_reasons']) or outcome['status']}")
    if outcome.get("error"):
        note(f"{outcome['status']}: {outcome['error']}")
    for answer in outcome.get("answers", ()):
        if answer["status"] == "error":
            note(failed(answer))
    if outcome.get("content"):
        print(outcome["content"])
    if outcome["status"] == "running":
        note(f"still running: fusion {outcome['id']}")
    else:
        winner = f" · {outcome['winner']} won" if outcome.get("winner") else ""
        note(
            f"— {outcome['status']}{winner} · {outcome['reason'] or ''} · {outcome['latency_ms'] / 1000:.1f} s"
        )


def failed(answer: replies.fusions.FusionAnswer) -> str:
    """A member's failure in a line, with what its provider says of it."""
    told = [answer.get("error_status"), answer.get("provider_code"), answer.get("provider_param")]
    details = ", ".join(str(one) for one in told if one is not None)
    return f"{answer['member']} failed: {answer['error_code']}" + (
        f" ({details})" if details else ""
    )
