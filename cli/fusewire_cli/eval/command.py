"""`fusewire eval run`: measure a pool on labelled questions."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, cast

from fusewire.configuration import find_file
from fusewire.settings import Pool, Settings
from fusewire_cli.client import Client
from fusewire_cli.eval import routing, table, weighing
from fusewire_cli.eval.asking import (
    Target,
    is_equally_weighed,
    read_replies,
    score_outcome,
    score_reply,
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
from fusewire_ingest.admission.admit import PoolRule, RefusedError, Submission, parse
from fusewire_ingest.admission.rules import pool_rules

MOST_FAULTS = 50
"""The most faults that are printed one by one."""


@dataclass
class Evaluation:
    """One evaluation: its questions, and its replies and outcomes so far."""

    target: Target
    questions: list[Question]
    modes: list[str]
    window: int
    titles: dict[str, str] = field(default_factory=dict)
    """By member, its name in the table."""
    replies: dict[str, list[MemberReply]] = field(default_factory=dict)
    """By custom_id, the members' replies."""
    first_outcomes: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """By custom_id, the outcomes of asking the members; empty if the replies were recorded."""
    notes: list[str] = field(default_factory=list)
    route_loss: float | None = None
    """What a learned route may lose, 0 to 1; None where none is measured."""

    async def run(self, api: Client) -> dict[tuple[str, Kind], list[Score]]:
        """Ask the members, if that was not done, and fuse. Returns the scores by row."""
        if not self.replies:
            await self._ask(api)
        scores: dict[tuple[str, Kind], list[Score]] = {}
        for mode in self.modes:
            if mode == "best-of":
                scores |= await self._run_best_of(api)
            else:
                outcomes = await self._fuse(api, mode, mode, {})
                scores[mode, cast("Kind", mode)] = self._scores(outcomes)
        return scores

    async def _run_best_of(self, api: Client) -> dict[tuple[str, Kind], list[Score]]:
        """Fuse with equal weights, and with weights learned from the other folds."""
        equal_name, learned_name = "best-of, equal weights", "best-of, learned weights"
        equal_outcomes = await self._fuse(api, equal_name, "best-of", {})
        routed_scores = await self._run_route(api, equal_outcomes)
        weights = self._learn_weights()
        learned_outcomes = await self._fuse(
            api, learned_name, "best-of", weights, equal_outcomes=equal_outcomes
        )
        return {
            (equal_name, "best-of-equal"): self._scores(equal_outcomes),
            (learned_name, "best-of-learned"): self._scores(learned_outcomes),
            **routed_scores,
        }

    async def _run_route(
        self, api: Client, equal_outcomes: Mapping[str, Mapping[str, Any]]
    ) -> dict[tuple[str, Kind], list[Score]]:
        """Fuse the replies of those that a route learned from the other folds would ask."""
        if self.route_loss is None:
            return {}
        name = "best-of, learned route"
        all_scores = self._scores(equal_outcomes)
        routed_questions = [
            routing.RoutedQuestion(
                question.prompt,
                weighing.label(question, self.replies[question.custom_id]),
                self.replies[question.custom_id],
                score.is_right,
            )
            for question, score in zip(self.questions, all_scores, strict=True)
        ]
        choices = routing.choose_members(routed_questions, tuple(self.titles), loss=self.route_loss)
        replies = {
            question.custom_id: _only(self.replies[question.custom_id], choice)
            for question, choice in zip(self.questions, choices, strict=True)
        }
        evaluation = replace(self, replies=replies, first_outcomes={})
        outcomes = await evaluation.fuse_others(api, name, equal_outcomes, self.replies)
        scores = evaluation._scores(outcomes)  # noqa: SLF001 - it is another of this class
        self.notes.append(routing.note(choices, self.titles, scores, all_scores))
        return {(name, "best-of-route"): scores}

    async def fuse_others(
        self,
        api: Client,
        name: str,
        outcomes: Mapping[str, Mapping[str, Any]],
        replies: Mapping[str, Sequence[MemberReply]],
    ) -> dict[str, Mapping[str, Any]]:
        """Fuse the replies with equal weights, except those of which the outcomes are known.

        Args:
            api: the service.
            name: of the row.
            outcomes: by custom_id, of other replies.
            replies: by custom_id, those that they were made of.
        """
        changed_questions = [
            q for q in self.questions if self.replies[q.custom_id] != replies[q.custom_id]
        ]
        new_outcomes = {}
        if changed_questions:
            evaluation = replace(self, questions=changed_questions)
            new_outcomes = await evaluation._fuse(api, name, "best-of", {})  # noqa: SLF001 - of this class
        return {**outcomes, **new_outcomes}

    def members(self) -> dict[str, list[Score]]:
        """By member's title, its scores in the order of the questions."""
        scores = {}
        for member, title in self.titles.items():
            replies = [self._find_reply(question, member) for question in self.questions]
            scores[title] = list(map(score_reply, self.questions, replies))
            if absent := replies.count(None):
                self.notes.append(
                    f"{title} has no answer to {absent} questions; they count as wrong."
                )
        return scores

    def _find_reply(self, question: Question, member: str) -> MemberReply | None:
        for reply in self.replies.get(question.custom_id, ()):
            if reply.recorded.member == member:
                return reply
        return None

    async def _ask(self, api: Client) -> None:
        mode = self.modes[0]
        note(f"asking every member {len(self.questions)} questions")
        bodies = {q.custom_id: self.target.ask_body(q, mode) for q in self.questions}
        batch = self.target.batch(bodies.values(), mode)
        self.first_outcomes = await fuse(api, batch, bodies, self.window)
        self.replies = {
            custom_id: read_replies(outcome) for custom_id, outcome in self.first_outcomes.items()
        }
        self.titles = {}
        for question in self.questions:
            for reply in self.replies[question.custom_id]:
                self.titles[reply.recorded.member] = reply.recorded.member
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
        equal_outcomes: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, Mapping[str, Any]]:
        """Fuse the replies, except where the same replies and weights have an outcome already.

        Args:
            api: the service.
            name: of the row.
            mode: best-of, merge, debate or verify.
            weights: by custom_id, the members' weights; without them, all are 1.
            equal_outcomes: outcomes of this mode with equal weights.
        """
        outcomes: dict[str, Mapping[str, Any]] = {}
        bodies: dict[str, str] = {}
        for question in self.questions:
            key = question.custom_id
            question_weights = weights.get(key, {})
            outcome = self._find_outcome(key, mode, question_weights, equal_outcomes or {})
            if outcome is None:
                bodies[key] = self.target.fuse_body(
                    question, mode, self.replies[key], question_weights
                )
            else:
                outcomes[key] = outcome
        if bodies:
            note(f"{name}: fusing {len(bodies)} questions' answers")
            batch = self.target.batch(bodies.values(), mode)
            outcomes |= await fuse(api, batch, bodies, self.window)
        self._note_degraded(name, outcomes.values())
        return outcomes

    def _find_outcome(
        self,
        custom_id: str,
        mode: str,
        weights: Mapping[str, float],
        equal_outcomes: Mapping[str, Mapping[str, Any]],
    ) -> Mapping[str, Any] | None:
        """The outcome that fusing a question's replies would give, if there is one already."""
        if equal_outcomes and len(set(weights.values())) < 2:
            return equal_outcomes[custom_id]
        if mode == self.modes[0] and not weights:
            outcome = self.first_outcomes.get(custom_id, {})
            if is_equally_weighed(outcome):
                return outcome
        # Without a reply there is nothing to fuse: the question failed as a whole.
        return None if self.replies[custom_id] else self.first_outcomes[custom_id]

    def _note_degraded(self, name: str, outcomes: Iterable[Mapping[str, Any]]) -> None:
        reasons: Counter[str] = Counter()
        for outcome in outcomes:
            reasons.update(outcome.get("degraded_reasons", ()))
        if reasons:
            counts = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            self.notes.append(f"{name}: why outcomes are degraded: {counts}.")

    def _learn_weights(self) -> dict[str, dict[str, float]]:
        """By custom_id, the members' weights as learned from the other folds; notes their spans."""
        labels_by_question = [weighing.label(q, self.replies[q.custom_id]) for q in self.questions]
        by_fold = weighing.cross_validate(labels_by_question)
        spans = []
        for member, title in self.titles.items():
            weights = [fold_weights.get(member, 1.0) for fold_weights in by_fold]
            spans.append(f"{title} {min(weights):.2f} to {max(weights):.2f}")
        folds = f"the other {weighing.FOLDS - 1} of {weighing.FOLDS} folds"
        self.notes.append(f"Learned weights: from the labels of {folds}: {', '.join(spans)}.")
        return {
            question.custom_id: by_fold[labels.fold]
            for question, labels in zip(self.questions, labels_by_question, strict=True)
        }

    def _scores(self, outcomes: Mapping[str, Mapping[str, Any]]) -> list[Score]:
        return [
            score_outcome(question, outcomes[question.custom_id], self.replies[question.custom_id])
            for question in self.questions
        ]


