"""Views of what judges said: verdicts, and the pairs of answers that they compare."""

from fusewire.contracts.call_names import REPEAT
from fusewire.store.views.view import View, boolean, day, integer, text


def _output(content: str) -> str:
    """SQL for what a judge wrote: at last, if it was asked again as that could not be read."""
    calls = (f"v.call || '{REPEAT}'", "v.call")
    texts = [
        f"(SELECT {content} FROM candidates c"
        f" WHERE c.fusion_id = v.fusion_id AND c.call = {call} LIMIT 1)"
        for call in calls
    ]
    return f"COALESCE({', '.join(texts)})"


V_VERDICT = View(
    "v_verdict",
    "One row per judge call that was asked for a winner, or whether an answer is right.",
    (
        text("outcome_id", "the fusion's id", "v.fusion_id"),
        text("call", "the call", "v.call"),
        day("o.finished_at"),
        text("pool", "the pool", "o.pool"),
        text("mode", "best-of, merge, debate or verify", "o.mode"),
        text("kind", "listwise, pair, guard of a merge, or check of one answer", "v.kind"),
        text("judge_model", "who judged", "v.judge_model"),
        integer("n_shown", "answers it was shown, a control included", "v.n_shown"),
        text(
            "winner",
            "whom it named: a member, ~merged or ~control; NULL if it could not be read, or of a"
            " check, if the answer did not pass",
            "v.winner",
        ),
        integer("winner_position", "where that stood, from 1", "v.winner_position"),
        integer(
            "longest_position",
            "where the longest answer stood; NULL if two were as long",
            "v.longest_position",
        ),
        integer("n_own_family", "answers of the judge's own family", "v.n_own_family"),
        boolean("is_own_family_winner", "whether it named one of those", "v.is_own_family_winner"),
        text("control", "null or master_key, where a control was among them", "v.control"),
        boolean("is_control_winner", "whether it named the control", "v.is_control_winner"),
        text("verdict_parse", "strict, repaired or reasked", "v.rung"),
        text("void", "why it does not count", "v.void"),
        boolean(
            "is_consistent",
            "whether the same judge named the same winner in the opposite order",
            "v.is_consistent",
        ),
        text("shown", "members in the order shown, ~merged and ~control too, as JSON", "v.shown"),
        text("swap_of", "the call that saw the opposite order, where one did", "v.swap_of"),
        boolean(
            "is_by_margin",
            "whether the judge saw no order, but rated each answer",
            "v.is_by_margin",
        ),
        text(
            "output",
            "what the judge wrote: a JSON object with its reason and its label of the winner,"
            " unless it could not be read",
            _output("json_extract(c.body, '$.content')"),
            _output("c.body::json ->> 'content'"),
        ),
    ),
    "verdicts v JOIN outcomes o ON o.fusion_id = v.fusion_id",
)


def _side(first: str, second: str) -> tuple[str, str]:
    """SQL per database: the first expression if the winner was shown first, else the second.

    `{place}` in an expression is where the other answer stood.
    """
    choice = f"CASE WHEN v.winner_position < {{place}} THEN {first} ELSE {second} END"
    sqlite = choice.replace("{place}", "(s.key + 1)")
    postgresql = choice.replace("{place}", "s.place")
    return sqlite, postgresql


def _pairs(each_shown: str) -> str:
    """The source of `v_pair`, with a join with the members that a verdict shows, as `s.value`."""
    return (
        "verdicts v JOIN outcomes o ON o.fusion_id = v.fusion_id"
        f" {each_shown}"
        " JOIN answers w ON w.fusion_id = v.fusion_id AND w.member = v.winner"
        " JOIN answers l ON l.fusion_id = v.fusion_id AND l.member = s.value"
        " WHERE v.void IS NULL AND v.kind NOT IN ('guard', 'check') AND l.member <> v.winner"
    )


def _length(place: str) -> str:
    """SQL for the length of the answer that was shown at a place."""
    return f"json_extract(v.chars, '$[' || ({place} - 1) || ']')"


def _length_postgresql(place: str) -> str:
    return f"CAST(v.chars::json ->> CAST({place} - 1 AS integer) AS integer)"


def _lengths(first: str, second: str) -> tuple[str, str]:
    """SQL per database for the length of one of two answers, by their places."""
    sqlite, _ = _side(_length(first), _length(second))
    _, postgresql = _side(_length_postgresql(first), _length_postgresql(second))
    return sqlite, postgresql


V_PAIR = View(
    "v_pair",
    "One row per verdict and answer that the winner was shown with: each is a comparison of two."
    " Verdicts that count, without the guards of merges.",
    (
        text("outcome_id", "the fusion's id", "v.fusion_id"),
        day("o.finished_at"),
        text("pool", "the pool", "o.pool"),
        text("judge_model", "who judged", "v.judge_model"),
        text("call", "the call", "v.call"),
        text("model_a", "the model of the answer shown first", *_side("w.model", "l.model")),
        text("model_b", "the model of the answer shown second", *_side("l.model", "w.model")),
        text("member_a", "its member", *_side("v.winner", "l.member")),
        text("member_b", "its member", *_side("l.member", "v.winner")),
        text("verdict", "A or B: whose answer is better", *_side("'A'", "'B'")),
        text("swap_of", "the call that saw the opposite order, where one did", "v.swap_of"),
        boolean(
            "is_consistent",
            "whether that one named the same winner; NULL without one",
            "v.is_consistent",
        ),
        boolean(
            "is_by_margin",
            "whether the judge saw no order, but rated each answer",
            "v.is_by_margin",
        ),
        integer(
            "len_a",
            "characters of the answer shown first",
            *_lengths("v.winner_position", "{place}"),
        ),
        integer(
            "len_b",
            "characters of the answer shown second",
            *_lengths("{place}", "v.winner_position"),
        ),
        text("answer_kind", "tool_call, json, number, choice, label or open", "o.answer_kind"),
    ),
    _pairs("JOIN json_each(v.shown) s"),
    _pairs(
        "CROSS JOIN LATERAL json_array_elements_text(v.shown::json)"
        " WITH ORDINALITY AS s(value, place)"
    ),
)
