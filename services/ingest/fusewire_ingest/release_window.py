"""How many lines of batches are in flight at once, so that other prompts do not wait. Pure.

Additive increase, multiplicative decrease (D. Chiu, R. Jain: Analysis of the Increase and Decrease
Algorithms for Congestion Avoidance, Computer Networks 17, 1989). The sign of congestion is the
lateness of the event loop: a loop that is late for one task is late for all.
"""

import math
from dataclasses import dataclass

LEAST = 8
"""The least that it shrinks to."""
LATE_S = 0.003
"""Mean lateness from which on there are too many lines: a prompt takes some twenty turns."""
ADJUST_EVERY_S = 0.5
DECREASE = 0.7
INCREASE = 2
OTHERS_S = 10.0
"""How long after a prompt the next one is expected."""
SPREAD = 64
"""Looks over which a window is released while others send prompts. Lines that are released
together are answered together, and hold up everything else then."""


@dataclass
class ReleaseWindow:
    """The window of this process.

    Attributes:
        most: its size while nobody else sends prompts.
        size: its size now.
        is_shared: whether others send prompts.
    """

    most: int
    size: int
    is_shared: bool = False
    _late_s: float = 0.0
    _looks: int = 0
    _adjusted_at: float = 0.0

    @property
    def at_once(self) -> int:
        """How many lines one look may release."""
        return math.ceil(self.size / SPREAD) if self.is_shared else self.size

    def adjust(self, late_s: float, last_prompt_at: float | None, now: float) -> int:
        """Note how late a look was, and return the window's size.

        Args:
            late_s: how much later than it should the look began.
            last_prompt_at: when the last prompt that is no line of a batch came, if one did.
            now: the time now, of the same clock.
        """
        self._late_s += late_s
        self._looks += 1
        self.is_shared = last_prompt_at is not None and now - last_prompt_at <= OTHERS_S
        if not self.is_shared:
            self.size = self.most
        elif now - self._adjusted_at < ADJUST_EVERY_S:
            return self.size
        elif self._late_s / self._looks > LATE_S:
            self.size = max(min(LEAST, self.most), int(self.size * DECREASE))
        else:
            self.size = min(self.most, self.size + INCREASE)
        self._late_s, self._looks, self._adjusted_at = 0.0, 0, now
        return self.size
