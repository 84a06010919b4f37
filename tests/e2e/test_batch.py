"""`fusewire batch`, through kills, interruptions, budgets and bad input."""

import functools
import json
import os
import re
import signal
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fusewire.testing.command_line import Cli, Command, FakeServer, address, write_lines
from fusewire.testing.eventually import PATIENCE_S, until

SAID = [{"role": "user", "content": "Is copper a metal?"}]
KILLED_LINES = 180
"""Of the batch during which every process is killed: it must not be over before the last one is."""
LINES = int(os.environ.get("BATCH_LINES", "300"))
"""Of the batch that is killed whole; `make test-batch` takes 2,000."""
OPENAI = {"custom_id": "o", "method": "POST", "url": "/v1/chat/completions"}


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def read(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def ids_of(text: str) -> list[str]:
    return [line["custom_id"] for line in read(text)]


def stats(server: FakeServer) -> dict[str, Any]:
    with urllib.request.urlopen(
        f"http://127.0.0.1:{server.port}/_control/stats", timeout=PATIENCE_S
    ) as reply:
        return dict(json.load(reply))


def paid_calls(server: FakeServer) -> int:
    return int(stats(server)["requests"])


def play(server: FakeServer, **model: Any) -> None:
    """Have every model of the fake server do this from now on; its counts begin anew."""
    script = json.dumps({"models": {"*": model}}).encode()
    urllib.request.urlopen(
        f"http://127.0.0.1:{server.port}/_control/script", data=script, timeout=PATIENCE_S
    ).close()


def with_env(cli: Cli, **env: str) -> Cli:
    return Cli(cli.folder, {**cli.env, **env})


def windowed(cli: Cli, lines: int) -> Cli:
    """With so many lines in flight at once."""
    return with_env(cli, FUSEWIRE_LIMITS__BATCH_WINDOW=str(lines))


def configure(cli: Cli, **keys: Any) -> None:
    """Add keys to all models."""
    path = cli.folder / "fusewire.toml"
    added = "".join(f"\n{key} = {json.dumps(value)}" for key, value in keys.items())
    path.write_text(re.sub(r'(\nmodel = "\w+")', rf"\1{added}", path.read_text()))


def processes_of(cli: Cli) -> dict[str, int]:
    found: dict[str, int] = json.loads((cli.folder / ".fusewire" / "up.json").read_text())["pids"]
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def batch_of(stderr: str) -> str:
    """The batch that can be resumed."""
    found = re.search(r"fusewire batch resume (\S+)", stderr)
    assert found, stderr
    return found[1]


def stop_at_once(process: Command) -> None:
    """Ask to stop, and then again."""
    process.send_signal(signal.SIGTERM)
    until(lambda: "what is in flight is waited for a moment" in process.stderr, "the notice")
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130


@contextmanager
def up(cli: Cli) -> Iterator[None]:
    """A Fusewire that runs."""
    with cli.start("up") as process:
        address(cli, process)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("server", [100], indirect=True)
def test_a_batch_survives_kill_9_of_every_process(cli: Cli, server: FakeServer) -> None:
    names = write_lines(cli.folder / "in.jsonl", KILLED_LINES)
    out = cli.folder / "out.jsonl"
    # In the order of completion: in that of the input, one line that is waited for hides the
    # progress of the others.
    args = (
        "batch",
        "run",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--processes",
        "--output-format",
        "outcome",
    )
    with windowed(cli, 24).start(*args, "--as-completed") as process:
        until(lambda: lines_in(out) >= 20, "the first 20 lines")
        victims = processes_of(cli)
        assert set(victims) == {"judge", "worker-remote", "dispatcher", "ingest", "nats"}
        for name, pid in victims.items():
            seen = lines_in(out)
            os.kill(pid, signal.SIGKILL)
            until(
                functools.partial(lambda seen: lines_in(out) > seen, seen),
                f"progress after the kill of {name}",
            )
            assert process.returncode is None, (
                "the batch was over before every process had been killed"
            )
        assert process.wait() == 0, process.stderr
    results = sorted(read(out.read_text()), key=lambda result: result["index"])
    assert [r["custom_id"] for r in results] == names
    assert [r["index"] for r in results] == list(range(1, KILLED_LINES + 1))
    assert {r["status"] for r in results} <= {"selected", "voted"}
    count = cli.run(
        "query", "select count(*) n, count(distinct custom_id) d from v_outcome", "-f", "json"
    )
    assert json.loads(count.stdout) == [{"n": KILLED_LINES, "d": KILLED_LINES}]
    # Three members and two verdicts each; only calls in flight at the worker's death may be made
    # again, once. One of a member that its panel closed without may not have been made yet.
    missing = sum(answer["status"] == "missing" for r in results for answer in r["answers"])
    assert missing <= 24
    calls = 5 * KILLED_LINES
    assert calls - missing <= paid_calls(server) <= calls + 5 * 24


@pytest.mark.slow
@pytest.mark.parametrize("server", [5], indirect=True)
def test_a_killed_run_is_run_again_and_buys_no_answer_twice(cli: Cli, server: FakeServer) -> None:
    names = write_lines(cli.folder / "in.jsonl", LINES)
    out = cli.folder / "out.jsonl"
    args = ("batch", "run", "in.jsonl", "-o", "out.jsonl", "--pool", "closed")
    cli = windowed(cli, 48)
    with cli.start(*args) as process:
        until(lambda: lines_in(out) >= LINES // 4, "the first quarter")
        for pid in (process.pid, *processes_of(cli).values()):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    assert LINES // 4 <= lines_in(out) < LINES
    again = cli.run(*args)
    assert again.returncode == 0, again.stderr
    results = read(out.read_text())
    assert [r["custom_id"] for r in results] == names
    assert [r["index"] for r in results] == list(range(1, LINES + 1))
    # Each call has an id; only those in flight at the kill may be made again, once.
    calls = Counter(stats(server)["by_key"])
    assert len(calls) == 3 * LINES
    assert max(calls.values()) <= 2
    assert calls.total() <= 3 * LINES + 3 * 48
    whole = cli.run(*args)
    assert whole.returncode == 0
    assert f"{LINES} answered, 0 failed" in whole.stderr
    assert paid_calls(server) == calls.total()


@pytest.mark.parametrize("way", ["run", "resume"])
@pytest.mark.parametrize("server", [50], indirect=True)
def test_ctrl_c_says_how_to_go_on_and_going_on_asks_nothing_twice(
    cli: Cli, server: FakeServer, way: str
) -> None:
    names = write_lines(cli.folder / "in.jsonl", 60)
    out = cli.folder / "out.jsonl"
    patient = with_env(windowed(cli, 4), FUSEWIRE_LIMITS__DRAIN_S="200")
    with patient.start("batch", "run", "in.jsonl", "-o", "out.jsonl") as process:
        until(lambda: lines_in(out) >= 8, "the first 8 lines")
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130, process.stderr
        stderr = process.stderr
    batch = batch_of(stderr)
    assert f"fusewire batch resume {batch} -o out.jsonl" in stderr
    stopped = lines_in(out)
    assert 8 <= stopped < 60
    # What was in flight came to its end and was written: nothing was paid for and left.
    assert paid_calls(server) == 5 * stopped
    # A torn last line, as a crash would leave it.
    with out.open("a") as file:
        file.write('{"custom_id": "torn')
    args = ("in.jsonl", "-o", "out.jsonl") if way == "run" else (batch, "-o", "out.jsonl")
    again = cli.run("batch", way, *args)
    assert again.returncode == 0, again.stderr
    assert ids_of(out.read_text()) == names
    assert paid_calls(server) == 5 * 60


@pytest.mark.parametrize("server", [600_000], indirect=True)
def test_a_second_ctrl_c_ends_at_once_and_leaves_nothing_running(
    cli: Cli, server: FakeServer
) -> None:
    names = write_lines(cli.folder / "in.jsonl", 5)
    with cli.start("batch", "run", "in.jsonl", "-o", "out.jsonl", "--processes") as process:
        until(lambda: paid_calls(server) >= 15, "calls in flight")
        started = processes_of(cli)
        stop_at_once(process)
    until(lambda: not any(map(is_alive, started.values())), "the end of all it had started")
    play(server)
    again = cli.run("batch", "run", "in.jsonl", "-o", "out.jsonl")
    assert again.returncode == 0, again.stderr
    assert ids_of((cli.folder / "out.jsonl").read_text()) == names


def test_stdin_to_stdout_with_every_form_of_line(cli: Cli, server: FakeServer) -> None:
    lines = [
        {**OPENAI, "body": {"model": "fusion", "messages": SAID}},
        {"custom_id": "m", "body": {"messages": SAID, "max_tokens": 50}},
        {"custom_id": "a", "params": {"model": "fusion", "max_tokens": 50, "messages": SAID}},
        {"custom_id": "b", "prompt": "Is copper a metal?"},
        {"messages": SAID},
    ]
    given = "".join(json.dumps(line) + "\n" for line in lines)
    done = cli.run("batch", "run", "-", "-o", "-", stdin=given)
    assert done.returncode == 0, done.stderr
    assert ids_of(done.stdout) == ["o", "m", "a", "b", "line-5"]
    for index, result in enumerate(read(done.stdout), start=1):
        assert (result["index"], result["error"], result["response"]["status_code"]) == (
            index,
            None,
            200,
        )
        assert result["response"]["body"]["choices"][0]["message"]["content"]
    assert "lines without a custom_id: 1" in done.stderr
    last = json.loads([line for line in done.stderr.splitlines() if line.startswith("{")][-1])
    assert set(last) == {"done", "total", "failed", "degraded", "rate_per_s", "eta_s", "cost_usd"}
    assert (last["done"], last["total"], last["failed"]) == (5, 5, 0)
    assert paid_calls(server) == 5 * 5


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_s_rows_are_lines(cli: Cli, kind: str) -> None:
    source = cli.folder / f"in.{kind}"
    if kind == "csv":
        source.write_text('id,text,other\na,"one,\ntwo",x\nb,three,y\n')
    else:
        pa, pq = import_module("pyarrow"), import_module("pyarrow.parquet")
        pq.write_table(
            pa.table({"id": ["a", "b"], "text": ["one", "three"], "other": [1, 2]}), source
        )
    args = (
        "batch",
        "run",
        source.name,
        "--prompt-col",
        "text",
        "--id-col",
        "id",
        "--progress",
        "none",
    )
    done = cli.run(*args)
    assert done.returncode == 0, done.stderr
    assert ids_of(done.stdout) == ["a", "b"]
    assert not [line for line in done.stderr.splitlines() if line.startswith("{")]


def test_every_bad_line_is_told_and_nothing_is_sent(cli: Cli, server: FakeServer) -> None:
    (cli.folder / "in.jsonl").write_text(
        "\n".join(
            [
                '{"custom_id": "good", "prompt": "one"}',
                '{"custom_id": "cut", "prompt": ',
                "",
                '{"custom_id": "pool", "prompt": "two", "pool": "defautl"}',
                '{"custom_id": "good", "prompt": "three"}',
                '{"prompt": "' + "x" * 300_000 + '"}',
                '{"prompt": "unnamed"}',
                json.dumps(
                    {**OPENAI, "body": {"model": "fusion", "messages": SAID, "max_tokens": -1}}
                ),
                *['{"prompt": 5}'] * 20,
            ]
        )
    )
    refused = cli.run("batch", "run", "in.jsonl", "-o", "out.jsonl")
    assert refused.returncode == 2
    told = refused.stderr.splitlines()
    assert [re.match(r"line (\d+)", line)[1] for line in told[:5]] == ["2", "4", "5", "6", "8"]  # type: ignore[index]
    assert "not valid JSON" in told[0]
    assert "did you mean 'default'?" in told[1]
    assert "stands in line 1 already" in told[2]
    assert "the limit is" in told[3]
    assert told[4].startswith("line 8, body.max_tokens: ")
    assert sum(line.startswith("line ") for line in told) == 20
    assert "and 5 more" in told
    assert "in.jsonl has 25 faults; nothing was sent" in refused.stderr
    assert not (cli.folder / "out.jsonl").exists()
    assert not (cli.folder / ".fusewire").exists()
    assert paid_calls(server) == 0


def test_an_output_of_another_input_is_not_touched(cli: Cli) -> None:
    write_lines(cli.folder / "in.jsonl", 3)
    (cli.folder / "out.jsonl").write_text('{"custom_id": "other", "index": 1, "response": {}}\n')
    refused = cli.run("batch", "run", "in.jsonl", "-o", "out.jsonl")
    assert refused.returncode == 2
    assert "belongs to another input" in refused.stderr
    assert lines_in(cli.folder / "out.jsonl") == 1
    assert not (cli.folder / ".fusewire").exists()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), ("\n\n", "holds no lines")]
)
def test_an_unusable_file_is_refused_before_anything_starts(
    cli: Cli, content: str | None, message: str
) -> None:
    if content is not None:
        (cli.folder / "in.jsonl").write_text(content)
    refused = cli.run("batch", "run", "in.jsonl", "-o", "out.jsonl")
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (cli.folder / ".fusewire").exists()


