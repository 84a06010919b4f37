"""`fusewire vote`."""

import json

from fusewire import replies
from fusewire_cli import fusing
from fusewire_cli.session import client, settings


def vote(outcome: str, choice: str, voter: str | None, *, as_json: bool) -> None:
    """Vote for the best answer of an outcome, and print the vote as it stands."""

    async def main() -> replies.votes.Vote:
        async with client(settings()) as api:
            return await api.vote(outcome, choice, voter)

    stored_vote = fusing.run(main())
    if as_json:
        print(json.dumps(stored_vote, ensure_ascii=False))
    else:
        print(f"{stored_vote['outcome_id']}: {stored_vote['choice']}, {_describe(stored_vote)}")


def _describe(vote: replies.votes.Vote) -> str:
    if vote["is_changed"]:
        return "changed"
    return "new" if vote["is_new"] else f"as since {vote['changed_at']}"
