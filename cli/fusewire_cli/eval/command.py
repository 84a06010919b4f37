"""`fusewire eval run`."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fusewire.settings import Pool, Settings, find_file
from fusewire_cli.client import Client
from fusewire_cli.eval import table, weighing
from fusewire_cli.eval.asking import (
    Target,
    is_equally_weighed,
    replies,
    scored_outcome,
    scored_reply,
)
from fusewire_cli.eval.suite import (
    LineFault,
    MemberReply,
    Question,
    Replay,
    check,
    read_replay,
    read_suite,
)
from fusewire_cli.eval.table import Kind, Score
from fusewire_cli.fusing import fuse, run
from fusewire_cli.local.run_file import running
from fusewire_cli.screen import RowFormat, fail, note, rows
from fusewire_cli.session import client, settings
from fusewire_ingest.admission.admit import RefusedError, Submission, parse
from fusewire_ingest.admission.rules import pool_rules

MOST_FAULTS = 50
"""Faults that are told one by one."""


@dataclass
class Evaluation:
    """One run: what it asks, and what it has so far."""

    target: Target
    questions: list[Question]
    modes: list[str]
    window: int
    titles: dict[str, str] = field(default_factory=dict)
    said: dict[str, list[MemberReply]] = field(default_factory=dict)
    first: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Outcomes of asking the members, where they were asked."""
    notes: list[str] = field(default_factory=list)

    async def run(self, api: Client) -> dict[tuple[str, Kind], list[Score]]:
        """Ask what must be asked; the scores of each row of fusions."""
        if not self.said:
            await self._ask(api)
        scores: dict[tuple[str, Kind], list[Score]] = {}
        for mode in self.modes:
            if mode == "best-of":
                equal = await self._fuse(api, "best-of, equal weights", mode, {})
                scores["best-of, equal weights", "best-of-equal"] = self._scores(equal)
                name, weights = "best-of, learned weights", self._learned()
                learned = await self._fuse(api, name, mode, weights, same=equal)
                scores[name, "best-of-learned"] = self._scores(learned)
            else:
                fused = await self._fuse(api, mode, mode, {})
                scores[mode, "merge" if mode == "merge" else "debate"] = self._scores(fused)
        return scores

    def members(self) -> dict[str, list[Score]]:
        """By member's title, its scores in the order of the questions."""
        found = {}
        for member, title in self.titles.items():
            said = [
                next(
                    (r for r in self.said.get(q.custom_id, ()) if r.recorded.member == member), None
                )
                for q in self.questions
            ]
            found[title] = [
                scored_reply(q, reply) for q, reply in zip(self.questions, said, strict=True)
            ]
            if absent := said.count(None):
                self.notes.append(
                    f"{title} has no answer to {absent} questions; they count as wrong."
                )
        return found

    async def _ask(self, api: Client) -> None:
        mode = self.modes[0]
        note(f"asking every member {len(self.questions)} questions")
        bodies = {q.custom_id: self.target.first(q, mode) for q in self.questions}
        self.first = await fuse(api, self.target.batch(bodies.values(), mode), bodies, self.window)
        self.said = {key: replies(outcome) for key, outcome in self.first.items()}
        names = [r.recorded.member for q in self.questions for r in self.said[q.custom_id]]
        self.titles = {name: name for name in names}
        if not self.titles:
            fail(
                "no member was asked",
                "see what `fusewire query` says of the outcomes: select error from v_outcome",
            )

    async def _fuse(
        self,
        api: Client,
        name: str,
        mode: str,
        weights: Mapping[str, Mapping[str, float]],
        *,
        same: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, Mapping[str, Any]]:
        """Fuse the answers again, save where an outcome of the same answers and weights is there already.

        Args:
            api: the service.
            name: of the row.
            mode: how.
            weights: by custom_id, the members' weights; without one, all are 1.
            same: outcomes of this mode with equal weights.
        """
        found: dict[str, Mapping[str, Any]] = {}
        bodies: dict[str, str] = {}
        for question in self.questions:
            key = question.custom_id
            mine = weights.get(key, {})
            if same and len(set(mine.values())) < 2:
                found[key] = same[key]
            elif mode == self.modes[0] and not mine and is_equally_weighed(self.first.get(key, {})):
                found[key] = self.first[key]
            elif self.said[key]:
                bodies[key] = self.target.again(question, mode, self.said[key], mine)
            else:
                found[key] = self.first[key]
        if bodies:
            note(f"{name}: fusing {len(bodies)} questions' answers")
            found |= await fuse(api, self.target.batch(bodies.values(), mode), bodies, self.window)
        reasons = Counter(
            reason for one in found.values() for reason in one.get("degraded_reasons", ())
        )
        if reasons:
            listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            self.notes.append(f"{name}: why outcomes are degraded: {listed}.")
        return found

    def _learned(self) -> dict[str, dict[str, float]]:
        labelled = [weighing.label(q, self.said[q.custom_id]) for q in self.questions]
        by_fold = weighing.crossed(labelled)
        spans = [
            f"{title} {min(w.get(m, 1.0) for w in by_fold):.2f} to {max(w.get(m, 1.0) for w in by_fold):.2f}"
            for m, title in self.titles.items()
        ]
        self.notes.append(
            f"Learned weights: from the labels of the other {weighing.FOLDS - 1} of {weighing.FOLDS} folds: "
            + ", ".join(spans)
            + "."
        )
        return {
            q.custom_id: by_fold[one.fold] for q, one in zip(self.questions, labelled, strict=True)
        }

    def _scores(self, outcomes: Mapping[str, Mapping[str, Any]]) -> list[Score]:
        return [
            scored_outcome(q, outcomes[q.custom_id], self.said[q.custom_id]) for q in self.questions
        ]