def test_a_cost_limit_stops_the_batch_and_a_higher_one_goes_on(
    cli: Cli, server: FakeServer
) -> None:
    # About 0.01 USD a token, so that a line of some 200 tokens takes about 2 USD.
    configure(cli, input_usd_per_mtok=10_000.0, output_usd_per_mtok=10_000.0)
    names = write_lines(cli.folder / "in.jsonl", 30)
    out = cli.folder / "out.jsonl"
    cli = windowed(cli, 2)
    args = ("batch", "run", "in.jsonl", "-o", "out.jsonl", "--pool", "closed", "--progress", "json")
    stopped = cli.run(*args, "--max-cost", "5usd")
    assert stopped.returncode == 4, stopped.stderr
    batch = batch_of(stopped.stderr)
    some = lines_in(out)
    assert 0 < some < 30
    last = json.loads([line for line in stopped.stderr.splitlines() if line.startswith("{")][-1])
    # Stopped where one more line would pass the limit, but for those that were in flight.
    line_usd = last["cost_usd"] / some
    assert last["cost_usd"] + line_usd > 5
    assert last["cost_usd"] < 5 + 3 * line_usd
    assert paid_calls(server) == 3 * some
    whole = cli.run("batch", "resume", batch, "-o", "out.jsonl", "--max-cost", "1000usd")
    assert whole.returncode == 0, whole.stderr
    assert ids_of(out.read_text()) == names
    assert paid_calls(server) == 3 * 30


