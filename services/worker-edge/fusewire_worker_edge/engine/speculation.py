"""Speculative decoding: guess the next tokens, and let one run of the model check all of them.

The guess is what followed the last time the same few tokens occurred, in the prompt or in the
answer: prompt lookup, after Saxena, "Prompt Lookup Decoding" (2023). A drafted token counts if it
is the one that is sampled there anyway; for a greedy answer this is the acceptance of Leviathan et
al., "Fast Inference from Transformers via Speculative Decoding" (ICML 2023).
"""

from collections.abc import Sequence

NGRAMS = (3, 2)
"""Lengths of the n-grams that are looked up, in tokens, the best first."""
MAX_DRAFT = 16
"""Most tokens of a draft."""
DRAFT_COST = 0.2
"""What a drafted token adds to a run of the model at most, in steps of decoding a lone sequence.

Measured with 135M, 0.5B and 1.5B parameters: 0.13 to 0.20 (docs/decisions/0052).
"""
TOKEN_ALLOWANCE = 0.03
"""How many steps each token of an answer adds to what its drafts may cost."""
FIRST_DRAFT = 4
"""Tokens of a draft that an answer may have before any was right."""


class PromptLookup:
    """Drafts for one answer, as long as they pay.

    Each draft costs its answer `DRAFT_COST` a token and gains a step for each token that is
    accepted. A draft is no longer than its answer's credit pays for. So where drafts are right they
    soon have `MAX_DRAFT` tokens, and where they are wrong they end: all of them together cost less
    than `FIRST_DRAFT * DRAFT_COST` steps and `TOKEN_ALLOWANCE` for each token.

    Args:
        prompt: the tokens before the answer.

    >>> lookup = PromptLookup([1, 2, 3, 4, 5, 1])
    >>> lookup.append(2)
    >>> lookup.draft(3)
    [3, 4, 5]
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._ids: list[int] = []
        # The position after the last occurrence of each n-gram but the one at the very end.
        self._ends: dict[tuple[int, ...], int] = {}
        self._credit = FIRST_DRAFT * DRAFT_COST
        # What is left of the last draft while its tokens are checked.
        self._draft: list[int] = []
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        for token in prompt:
            self._index(token)

    def append(self, token: int) -> None:
        """Take the next token of the answer: after a draft, its first one, and so on."""
        self._index(token)
        is_accepted = self._draft[:1] == [token]
        self._draft = self._draft[1:] if is_accepted else []
        self.accepted_tokens += is_accepted
        gain = TOKEN_ALLOWANCE + is_accepted
        self._credit = min(self._credit + gain, MAX_DRAFT * DRAFT_COST)

    def draft(self, limit: int) -> list[int]:
        """Guess the next tokens, at most `limit`. Empty if nothing is known or it does not pay.

        The caller has the model check them; the tokens that come of it follow by `append`.
        """
        draft = self._guess(limit)
        self._draft = draft
        self.drafted_tokens += len(draft)
        self._credit -= len(draft) * DRAFT_COST
        return draft

    def _guess(self, limit: int) -> list[int]:
        # Rounding may leave a sum of costs a little short of a whole token.
        limit = min(limit, int(self._credit / DRAFT_COST + 0.1))
        if limit < 1:
            return []
        for length in NGRAMS:
            start = self._ends.get(tuple(self._ids[-length:]))
            if start is not None:
                return self._ids[start : start + limit]
        return []

    def _index(self, token: int) -> None:
        for length in NGRAMS:
            self._ends[tuple(self._ids[-length:])] = len(self._ids)
        self._ids.append(token)
