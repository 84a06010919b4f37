"""Whether the judge chooses which members of a pool are asked about a prompt. Pure.

What the choice is learned from is with the judge, and it takes each plan once; so a prompt that is
planned twice has the same plan both times (docs/decisions/0067).
"""

from collections.abc import Sized

from fusewire.contracts import Policy, Prompt

MOST_CHARS = 400_000
"""The most characters that the calls of all members may have: the round with them has to fit a
message. All members of a longer prompt are asked at once."""


def is_routed(prompt: Prompt, policy: Policy, members: Sized) -> bool:
    """Tell whether the dispatcher leaves it to the judge whom to ask.

    Args:
        prompt: to answer. Members that it names, or whose answers it holds, are not chosen from.
        policy: of the pool, with what the prompt changes of it.
        members: those that may answer it.
    """
    if policy.route != "learned" or policy.gate != "none" or len(members) < 2:
        return False
    if prompt.members or prompt.recorded:
        return False
    chars = sum(len(message.content) for message in prompt.messages)
    return chars * len(members) <= MOST_CHARS
