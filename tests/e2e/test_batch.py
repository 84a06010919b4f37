"""`fusewire batch run`, through kills, interruptions and bad lines."""

import functools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from fusewire.testing.command_line import Cli, FakeServer, write_lines


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never saw: {what}"
        time.sleep(0.05)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


async def paid_calls(server: FakeServer) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{server.port}/_control/stats") as reply,
    ):
        stats = await reply.json()
    return int(stats["requests"])


@pytest.mark.slow
@pytest.mark.parametrize("server", [100], indirect=True)
async def test_a_batch_survives_kill_9_of_every_process(cli: Cli, server: FakeServer) -> None:
    names = write_lines(cli.folder / "in.jsonl", 200)
    out = cli.folder / "out.jsonl"
    with cli.start("batch", "run", "in.jsonl", "-o", "out.jsonl", "--processes", "--window", "24") as process:
        until(lambda: lines_in(out) >= 20, "the first 20 lines")
        victims = json.loads((cli.folder / ".fusewire" / "up.json").read_text())["pids"]
        assert set(victims) == {"judge", "worker-remote", "dispatcher", "ingest", "nats"}
        for name, pid in victims.items():
            seen = lines_in(out)
            os.kill(pid, signal.SIGKILL)
            until(functools.partial(lambda seen: lines_in(out) > seen, seen), f"progress after the kill of {name}")
            assert process.poll() is None, "the batch was over before every process had been killed"
        _stdout, stderr = process.communicate(timeout=180)
    assert process.returncode == 0, stderr
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["custom_id"] for r in results] == names
    assert {r["status"] for r in results} <= {"fused", "voted"}
    count = cli.run("query", "select count(*) n, count(distinct custom_id) d from v_outcome", "-f", "json")
    assert json.loads(count.stdout) == [{"n": 200, "d": 200}]
    # Three members and two verdicts each; only calls in flight at the worker's death may be made again, once.
    assert 1000 <= await paid_calls(server) <= 1000 + 5 * 24


@pytest.mark.parametrize("server", [50], indirect=True)
def test_ctrl_c_says_how_to_go_on_and_going_on_asks_nothing_twice(cli: Cli, server: FakeServer) -> None:
    names = write_lines(cli.folder / "in.jsonl", 60)
    out = cli.folder / "out.jsonl"
    with cli.start("batch", "run", "in.jsonl", "-o", "out.jsonl", "--window", "4") as process:
        until(lambda: lines_in(out) >= 8, "the first 8 lines")
        process.send_signal(signal.SIGINT)
        _stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "fusewire batch run in.jsonl -o out.jsonl --window 4" in stderr
    assert 8 <= lines_in(out) < 60
    # A torn last line, as a crash would leave it.
    with out.open("a") as file:
        file.write('{"custom_id": "torn')
    again = cli.run("batch", "run", "in.jsonl", "-o", "out.jsonl")
    assert again.returncode == 0, again.stderr
    assert "lines are done already" in again.stderr
    assert [json.loads(line)["custom_id"] for line in out.read_text().splitlines()] == names
    calls = json.loads(cli.run("query", "select count(*) n from v_answer", "-f", "json").stdout)
    assert calls == [{"n": 180}]


def test_bad_lines_are_told_by_number_and_the_others_go_on(cli: Cli) -> None:
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
            ]
        )
    )
    done = cli.run("batch", "run", "in.jsonl", "-o", "out.jsonl")
    assert done.returncode == 3, done.stderr
    results = [json.loads(line) for line in (cli.folder / "out.jsonl").read_text().splitlines()]
    assert [(r["index"], r["custom_id"], r.get("error_code")) for r in results] == [
        (1, "good", None),
        (2, "line-2", "invalid_json"),
        (4, "pool", "unknown_pool"),
        (5, "good", "custom_id_conflict"),
        (6, "line-6", "prompt_too_large"),
        (7, "line-7", None),
    ]
    assert "line 2:" in done.stderr
    assert "did you mean 'default'?" in results[2]["error"]
    assert "2 answered, 4 failed" in done.stderr


def test_an_output_of_another_input_is_not_touched(cli: Cli) -> None:
    write_lines(cli.folder / "in.jsonl", 3)
    (cli.folder / "out.jsonl").write_text('{"custom_id": "other"}\n')
    refused = cli.run("batch", "run", "in.jsonl", "-o", "out.jsonl")
    assert refused.returncode == 2
    assert "belongs to another input" in refused.stderr
    assert (cli.folder / "out.jsonl").read_text() == '{"custom_id": "other"}\n'


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("\n\n", "holds no lines")])
def test_an_unusable_file_is_refused_before_anything_starts(cli: Cli, content: str | None, message: str) -> None:
    if content is not None:
        (cli.folder / "in.jsonl").write_text(content)
    refused = cli.run("batch", "run", "in.jsonl", "-o", "out.jsonl")
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (cli.folder / ".fusewire").exists()
