"""`fusewire eval run` and `fusewire rejudge` against the whole stack: what is bought or not."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from fusewire.testing.command_line import Cli, FakeServer, write_lines
from fusewire.testing.eventually import PATIENCE_S

DATA = Path(__file__).parent / "data"
SUITE, REPLAY = str(DATA / "suite.jsonl"), str(DATA / "replay.jsonl")


def calls(server: FakeServer) -> dict[str, int]:
    """Requests that the model server has seen, by model."""
    with urllib.request.urlopen(
        f"http://127.0.0.1:{server.port}/_control/stats", timeout=PATIENCE_S
    ) as reply:
        return dict(json.loads(reply.read())["by_model"])


def evaluate(cli: Cli, *args: str) -> dict[str, Any]:
    done = cli.run("eval", "run", *args, "--json")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_replay_calls_the_judge_alone_and_a_second_run_calls_nobody(
    cli: Cli, server: FakeServer
) -> None:
    args = (SUITE, "--replay", REPLAY, "--mode", "best-of", "--mode", "merge")
    found = evaluate(cli, *args)
    asked = calls(server)
    assert set(asked) == {"j"}
    rows = {row["kind"]: row for row in found["rows"]}
    members = {row["name"]: row["right"] for row in found["rows"] if row["kind"] == "member"}
    assert (found["n"], found["pool"], found["modes"]) == (40, "default", ["best-of", "merge"])
    assert list(members) == ["steady", "often", "seldom"]
    assert rows["oracle"]["right"] + rows["all-wrong"]["right"] == 40
    assert max(members.values()) <= rows["oracle"]["right"]
    assert 0 < rows["best-of-equal"]["right"] <= rows["oracle"]["right"]
    assert 0 < rows["best-of-learned"]["accuracy"] <= rows["oracle"]["accuracy"]
    assert rows["best-of-equal"]["failed"] == 0
    assert rows["merge"]["n"] == 40
    # Latency is that of the slowest member at least, 0.4 s, and all three members are paid for.
    assert rows["best-of-equal"]["seconds_per_right"] >= 0.4
    failed = [row["failed"] for row in found["rows"] if row["kind"] == "member"]
    assert failed == [0, 0, 1]
    again = evaluate(cli, *args)
    assert again == found
    assert calls(server) == asked


def test_members_are_asked_once_for_all_modes(cli: Cli, server: FakeServer) -> None:
    suite = [json.loads(line) for line in (DATA / "suite.jsonl").read_text().splitlines()[:6]]
    (cli.folder / "six.jsonl").write_text("".join(json.dumps(line) + "\n" for line in suite))
    found = evaluate(cli, "six.jsonl", "--mode", "merge", "--mode", "best-of", "--judge", "j")
    asked = calls(server)
    assert {model: asked[model] for model in "abc"} == {"a": 6, "b": 6, "c": 6}
    # Six questions are too few for a rate.
    assert [row["accuracy"] for row in found["rows"]] == [None] * len(found["rows"])
    assert (
        evaluate(cli, "six.jsonl", "--mode", "merge", "--mode", "best-of", "--judge", "j") == found
    )
    assert calls(server) == asked


def test_a_replay_needs_no_configuration_and_no_model(cli: Cli, server: FakeServer) -> None:
    (cli.folder / "fusewire.toml").unlink()
    nowhere = {
        "FUSEWIRE_MODELS": json.dumps(
            {"smollm2": {"kind": "edge", "path": str(cli.folder / "none")}}
        )
    }
    alone = Cli(cli.folder, {**cli.env, **nowhere, "FUSEWIRE_HTTP__PORT": "0"})
    found = evaluate(alone, SUITE, "--replay", REPLAY, "--pool", "mine")
    assert found["pool"] == "mine"
    assert any("There is no judge" in note for note in found["notes"])
    table = alone.run("eval", "run", SUITE, "--replay", REPLAY)
    assert table.returncode == 0, table.stderr
    assert "best-of, learned weights" in table.stdout
    assert calls(server) == {}


def test_every_fault_is_told_and_nothing_is_asked(cli: Cli, server: FakeServer) -> None:
    (cli.folder / "s.jsonl").write_text(
        '{"custom_id": "a", "prompt": "x", "answer": "1", "match": "nubmer"}\nnope\n'
    )
    (cli.folder / "r.jsonl").write_text('{"custom_id": "b", "model": "m", "content": "x"}\n')
    refused = cli.run("eval", "run", "s.jsonl", "--replay", "r.jsonl")
    assert refused.returncode == 2
    for part in (
        "s.jsonl:1: 'match'",
        "s.jsonl:2: it is not valid JSON",
        "r.jsonl:1: custom_id 'b'",
        "3 faults",
    ):
        assert part in refused.stderr
    assert calls(server) == {}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nowhere.jsonl",), "nowhere.jsonl cannot be read"),
        ((SUITE, "--replay", "nowhere.jsonl"), "nowhere.jsonl cannot be read"),
        ((SUITE, "--pool", "defautl"), "did you mean 'default'?"),
        ((SUITE, "--mode", "best"), "did you mean 'best-of'?"),
        ((SUITE, "--judge", "k"), "there is no model 'k'"),
    ],
)
def test_eval_refuses_what_it_cannot_do(cli: Cli, args: tuple[str, ...], message: str) -> None:
    refused = cli.run("eval", "run", *args)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_a_batch_is_judged_again_without_a_call_to_a_member(cli: Cli, server: FakeServer) -> None:
    write_lines(cli.folder / "in.jsonl", 31)
    assert cli.run("batch", "run", "in.jsonl", "-o", "out.jsonl").returncode == 0
    (batch,) = json.loads(
        cli.run("query", "select distinct batch_id from v_outcome", "-f", "json").stdout
    )
    before = calls(server)
    args = ("rejudge", "--batch", batch["batch_id"], "--criteria", "The shorter, the better.")
    done = cli.run(*args, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    after = calls(server)
    assert {model: after[model] for model in "abc"} == {model: before[model] for model in "abc"}
    assert after["j"] > before["j"]
    assert (found["prompts"], found["rejudged"], found["winners"], found["labelled"]) == (
        31,
        31,
        31,
        0,
    )
    assert found["agreement"] == pytest.approx((31 - found["winners_changed"]) / 31)
    assert found["rejudged_batch_id"].startswith(batch["batch_id"] + ".rejudge-")
    shown = cli.run(*args)
    assert "winners changed" in shown.stdout
    assert calls(server) == after
    # A batch that was rejudged can be rejudged.
    twice = cli.run("rejudge", "--batch", found["rejudged_batch_id"], "--pool", "closed", "--json")
    assert twice.returncode == 0, twice.stderr
    assert json.loads(twice.stdout)["rejudged"] == 31
    assert calls(server) == after


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--batch", "nowhere", "--judge", "j"), "there is no batch 'nowhere'"),
        (("--batch", "nowhere"), "nothing would change"),
        (("--batch", "x" * 120, "--judge", "j"), "longer than 128"),
        (("--batch", "one", "--judge", "k"), "there is no model 'k'"),
        (("--batch", "one", "--mode", "mrege"), "did you mean 'merge'?"),
        (("--batch", "one", "--pool", "clsed"), "did you mean 'closed'?"),
    ],
)
def test_rejudge_refuses_what_it_cannot_do(cli: Cli, args: tuple[str, ...], message: str) -> None:
    if "one" in args:
        (cli.folder / "in.jsonl").write_text('{"custom_id": "q", "prompt": "why?"}\n')
        assert cli.run("batch", "run", "in.jsonl", "-o", "out.jsonl").returncode == 0
        (batch,) = json.loads(
            cli.run("query", "select distinct batch_id from v_outcome", "-f", "json").stdout
        )
        args = tuple(batch["batch_id"] if arg == "one" else arg for arg in args)
    else:
        assert cli.run("db", "upgrade").returncode == 0
    refused = cli.run("rejudge", *args)
    assert refused.returncode == 2, refused.stderr
    assert message in refused.stderr
