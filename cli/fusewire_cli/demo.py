"""`fusewire demo`: real prompts through the whole pipeline on this machine."""

import json
import os
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusewire.settings import Settings
from fusewire_cli import builtin, fusing, models
from fusewire_cli.screen import EXIT_FAULT, RowFormat, fail, note, rows
from fusewire_cli.session import client

SMALL_MODEL = "smollm2-135m"
PROMPTS = Path(__file__).parent / "demo.jsonl"
SMALL_PROMPTS = Path(__file__).parent / "demo-small.jsonl"
DEADLINE_S = 600
NEXT = (
    'query "select mode, status, count(*) n from v_outcome group by 1, 2"',
    'ask "Name three uses of copper." --mode merge',
    "up",
)
WIDTH = 100
SHOWN_CHARS = 240
ANSWERED = ("fused", "voted", "single")
ABSENT = {
    "certain": "not waited for: the vote was decided",
    "likely": "not waited for: the vote was as good as decided",
}
CALLS = {"weather": ("get_weather", {"city": "Lima"})}
"""The right call, by prompt; the gold label of all others is in their line."""


@dataclass(frozen=True)
class HostedModel:
    """A hosted model that joins the pool when its key is in the environment."""

    key: str
    base_url: str
    model: str


HOSTED = (
    HostedModel("OPENAI_API_KEY", "https://api.openai.com/v1", "gpt-4o-mini"),
    HostedModel("OPENROUTER_API_KEY", "https://openrouter.ai/api/v1", "openai/gpt-4o-mini"),
    HostedModel("MISTRAL_API_KEY", "https://api.mistral.ai/v1", "mistral-small-latest"),
)


def configuration(*, is_small: bool) -> Settings:
    """The built-in configuration, with the hosted models whose keys are there."""
    data = builtin.small() if is_small else builtin.edge()
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


def demo(*, as_json: bool, is_small: bool) -> None:
    """Pull the models, run the prompts, print what happened.

    Args:
        as_json: print one JSON object in place of text.
        is_small: with the smallest model alone.
    """
    for name in [SMALL_MODEL] if is_small else builtin.names():
        models.pull(name, None)
    config = configuration(is_small=is_small)
    source = SMALL_PROMPTS if is_small else PROMPTS
    prompts = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    members = config.pools["default"].members
    note(
        f"{len(prompts)} prompts, a pool of {len(members)}: "
        + ", ".join(f"{m.name} ({m.model})" for m in members)
    )
    if is_small:
        note(
            "All members are one very small model, asked in different ways; without SMALL=1 there are better ones."
        )
    began = time.monotonic()
    outcomes = fusing.run(_run(config, prompts), goes_on=False)
    took_s = time.monotonic() - began
    score = scored(prompts, outcomes)
    if as_json:
        print(
            json.dumps(
                {"outcomes": [_summary(o) for o in outcomes], "score": score}, ensure_ascii=False
            )
        )
    else:
        for prompt, outcome in zip(prompts, outcomes, strict=True):
            _show(prompt, outcome)
        _tally(outcomes)
        if score["known"]:
            _compare(outcomes, score)
        spent = [o["cost_usd"] for o in outcomes]
        told = f"${sum(spent):.4f}" if None not in spent else "unknown, since a price is"
        print(f"\n{len(outcomes)} prompts in {took_s:.0f} s, cost {told}.")
        _next_steps()
    unfinished = [o["custom_id"] for o in outcomes if o["status"] not in ANSWERED]
    if unfinished:
        fail(f"no answer for {', '.join(unfinished)}", "see .fusewire/fusewire.log", EXIT_FAULT)


