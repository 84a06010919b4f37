"""Which days of an export are written again."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from fusewire_cli.export import manifest
from fusewire_cli.export.manifest import FileEntry, Manifest, Stamp, ViewFiles, choose_step

DAY = date(2026, 3, 4)
STAMP = Stamp(10, "2026-03-04 23:59:59.000000", 123)
FINAL = FileEntry("v_outcome/day=2026-03-04/part-0.parquet", 10, 4, is_final=True, stamp=STAMP)
OPEN = replace(FINAL, is_final=False)
FEWER = replace(STAMP, count=9)


@pytest.mark.parametrize(
    ("entry", "stamp", "step"),
    [
        (None, STAMP, "write"),
        (FINAL, STAMP, "skip"),
        (OPEN, STAMP, "write"),
        (FINAL, replace(STAMP, count=11), "write"),
        (FINAL, replace(STAMP, checksum=124), "write"),
        (FINAL, replace(STAMP, latest="2026-03-04 23:59:59.100000"), "write"),
        (FINAL, FEWER, "keep"),
        (OPEN, FEWER, "write"),
        (FINAL, None, "keep"),
        (None, None, "remove"),
    ],
)
def test_a_day_is_written_unless_it_is_final_and_unchanged_or_has_lost_rows(
    entry: FileEntry | None, stamp: Stamp | None, step: str
) -> None:
    assert choose_step(entry, stamp, prune=False, full=False) == step


def test_pruning_takes_from_the_folder_what_the_database_has_lost() -> None:
    assert choose_step(FINAL, FEWER, prune=True, full=False) == "write"
    assert choose_step(FINAL, None, prune=True, full=False) == "remove"
    assert choose_step(FINAL, STAMP, prune=True, full=False) == "skip"


def test_a_full_export_writes_what_is_stored_and_keeps_what_is_not() -> None:
    assert choose_step(FINAL, STAMP, prune=False, full=True) == "write"
    assert choose_step(FINAL, None, prune=False, full=True) == "keep"


def test_a_day_is_final_an_hour_after_its_end() -> None:
    end = datetime(2026, 3, 5, 1, tzinfo=UTC)

    assert manifest.is_final(DAY, end)
    assert not manifest.is_final(DAY, end - timedelta(microseconds=1))


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    whole = FileEntry("v_model/part-0.parquet", 3, 9)
    views = {
        "v_outcome": ViewFiles(["outcome_id"], {str(DAY): FINAL}),
        "v_model": ViewFiles(["pool"], {manifest.WHOLE: whole}),
    }
    written = Manifest("parquet", "abc", views)

    manifest.write(tmp_path, written, tmp_path / "temporary")

    assert manifest.read(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == [manifest.NAME]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"contract": "fusewire_v0"}', '{"contract": 1'])
def test_something_else_is_not_taken_for_a_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / manifest.NAME).write_text(text)

    with pytest.raises(ValueError, match=r"."):
        manifest.read(tmp_path)


def test_a_file_of_another_length_is_not_intact(tmp_path: Path) -> None:
    path = tmp_path / FINAL.path
    assert not manifest.is_intact(tmp_path, FINAL)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"1234")
    assert manifest.is_intact(tmp_path, FINAL)
    path.write_bytes(b"123")
    assert not manifest.is_intact(tmp_path, FINAL)
