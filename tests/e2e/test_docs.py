"""What the documents tell to run is run."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusewire.testing.command_line import FUSEWIRE, Cli, address, background
from fusewire_ingest.admission.admit import parse

DOCS = Path(__file__).parents[2] / "docs"
URL = "http://localhost:8484"


def blocks(page: str, title: str, language: str) -> list[str]:
    """The snippets of a section."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (section,) = re.findall(rf"^#+ {title}\n(.*?)(?=^##? |\Z)", text, re.DOTALL | re.MULTILINE)
    found = re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found, f"there is nothing to run in '{title}' of {page}"
    return found


@pytest.fixture
def url(cli: Cli) -> Iterator[str]:
    """Fusewire as a reader of the documents runs it, and a file in the form of OpenAI's batches."""
    body = {"model": "meta-llama/Llama-3.1-8B", "messages": [{"role": "user", "content": "Why?"}]}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = [json.dumps({"custom_id": f"q{n}", **line}) for n in range(3)]
    (cli.folder / "in.jsonl").write_text("\n".join(lines))
    with cli.start("up") as process:
        yield address(cli, process)


def python(cli: Cli, url: str, snippet: str) -> list[str]:
    assert snippet.count(URL) == 1
    return ran(cli, [sys.executable, "-c", snippet.replace(URL, url)])


def sh(cli: Cli, snippet: str) -> list[str]:
    return ran(cli, ["sh", "-ec", snippet])


def ran(cli: Cli, command: list[str]) -> list[str]:
    env = {**cli.env, "PATH": f"{FUSEWIRE.parent}:{cli.env['PATH']}"}
    with background(command, cwd=cli.folder, env=env) as process:
        assert process.wait() == 0, process.stderr
        return process.stdout.splitlines()


def test_coming_from_openrouter_fusion(cli: Cli, url: str) -> None:
    (snippet,) = blocks("how-to/sdks.md", "From OpenRouter Fusion", "python")

    *answer, told = python(cli, url, snippet)
    assert answer
    assert re.fullmatch(r"f[a-v0-9]{26} (selected|voted) \S+", told)


def test_coming_from_litellm(cli: Cli, url: str) -> None:
    (snippet,) = blocks("how-to/sdks.md", "From LiteLLM", "python")

    models, *answer = python(cli, url, snippet)
    assert "'fusewire/default'" in models
    assert answer


def test_coming_from_vllm(cli: Cli, url: str) -> None:
    assert url
    (snippet,) = blocks("how-to/sdks.md", "From vLLM run-batch", "sh")

    sh(cli, snippet)
    results = [json.loads(line) for line in (cli.folder / "out.jsonl").read_text().splitlines()]
    assert [one["custom_id"] for one in results] == ["q0", "q1", "q2"]
    assert all(one["response"]["status_code"] == 200 for one in results)


def test_batches(cli: Cli, url: str) -> None:
    (snippet,) = blocks("how-to/batches.md", "From Python", "python")
    status, first = python(cli, url, snippet)
    assert status == "completed 3 of 3"
    assert json.loads(first)["custom_id"] == "q0"

    (snippet,) = blocks("how-to/batches.md", "From the command line", "sh")
    assert re.search(r"nightly\W+completed\W+3\W+0", "\n".join(sh(cli, snippet)))
    assert len((cli.folder / "results.jsonl").read_text().splitlines()) == 3


def test_prompts_from_the_bus(cli: Cli, url: str) -> None:
    assert url
    (snippet,) = blocks("how-to/nats-producers.md", "Submit prompts over NATS", "python")
    server = "nats://localhost:4222"
    assert snippet.count(server) == 1
    running = json.loads((cli.folder / ".fusewire" / "up.json").read_text())["nats"]

    first, again = (
        "".join(ran(cli, [sys.executable, "-c", snippet.replace(server, running)]))
        for _ in range(2)
    )
    assert json.loads(first)["custom_id"] == "order-17"
    assert again == "sent already"


def test_users_of_nats_for_tenants(cli: Cli) -> None:
    (snippet,) = blocks("how-to/nats-producers.md", "One user for each tenant", "sh")
    sh(cli, snippet)

    assert (cli.folder / "keys" / "tenant-acme.seed").exists()
    assert "TENANT_research {" in (cli.folder / "accounts.conf").read_text()
    added = cli.run("topology", "nkeys", "keys", "--add", "--tenant", "new")
    assert (added.returncode, added.stderr.split()[0]) == (0, "1")


def test_tenants(cli: Cli, url: str) -> None:
    assert url
    (snippet,) = blocks("how-to/tenants.md", "Several teams", "sh")

    create, list_, revoke = snippet.splitlines()
    (key,) = sh(cli, create)
    assert key.startswith("fw")
    ((key_id, _),) = re.findall(r"(\w+).*?(notebook)", "\n".join(sh(cli, list_)))
    sh(cli, revoke.replace("ID", key_id))
    (table,) = blocks("how-to/tenants.md", "Several teams", "toml")
    with (cli.folder / "fusewire.toml").open("a") as file:
        file.write(table)
    assert cli.run("config", "check").returncode == 0

    (query,) = blocks("how-to/tenants.md", "Who did what", "sh")
    told = "\n".join(sh(cli, query))
    assert "key.created" in told
    assert "configuration.loaded" in told
    assert key_id in told
    assert key not in told


def test_keys(cli: Cli, url: str) -> None:
    operate, manage = blocks("how-to/tenants.md", "Keys", "sh")
    create, rotate = operate.splitlines()
    (key,) = sh(cli, create)
    (new_key,) = sh(cli, rotate.replace("ID", key.split("-")[1]))
    assert new_key != key

    assert manage.count(URL) == 1
    reply = json.loads("\n".join(sh(cli, manage.replace(URL, url))))
    assert reply["key"].startswith("fw-")
    assert (reply["data"]["name"], reply["data"]["limit"]) == ("intern", 5)


def test_budgets(cli: Cli, url: str) -> None:
    assert url
    (snippet,) = blocks("how-to/tenants.md", "Budgets", "sh")
    made = json.loads(
        cli.run("keys", "create", "--tenant", "research", "--name", "mine", "--json").stdout
    )

    *changes, show, remove = snippet.splitlines()
    for line in changes:
        sh(cli, line.replace("ID", made["key_id"]))
    accounts = [line.split()[0] for line in sh(cli, show)[1:]]
    assert {f"key:{made['key_id']}", "pool:default", "research"} <= set(accounts)
    sh(cli, remove)
    remaining = [line.split()[0] for line in sh(cli, show)[1:]]
    assert remaining.count("research") == accounts.count("research") - 1


def test_quickstart(cli: Cli, url: str) -> None:
    (ask,) = blocks("quickstart.md", "Ask one question", "sh")
    assert sh(cli, ask)

    (batch,) = blocks("quickstart.md", "Answer a file of prompts", "sh")
    sh(cli, batch)
    (line,) = (cli.folder / "outcomes.jsonl").read_text().splitlines()
    assert json.loads(line)["custom_id"] == "q1"

    (curl,) = blocks("quickstart.md", "Run the server", "sh")
    assert curl.count(URL) == 1
    (reply,) = sh(cli, curl.replace(URL, url))
    assert json.loads(reply)["status"] in ("selected", "voted", "single")

    (query,) = blocks("quickstart.md", "See what was stored", "sh")
    assert any("outcome_id" in row for row in sh(cli, query))


def test_a_prompt_of_the_quickstart_is_admitted() -> None:
    (body,) = blocks("quickstart.md", "What a prompt may say", "json")
    assert parse(body.encode(), limit=10_000).custom_id == "q1"