def scored(
    prompts: Sequence[dict[str, Any]], outcomes: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Who was right, over the prompts of which the right answer is known.

    Returns:
        `known`, their ids; `fused`, the ids of those that fusing had right; `members`, the same by member.
    """
    known = [
        o for p, o in zip(prompts, outcomes, strict=True) if "gold" in p or p["custom_id"] in CALLS
    ]
    members: dict[str, list[str]] = {}
    for outcome in known:
        for answer in outcome["answers"]:
            right = members.setdefault(answer["member"], [])
            if _is_right(outcome["custom_id"], answer["is_right"], answer["tool_calls"]):
                right.append(outcome["custom_id"])
    return {
        "known": [o["custom_id"] for o in known],
        "fused": [
            o["custom_id"]
            for o in known
            if _is_right(o["custom_id"], o["accepted"], o["tool_calls"])
        ],
        "members": members,
    }


def _is_right(custom_id: str, by_label: bool | None, calls: Sequence[dict[str, Any]]) -> bool:
    wanted = CALLS.get(custom_id)
    if wanted is None:
        return bool(by_label)
    return [(call["name"], json.loads(call["arguments"])) for call in calls] == [wanted]


async def _run(config: Settings, prompts: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    batch = time.strftime("demo-%Y%m%d-%H%M%S")
    bodies = {
        prompt["custom_id"]: json.dumps({**prompt, "deadline_s": DEADLINE_S}) for prompt in prompts
    }
    async with client(config) as api:
        found = await fusing.fuse(api, batch, bodies, len(bodies))
    return [found[prompt["custom_id"]] for prompt in prompts]


def _summary(outcome: Mapping[str, Any]) -> dict[str, Any]:
    kept = (
        "is_degraded",
        "degraded_reasons",
        "custom_id",
        "mode",
        "status",
        "content",
        "winner",
        "reason",
        "rounds",
    )
    told = ("closed_by", "guard", "swap_consistent")
    candidates = [
        {
            key: answer[key]
            for key in ("member", "model", "status", "content", "is_winner", "latency_ms")
        }
        for answer in outcome["answers"]
    ]
    return {
        **{key: outcome[key] for key in (*kept, *told)},
        "candidates": candidates,
        "latency_ms": outcome["latency_ms"],
    }


def _show(prompt: dict[str, Any], outcome: Mapping[str, Any]) -> None:
    print(f"\n━━ {outcome['custom_id']} · {outcome['mode']} " + "━" * 40)
    print(_wrapped("asked", prompt["prompt"]))
    for answer in outcome["answers"]:
        took = f"{answer['latency_ms'] / 1000:.1f} s" if answer["latency_ms"] else "–"
        mark = "→" if answer["is_winner"] else " "
        said = (
            _said(answer)
            or answer["error_code"]
            or ABSENT.get(outcome["closed_by"], answer["status"])
        )
        print(_wrapped(f"{mark} {answer['member']}", f"{said} [{took}]"))
    if outcome["is_degraded"]:
        print(_wrapped("degraded", ", ".join(outcome["degraded_reasons"])))
    how = (
        f"{outcome['winner']} won"
        if outcome["winner"]
        else ("voted" if outcome["tool_calls"] else "merged")
    )
    told = f"{how}: {outcome['reason']} [{outcome['latency_ms'] / 1000:.1f} s in all]"
    print(_wrapped(outcome["status"], told))
    if not outcome["winner"]:
        print(_wrapped("answer", _said(outcome)))


def _compare(outcomes: Sequence[Mapping[str, Any]], score: dict[str, Any]) -> None:
    """Who was right where that is known, and what fusing gained or lost against the best of its members."""
    print("\nWho was right:\n")
    names, known = list(score["members"]), score["known"]
    by_id = {o["custom_id"]: o for o in outcomes}

    def mark(right: Sequence[str], custom_id: str) -> str:
        return "yes" if custom_id in right else "-"

    lines = [
        [
            one,
            *(mark(score["members"][name], one) for name in names),
            mark(score["fused"], one),
            _way(by_id[one]),
        ]
        for one in known
    ]
    lines.append(
        [
            "right",
            *(str(len(score["members"][name])) for name in names),
            str(len(score["fused"])),
            "",
        ]
    )
    rows(["prompt", *names, "fused", "by"], lines, RowFormat.table)
    best = max(names, key=lambda name: len(score["members"][name]))
    gained = [one for one in score["fused"] if one not in score["members"][best]]
    lost = [one for one in score["members"][best] if one not in score["fused"]]
    print(
        f"\nFusing was right {len(score['fused'])} times of {len(known)}; the best member by itself,",
        end=" ",
    )
    print(f"{best}, {len(score['members'][best])} times.")
    print(f"  gained by fusing: {', '.join(gained) or 'none'}; lost: {', '.join(lost) or 'none'}")


def _way(outcome: Mapping[str, Any]) -> str:
    """What chose the answer."""
    if outcome["tool_calls"]:
        return "vote on each argument"
    if outcome["status"] == "voted":
        return "vote"
    return "judge" if outcome["winner"] else "merge"


def _tally(outcomes: list[Mapping[str, Any]]) -> None:
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
        (
            f"debates, of {len(debates)}, in which somebody named an error and changed its answer",
            moved,
        ),
    ):
        print(f"  {label}: {', '.join(found) or 'none'}")


def _said(answer: Mapping[str, Any]) -> str:
    """A text or calls, in one line that is no longer than can be read at a glance."""
    calls = ", ".join(f"{call['name']}({call['arguments']})" for call in answer["tool_calls"])
    flat = " ".join((answer["content"] or calls).split())
    return flat if len(flat) <= SHOWN_CHARS else flat[:SHOWN_CHARS] + " …"


def _wrapped(label: str, text: str) -> str:
    lead = f"{label:>16}  "
    flat = " ".join(text.split())
    return textwrap.fill(flat, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))


def _next_steps() -> None:
    command = Path(sys.argv[0])
    name = command.name if command.is_absolute() and command.parent.name != "bin" else str(command)
    print("\nEverything above is stored. Three things to try next:")
    for step in NEXT:
        print(f"  {name} {step}")
