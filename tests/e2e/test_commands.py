"""Every other command, its errors and its exit codes."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fusewire.testing.command_line import (
    END_S,
    FUSEWIRE,
    Cli,
    FakeServer,
    address,
    background,
    bare,
)
from fusewire.testing.eventually import PATIENCE_S, until


def test_help_lists_every_command(cli: Cli) -> None:
    shown = cli.run("--help")
    assert shown.returncode == 0
    for command in (
        "up",
        "demo",
        "ask",
        "vote",
        "batch",
        "query",
        "doctor",
        "config",
        "topology",
        "db",
        "model",
    ):
        assert command in shown.stdout


def test_ask_prints_the_answer_and_stores_it(cli: Cli) -> None:
    asked = cli.run("ask", "What is copper?", "--mode", "merge", "--json")
    assert asked.returncode == 0, asked.stderr
    outcome = json.loads(asked.stdout)
    assert list(outcome)[:3] == ["is_degraded", "degraded_reasons", "status"]
    assert (outcome["status"], outcome["mode"]) == ("selected", "merge")
    # The fake's merge holds a digest that no candidate has, so the best single answer is returned,
    # and it says so.
    assert (outcome["guard"], outcome["reason"][:15]) == ("ungrounded", "the merge holds")
    stored = cli.run("query", "select content, n_answered from v_outcome", "-f", "json")
    assert json.loads(stored.stdout) == [{"content": outcome["content"], "n_answered": 3}]
    traced = json.loads(cli.run("trace", outcome["id"], "--json").stdout)["steps"]
    assert [step["step"] for step in traced][:3] == ["accepted", "published", "planned"]
    assert traced[-1]["step"] == "outcome"
    assert {step["who"] for step in traced if step["step"] == "call"} >= {"a", "b", "c"}
    shown = cli.run("trace", outcome["custom_id"])
    assert "guard: ungrounded" in shown.stdout
    assert "━" in shown.stdout
    unknown = cli.run("trace", "nobody")
    assert unknown.returncode == 2
    assert "no fusion 'nobody' of tenant 'default'" in unknown.stderr


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--pool", "defautl"), "did you mean 'default'?"),
        (("--mode", "best"), "did you mean 'best-of'?"),
    ],
)
def test_ask_names_the_nearest_pool_and_mode(cli: Cli, args: tuple[str, str], message: str) -> None:
    refused = cli.run("ask", "hello", *args)
    assert refused.returncode == 2
    assert message in refused.stderr


def test_a_vote_is_stored_changed_and_seen(cli: Cli) -> None:
    asked = json.loads(cli.run("ask", "What is copper?", "--json").stdout)
    outcome = asked["id"]
    voted = cli.run("vote", outcome, "b", "--voter", "Ann Other", "--json")
    assert voted.returncode == 0, voted.stderr
    vote = json.loads(voted.stdout)
    assert (vote["outcome_id"], vote["choice"], vote["is_new"]) == (outcome, "b", True)
    with cli.start("up") as process:
        address(cli, process)
        assert cli.run("vote", outcome, "fused").stdout == f"{outcome}: fused, new\n"
        changed = cli.run("vote", outcome, "a", "--voter", "Ann Other")
        assert changed.stdout == f"{outcome}: a, changed\n"
        again = cli.run("vote", outcome, "a", "--voter", "Ann Other")
        assert again.stdout.startswith(f"{outcome}: a, as since 20")
        for args, message in (
            ((outcome, "fussed"), "did you mean 'fused'? known: a, b, c, fused, none, tie"),
            (("nobody", "a"), "there is no outcome 'nobody'"),
            (("../batches?x", "a"), "there is "),
            ((outcome, "a", "--voter", "v" * 257), "'voter': "),
        ):
            refused = cli.run("vote", *args)
            assert (refused.returncode, refused.stdout) == (2, ""), args
            assert message in refused.stderr
    stored = cli.run("query", "select choice from v_vote order by choice", "-f", "json")
    assert json.loads(stored.stdout) == [{"choice": "a"}, {"choice": "fused"}]
    everything = b"".join(path.read_bytes() for path in (cli.folder / ".fusewire").glob("*.*"))
    assert outcome.encode() in everything
    assert b"Ann Other" not in everything


def test_up_serves_until_it_is_told_to_stop(cli: Cli) -> None:
    with cli.start("up") as process:
        api = f"{address(cli, process)}/v1/fusions"
        until(lambda: "Ctrl-C drains" in process.stdout, "what it says once it runs")
        assert process.stdout.split()[:2] == ["API", api]
        base = api.removesuffix("/v1/fusions")
        health = [
            urllib.request.urlopen(f"{base}/{path}", timeout=END_S).read()
            for path in ("healthz", "readyz")
        ]
        assert all(body.startswith(b"ok") for body in health)
        assert cli.run("topology", "apply").stdout.strip().endswith("unchanged")
        other = cli.run("up")
        assert other.returncode == 2
        assert "another Fusewire runs on the data folder" in other.stderr
        # A second command finds the running stack and uses it.
        assert cli.run("ask", "hello").returncode == 0
        metrics = urllib.request.urlopen(f"{base}/metrics", timeout=END_S).read().decode()
        assert 'fusewire_prompts_accepted_total{source="http"} 1.0' in metrics
        assert cli.run("doctor").returncode == 0
        known = json.loads(cli.run("doctor", "--models", "--json").stdout)
        assert [f["what"] for f in known if f["check"] == "dialect"] == [
            f"{n}: nothing is refused" for n in "abcj"
        ]
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert not (cli.folder / ".fusewire" / "up.json").exists()


def test_what_a_command_logs_is_no_part_of_its_result(cli: Cli) -> None:
    code = (
        "from fusewire import bus\n"
        "from fusewire_cli.screen import clear_errors\n"
        "with clear_errors():\n"
    )
    logs = "    bus.log.info('bus.quiet')\n    bus.log.warning('bus.error')"
    done = subprocess.run(
        [sys.executable, "-c", code + logs], env=cli.env, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert "bus.error" in done.stderr
    assert "bus.quiet" not in done.stderr


def test_a_port_in_use_is_named_with_the_way_out(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = bare(cli.folder, FUSEWIRE_HTTP__PORT=str(port)).run("up")
    assert refused.returncode == 2
    assert f"port {port} on 127.0.0.1 cannot be used" in refused.stderr
    assert "FUSEWIRE_HTTP__PORT" in refused.stderr


@pytest.mark.parametrize(
    ("config", "messages"),
    [
        ("this is no toml", ["cannot be parsed"]),
        (
            '[pools.default]\nmembers = ["ghost"]\n',
            ["member 'ghost' uses model 'ghost', which is not configured"],
        ),
        (
            '[models.m]\nkind = "edge"\npth = "x"\n',
            ["models.m.path: Field required", "models.m.pth"],
        ),
        ('[nats]\nurl = "nats://127.0.0.1:1"\n', ["no NATS server answers at nats://127.0.0.1:1"]),
        ('[database]\nurl = "mysql://x"\n', ["driver 'mysql'"]),
        ('[database]\nurl = "postgresql+asyncpg://u@127.0.0.1:1/x"\n', ["no database answers"]),
        (
            '[models.m]\nkind = "edge"\npath = "nowhere"\n[pools.default]\nmembers = ["m"]\n',
            ["the model folder nowhere cannot be used", "to mend it"],
        ),
    ],
)
def test_up_refuses_a_bad_configuration_with_one_clear_message(
    tmp_path: Path, config: str, messages: list[str]
) -> None:
    (tmp_path / "fusewire.toml").write_text(
        "[http]\nport = 0\n" * ("[http]" not in config) + config if "=" in config else config
    )
    refused = bare(tmp_path).run("up")
    assert refused.returncode == 2, refused.stderr
    for message in messages:
        assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_query_reads_only(cli: Cli) -> None:
    assert cli.run("db", "upgrade").stdout.startswith("schema ")
    assert cli.run("db", "upgrade").returncode == 0
    table = cli.run("query", "select 1 as one, 'x' as two", "-f", "csv")
    assert table.stdout == "one,two\n1,x\n"
    for statement in (
        "delete from outcomes",
        "drop view v_outcome",
        "update prompts set pool = 'x'",
    ):
        refused = cli.run("query", statement)
        assert refused.returncode == 2, statement
        assert "write a SELECT" in refused.stderr
    mistaken = cli.run("query", "select no_such_thing from v_outcome").stderr
    assert "no such column" in mistaken
    assert "v_judge_bias" in mistaken


def test_config_check_and_doctor_say_what_they_found(cli: Cli) -> None:
    checked = cli.run("config", "check")
    assert checked.returncode == 0
    assert "pool      default: best-of, members a, b, c; judge j" in checked.stdout
    elsewhere = {**cli.env, "FUSEWIRE_DATABASE__URL": "postgresql+asyncpg://me:secret@db/fw"}
    shown = replace(cli, env=elsewhere).run("config", "check")
    assert "database  postgresql+asyncpg://me:***@db/fw\n" in shown.stdout
    found = json.loads(cli.run("doctor", "--json").stdout)
    assert {f["check"] for f in found} >= {"config", "python", "disk", "nats", "database", "model"}
    assert not [f for f in found if f["state"] == "fault"]
    shared = json.loads(cli.run("doctor", "--shared", "--json").stdout)
    assert {f["check"] for f in shared} == {"nats", "database"}


def test_config_check_tells_a_model_without_its_key(cli: Cli) -> None:
    file = cli.folder / "fusewire.toml"
    file.write_text(
        file.read_text().replace('model = "a"', 'model = "a"\napi_key_env = "NO_SUCH_KEY"', 1)
    )
    checked = cli.run("config", "check")
    assert checked.returncode == 0
    assert checked.stdout.splitlines()[0].endswith("fusewire.toml: usable, except a")
    assert "model a cannot be called from here: NO_SUCH_KEY is not set" in checked.stderr
    keyed = replace(cli, env={**cli.env, "NO_SUCH_KEY": "k"}).run("config", "check")
    assert keyed.stdout.splitlines()[0].endswith("fusewire.toml: usable")


def test_config_check_asks_the_models_when_it_is_told_to(cli: Cli, server: FakeServer) -> None:
    config = (cli.folder / "fusewire.toml").read_text()
    asked = cli.run("config", "check", "--live")
    assert asked.returncode == 0, asked.stderr
    assert [line.split()[:3] for line in asked.stdout.splitlines()[-8:]] == [
        [model, role, "ok"] for model in "abcj" for role in ("member", "judge")
    ]
    unset = config.replace('model = "j"', 'model = "j"\napi_key_env = "NO_SUCH_KEY"')
    (cli.folder / "fusewire.toml").write_text(unset)
    refused = cli.run("config", "check", "--live")
    assert refused.returncode == 3
    assert "the environment variable NO_SUCH_KEY is not set" in refused.stdout


def test_model_verify_names_what_is_wrong(cli: Cli, tmp_path: Path) -> None:
    refused = cli.run("model", "verify", "nowhere")
    assert refused.returncode == 2
    assert "nowhere" in refused.stderr
    assert cli.run("model", "pull", "smolm2-135m").returncode == 2
    listed = json.loads(cli.run("model", "list", "--root", str(tmp_path), "-f", "json").stdout)
    assert {one["state"] for one in listed} == {"to pull"}
    assert "smollm2-135m" in [one["name"] for one in listed]


def test_model_bench_gives_every_figure(cli: Cli, tiny_folder: Path) -> None:
    figures = json.loads(cli.run("model", "bench", str(tiny_folder), "--json").stdout)
    assert {
        "decode_over_bandwidth",
        "slots4_over_1",
        "slots8_over_1",
        "late_join_steps",
        "prefix_reuse_cpu",
        "prepacked_over_plain_load",
    } <= {name for name, figure in figures.items() if figure is not None}
    assert figures["kl"] is None


def test_a_reader_that_leaves_early_is_no_fault(cli: Cli) -> None:
    command = [str(FUSEWIRE), "config", "check"]
    with subprocess.Popen(
        command, cwd=cli.folder, env=dict(cli.env), stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 0


def test_a_database_file_that_is_none_has_its_own_message_and_code(cli: Cli) -> None:
    data = cli.folder / ".fusewire"
    data.mkdir()
    (data / "fusewire.db").write_bytes(b"not a database, for 64 bytes and more " * 100)
    for command in (("up",), ("ask", "hello"), ("query", "select 1"), ("db", "upgrade")):
        refused = cli.run(*command)
        assert refused.returncode == 5, command
        assert "the database file is damaged (file is not a database)" in refused.stderr
        assert "restore the file from a backup" in refused.stderr
    assert "the database file is damaged" in cli.run("doctor").stdout


def test_a_database_that_is_damaged_further_in_has_the_same_message_and_code(cli: Cli) -> None:
    assert cli.run("db", "upgrade").returncode == 0
    file = cli.folder / ".fusewire" / "fusewire.db"
    with contextlib.closing(sqlite3.connect(file)) as database:
        (root,) = database.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'outcomes'"
        ).fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    with file.open("r+b") as raw:
        raw.seek((root - 1) * size)
        raw.write(b"\xff" * size)
    refused = cli.run("query", "select * from v_outcome")
    assert refused.returncode == 5, refused.stderr
    assert "the database file is damaged" in refused.stderr
    assert "restore the file from a backup" in refused.stderr


def test_a_newer_schema_has_its_own_message_and_code(cli: Cli) -> None:
    assert cli.run("db", "upgrade").returncode == 0
    with contextlib.closing(sqlite3.connect(cli.folder / ".fusewire" / "fusewire.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.execute("UPDATE schema_compatibility SET oldest_code = '9999'")
        database.commit()
    for command in (("up",), ("db", "upgrade"), ("keys", "list")):
        refused = cli.run(*command)
        assert refused.returncode == 5, command
        assert "the database is at schema 9999, which is newer than this code" in refused.stderr
        assert "run the newer Fusewire" in refused.stderr


def test_a_broker_s_damaged_file_has_its_own_message_and_code_and_a_way_out_that_works(
    cli: Cli,
) -> None:
    store = cli.folder / ".fusewire" / "nats" / "store"
    assert cli.run("ask", "hello").returncode == 0
    (state,) = store.glob("jetstream/*/streams/FW_CANDIDATE/obs/judge/o.dat")
    state.write_bytes(os.urandom(100))

    refused = cli.run("up")

    assert refused.returncode == 5
    assert (
        "NATS cannot provision FW_CANDIDATE/judge: error creating store for consumer"
        in refused.stderr
    )
    assert "stop it and move its store away" in refused.stderr
    store.rename(store.with_name("store.damaged"))
    assert cli.run("ask", "hello").returncode == 0


def test_a_run_file_whose_process_is_another_now_is_none(cli: Cli) -> None:
    data = cli.folder / ".fusewire"
    data.mkdir()
    with socket.socket() as nobody, background(["sleep", "600"], cwd=data) as stranger:
        nobody.bind(("127.0.0.1", 0))
        there = f"127.0.0.1:{nobody.getsockname()[1]}"
        started = psutil.Process(stranger.pid).create_time() - 1000
        run = {
            "pid": stranger.pid,
            "started": started,
            "url": f"http://{there}",
            "nats": f"nats://{there}",
        }
        (data / "up.json").write_text(json.dumps({**run, "pids": {}}))
        assert cli.run("ask", "hello").returncode == 0
        assert stranger.returncode is None
