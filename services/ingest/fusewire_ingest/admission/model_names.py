"""Which configured model a client means. Pure."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MOST_NEAR = 3


class UnknownModelError(LookupError):
    """No configured model goes by this name. `near` holds those whose names are nearest."""

    def __init__(self, name: str, near: list[str]) -> None:
        self.name = name
        self.near = near
        super().__init__(name)


@dataclass(frozen=True)
class ModelNames:
    """Every spelling under which a client may ask for a configured model."""

    spellings: Mapping[str, str] = field(default_factory=dict)
    """To the configured name."""

    @classmethod
    def of(
        cls, models: Mapping[str, str | None], aliases: Mapping[str, str] | None = None
    ) -> "ModelNames":
        """Collect spellings. Configured names win over aliases, and those over the providers' own.

        Args:
            models: configured names, and what each is called at its provider.
            aliases: other names, and the configured names they stand for.
        """
        slugs = Counter(models.values())
        # Two models of ours may be one of theirs; then its own name does not say which.
        theirs = {slug: name for name, slug in models.items() if slug and slugs[slug] == 1}
        return cls(theirs | dict(aliases or {}) | {name: name for name in models})

    def resolve(self, name: str) -> str:
        """The configured name. A leading `~`, OpenRouter's mark of a moving alias, counts for nothing.

        Raises:
            UnknownModelError: nothing goes by that name.
        """
        found = self.spellings.get(name) or self.spellings.get(name.removeprefix("~"))
        if found is None:
            raise UnknownModelError(name, nearest(name, self.spellings))
        return found


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three names, the most alike first."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=MOST_NEAR, cutoff=0.4)
    return near or names[:MOST_NEAR]
