"""`fusewire demo`: run real prompts through the whole pipeline on this machine."""

import json
import os
import sys
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusewire.contracts import ANSWERED
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
ABSENT = {
    "certain": "not waited for: the vote was decided",
    "likely": "not waited for: the vote was as good as decided",
}
CALLS = {"weather": ("get_weather", {"city": "Lima"})}
"""By custom_id, the right tool call; other prompts carry a gold label instead."""


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
    """The built-in configuration, with the hosted models that have a key in the environment."""
    config = builtin.small() if is_small else builtin.edge()
    for model in HOSTED:
        if os.environ.get(model.key):
            name = model.key.removesuffix("_API_KEY").lower()
            config["models"][name] = {
                "kind": "remote",
                "base_url": model.base_url,
                "model": model.model,
                "api_key_env": model.key,
            }
            config["pools"]["default"]["members"].append({"name": name, "model": name})
    return Settings(**config)


def demo(*, as_json: bool, is_small: bool) -> None:
    """Pull the models, run the prompts, print what happened.

    Args:
        as_json: print one JSON object instead of text.
        is_small: use the smallest model alone.

    Raises:
        SystemExit: a prompt has no answer.
    """
    names = [SMALL_MODEL] if is_small else builtin.names()
    for name in names:
        models.pull(name, None)
    config = configuration(is_small=is_small)
    prompts = _read_prompts(SMALL_PROMPTS if is_small else PROMPTS)
    _announce(config, len(prompts), is_small=is_small)
    start = time.monotonic()
    outcomes = fusing.run(_run(config, prompts), goes_on=False)
    took_s = time.monotonic() - start
    score = compute_score(prompts, outcomes)
    if as_json:
        summaries = [_summary(outcome) for outcome in outcomes]
        print(json.dumps({"outcomes": summaries, "score": score}, ensure_ascii=False))
    else:
        _report(prompts, outcomes, score, took_s)
    unanswered_ids = [_id(outcome) for outcome in outcomes if outcome["status"] not in ANSWERED]
    if unanswered_ids:
        fail(f"no answer for {', '.join(unanswered_ids)}", "see .fusewire/fusewire.log", EXIT_FAULT)


def _read_prompts(source: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]


def _announce(config: Settings, prompt_count: int, *, is_small: bool) -> None:
    members = config.pools["default"].members
    names = ", ".join(f"{member.name} ({member.model})" for member in members)
    note(f"{prompt_count} prompts, a pool of {len(members)}: {names}")
    if is_small:
        note(
            "All members are one very small model, asked in different ways; "
            "without SMALL=1 there are better ones."
        )


def _report(
    prompts: Sequence[dict[str, Any]],
    outcomes: Sequence[Mapping[str, Any]],
    score: dict[str, Any],
    took_s: float,
) -> None:
    """Print the outcomes, the comparison with the members, the cost and the next steps."""
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        _show(prompt, outcome)
    _show_rules(outcomes)
    if score["known"]:
        _compare(outcomes, score)
    costs = [outcome["cost_usd"] for outcome in outcomes]
    cost = "unknown, since a price is" if None in costs else f"${sum(costs):.4f}"
    print(f"\n{len(outcomes)} prompts in {took_s:.0f} s, cost {cost}.")
    _next_steps()


