"""The contract of the views: what an earlier version had is there for ever."""

import json
from pathlib import Path

import pytest

from fusewire_cli import schema

GOLDEN = Path(__file__).with_name("views.v1.json")
REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "views.json"


def test_this_version_keeps_the_contract_of_the_last() -> None:
    breaks, _ = schema.compare(json.loads(GOLDEN.read_text("utf-8")), schema.contract())
    assert breaks == []


def test_the_reference_is_this_version_s_contract() -> None:
    assert REFERENCE.read_text("utf-8") == schema.text(schema.contract())


def test_a_view_or_column_that_is_gone_or_of_another_type_breaks_the_contract(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = schema.contract()
    kept["views"][0]["columns"].append({"name": "old", "type": "text", "comment": ""})
    kept["views"][0]["columns"][0]["type"] = "real"
    kept["views"].append({"name": "v_old", "comment": "", "columns": []})
    del kept["views"][1]["columns"][0], kept["views"][2]
    file = tmp_path / "views.json"
    file.write_text(schema.text(kept))
    with pytest.raises(SystemExit) as end:
        schema.check(file)
    assert end.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        "new      v_event: a view",
        "new      v_answer.answer_id",
        "broken   v_old: the view is gone",
        "broken   v_outcome.old: the column is gone",
        "broken   v_outcome.is_degraded: real is now boolean",
    ]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"contract": "other", "views": []}'])
def test_what_is_no_contract_is_refused(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "views.json"
    file.write_text(content)
    with pytest.raises(SystemExit) as end:
        schema.check(file)
    assert end.value.code == 2
    assert "fusewire schema --json" in capsys.readouterr().err
