"""Recorded answers, read from the layout of `fusewire eval run`: suite.jsonl and replay.jsonl."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusewire.contracts import Gold, Message, RecordedAnswer
from fusewire_cli.eval.suite import slug
from fusewire_judge.scoring.gold import is_right

HERE = Path(__file__).parent
SUITE, REPLAY, MARGINS = "suite.jsonl", "replay.jsonl", "margins.jsonl"
OPEN, OPEN_REPLAY = "open.jsonl", "open-replay.jsonl"

Line = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A prompt, and what each member answered."""

    custom_id: str
    messages: tuple[Message, ...]
    gold: Gold | None
    answers: tuple[RecordedAnswer, ...]
    schema: Mapping[str, Any] | None = None
    marked: Mapping[str, bool] = field(default_factory=dict)
    """By member, whether the data's own authors called it right; empty if they did not say."""
    logprobs: Mapping[str, float] = field(default_factory=dict)
    """By answer, how probable a judge found it; empty if none was asked."""

    @property
    def kind(self) -> str:
        """The kind of prompt, which begins its id."""
        return self.custom_id.rpartition("-")[0] or "all"

    def answer(self, member: str) -> str | None:
        """What a member answered; None if it failed."""
        return next((a.content for a in self.answers if a.member == member), None)

    def is_right(self, member: str) -> bool:
        """Whether a member is right."""
        if self.marked:
            return self.marked.get(member, False)
        return self.gold is not None and is_right(self.answer(member), self.gold)


def read(path: Path) -> list[Line]:
    """The lines of a JSONL file; none if there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def load(folder: Path, suite: str = SUITE, replay: str = REPLAY) -> list[Question]:
    """The prompts of a folder that every member answered, or failed at.

    Raises:
        FileNotFoundError: the folder has no such suite or replay.
    """
    for name in (suite, replay):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder} has no {name}; give a folder with a suite and replay"
            )
    by_id: dict[str, list[Line]] = {}
    for line in read(folder / replay):
        by_id.setdefault(line["custom_id"], []).append(line)
    members = {line["model"] for lines in by_id.values() for line in lines}
    logprobs = {line["custom_id"]: line["logprobs"] for line in read(folder / MARGINS)}
    questions = []
    for line in read(folder / suite):
        own = by_id.get(line["custom_id"], [])
        if {answer["model"] for answer in own} == members:
            questions.append(_question(line, own, logprobs.get(line["custom_id"], {})))
    return questions


def _question(
    line: Mapping[str, Any], answers: Sequence[Line], logprobs: Mapping[str, float]
) -> Question:
    has_gold = "match" in line
    turns = line.get("messages") or [{"role": "user", "content": line["prompt"]}]
    by_member = {
        _member(answer): answer for answer in sorted(answers, key=lambda a: str(a["model"]))
    }
    return Question(
        custom_id=line["custom_id"],
        messages=tuple(Message(**turn) for turn in turns),
        gold=Gold(answer=line["answer"], match=line["match"]) if has_gold else None,
        answers=tuple(_recorded(member, answer) for member, answer in by_member.items()),
        schema=line.get("response_schema"),
        marked={m: bool(a["is_correct"]) for m, a in by_member.items() if "is_correct" in a},
        logprobs={
            text: logprobs[m]
            for m, a in by_member.items()
            if m in logprobs and (text := a.get("content"))
        },
    )


def _member(line: Line) -> str:
    return slug(line["model"]) or line["model"]


def _recorded(member: str, line: Line) -> RecordedAnswer:
    return RecordedAnswer(
        member=member,
        model=member,
        content=line.get("content"),
        error_code=line.get("error_code"),
    )