def test_a_dry_run_tells_what_it_would_take_and_sends_nothing(cli: Cli, server: FakeServer) -> None:
    write_lines(cli.folder / "in.jsonl", 10)
    dry = cli.run("batch", "run", "in.jsonl", "--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    plan = json.loads(dry.stdout)
    assert (plan["lines"], plan["forms"], plan["without_id"]) == (10, {"bare": 10}, 0)
    assert plan["tokens_in"] > 0
    assert sorted(plan["unpriced"]) == ["a", "b", "c", "j"]
    assert plan["usd"] == {"min": None, "expected": None, "max": None}
    assert plan["eta_s"] is None
    assert not (cli.folder / ".fusewire").exists()

    configure(cli, input_usd_per_mtok=10.0, output_usd_per_mtok=20.0)
    usd = json.loads(cli.run("batch", "run", "in.jsonl", "--dry-run", "--json").stdout)["usd"]
    assert 0 < usd["min"] < usd["expected"] < usd["max"]
    shown = cli.run("batch", "run", "in.jsonl", "--dry-run")
    assert "10 lines" in shown.stdout
    assert paid_calls(server) == 0
    assert not (cli.folder / ".fusewire").exists()

    ran = cli.run("batch", "run", "in.jsonl")
    assert ran.returncode == 0, ran.stderr
    calls = paid_calls(server)
    measured = json.loads(cli.run("batch", "run", "in.jsonl", "--dry-run", "--json").stdout)
    assert measured["eta_s"] is not None
    assert paid_calls(server) == calls


def test_failed_lines_are_told_and_retried_where_that_may_help(
    cli: Cli, server: FakeServer
) -> None:
    configure(cli, max_attempts=1)
    write_lines(cli.folder / "in.jsonl", 3)
    play(server, faults=[{"kind": "bad_request"}, {"kind": "server_error"}])
    done = windowed(cli, 1).run("batch", "run", "in.jsonl", "-o", "out.jsonl", "--pool", "closed")
    assert done.returncode == 3, done.stderr
    first, second, third = read((cli.folder / "out.jsonl").read_text())
    assert (first["error"]["retryable"], second["error"]["retryable"], third["error"]) == (
        False,
        True,
        None,
    )
    assert "1 answered, 2 failed" in done.stderr
    found = re.search(r"fusewire batch retry (\S+)", done.stderr)
    assert found
    calls = paid_calls(server)
    retried = cli.run("batch", "retry", found[1], "--only", "retryable", "-o", "-")
    assert retried.returncode == 0, retried.stderr
    assert ids_of(retried.stdout) == ["q001"]
    assert paid_calls(server) == calls + 3


@pytest.mark.parametrize("server", [5], indirect=True)
def test_results_as_completed_do_not_wait_for_the_first(cli: Cli, server: FakeServer) -> None:
    names = write_lines(cli.folder / "in.jsonl", 20)
    out = cli.folder / "out.jsonl"
    # The first call of each model is never answered.
    play(server, faults=[{"kind": "hang"}])
    with cli.start(
        "batch", "run", "in.jsonl", "-o", "out.jsonl", "--as-completed", "--pool", "closed"
    ) as process:
        until(lambda: lines_in(out) >= 17, "all lines but those that hang")
        stop_at_once(process)
    results = read(out.read_text())
    assert [r["custom_id"] for r in results] != names[: len(results)]
    assert all(names[r["index"] - 1] == r["custom_id"] for r in results)
    ordered = cli.run("batch", "run", "in.jsonl", "-o", "out.jsonl", "--pool", "closed")
    assert ordered.returncode == 2
    assert "add --as-completed" in ordered.stderr
    whole = cli.run(
        "batch", "run", "in.jsonl", "-o", "out.jsonl", "--as-completed", "--pool", "closed"
    )
    assert whole.returncode == 0, whole.stderr
    assert sorted(ids_of(out.read_text())) == names


def test_a_batch_is_left_to_a_running_fusewire_and_looked_after(
    cli: Cli, server: FakeServer
) -> None:
    names = write_lines(cli.folder / "in.jsonl", 20)
    nobody = cli.run("batch", "submit", "in.jsonl")
    assert nobody.returncode == 2
    assert "no Fusewire is running here" in nobody.stderr
    with up(cli):
        submitted = cli.run("batch", "submit", "in.jsonl", "--name", "mine")
        assert submitted.returncode == 0, submitted.stderr
        batch = submitted.stdout.strip()
        assert re.fullmatch(r"batch_\S+", batch)
        assert cli.run("batch", "submit", "in.jsonl", "--name", "mine").stdout.strip() == batch
        watched = cli.run("batch", "watch", batch)
        assert watched.returncode == 0, watched.stderr
        assert "20 answered, 0 failed" in watched.stderr
        shown = json.loads(cli.run("batch", "status", batch, "--json").stdout)
        assert (shown["id"], shown["status"], shown["metadata"]["name"]) == (
            batch,
            "completed",
            "mine",
        )
        assert batch in cli.run("batch", "status").stdout
        assert ids_of(cli.run("batch", "results", batch).stdout) == names
        assert paid_calls(server) == 5 * 20
        missing = cli.run("batch", "status", "batch_none")
        assert missing.returncode == 2
        assert "batch_none" in missing.stderr
        play(server, latency_ms=600_000)
        other = cli.run("batch", "submit", "in.jsonl", "--name", "other").stdout.strip()
        assert other != batch
        until(lambda: paid_calls(server) > 0, "calls in flight")
        assert cli.run("batch", "cancel", other).returncode == 0
        assert cli.run("batch", "watch", other).returncode == 3
        again = cli.run("batch", "run", "in.jsonl", "--name", "other")
        assert again.returncode == 2
        assert f"go on with `fusewire batch resume {other}`" in again.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--max-cost", "lots"), "give an amount such as 20usd"),
        (("--completion-window", "8d"), "give 1h to 168h, or 1d to 7d"),
        (("--pool", "defautl"), "did you mean 'default'?"),
        (("--mode", "best"), "did you mean 'best-of'?"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    cli: Cli, args: tuple[str, ...], message: str
) -> None:
    write_lines(cli.folder / "in.jsonl", 2)
    refused = cli.run("batch", "run", "in.jsonl", *args)
    assert refused.returncode == 2
    assert message in re.sub(r"\s+", " ", refused.stderr)
    assert not (cli.folder / ".fusewire").exists()
