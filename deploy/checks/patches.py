"""JSON patches: what makes one object of another."""

import json
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

from checks.model import Document


def differences(old: Any, new: Any, path: str = "") -> Iterator[Document]:
    """The steps of a JSON patch (RFC 6902) that make `new` of `old`.

    >>> list(differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d/e": 4}))
    [{'op': 'replace', 'path': '/a/b', 'value': 3}, {'op': 'remove', 'path': '/a/c'}, \
{'op': 'add', 'path': '/d~1e', 'value': 4}]
    """
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _of_tables(old, new, path)
    elif isinstance(old, list) and isinstance(new, list):
        yield from _of_lists(old, new, path)
    else:
        yield {"op": "replace", "path": path, "value": new}


def _of_tables(old: Document, new: Document, path: str) -> Iterator[Document]:
    for key in (*old, *(key for key in new if key not in old)):
        below = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
        if key not in new:
            yield {"op": "remove", "path": below}
        elif key not in old:
            yield {"op": "add", "path": below, "value": new[key]}
        else:
            yield from differences(old[key], new[key], below)


def _of_lists(old: list[Any], new: list[Any], path: str) -> Iterator[Document]:
    """The steps for a list, whose entries are known by their names, as in a pod's variables."""
    old_names = [_entry_name(entry) for entry in old]
    new_names = [_entry_name(entry) for entry in new]
    matcher = SequenceMatcher(None, old_names, new_names, autojunk=False)
    at = 0  # how far the patched list is done
    for _, old_start, old_end, start, end in matcher.get_opcodes():
        for before, after in zip(old[old_start:old_end], new[start:end], strict=False):
            yield from differences(before, after, f"{path}/{at}")
            at += 1
        for _ in range(old_end - old_start - (end - start)):
            yield {"op": "remove", "path": f"{path}/{at}"}
        for entry in new[start + old_end - old_start : end]:
            yield {"op": "add", "path": f"{path}/{at}", "value": entry}
            at += 1


def _entry_name(entry: Any) -> str:
    name = entry.get("name") if isinstance(entry, dict) else None
    return str(name) if name else json.dumps(entry, sort_keys=True)
