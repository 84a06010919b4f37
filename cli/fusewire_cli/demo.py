"""`fusewire demo`: real prompts through the whole pipeline on this machine."""

import json
import os
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusewire.settings import Settings, read_file
from fusewire_cli import fusing, models
from fusewire_cli.client import Client
from fusewire_cli.screen import EXIT_FAULT, fail, note
from fusewire_cli.session import BUILTIN, client

MODEL = "smollm2-135m"
PROMPTS = Path(__file__).parent / "demo.jsonl"
WAIT_S = 120
NEXT = (
    'query "select mode, status, count(*) n from v_outcome group by 1, 2"',
    'ask "Name three uses of copper." --mode merge',
    "up",
)
WIDTH = 100
ABSENT = {
    "certain": "not waited for: the vote was decided",
    "likely": "not waited for: the vote was as good as decided",
}


@dataclass(frozen=True)
class Hosted:
    """A hosted model that joins the pool when its key is in the environment."""

    key: str
    base_url: str
    model: str


HOSTED = (
    Hosted("OPENAI_API_KEY", "https://api.openai.com/v1", "gpt-4o-mini"),
    Hosted("OPENROUTER_API_KEY", "https://openrouter.ai/api/v1", "openai/gpt-4o-mini"),
    Hosted("MISTRAL_API_KEY", "https://api.mistral.ai/v1", "mistral-small-latest"),
)


def configuration() -> Settings:
    """The built-in configuration, with the hosted models whose keys are there."""
    data = read_file(BUILTIN)
    for hosted in HOSTED:
        if os.environ.get(hosted.key):
            name = hosted.key.removesuffix("_API_KEY").lower()
            data["models"][name] = {
                "kind": "remote",
                "base_url": hosted.base_url,
                "model": hosted.model,
                "api_key_env": hosted.key,
            }
            data["pools"]["default"]["members"].append({"name": name, "model": name})
    return Settings(**data)


def demo(*, as_json: bool) -> None:
    """Pull the model, run the prompts, print what happened."""
    models.pull(MODEL, None)
    config = configuration()
    prompts = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    members = config.pools["default"].members
    note(f"{len(prompts)} prompts, a pool of {len(members)}: " + ", ".join(f"{m.name} ({m.model})" for m in members))
    if all(config.models[m.model].kind == "edge" for m in members):
        note("All members are one small model, asked in different ways; OPENAI_API_KEY would add a hosted one.")
    outcomes = fusing.run(_run(config, prompts), goes_on=False)
    if as_json:
        print(json.dumps({"outcomes": [_summary(o) for o in outcomes]}, ensure_ascii=False))
    else:
        for prompt, outcome in zip(prompts, outcomes, strict=True):
            _show(prompt, outcome)
        _tally(outcomes)
        _next_steps()
    unfinished = [o["custom_id"] for o in outcomes if o["status"] not in ("fused", "voted", "single")]
    if unfinished:
        fail(f"no answer for {', '.join(unfinished)}", "see .fusewire/fusewire.log", EXIT_FAULT)


async def _run(config: Settings, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    batch = time.strftime("demo-%Y%m%d-%H%M%S")
    async with client(config) as api:
        lines = [json.dumps({**prompt, "deadline_s": 600}) for prompt in prompts]
        accepted = await api.submit_lines(lines, batch)
        return [await _wait(api, line["id"]) for line in accepted]


async def _wait(api: Client, fusion_id: str) -> dict[str, Any]:
    while True:
        outcome = await api.get(fusion_id, wait_s=WAIT_S)
        if outcome["status"] != "running":
            note(f"  {outcome['custom_id']}: {outcome['status']} after {outcome['latency_ms'] / 1000:.1f} s")
            return outcome


def _summary(outcome: dict[str, Any]) -> dict[str, Any]:
    kept = ("is_degraded", "degraded_reasons", "custom_id", "mode", "status", "content", "winner", "reason", "rounds")
    told = ("closed_by", "guard", "swap_consistent")
    candidates = [
        {key: answer[key] for key in ("member", "model", "status", "content", "is_winner", "latency_ms")}
        for answer in outcome["answers"]
    ]
    return {
        **{key: outcome[key] for key in (*kept, *told)},
        "candidates": candidates,
        "latency_ms": outcome["latency_ms"],
    }


def _show(prompt: dict[str, Any], outcome: dict[str, Any]) -> None:
    print(f"\n━━ {outcome['custom_id']} · {outcome['mode']} " + "━" * 40)
    print(_wrapped("asked", prompt["prompt"]))
    for answer in outcome["answers"]:
        took = f"{answer['latency_ms'] / 1000:.1f} s" if answer["latency_ms"] else "–"
        mark = "→" if answer["is_winner"] else " "
        said = answer["content"] or answer["error_code"] or ABSENT.get(outcome["closed_by"], answer["status"])
        print(_wrapped(f"{mark} {answer['member']}", f"{said} [{took}]"))
    if outcome["is_degraded"]:
        print(_wrapped("degraded", ", ".join(outcome["degraded_reasons"])))
    how = f"{outcome['winner']} won" if outcome["winner"] else "merged"
    judge = f", judge output {outcome['judge_rung']}" if outcome["judge_rung"] else ""
    print(
        _wrapped(outcome["status"], f"{how}: {outcome['reason']}{judge} [{outcome['latency_ms'] / 1000:.1f} s in all]")
    )
    if not outcome["winner"]:
        print(_wrapped("answer", outcome["content"] or ""))


def _tally(outcomes: list[dict[str, Any]]) -> None:
    """What there was to see of fusion's own rules, none included."""
    early = [o["custom_id"] for o in outcomes if o["closed_by"] in ("certain", "likely")]
    merges = [o for o in outcomes if o["guard"]]
    kept = [o["custom_id"] for o in merges if o["guard"] == "passed"]
    refused = [f"{o['custom_id']} ({o['guard']})" for o in merges if o["guard"] != "passed"]
    debates = [o for o in outcomes if o["mode"] == "debate"]
    moved = [o["custom_id"] for o in debates if any(a["round"] for a in o["answers"])]
    print("\nWhat to look for above:")
    for label, found in (
        ("votes that did not wait for the last member", early),
        ("merges that held their own against the best single answer", kept),
        ("merges that the guard refused", refused),
        (f"debates, of {len(debates)}, in which somebody named an error and changed its answer", moved),
    ):
        print(f"  {label}: {', '.join(found) or 'none'}")


def _wrapped(label: str, text: str) -> str:
    lead = f"{label:>10}  "
    flat = " ".join(text.split())
    return textwrap.fill(flat, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))


def _next_steps() -> None:
    command = Path(sys.argv[0])
    name = command.name if command.is_absolute() and command.parent.name != "bin" else str(command)
    print("\nEverything above is stored. Three things to try next:")
    for step in NEXT:
        print(f"  {name} {step}")
