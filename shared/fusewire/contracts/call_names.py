"""The names of calls, unique in their round. A member's calls are named after it."""

HEDGE = "h"
REPEAT = "-again"
"""Ends the name of a judge's call that repeats one whose output could not be parsed."""


def sample_names(member: str, count: int) -> tuple[str, ...]:
    """Names of the calls of a member that is asked `count` times at once.

    >>> sample_names("gpt", 3)
    ('gpt', 'gpt=2', 'gpt=3')
    """
    return (member, *(f"{member}={number}" for number in range(2, count + 1)))


def hedge_name(member: str) -> str:
    """The second call to a member that is slower than it usually is.

    >>> hedge_name("gpt")
    'gpt=h'
    """
    return f"{member}={HEDGE}"


def is_hedge(name: str) -> bool:
    """Whether a call is a second one to a slow member.

    >>> is_hedge("gpt=h"), is_hedge("h")
    (True, False)
    """
    return name.endswith(f"={HEDGE}")


def member_of(name: str) -> str:
    """The member that an answer call asks."""
    return name.partition("=")[0]
