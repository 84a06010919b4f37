"""`fusewire export`: stored outcomes as a folder of files, for tools that read files."""

from enum import StrEnum


class FileFormat(StrEnum):
    """The format of an export's files."""

    parquet = "parquet"
    csv = "csv"
    jsonl = "jsonl"
