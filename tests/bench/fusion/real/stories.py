"""Word problems of two to four steps, with their answers computed. Pure."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Range = tuple[int, int, int]
"""The least, the greatest, and the step between."""
Formula = Callable[[Mapping[str, int]], int]

NAMES = (
    "Amina", "Bruno", "Chidi", "Dana", "Elif", "Farah", "Goran", "Hanna", "Ines", "Jonas", "Kofi",
    "Lena", "Mateo", "Nadia", "Otto", "Priya", "Quinn", "Rosa", "Samir", "Tove", "Ulla", "Viktor",
)  # fmt: skip
THINGS = ("stickers", "marbles", "postcards", "buttons", "seashells", "badges", "beads", "coins")
FOODS = ("apples", "muffins", "pears", "pretzels", "plums", "cookies", "dumplings", "oranges")
INSTRUCTION = "Solve the problem in short lines, as in the examples. Write nothing else."
POTS = (
    "A pot costs $20, a pan half as much. Eve buys a pot and 3 pans and has a voucher of $5. "
    "How many dollars does she pay?"
)
EXAMPLES = (
    (
        "Tim has 3 bags of 4 sweets and eats 2 sweets. How many sweets are left?",
        "3 * 4 = 12\n12 - 2 = 10\nAnswer: 10",
    ),
    (
        POTS,
        "20 / 2 = 10\n10 * 3 = 30\n20 + 30 = 50\n50 - 5 = 45\nAnswer: 45",
    ),
)
"""Without examples these models write so much that they come to no answer."""


@dataclass(frozen=True)
class Story:
    """A template. Numbers are drawn from `ranges`; `more` are numbers computed from them."""

    text: str
    ranges: Mapping[str, Range]
    answer: Formula
    more: Mapping[str, Formula] = field(default_factory=dict)

    def tell(self, rng: random.Random) -> tuple[str, int]:
        """One problem and its answer."""
        numbers = {key: rng.randrange(low, high + 1, step) for key, (low, high, step) in
                   self.ranges.items()}  # fmt: skip
        numbers |= {key: formula(numbers) for key, formula in self.more.items()}
        name, other = rng.sample(NAMES, 2)
        words = {"name": name, "other": other, "things": rng.choice(THINGS),
                 "foods": rng.choice(FOODS)}  # fmt: skip
        return self.text.format(**numbers, **words), self.answer(numbers)


STORIES = (
    Story(
        "{name} buys {a} boxes of {foods}. Each box holds {b} {foods}. {name} gives {c} of them to "
        "{other} and eats {d}. How many {foods} are left?",
        {"a": (4, 9, 1), "b": (6, 12, 1), "c": (5, 11, 1), "d": (2, 6, 1)},
        lambda v: v["a"] * v["b"] - v["c"] - v["d"],
    ),
    Story(
        "A notebook costs ${a} and a pen costs ${b}. {name} buys {c} notebooks and {d} pens and "
        "pays with a ${e} note. How much change, in dollars, does {name} get?",
        {"a": (3, 7, 1), "b": (1, 3, 1), "c": (2, 5, 1), "d": (3, 6, 1), "e": (60, 100, 20)},
        lambda v: v["e"] - v["a"] * v["c"] - v["b"] * v["d"],
    ),
    Story(
        "{name} has {a} {things}. {other} has {b} times as many. Together they put them into "
        "bags of {c}. How many bags do they fill?",
        {"c": (4, 9, 1), "k": (2, 5, 1), "b": (2, 4, 1)},
        lambda v: v["k"] * (v["b"] + 1),
        {"a": lambda v: v["c"] * v["k"]},
    ),
    Story(
        "A train travels at {a} km per hour for {b} hours, then at {c} km per hour for {d} hours. "
        "How many kilometres does it travel altogether?",
        {"a": (60, 120, 10), "b": (2, 4, 1), "c": (50, 90, 10), "d": (2, 5, 1)},
        lambda v: v["a"] * v["b"] + v["c"] * v["d"],
    ),
    Story(
        "{name} earns ${a} an hour. In one week {name} works {b} hours a day on {c} days, and "
        "spends ${d} on food. How many dollars are left of that week's pay?",
        {"a": (11, 19, 1), "b": (4, 8, 1), "c": (3, 5, 1), "d": (30, 90, 10)},
        lambda v: v["a"] * v["b"] * v["c"] - v["d"],
    ),
    Story(
        "A shirt costs ${a}. In a sale its price is reduced by {b} %. {name} buys {c} of these "
        "shirts in the sale. How many dollars does {name} pay?",
        {"a": (20, 80, 20), "b": (10, 40, 5), "c": (2, 4, 1)},
        lambda v: v["a"] * (100 - v["b"]) // 100 * v["c"],
    ),
    Story(
        "A class of {t} pupils goes to the zoo. {b} of them are ill and stay at home. The others "
        "are split into groups of {c}. Each group gets {d} maps. How many maps are needed?",
        {"b": (2, 5, 1), "c": (3, 6, 1), "k": (4, 7, 1), "d": (2, 3, 1)},
        lambda v: v["k"] * v["d"],
        {"t": lambda v: v["b"] + v["c"] * v["k"]},
    ),
    Story(
        "{name} reads {a} pages on Monday. On Tuesday {name} reads twice as many, and on Wednesday "
        "{b} pages fewer than on Tuesday. How many pages does {name} read on the three days?",
        {"a": (12, 40, 2), "b": (3, 11, 1)},
        lambda v: 5 * v["a"] - v["b"],
    ),
    Story(
        "A tank holds {t} litres of water. A pump takes out {b} litres a minute for {c} minutes. "
        "Then {d} buckets of {e} litres are poured in. How many litres are in the tank now?",
        {"t": (200, 400, 20), "b": (6, 14, 1), "c": (5, 12, 1), "d": (3, 8, 1), "e": (8, 12, 1)},
        lambda v: v["t"] - v["b"] * v["c"] + v["d"] * v["e"],
    ),
    Story(
        "A farmer has {a} hens. Each hen lays {b} eggs a week. The farmer keeps {c} eggs and sells "
        "the rest by the dozen. How many dozens are sold each week?",
        {"b": (4, 6, 1), "m": (2, 5, 1), "c": (12, 36, 12)},
        lambda v: v["a"] * v["b"] // 12 - v["c"] // 12,
        {"a": lambda v: 12 * v["m"]},
    ),
    Story(
        "{name} is {a} years old. {other} is {b} years younger than twice {name}'s age. How old "
        "will {other} be in {c} years?",
        {"a": (9, 20, 1), "b": (2, 6, 1), "c": (4, 15, 1)},
        lambda v: 2 * v["a"] - v["b"] + v["c"],
    ),
    Story(
        "A bakery bakes {a} trays of {b} rolls in the morning and {c} trays of {b} rolls in the "
        "afternoon. By the evening {d} rolls are unsold. How many rolls were sold?",
        {"a": (5, 9, 1), "b": (12, 24, 4), "c": (3, 6, 1), "d": (7, 33, 1)},
        lambda v: (v["a"] + v["c"]) * v["b"] - v["d"],
    ),
    Story(
        "A rectangular garden is {a} m long and {b} m wide. A fence around it costs ${c} a "
        "metre, and the gate costs ${d} more. How many dollars do fence and gate cost together, "
        "if the fence goes all the way round?",
        {"a": (8, 20, 1), "b": (4, 12, 1), "c": (3, 9, 1), "d": (20, 60, 5)},
        lambda v: 2 * (v["a"] + v["b"]) * v["c"] + v["d"],
    ),
    Story(
        "{name} saves ${a} each week and {other} saves ${b} each week. {other} already has ${c}. "
        "How many dollars do they have together after {d} weeks, if {name} starts with nothing?",
        {"a": (6, 15, 1), "b": (4, 12, 1), "c": (20, 60, 5), "d": (5, 12, 1)},
        lambda v: (v["a"] + v["b"]) * v["d"] + v["c"],
    ),
    Story(
        "A car uses {a} litres of fuel for 100 km. Fuel costs ${b} a litre. How many dollars "
        "does the fuel for a trip of {c} km and back cost?",
        {"a": (5, 9, 1), "b": (2, 3, 1), "c": (100, 400, 50)},
        lambda v: v["a"] * v["b"] * v["c"] * 2 // 100,
    ),
    Story(
        "There are {t} {things} in a jar. A third of them are red and {b} are blue. The rest are "
        "green. How many more green ones than blue ones are there?",
        {"k": (14, 30, 1), "b": (5, 12, 1)},
        lambda v: 2 * v["k"] - 2 * v["b"],
        {"t": lambda v: 3 * v["k"]},
    ),
    Story(
        "A cinema has {a} rows of {b} seats. {c} seats are broken, and {d} % of the others are "
        "sold. How many seats are sold?",
        {"a": (8, 16, 1), "b": (10, 15, 1), "d": (25, 75, 25)},
        lambda v: (v["a"] * v["b"] - v["c"]) * v["d"] // 100,
        {"c": lambda v: v["a"] * v["b"] % 4 + 4},
    ),
    Story(
        "{name} runs {a} km on each of {b} days and cycles {c} km on each of {d} days. How many "
        "more kilometres does {name} cycle than run?",
        {"a": (3, 6, 1), "b": (2, 4, 1), "c": (14, 22, 1), "d": (2, 5, 1)},
        lambda v: v["c"] * v["d"] - v["a"] * v["b"],
    ),
    Story(
        "{a} friends share a bill of ${t} equally. {name} also pays for {other}, and leaves a "
        "tip of ${c}. How many dollars does {name} pay altogether?",
        {"a": (4, 8, 1), "k": (11, 19, 1), "c": (3, 9, 1)},
        lambda v: 2 * v["k"] + v["c"],
        {"t": lambda v: v["a"] * v["k"]},
    ),
    Story(
        "A machine makes {a} parts in {b} minutes. How many parts do {c} such machines make in {d} "
        "hours?",
        {"k": (2, 6, 1), "b": (5, 15, 5), "c": (2, 5, 1), "d": (2, 4, 1)},
        lambda v: v["k"] * 60 * v["c"] * v["d"],
        {"a": lambda v: v["k"] * v["b"]},
    ),
    Story(
        "{name} picks {a} kg of cherries, {other} picks {b} kg less. They fill jars of 2 kg and "
        "sell each jar for ${c}. How many dollars do they take in?",
        {"k": (9, 16, 1), "m": (1, 3, 1), "c": (5, 9, 1)},
        lambda v: (v["a"] * 2 - v["b"]) // 2 * v["c"],
        {"a": lambda v: 2 * v["k"], "b": lambda v: 2 * v["m"]},
    ),
    Story(
        "A library has {a} shelves with {b} books each. It lends out {c} books on Saturday and "
        "gets back half as many on Sunday. How many books are on the shelves then?",
        {"a": (12, 25, 1), "b": (20, 40, 5), "c": (40, 90, 2)},
        lambda v: v["a"] * v["b"] - v["c"] // 2,
    ),
    Story(
        "Tickets cost ${a} for adults and half of that for children. A family of {b} adults and "
        "{c} children has a voucher of ${d}. How many dollars does the family still pay?",
        {"a": (12, 24, 2), "b": (2, 4, 1), "c": (2, 5, 1), "d": (5, 20, 5)},
        lambda v: v["a"] * v["b"] + v["a"] // 2 * v["c"] - v["d"],
    ),
    Story(
        "{name} sleeps {a} hours a night from Monday to Friday and {b} hours a night at the "
        "weekend. How many hours does {name} sleep in {c} weeks?",
        {"a": (6, 8, 1), "b": (8, 10, 1), "c": (2, 5, 1)},
        lambda v: (5 * v["a"] + 2 * v["b"]) * v["c"],
    ),
    Story(
        "A rope of {t} m is cut into {b} pieces of {c} m. The rest is cut into pieces of {d} m. "
        "How many pieces are there altogether?",
        {"b": (3, 6, 1), "c": (4, 9, 1), "d": (2, 3, 1), "k": (4, 11, 1)},
        lambda v: v["b"] + v["k"],
        {"t": lambda v: v["b"] * v["c"] + v["k"] * v["d"]},
    ),
    Story(
        "{name} had some money. {name} spent ${a} on a book, then half of what was left on "
        "shoes, and then had ${b}. How many dollars did {name} have at first?",
        {"a": (8, 25, 1), "b": (15, 45, 1)},
        lambda v: 2 * v["b"] + v["a"],
    ),
    Story(
        "The mean of {name}'s marks in {a} tests is {b}. In the next test {name} scores {c}. "
        "What is the sum of all the marks now?",
        {"a": (3, 6, 1), "b": (62, 88, 2), "c": (70, 100, 1)},
        lambda v: v["a"] * v["b"] + v["c"],
    ),
    Story(
        "A recipe for {a} people needs {b} g of flour. {name} bakes for {c} people and has a bag "
        "of {d} g. How many grams of flour are left in the bag?",
        {"a": (3, 5, 1), "k": (40, 70, 5), "c": (6, 12, 1), "d": (1000, 1500, 250)},
        lambda v: v["d"] - v["k"] * v["c"],
        {"b": lambda v: v["a"] * v["k"]},
    ),
    Story(
        "Parking costs ${a} for the first hour and ${b} for every further hour. {name} parks for "
        "{c} hours on each of {d} days. How many dollars does {name} pay?",
        {"a": (4, 8, 1), "b": (2, 3, 1), "c": (3, 7, 1), "d": (2, 5, 1)},
        lambda v: (v["a"] + v["b"] * (v["c"] - 1)) * v["d"],
    ),
    Story(
        "In a car park there are {a} cars with 4 wheels and {b} motorcycles with 2 wheels. {c} "
        "of the cars drive away. How many wheels are left in the car park?",
        {"a": (15, 40, 1), "b": (5, 15, 1), "c": (3, 12, 1)},
        lambda v: 4 * (v["a"] - v["c"]) + 2 * v["b"],
    ),
)  # fmt: skip