def run_suite(
    suite: Path,
    replay: Path | None,
    *,
    pool: str | None,
    modes: Sequence[str] | None,
    judge: str | None,
    as_json: bool,
    window: int,
) -> None:
    """Evaluate a pool, or answers that were recorded earlier, on labelled questions."""
    config = settings()
    chosen = list(dict.fromkeys(modes or ["best-of"]))
    name = pool or "default"
    said: list[str] = []
    if replay and find_file() is None and running(config) is None:
        config, said = bent(config, name, judge)
    questions, recorded = _read(config, suite, replay, name, chosen, judge)
    evaluation = Evaluation(
        Target(name, judge, config.config_hash(name)), questions, chosen, window, notes=said
    )
    if recorded:
        evaluation.titles, evaluation.said = recorded.titles, recorded.replies
        config = needed(config, name, judge, chosen)

    async def main() -> dict[tuple[str, Kind], list[Score]]:
        async with client(config) as api:
            return await evaluation.run(api)

    scores = run(main())
    members = evaluation.members()
    found = table.build(members, scores)
    notes = table.notes(found, table.best_member(members)) + evaluation.notes
    if as_json:
        shown = {"suite": str(suite), "n": len(questions), "pool": name, "modes": chosen}
        print(
            json.dumps({**shown, "rows": table.as_json(found), "notes": notes}, ensure_ascii=False)
        )
    else:
        rows(table.COLUMNS, [table.cells(row) for row in found], RowFormat.table)
        print("\n" + "\n".join(notes))


def bent(config: Settings, name: str, judge: str | None) -> tuple[Settings, list[str]]:
    """The built-in configuration, so that it serves a replay on a machine without its model.

    A pool that it does not have is one without a judge, and a judge that is not on this machine is none.

    Returns:
        It, and what the reader must be told.
    """
    pool = config.pools.get(name) or Pool.model_construct(members=())
    absent = {
        key
        for key, model in config.models.items()
        if model.kind == "edge" and not model.path.is_dir()
    }
    said = []
    if judge is None and absent & set(pool.judges):
        pool = pool.model_copy(update={"judge": None, "jury": ()})
    if judge is None and not pool.judges:
        said.append("There is no judge: closed answers are voted, open ones chosen by similarity.")
    return config.model_copy(update={"pools": {**config.pools, name: pool}}), said


def needed(config: Settings, name: str, judge: str | None, modes: Sequence[str]) -> Settings:
    """The configuration with only what a replay may call: a model that is not here need not be, if nobody asks it."""
    pool = config.pools[name]
    members = pool.members if "debate" in modes else ()
    used = {*((judge,) if judge else pool.judges), *(member.model for member in members)}
    models = {key: model for key, model in config.models.items() if key in used}
    kept = pool.model_copy(
        update={"members": members, **({"judge": judge, "jury": ()} if judge else {})}
    )
    return config.model_copy(update={"models": models, "pools": {name: kept}})


def _read(
    config: Settings,
    suite: Path,
    replay: Path | None,
    pool: str,
    modes: Sequence[str],
    judge: str | None,
) -> tuple[list[Question], Replay | None]:
    """Both files, wholly checked.

    Raises:
        SystemExit: something is wrong with them, or with what is to be done with them.
    """
    rules = pool_rules(config)
    try:
        for mode in modes:
            check(Submission(prompt="-", pool=pool, mode=mode, judge=judge), rules)
    except RefusedError as exc:
        fail(exc.message)
    limit = config.limits.prompt_bytes
    questions, faults = read_suite(
        _bytes(suite), str(suite), pool=pool, mode=modes[0], judge=judge, pools=rules, limit=limit
    )
    recorded = None
    if replay:
        models = {member.name: member.model for member in config.pools[pool].members}
        recorded, more = read_replay(
            _bytes(replay), str(replay), questions, suite=str(suite), models=models
        )
        faults += more
        target = Target(pool, judge, "")
        for question in questions:
            try:
                parse(
                    target.again(question, modes[0], recorded.replies[question.custom_id], {}),
                    limit,
                )
            except RefusedError as exc:
                faults.append(
                    LineFault(
                        str(suite), question.line, f"with its recorded answers, {exc.message}"
                    )
                )
    if faults:
        _refuse(faults)
    return questions, recorded


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        fail(f"{path} cannot be read: {exc.strerror}")


def _refuse(faults: Sequence[LineFault]) -> NoReturn:
    for fault in faults[:MOST_FAULTS]:
        note(str(fault))
    if len(faults) > MOST_FAULTS:
        note(f"… and {len(faults) - MOST_FAULTS} more")
    fail(
        f"{len(faults)} faults; nothing was asked",
        "mend the lines named above, and run the same command again",
    )