def _only(replies: Iterable[MemberReply], members: Collection[str]) -> list[MemberReply]:
    """The replies of some members."""
    return [reply for reply in replies if reply.recorded.member in members]


def _route_loss(config: Settings, pool: str, modes: Collection[str]) -> float:
    """What a learned route of a pool may lose, 0 to 1."""
    if "best-of" not in modes:
        fail("--route measures best-of", "add --mode best-of, or leave --route out")
    return config.pools[pool].route_loss_points / 100


def run_suite(
    suite: Path,
    replay: Path | None,
    *,
    pool: str | None,
    modes: Sequence[str] | None,
    judge: str | None,
    as_json: bool,
    window: int,
    has_route: bool = False,
) -> None:
    """Evaluate a pool, or answers that were recorded earlier, on labelled questions."""
    config = settings()
    all_modes = list(dict.fromkeys(modes or ["best-of"]))
    name = pool or "default"
    notes: list[str] = []
    if replay and find_file() is None and running(config) is None:
        config, notes = replay_config(config, name, judge)
    questions, recorded = _read(config, suite, replay, name, all_modes, judge)
    target = Target(name, judge, config.config_hash(name))
    evaluation = Evaluation(target, questions, all_modes, window, notes=notes)
    evaluation.route_loss = _route_loss(config, name, all_modes) if has_route else None
    if recorded:
        evaluation.titles, evaluation.replies = recorded.titles, recorded.replies
        config = restrict(config, name, judge, all_modes)

    async def main() -> dict[tuple[str, Kind], list[Score]]:
        async with client(config) as api:
            return await evaluation.run(api)

    scores = run(main())
    members = evaluation.members()
    table_rows = table.build(members, scores)
    all_notes = table.notes(table_rows, table.best_member(members)) + evaluation.notes
    if as_json:
        report = {
            "suite": str(suite),
            "n": len(questions),
            "pool": name,
            "modes": all_modes,
            "rows": table.as_json(table_rows),
            "notes": all_notes,
        }
        print(json.dumps(report, ensure_ascii=False))
    else:
        rows(table.COLUMNS, [table.cells(row) for row in table_rows], RowFormat.table)
        print("\n" + "\n".join(all_notes))


