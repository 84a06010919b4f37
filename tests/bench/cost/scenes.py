"""What is measured: how the fake models behave, and how they are asked. Data only."""

from dataclasses import dataclass

from fusewire.testing.model_script import FaultKind, ModelScript, Script

MEMBERS = ["a", "b", "c"]
JUDGE = "judge"
ANSWER = (
    "{model} says of {digest}: there are several ways to see it, and none of them is short. "
    "First, what is known is known from few sources, and they agree on the main point only. "
    "Second, what follows from it depends on what one wants to use it for. "
    "Third, it can be checked in an afternoon, which I would do before anything else."
)


@dataclass(frozen=True)
class Scene:
    """One way to load a side.

    Attributes:
        latencies_ms: by model.
        in_flight: fusions at once.
        warm_up: fusions before the clock starts.
        fusions: fusions that are measured.
        sigma: of the members' latencies, log-normal; 0 is always the same.
        faults: shares of the members' requests that meet them.
        complete: whether all members are waited for, as the others do it.
    """

    latencies_ms: dict[str, float]
    in_flight: int
    warm_up: int
    fusions: int
    sigma: float = 0.0
    faults: tuple[tuple[FaultKind, float], ...] = ()
    complete: bool = True

    @property
    def script(self) -> Script:
        """What the fake models do in it."""
        members = {
            name: ModelScript(
                latency_ms=self.latencies_ms[name],
                latency_sigma=self.sigma,
                answer=ANSWER,
                fault_rates=dict(self.faults),
            )
            for name in MEMBERS
        }
        return Script(models={**members, JUDGE: ModelScript(latency_ms=self.latencies_ms[JUDGE])})

    def overhead_ms(self, wall_ms: float) -> float:
        """A fusion's time beyond its slowest member and the judge."""
        return wall_ms - max(self.latencies_ms[m] for m in MEMBERS) - self.latencies_ms[JUDGE]


def alone(member_ms: float, fusions: int) -> Scene:
    """One fusion at a time."""
    return Scene(dict.fromkeys(MEMBERS, member_ms) | {JUDGE: 0.0}, 1, min(fusions, 5), fusions)


def together(
    member_ms: float, judge_ms: float, in_flight: int, fusions: int, **more: object
) -> Scene:
    """Many at once, members alike."""
    latencies = dict.fromkeys(MEMBERS, member_ms) | {JUDGE: judge_ms}
    return Scene(latencies, in_flight, 0, fusions, **more)  # type: ignore[arg-type]


def scenes(*, quick: bool) -> dict[str, Scene]:
    """By name; `quick` only tells whether they run at all."""
    few = 3 if quick else 1
    tail = {"sigma": 1.0, "complete": False}
    loaded = Scene({"a": 0.0, "b": 10.0, "c": 20.0, JUDGE: 10.0}, 64, 64 // few, 600 // (few * few))
    return {
        "alone_50": alone(50.0, 20 // few),
        "alone_200": alone(200.0, 30 // few),
        "alone_1000": alone(1000.0, 6 // few),
        "loaded": loaded,
        "inflight512": together(200.0, 0.0, 512, 512 // (few * few)),
        "heavy_tail": together(300.0, 20.0, 16, 150 // (few * few), **tail),
        "heavy_tail_all": together(300.0, 20.0, 16, 150 // (few * few), sigma=1.0),
        "faults": together(
            20.0,
            10.0,
            32,
            300 // (few * few),
            faults=(("server_error", 0.05), ("rate_limited", 0.05)),
        ),
    }


KILLED = 300
"""Fusions of the batch that is killed."""
KILLED_IN_FLIGHT = 16
KILL_AT = 0.4


def prompt(number: int) -> str:
    """An open question, never the same twice."""
    return (
        f"Question {number}: what should a city weigh before it closes a street to cars, "
        "and who should decide it?"
    )
