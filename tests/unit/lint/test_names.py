"""The lint of names finds what it is for, and nothing else."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[2] / "lint" / "names.py"


@pytest.fixture(scope="module")
def names() -> ModuleType:
    spec = importlib.util.spec_from_file_location("names", PATH)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAULTS = [
    ("a variable", "found = 1"),
    ("a loop variable", "for one in []: pass"),
    ("a parameter", "def read(said): pass"),
    ("a parameter of", "def read(of): pass"),
    ("a function", "def stamped(): pass"),
    ("a private function", "async def _asked(): pass"),
    ("an attribute", "self.heard = 1"),
    ("a comprehension in a comprehension", "x = [[y for y in z] for z in []]"),
    ("two loops in a comprehension", "x = [y for z in [] for y in z]"),
    ("a class of a word that nobody decided on", "class Hearing: pass"),
]


@pytest.mark.parametrize("source", [row[1] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_a_fault_is_found(names: ModuleType, source: str) -> None:
    assert len(list(names.faults(source, frozenset({"answer"})))) == 1


SOUND = [
    ("a noun", "answer = 1"),
    ("a noun that ends like a participle", "seed = need = speed = 1"),
    ("a state that the API calls so", "cancelled = True"),
    ("a participle in a noun phrase", "cancelled_ids = stored_row = 1"),
    ("a verb", "def read_answer(answer): pass"),
    ("a field of a message", "class Answer:\n    recorded: int\n    found: int"),
    ("what is only used", "print(found)"),
    ("a comprehension", "x = [y for y in []]"),
    ("a class of a word that is decided on", "class AnswerAnswer: pass"),
]


@pytest.mark.parametrize("source", [row[1] for row in SOUND], ids=[row[0] for row in SOUND])
def test_what_is_sound_is_left_alone(names: ModuleType, source: str) -> None:
    assert list(names.faults(source, frozenset({"answer"}))) == []


def test_class_names_are_read_word_by_word(names: ModuleType) -> None:
    assert names.class_words("KeyValueBucket") == ["key", "value", "bucket"]
    assert names.class_words("OpenAIDialect") == ["open", "ai", "dialect"]
    assert names.class_words("_HttpError2") == ["http", "error2"]