def replay_config(config: Settings, name: str, judge: str | None) -> tuple[Settings, list[str]]:
    """The built-in configuration, changed so that it serves a replay without its models.

    A pool that it does not have becomes one without a judge. A judge whose model is not on this
    machine is left out.

    Returns:
        The configuration, and notes for the reader of the table.
    """
    pool = config.pools.get(name) or Pool.model_construct(members=())
    absent = {
        key
        for key, model in config.models.items()
        if model.kind == "edge" and not model.path.is_dir()
    }
    notes = []
    if judge is None and absent & set(pool.judges):
        pool = pool.model_copy(update={"judge": None, "jury": ()})
    if judge is None and not pool.judges:
        notes.append("There is no judge: closed answers are voted, open ones chosen by similarity.")
    return config.model_copy(update={"pools": {**config.pools, name: pool}}), notes


def restrict(config: Settings, name: str, judge: str | None, modes: Sequence[str]) -> Settings:
    """The configuration with only the models that a replay may call.

    Other models then need not be on this machine.
    """
    pool = config.pools[name]
    members = pool.members if "debate" in modes else ()
    callable_names = {judge} if judge else set(pool.judges)
    callable_names |= {member.model for member in members}
    models = {key: model for key, model in config.models.items() if key in callable_names}
    update: dict[str, Any] = {"members": members}
    if judge:
        update |= {"judge": judge, "jury": ()}
    pools = {name: pool.model_copy(update=update)}
    return config.model_copy(update={"models": models, "pools": pools})


def _read(
    config: Settings,
    suite: Path,
    replay: Path | None,
    pool: str,
    modes: Sequence[str],
    judge: str | None,
) -> tuple[list[Question], Replay | None]:
    """Read and check the suite and the replay.

    Raises:
        SystemExit: a file has faults, or the pool, a mode or the judge is refused.
    """
    rules = pool_rules(config)
    _check_modes(rules, pool, modes, judge)
    limit = config.limits.prompt_bytes
    questions, faults = read_suite(
        _bytes(suite), str(suite), pool=pool, mode=modes[0], judge=judge, pools=rules, limit=limit
    )
    recorded = None
    if replay:
        models = {member.name: member.model for member in config.pools[pool].members}
        recorded, replay_faults = read_replay(
            _bytes(replay), str(replay), questions, suite=str(suite), models=models
        )
        faults += replay_faults
        target = Target(pool, judge, "")
        for question in questions:
            body = target.fuse_body(question, modes[0], recorded.replies[question.custom_id], {})
            if reason := _refusal(body, limit):
                what = f"with its recorded answers, {reason}"
                faults.append(LineFault(str(suite), question.line, what))
    if faults:
        _refuse(faults)
    return questions, recorded


def _check_modes(
    rules: Mapping[str, PoolRule], pool: str, modes: Sequence[str], judge: str | None
) -> None:
    try:
        for mode in modes:
            check(Submission(prompt="-", pool=pool, mode=mode, judge=judge), rules)
    except RefusedError as exc:
        fail(exc.message)


def _refusal(body: str, limit: int) -> str | None:
    """Why a submission would be refused; None if it would not."""
    try:
        parse(body, limit)
    except RefusedError as exc:
        return exc.message
    return None


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
