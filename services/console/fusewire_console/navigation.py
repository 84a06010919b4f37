"""The pages by group, as the navigation lists them."""

from fusewire_console.access import Visitor

Links = list[tuple[str, str]]


def navigation(visitor: Visitor) -> list[tuple[str, Links]]:
    """Groups with the addresses and names of the pages that the visitor may see."""
    groups: list[tuple[str, Links]] = [
        (
            "Work",
            [
                ("/", "Overview"),
                ("/ask", "Ask"),
                ("/outcomes", "Outcomes"),
                ("/batches", "Batches"),
            ],
        )
    ]
    if visitor.is_operator:
        analysis = [
            ("/leaderboard", "Leaderboard"),
            ("/judge", "Judge"),
            ("/pools", "Pool value"),
            ("/cost", "Cost and latency"),
            ("/compare", "Compare"),
            ("/sql", "SQL"),
        ]
        groups += [("Analysis", analysis), ("Operation", [("/models", "Models and prices")])]
    return groups
