"""Find the configured model that a client means. Pure."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MOST_NEAR = 3


class UnknownModelError(LookupError):
    """No configured model has this name. `near` holds the nearest names."""

    def __init__(self, name: str, near: list[str]) -> None:
        self.name = name
        self.near = near
        super().__init__(name)


@dataclass(frozen=True)
class ModelNames:
    """Every spelling under which a client may ask for a configured model."""

    spellings: Mapping[str, str] = field(default_factory=dict)
    """Spelling to configured name."""

    @classmethod
    def of(
        cls, models: Mapping[str, str | None], aliases: Mapping[str, str] | None = None
    ) -> "ModelNames":
        """Collect spellings. Configured names win over aliases, and aliases over providers' names.

        Args:
            models: configured name to the provider's name of the model, if it has one.
            aliases: further names, to configured names.
        """
        slugs = Counter(models.values())
        # Two configured models may be the same one of a provider; its name is then ambiguous.
        unambiguous = {slug: name for name, slug in models.items() if slug and slugs[slug] == 1}
        return cls(unambiguous | dict(aliases or {}) | {name: name for name in models})

    def resolve(self, name: str) -> str:
        """Find the configured name. A leading `~`, OpenRouter's mark of a moving alias, is ignored.

        Raises:
            UnknownModelError: no model has that name.
        """
        model = self.spellings.get(name) or self.spellings.get(name.removeprefix("~"))
        if model is None:
            raise UnknownModelError(name, nearest(name, self.spellings))
        return model


def nearest(name: str, known_names: Iterable[str]) -> list[str]:
    """Up to three names, the most similar first."""
    names = sorted(known_names)
    near = difflib.get_close_matches(name, names, n=MOST_NEAR, cutoff=0.4)
    return near or names[:MOST_NEAR]
