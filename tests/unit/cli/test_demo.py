"""The demo: its prompts and pools are whole, and its table tells who was right."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fusewire.settings import Settings
from fusewire_cli import builtin, demo
from fusewire_worker_edge.catalogue import CATALOGUE
from fusewire_worker_edge.folder import MANIFEST


def answer(
    member: str, *, is_right: bool | None, calls: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    return {"member": member, "is_right": is_right, "tool_calls": calls or []}


def call(city: str) -> list[dict[str, Any]]:
    return [{"name": "get_weather", "arguments": json.dumps({"city": city})}]


def test_who_was_right_is_told_by_label_and_for_calls_by_what_is_called() -> None:
    prompts: list[dict[str, Any]] = [
        {"custom_id": "one", "gold": {}},
        {"custom_id": "weather"},
        {"custom_id": "open"},
    ]
    outcomes: list[dict[str, Any]] = [
        {
            "custom_id": "one",
            "accepted": True,
            "tool_calls": [],
            "answers": [answer("a", is_right=False), answer("b", is_right=True)],
        },
        {
            "custom_id": "weather",
            "accepted": None,
            "tool_calls": call("Lima"),
            "answers": [
                answer("a", is_right=None, calls=call("Lima")),
                answer("b", is_right=None, calls=call("Rome")),
            ],
        },
        {
            "custom_id": "open",
            "accepted": None,
            "tool_calls": [],
            "answers": [answer("a", is_right=None)],
        },
    ]

    assert demo.compute_score(prompts, outcomes) == {
        "known": ["one", "weather"],
        "fused": ["one", "weather"],
        "members": {"a": ["weather"], "b": ["one"]},
    }


@pytest.mark.parametrize("path", [demo.PROMPTS, demo.SMALL_PROMPTS], ids=lambda path: path.stem)
def test_its_prompts_show_all_three_modes(path: Path) -> None:
    prompts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    assert {prompt["mode"] for prompt in prompts} == {"best-of", "merge", "debate"}
    assert len({prompt["custom_id"] for prompt in prompts}) == len(prompts)


def test_most_right_answers_of_the_demo_are_known() -> None:
    prompts = [json.loads(line) for line in demo.PROMPTS.read_text(encoding="utf-8").splitlines()]

    assert sum("gold" in prompt or prompt["custom_id"] in demo.CALLS for prompt in prompts) >= 12


def test_both_built_in_configurations_are_valid_and_their_models_can_be_pulled() -> None:
    for data in (builtin.small(), builtin.edge()):
        settings = Settings(**data)
        assert settings.pools["default"].members
    assert set(builtin.names()) <= CATALOGUE.keys()
    assert all(CATALOGUE[name].sha256 for name in builtin.names())


def test_the_larger_pool_is_taken_only_where_all_its_models_are_here(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusewire_worker_edge.pull.DEFAULT_ROOT", tmp_path)
    assert "smollm2" in builtin.configuration()["models"]
    assert builtin.POOL not in builtin.configuration()["pools"]
    for name in builtin.names():
        assert f"fusewire model pull {name}" in builtin.offer()
        (tmp_path / name).mkdir()
        assert f"fusewire model pull {name}" in builtin.offer(), (
            "a folder without a manifest is no model"
        )
        shutil.copy(tiny_folder / MANIFEST, tmp_path / name)
    assert builtin.POOL in builtin.configuration()["pools"]
    assert "all on this machine" in builtin.offer()
