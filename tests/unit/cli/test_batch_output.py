import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fusewire_cli.batch.custom_ids import Ids, new_ids
from fusewire_cli.batch.output import Output, is_failed, is_unsettled, open_output
from fusewire_cli.client import Form, Order


@pytest.fixture
def ids() -> Iterator[Ids]:
    """Lines 1, 2, 4 and 5: the third is blank."""
    with new_ids() as ids_of_lines:
        for number in (1, 2, 4, 5):
            assert ids_of_lines.add(f"q{number}", number) is None
        yield ids_of_lines


def result(index: int, **more: Any) -> dict[str, Any]:
    response = {"status_code": 200, "request_id": "r", "body": {}}
    return {
        "custom_id": f"q{index}",
        "response": response,
        "error": None,
        "index": index,
        "seq": 10 + index,
        **more,
    }


def text(*indexes: int) -> str:
    return "".join(json.dumps(result(index)) + "\n" for index in indexes)


def take(output: Output, *indexes: int) -> None:
    for index in indexes:
        output.take(json.dumps(result(index)).encode(), result(index))


def test_an_output_is_written_and_gone_on_with(tmp_path: Path, ids: Ids) -> None:
    path = tmp_path / "new" / "out.jsonl"
    with open_output(path, ids, order="line", form="openai") as output:
        take(output, 1, 2)
    with open_output(path, ids, order="line", form="openai") as output:
        assert (output.after, output.lines, output.failed) == (2, 2, 0)
        take(output, 4, 5)
    assert path.read_text() == text(1, 2, 4, 5)


def test_a_torn_last_line_is_cut_off(tmp_path: Path, ids: Ids) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(text(1, 2, 4) + json.dumps(result(5))[:-4])
    with open_output(path, ids, order="line", form="openai") as output:
        assert output.after == 4
        take(output, 5)
    assert path.read_text() == text(1, 2, 4, 5)


def test_in_the_order_of_completion_what_stands_there_is_not_written_again(
    tmp_path: Path, ids: Ids
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(text(5, 1))
    with open_output(path, ids, order="settled", form="openai") as output:
        assert output.after == 0
        take(output, 5, 1, 2, 4)
        assert output.after == 14
    assert path.read_text() == text(5, 1, 2, 4)


@pytest.mark.parametrize(
    ("content", "order", "form", "message"),
    [
        (
            '{"custom_id": "other", "index": 1, "response": {}}\n',
            "line",
            "openai",
            "belongs to another input",
        ),
        (
            '{"custom_id": "q2", "index": 1, "response": {}}\n',
            "line",
            "openai",
            "belongs to another input",
        ),
        (text(1, 1), "settled", "openai", "belongs to another input"),
        ('{"some": "thing"}\n', "line", "openai", "holds something else"),
        ("a text\n", "line", "openai", "holds something else"),
        ("[]\n", "line", "openai", "holds something else"),
        (text(2, 1), "line", "openai", "add --as-completed"),
        (text(1, 4), "line", "openai", "add --as-completed"),
        (text(1, 1), "line", "openai", "belongs to another input"),
        (text(1), "line", "outcome", "was written with --output-format openai"),
    ],
)
def test_an_output_of_something_else_is_refused_and_not_touched(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ids: Ids,
    content: str,
    order: Order,
    form: Form,
    message: str,
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(SystemExit) as exit_info, open_output(path, ids, order=order, form=form):
        pass
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert path.read_text() == content


def test_two_runs_do_not_write_to_one_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ids: Ids
) -> None:
    path = tmp_path / "out.jsonl"
    with (
        open_output(path, ids, order="line", form="openai"),
        pytest.raises(SystemExit),
        open_output(path, ids, order="line", form="openai"),
    ):
        pass
    assert "being written by another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "failed", "to_come"),
    [
        (result(1), False, False),
        (result(1, response=None, error={"code": "batch_expired"}), True, False),
        (result(1, response=None, error={"code": "batch_cancelled"}), True, True),
        (
            result(1, response={"status_code": 502}, error={"code": "all_panels_failed"}),
            True,
            False,
        ),
        ({"status": "fused", "custom_id": "q1", "index": 1}, False, False),
        ({"status": "failed", "error": "timeout", "custom_id": "q1", "index": 1}, True, False),
    ],
)
def test_what_failed_and_what_is_yet_to_come_is_told_apart(
    line: dict[str, Any], failed: bool, to_come: bool
) -> None:
    assert (is_failed(line), is_unsettled(line)) == (failed, to_come)
