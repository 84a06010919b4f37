"""Names and expressions that a reader has to stop at: `names.py FOLDER…` prints each fault.

`make check` runs it. A variable, parameter, attribute or function is named by the noun it holds or
the verb it does: a bare participle (`found`, `asked`) says neither. The words of a class name are
those of docs/glossary.md and of the field, so that a new term is one that somebody has decided on.
A comprehension holds no other one.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = Path(__file__).with_name("class_words.txt")

IRREGULAR = frozenset(
    """
    begun borne bought broken brought built caught chosen done drawn driven eaten fallen fed
    felt forgotten found given gone grown heard held hidden kept known laid left lent lost made
    meant met paid said seen sent shown sold spent spoken stolen stood struck sunk sworn taken
    taught thought told torn understood woken won worn written
    """.split()  # noqa: SIM905 - words are easier to read and to add than a list of strings
)
"""Past participles without -ed, but none that is a verb or noun (`read`, `set`, `run`, `put`)."""
NO_NAME = frozenset({"one", "again", "others"})
NO_PARAMETER = frozenset({"of"})
NOUNS = frozenset({"bed", "embed", "exceed", "feed", "need", "proceed", "seed", "speed", "weed"})
STATES = frozenset(
    {
        # States that the API, the tables and the ledger call so.
        "accepted", "cancelled", "completed", "created", "degraded", "deleted", "excluded",
        "failed", "recorded", "settled", "trusted",
        # What tests and libraries call so.
        "expected", "nested", "shared",
    }
)  # fmt: skip
"""Participles that are the field's own word for a state; each is that state and nothing else."""
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def is_participle(name: str) -> bool:
    """Whether a name is one bare past participle."""
    word = name.strip("_")
    if word in NOUNS or word in STATES:
        return False
    return word in IRREGULAR or re.fullmatch(r"[a-z]+ed", word) is not None


def names(node: ast.AST) -> Iterator[str]:
    """The names that a node binds."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
            yield name
        case ast.Attribute(attr=name, ctx=ast.Store()):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            yield name


def is_nested(node: ast.AST) -> bool:
    """Whether a comprehension holds another one, or loops twice."""
    if not isinstance(node, COMPREHENSIONS):
        return False
    inner = (other for other in ast.walk(node) if other is not node)
    return len(node.generators) > 1 or any(isinstance(other, COMPREHENSIONS) for other in inner)


def fields(tree: ast.Module) -> set[ast.AST]:
    """Targets of annotations in class bodies: fields that the wire or a table names."""
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    statements = (statement for node in classes for statement in node.body)
    return {statement.target for statement in statements if isinstance(statement, ast.AnnAssign)}


def class_words(name: str) -> list[str]:
    """`KeyValueBucket` to `key`, `value`, `bucket`."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*|[a-z0-9]+", name)]


def faults(source: str, vocabulary: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Line and fault, in the order of the tree."""
    tree = ast.parse(source)
    exempt = fields(tree)
    for node in ast.walk(tree):
        if is_nested(node):
            yield node.lineno, "a comprehension in a comprehension: name the inner one, or loop"
        if isinstance(node, ast.arg) and node.arg in NO_PARAMETER:
            yield node.lineno, f"parameter '{node.arg}': name what it is"
        if isinstance(node, ast.ClassDef):
            for word in class_words(node.name):
                if word not in vocabulary:
                    yield node.lineno, f"class {node.name}: '{word}' is no word of class_words.txt"
        if node in exempt:
            continue
        for name in names(node):
            if name.strip("_") in NO_NAME or is_participle(name):
                yield (
                    getattr(node, "lineno", 0),
                    f"'{name}': name the noun it holds, or the verb it does",
                )


def main(folders: list[str]) -> int:
    """Print the faults of all files below folders; 1 if there are any."""
    vocabulary = frozenset(WORDS.read_text(encoding="utf-8").split())
    count = 0
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for line, fault in faults(path.read_text(encoding="utf-8"), vocabulary):
                print(f"{path.relative_to(ROOT)}:{line}: {fault}")
                count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
