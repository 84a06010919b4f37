"""What `fusewire compare` prints: the terminal, JSON, and the page."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest

from fusewire.analysis.compare import (
    Comparison,
    HumanVote,
    Judgement,
    Names,
    Pair,
    Rules,
    Side,
    compare,
    words,
)
from fusewire_cli.compare import command, terminal
from fusewire_cli.compare.html import render

T0 = datetime(2026, 11, 1, tzinfo=UTC)
ATTACK = "<script>alert(1)</script>"


def make_pairs(
    n: int, *, sentence: str = "It cites its source.", usd: float = 0.0007
) -> list[Pair]:
    pairs = []
    for number in range(n):
        outcome_id = f"f{number:026}"
        side = Side(outcome_id, True, True, None, False, 0.001, 900.0 + number % 50)
        other = replace(side, cost_usd=usd, is_clean=number % 7 > 0)
        choice: Any = ["a", "b", "tie"][number % 3]
        judgement = Judgement(outcome_id, choice, False, sentence, "j", 0.5, ("j",))
        at = T0 + timedelta(hours=number)
        pairs.append(Pair(f"h{number}", at, "open", side, other, judgement))
    return pairs


def make_comparison(
    n: int = 600, a: str = "m-large", b: str = "m-small", *, has_votes: bool = True, **pairs: Any
) -> Comparison:
    rows = make_pairs(n, **pairs)
    votes = [HumanVote(pair.a.outcome_id, "b") for pair in rows[:40]] if has_votes else []
    return compare(Names("models", a, b), Rules(), rows, votes)


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


# -- the page -----------------------------------------------------------------------------------


def test_a_page_requests_nothing() -> None:
    page = Page(render(make_comparison()))

    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert ("content", policy) in page.attributes
    names = {name for name, _ in page.attributes}
    assert not names & {"src", "href", "srcset", "action", "xlink:href", "onclick", "onload"}
    assert not {"script", "link", "img", "iframe", "object", "a"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?:", render(make_comparison()))


def test_nothing_that_was_stored_is_markup() -> None:
    comparison = make_comparison(a=f"m{ATTACK}", b='"><img src=x>', sentence=f"It says {ATTACK}.")
    plain = Page(render(make_comparison()))

    page = Page(render(comparison))

    assert page.tags == plain.tags
    assert ATTACK in page.text
    assert "<script" not in render(comparison)


def test_an_id_of_a_custom_outcome_is_escaped() -> None:
    pairs = make_pairs(600)
    named = [
        replace(pair, judgement=replace(pair.judgement, outcome_id="<b>&\"'")) for pair in pairs
    ]
    comparison = compare(Names("models", "x", "y"), Rules(), named, [])

    assert "fusewire trace &lt;b&gt;&amp;&#34;&#39;" in render(comparison)


def test_the_page_shows_what_the_comparison_says() -> None:
    comparison = make_comparison()
    text = " ".join(Page(render(comparison)).text.split())

    for card in comparison.cards:
        assert card.name in text
        assert card.formula in text
    assert words.decision(comparison) in text
    assert comparison.header.because in text
    assert "It cites its source." in text
    assert "40 for B" in text
    assert words.panel(comparison) in text


def test_a_page_of_unknowns_is_a_page() -> None:
    comparison = make_comparison(n=3, has_votes=False)
    text = Page(render(comparison)).text
    assert "TOO CLOSE" in text
    assert "no votes yet" in text
    assert "30 are the least" in text


def contrast(first: str, second: str) -> float:
    """The contrast ratio of WCAG 2.2 between two colours #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lower, higher = sorted((luminance(first), luminance(second)))
    return (higher + 0.05) / (lower + 0.05)


@pytest.mark.parametrize("number", [0, 1])
def test_text_can_be_read_in_light_and_dark(number: int) -> None:
    schemes = re.findall(r":root \{[^}]*?(--page[^}]*)\}", render(make_comparison()))
    assert len(schemes) == 2
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", schemes[number]))
    for text in ("text", "quiet", "a", "b", "ship", "skip", "close"):
        for ground in ("page", "card"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["text"], colours["band"]) >= 4.5
    # Of marks in drawings, WCAG asks for 3.
    assert contrast(colours["b"], colours["band"]) >= 3
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


# -- the terminal ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 600])
def test_the_terminal_needs_80_columns(n: int) -> None:
    text = terminal.render(make_comparison(n, sentence="word " * 200))
    assert max(map(len, text.splitlines())) <= 80
    assert "TOO CLOSE" in text
    assert "Skeptic" in text


def test_a_sentence_cannot_steer_the_terminal() -> None:
    text = terminal.render(make_comparison(sentence="\x1b[2J\x07 gone", b="m\x1b[31m"))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "gone" in text


def test_evidence_names_the_command_that_shows_it() -> None:
    text = terminal.render(make_comparison())
    assert re.search(r"fusewire trace f\d{26}\n", text)


# -- JSON -----------------------------------------------------------------------------------------


def test_json_holds_all_of_it() -> None:
    comparison = make_comparison()
    document = json.loads(command.as_json(comparison))

    assert document["names"] == {"kind": "models", "a": "m-large", "b": "m-small"}
    assert document["header"]["decision"] == comparison.header.decision
    assert document["since"] == "2026-11-01T00:00:00+00:00"
    assert [card["name"] for card in document["cards"]] == [
        "Builder",
        "Skeptic",
        "Futurist",
        "Founder",
        "Creator",
    ]
    assert document["is_skip"] is comparison.is_skip


# -- options --------------------------------------------------------------------------------------


def test_models_and_pools_contradict_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.select(True, True, pool=None, judge=None, since=None)
    assert caught.value.code == 2
    assert "contradict" in capsys.readouterr().err