def compute_score(
    prompts: Sequence[dict[str, Any]], outcomes: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Who was right, over the prompts with a known right answer.

    Returns:
        `known`: their custom_ids; `fused`: the custom_ids where the fused answer was right;
        `members`: the same by member.
    """
    known_ids: list[str] = []
    fused_ids: list[str] = []
    members: dict[str, list[str]] = {}
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        custom_id = prompt["custom_id"]
        if not _has_known_answer(prompt):
            continue
        known_ids.append(custom_id)
        if _is_right(custom_id, outcome["accepted"], outcome["tool_calls"]):
            fused_ids.append(custom_id)
        for answer in outcome["answers"]:
            right_ids = members.setdefault(answer["member"], [])
            if _is_right(custom_id, answer["is_right"], answer["tool_calls"]):
                right_ids.append(custom_id)
    return {"known": known_ids, "fused": fused_ids, "members": members}


def _has_known_answer(prompt: dict[str, Any]) -> bool:
    return "gold" in prompt or prompt["custom_id"] in CALLS


def _is_right(custom_id: str, by_label: bool | None, calls: Sequence[dict[str, Any]]) -> bool:
    right_call = CALLS.get(custom_id)
    if right_call is None:
        return bool(by_label)
    return [(call["name"], json.loads(call["arguments"])) for call in calls] == [right_call]


async def _run(config: Settings, prompts: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    batch = time.strftime("demo-%Y%m%d-%H%M%S")
    bodies = {
        prompt["custom_id"]: json.dumps({**prompt, "deadline_s": DEADLINE_S}) for prompt in prompts
    }
    async with client(config) as api:
        outcomes = await fusing.fuse(api, batch, bodies, len(bodies))
    return [outcomes[prompt["custom_id"]] for prompt in prompts]


SUMMARY_KEYS = (
    "is_degraded",
    "degraded_reasons",
    "custom_id",
    "mode",
    "status",
    "content",
    "winner",
    "reason",
    "rounds",
    "closed_by",
    "guard",
    "swap_consistent",
)
ANSWER_KEYS = ("member", "model", "status", "content", "is_winner", "latency_ms")


def _summary(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """An outcome as the JSON output shows it."""
    return {
        **_pick(outcome, SUMMARY_KEYS),
        "candidates": [_pick(answer, ANSWER_KEYS) for answer in outcome["answers"]],
        "latency_ms": outcome["latency_ms"],
    }


def _pick(source: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: source[key] for key in keys}


def _show(prompt: dict[str, Any], outcome: Mapping[str, Any]) -> None:
    """Print a prompt, its members' answers and its outcome."""
    print(f"\n━━ {outcome['custom_id']} · {outcome['mode']} " + "━" * 40)
    print(_wrap("asked", prompt["prompt"]))
    for answer in outcome["answers"]:
        took = f"{answer['latency_ms'] / 1000:.1f} s" if answer["latency_ms"] else "–"
        mark = "→" if answer["is_winner"] else " "
        reply = _answer_line(answer) or answer["error_code"]
        reply = reply or ABSENT.get(outcome["closed_by"], answer["status"])
        print(_wrap(f"{mark} {answer['member']}", f"{reply} [{took}]"))
    if outcome["is_degraded"]:
        print(_wrap("degraded", ", ".join(outcome["degraded_reasons"])))
    seconds = outcome["latency_ms"] / 1000
    print(
        _wrap(outcome["status"], f"{_how(outcome)}: {outcome['reason']} [{seconds:.1f} s in all]")
    )
    if not outcome["winner"]:
        print(_wrap("answer", _answer_line(outcome)))


def _how(outcome: Mapping[str, Any]) -> str:
    """How the answer came about."""
    if outcome["winner"]:
        return f"{outcome['winner']} won"
    return "voted" if outcome["tool_calls"] else "merged"


def _compare(outcomes: Sequence[Mapping[str, Any]], score: dict[str, Any]) -> None:
    """Print who was right, and what fusing gained or lost against its best member."""
    print("\nWho was right:\n")
    known_ids, fused_ids = score["known"], score["fused"]
    members: dict[str, list[str]] = score["members"]
    by_id = {outcome["custom_id"]: outcome for outcome in outcomes}
    columns = [*members.values(), fused_ids]
    lines: list[list[str]] = []
    for custom_id in known_ids:
        marks = ["yes" if custom_id in right_ids else "-" for right_ids in columns]
        lines.append([custom_id, *marks, _way(by_id[custom_id])])
    lines.append(["right", *(str(len(right_ids)) for right_ids in columns), ""])
    rows(["prompt", *members, "fused", "by"], lines, RowFormat.table)
    best = max(members, key=lambda name: len(members[name]))
    _show_gain(best, members[best], fused_ids, len(known_ids))


def _show_gain(
    best: str, best_ids: Sequence[str], fused_ids: Sequence[str], known_count: int
) -> None:
    """Print what fusing gained or lost against its best member."""
    gained_ids = [custom_id for custom_id in fused_ids if custom_id not in best_ids]
    lost_ids = [custom_id for custom_id in best_ids if custom_id not in fused_ids]
    print(
        f"\nFusing was right {len(fused_ids)} times of {known_count}; "
        f"the best member by itself, {best}, {len(best_ids)} times."
    )
    gain, loss = ", ".join(gained_ids) or "none", ", ".join(lost_ids) or "none"
    print(f"  gained by fusing: {gain}; lost: {loss}")


def _way(outcome: Mapping[str, Any]) -> str:
    """What chose the answer."""
    if outcome["tool_calls"]:
        return "vote on each argument"
    if outcome["status"] == "voted":
        return "vote"
    return "judge" if outcome["winner"] else "merge"


def _show_rules(outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Print in which prompts fusion's own rules were at work; also where in none."""
    early_votes = [o for o in outcomes if o["closed_by"] in ("certain", "likely")]
    merges = [outcome for outcome in outcomes if outcome["guard"]]
    good_ids = [_id(outcome) for outcome in merges if outcome["guard"] == "passed"]
    refusals = [f"{_id(o)} ({o['guard']})" for o in merges if o["guard"] != "passed"]
    debates = [outcome for outcome in outcomes if outcome["mode"] == "debate"]
    print("\nWhat to look for above:")
    _show_list("votes that did not wait for the last member", map(_id, early_votes))
    _show_list("merges that held their own against the best single answer", good_ids)
    _show_list("merges that the guard refused", refusals)
    _show_list(
        f"debates, of {len(debates)}, in which somebody named an error and changed its answer",
        map(_id, filter(_has_revision, debates)),
    )


def _show_list(label: str, entries: Iterable[str]) -> None:
    print(f"  {label}: {', '.join(entries) or 'none'}")


def _id(outcome: Mapping[str, Any]) -> str:
    custom_id: str = outcome["custom_id"]
    return custom_id


def _has_revision(outcome: Mapping[str, Any]) -> bool:
    """Whether a member gave a new answer in a later round."""
    return any(answer["round"] for answer in outcome["answers"])


def _answer_line(answer: Mapping[str, Any]) -> str:
    """An answer's text or calls on one line, cut to what can be read at a glance."""
    calls = ", ".join(f"{call['name']}({call['arguments']})" for call in answer["tool_calls"])
    line = " ".join((answer["content"] or calls).split())
    return line if len(line) <= SHOWN_CHARS else line[:SHOWN_CHARS] + " …"


def _wrap(label: str, text: str) -> str:
    """A label and a text, broken into lines with a hanging indent."""
    lead = f"{label:>16}  "
    line = " ".join(text.split())
    return textwrap.fill(line, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead))


def _next_steps() -> None:
    command = Path(sys.argv[0])
    name = command.name if command.is_absolute() and command.parent.name != "bin" else str(command)
    print("\nEverything above is stored. Three things to try next:")
    for step in NEXT:
        print(f"  {name} {step}")
