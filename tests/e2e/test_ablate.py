"""`fusewire ablate` on a command line, from prompts to what each member is worth."""

import json
import urllib.request

from fusewire.testing.command_line import Cli, FakeServer, write_lines
from fusewire.testing.eventually import PATIENCE_S


def calls(server: FakeServer) -> dict[str, int]:
    """Requests that the model server has seen, by model."""
    with urllib.request.urlopen(
        f"http://127.0.0.1:{server.port}/_control/stats", timeout=PATIENCE_S
    ) as reply:
        return dict(json.loads(reply.read())["by_model"])


def test_members_are_left_out_and_a_replay_calls_the_judge_alone_and_once(
    cli: Cli, server: FakeServer
) -> None:
    write_lines(cli.folder / "in.jsonl", 31)
    assert cli.run("batch", "run", "in.jsonl", "-o", "out.jsonl").returncode == 0
    estimate = cli.run("ablate", "default", "--json")
    assert estimate.returncode == 0, estimate.stderr
    document = json.loads(estimate.stdout)
    assert document["outcomes"] == 31
    by_name = {member["member"]: member for member in document["members"]}
    # The judge names what sorts first, which is always a's answer.
    assert (by_name["a"]["n_estimated"], by_name["b"]["n_kept"]) == (31, 31)
    before = calls(server)
    replay = cli.run("ablate", "default", "--replay", "--max-prompts", "30", "--json")
    assert replay.returncode == 0, replay.stderr
    assert "replay: 30 prompts, 90 times a member left out, 0 of them judged earlier" in (
        replay.stderr
    )
    after = calls(server)
    assert {name: after[name] for name in "abc"} == {name: before[name] for name in "abc"}
    assert after["j"] - before["j"] == 180
    by_name = {member["member"]: member for member in json.loads(replay.stdout)["members"]}
    for name, share in (("a", 1.0), ("b", 0.0), ("c", 0.0)):
        member = by_name[name]
        assert (member["n"], member["n_rejudged"]) == (31, 30)
        assert member["changed"]["value"] == share
    again = cli.run("ablate", "default", "--replay", "--max-prompts", "30")
    assert "90 of them judged earlier; 0 judge calls" in again.stderr
    assert calls(server) == after
    assert "a: changes 100.0 % (" in again.stdout
    unknown = cli.run("ablate", "defualt")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "name one of closed, default" in unknown.stderr
    empty = cli.run("ablate", "closed")
    assert empty.returncode == 2
    assert "pool 'closed' has no outcomes to look at" in empty.stderr
    bad = cli.run("ablate", "default", "--since", "yesterday")
    assert bad.returncode == 2
    assert "'yesterday' is no period" in bad.stderr
