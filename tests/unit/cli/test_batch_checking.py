import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fusewire.contracts import Prompt
from fusewire_cli.batch.checking import CheckReport, LineRules, check
from fusewire_cli.batch.custom_ids import Ids, new_ids
from fusewire_ingest.admission.admit import PoolRule
from fusewire_ingest.admission.model_names import ModelNames

SAID = [{"role": "user", "content": "hello"}]
POOLS = {
    name: PoolRule("best-of", "any", 60, 3600, ModelNames.of({"gpt": None, "opus": None}))
    for name in ("default", "other")
}


def rules(**more: Any) -> LineRules:
    return LineRules(
        **{
            "pools": POOLS,
            "limit": 2000,
            "now": datetime(2026, 1, 1, tzinfo=UTC),
            "most_lines": 100,
            **more,
        }
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: dict[str, Any] | str) -> Path:
        path = tmp_path / "in.jsonl"
        path.write_text(
            "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        )
        return path

    return write


def faults(report: CheckReport) -> list[tuple[int, str | None]]:
    return [(fault.line, fault.path) for fault in report.faults]


def test_each_form_is_told_by_its_line(write: Callable[..., Path]) -> None:
    path = write(
        {
            "custom_id": "o",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "gpt", "messages": SAID},
        },
        {"custom_id": "m", "body": {"messages": SAID}},
        {"custom_id": "a", "params": {"model": "fusion", "max_tokens": 5, "messages": SAID}},
        {"custom_id": "b", "prompt": "hello"},
        "",
        {"messages": SAID, "pool": "other"},
    )
    prompts: list[Prompt] = []
    with new_ids() as ids:
        report = check(path, rules(), ids, prompts.append)
        assert [ids.line(name) for name in ("o", "m", "a", "b", "line-6", "line-5")] == [
            1,
            2,
            3,
            4,
            6,
            None,
        ]
        assert ids.up_to(4) == 4
    assert (report.n_faults, report.count, report.count_without_id) == (0, 5, 1)
    assert report.forms == {"openai": 1, "mistral": 1, "anthropic": 1, "bare": 2}
    assert report.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [prompt.custom_id for prompt in prompts] == ["o", "m", "a", "b", "line-6"]
    assert [prompt.pool for prompt in prompts] == ["default"] * 4 + ["other"]
    assert prompts[0].members == ("gpt",)


def test_options_count_where_a_line_says_nothing(write: Callable[..., Path]) -> None:
    prompts: list[Prompt] = []
    path = write({"prompt": "one"}, {"prompt": "two", "pool": "default", "mode": "debate"})
    with new_ids() as ids:
        check(path, rules(pool="other", mode="merge"), ids, prompts.append)
    assert [(prompt.pool, prompt.mode) for prompt in prompts] == [
        ("other", "merge"),
        ("default", "debate"),
    ]


def test_all_faults_are_counted_and_the_first_are_kept(write: Callable[..., Path]) -> None:
    path = write(
        {"custom_id": "x", "prompt": "one"},
        {"custom_id": "x", "prompt": "two"},
        "nonsense",
        {"prompt": "one", "pool": "gone"},
        {"prompt": "one", "mode": "gone"},
        {"prompt": "one", "members": ["gone"]},
        {"prompt": "x" * 3000},
        {"custom_id": "line-9", "prompt": "the next has no id"},
        {"prompt": "so it is called after its line"},
        *[{"prompt": None}] * 50,
    )
    with new_ids() as ids:
        report = check(path, rules(), ids)
    assert faults(report)[:7] == [
        (2, "custom_id"),
        (3, None),
        (4, "pool"),
        (5, "mode"),
        (6, "members"),
        (7, None),
        (9, "custom_id"),
    ]
    assert (len(report.faults), report.n_faults) == (20, 57)
    assert (
        str(report.faults[0])
        == "line 2, custom_id: 'x' stands in line 1 already; give each line its own"
    )


def test_a_batch_has_not_more_lines_than_it_may(write: Callable[..., Path]) -> None:
    path = write(*[{"prompt": "one"}] * 4)
    with new_ids() as ids:
        assert check(path, rules(most_lines=4), ids).n_faults == 0
    with new_ids() as ids:
        assert faults(check(path, rules(most_lines=3), ids)) == [(4, None)]


def test_what_another_fusewire_may_know_is_left_to_it(write: Callable[..., Path]) -> None:
    path = write(
        {"custom_id": "p", "prompt": "one", "pool": "theirs"},
        {"custom_id": "m", "prompt": "one", "members": ["theirs"]},
        {"custom_id": "p", "prompt": "again", "pool": "theirs"},
        {"prompt": "one", "mode": "none"},
    )
    with new_ids() as ids:
        assert faults(check(path, rules(is_elsewhere=True), ids)) == [(3, "custom_id"), (4, "mode")]
        assert [ids.line("p"), ids.line("m")] == [1, 2]


def test_what_is_asked_and_not_done_is_counted(write: Callable[..., Path]) -> None:
    fusion = {"type": "openrouter:fusion", "parameters": {"max_tool_calls": 3}}
    path = write(
        *[{"body": {"model": "fusion", "messages": SAID, "tools": [fusion]}}] * 2, {"prompt": "one"}
    )
    with new_ids() as ids:
        report = check(path, rules(), ids)
    assert report.n_faults == 0
    assert list(report.warnings.values()) == [2]


def test_ids_are_taken_once() -> None:
    ids = Ids()
    assert [ids.add("a", 1), ids.add("b", 2), ids.add("a", 3)] == [None, None, 1]
    ids.close()
