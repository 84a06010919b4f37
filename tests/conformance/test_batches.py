"""Files and batches over HTTP, on the real parts."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from sqlalchemy import bindparam, text

from fusewire.settings import Database, Nats, Settings
from fusewire.store.engine import Store
from fusewire.store.tables import UtcDateTime
from fusewire.testing.eventually import eventually
from fusewire.testing.model_script import Fault, Script
from fusewire.testing.model_server import ModelServer
from fusewire.testing.nats_server import NatsServer
from fusewire_cli.client import Client
from fusewire_ingest.batches import runner as batch_runner
from fusewire_ingest.repository.files import CHUNK

MakeSettings = Callable[..., Settings]
Running = Callable[..., AbstractAsyncContextManager[Client]]
Http = aiohttp.ClientSession


@pytest.fixture
def settings(make_settings: MakeSettings, database: Database) -> Settings:
    return make_settings(database=database)


@pytest.fixture
async def http(settings: Settings, stack: Running) -> AsyncIterator[Http]:
    """The whole of Fusewire."""
    async with stack(settings) as client, Http(client.url) as session:
        yield session


@pytest.fixture
async def few_at_once(settings: Settings, stack: Running) -> AsyncIterator[Http]:
    """The whole of Fusewire, with few lines in flight: a batch of hundreds is far from its end."""
    limits = settings.limits.model_copy(update={"batch_window": 4})
    async with (
        stack(settings.model_copy(update={"limits": limits})) as client,
        Http(client.url) as session,
    ):
        yield session


@pytest.fixture
async def door(
    make_settings: MakeSettings, running: Running, nats: NatsServer, database: Database
) -> AsyncIterator[Http]:
    """Ingest alone: what is released stays undecided."""
    limits = {
        "drain_s": 2,
        "prompt_bytes": 20_000,
        "file_bytes": 2_000_000,
        "batch_lines": 50,
        "batch_window": 4,
    }
    settings = make_settings(nats=Nats(url=nats.url), database=database, limits=limits)
    async with running(settings, "ingest") as client, Http(client.url) as session:
        yield session


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def prompts(count: int, **more: Any) -> bytes:
    return jsonl(
        *({"custom_id": f"c{n}", "prompt": f"Why {n}?", **more} for n in range(1, count + 1))
    )


def form(data: bytes, purpose: str | None = "batch") -> aiohttp.FormData:
    found = aiohttp.FormData()
    if purpose:
        found.add_field("purpose", purpose)
    found.add_field("file", io.BytesIO(data), filename="in.jsonl", content_type="application/jsonl")
    return found


async def asked(http: Http, method: str, path: str, **given: Any) -> tuple[int, Any]:
    async with http.request(method, f"/v1{path}", **given) as response:
        return response.status, await response.json()


async def uploaded(http: Http, data: bytes) -> str:
    status, file = await asked(http, "POST", "/files", data=form(data))
    assert (status, file["object"], file["bytes"], file["purpose"]) == (
        200,
        "file",
        len(data),
        "batch",
    )
    return str(file["id"])


async def made(http: Http, data: bytes, key: str | None = None, **ours: Any) -> dict[str, Any]:
    body = {
        "input_file_id": await uploaded(http, data),
        "endpoint": "/v1/chat/completions",
        "x_fusewire": ours,
    }
    status, batch = await asked(
        http, "POST", "/batches", json=body, headers={"idempotency-key": key} if key else None
    )
    assert status == 200, batch
    return dict(batch)


async def standing(http: Http, batch: dict[str, Any], *statuses: str) -> dict[str, Any]:
    """The batch, once it stands in one of these."""
    found: dict[str, Any] = {}

    async def is_there() -> bool:
        found.update((await asked(http, "GET", f"/batches/{batch['id']}"))[1])
        return found["status"] in statuses

    await eventually(is_there)
    return found


async def content(http: Http, file_id: str) -> list[dict[str, Any]]:
    async with http.get(f"/v1/files/{file_id}/content") as response:
        assert response.status == 200
        return [json.loads(line) for line in (await response.text()).splitlines()]


async def results(http: Http, batch: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    async with http.get(f"/v1/batches/{batch['id']}/results", params=query) as response:
        assert response.status == 200
        return [json.loads(line) for line in (await response.text()).splitlines()]


# -- files ------------------------------------------------------------------------------------


async def test_a_file_comes_back_as_it_was_sent(door: Http) -> None:
    data = b"\xef\xbb\xbf" + bytes(range(256)) * (3 * CHUNK // 256) + b"end"
    file_id = await uploaded(door, data)

    async with door.get(f"/v1/files/{file_id}/content") as response:
        assert await response.read() == data
    status, shown = await asked(door, "GET", f"/files/{file_id}")
    assert (status, shown["filename"]) == (200, "in.jsonl")


async def test_files_are_listed_and_deleted(door: Http) -> None:
    ids = [await uploaded(door, b"%d" % n) for n in range(3)]

    _, first = await asked(door, "GET", "/files", params={"limit": 2, "order": "asc"})
    _, rest = await asked(door, "GET", "/files", params={"after": first["last_id"], "order": "asc"})
    assert [f["id"] for f in first["data"] + rest["data"]] == ids
    assert (first["has_more"], rest["has_more"]) == (True, False)

    assert (await asked(door, "DELETE", f"/files/{ids[0]}"))[1]["deleted"] is True
    assert (await asked(door, "GET", f"/files/{ids[0]}"))[0] == 404
    _, left = await asked(door, "GET", "/files")
    assert [f["id"] for f in left["data"]] == [ids[2], ids[1]]


@pytest.mark.parametrize(
    ("data", "status", "code", "param"),
    [
        (lambda: form(b"x", purpose=None), 400, "invalid_request", "purpose"),
        (lambda: form(b"x", purpose="fine-tune"), 400, "invalid_request", "purpose"),
        (lambda: form(b""), 400, "invalid_request", "file"),
        (lambda: form(b"x" * 2_000_001), 413, "file_too_large", "file"),
        (lambda: b"purpose=batch", 415, "unsupported_media_type", None),
    ],
    ids=["no purpose", "another purpose", "empty", "too large", "no form"],
)
async def test_a_bad_upload_is_refused_and_leaves_nothing(
    door: Http, data: Callable[[], Any], status: int, code: str, param: str | None
) -> None:
    found, reply = await asked(door, "POST", "/files", data=data())

    assert (found, reply["error"]["code"], reply["error"]["param"]) == (status, code, param)
    assert (await asked(door, "GET", "/files"))[1]["data"] == []


async def test_a_form_that_breaks_off_is_refused(door: Http) -> None:
    body = b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
    body += b'content-disposition: form-data; name="file"; filename="x"\r\n\r\nhalf of i'
    found, reply = await asked(
        door,
        "POST",
        "/files",
        data=body,
        headers={"content-type": "multipart/form-data; boundary=b"},
    )

    assert (found, reply["error"]["code"]) == (400, "invalid_request")
    assert "breaks off" in reply["error"]["message"]
    assert (await asked(door, "GET", "/files"))[1]["data"] == []


async def test_a_file_in_use_stays(door: Http) -> None:
    batch = await made(door, prompts(2))

    status, reply = await asked(door, "DELETE", f"/files/{batch['input_file_id']}")
    assert (status, reply["error"]["code"]) == (409, "file_in_use")


# -- what a batch comes to --------------------------------------------------------------------


async def test_a_batch_is_answered_line_by_line(http: Http, model_server: ModelServer) -> None:
    batch = await standing(http, await made(http, prompts(5)), "completed")

    assert batch["request_counts"] == {"total": 5, "completed": 5, "failed": 0}
    assert batch["error_file_id"] is None
    assert batch["in_progress_at"] <= batch["finalizing_at"] <= batch["completed_at"]
    lines = await content(http, batch["output_file_id"])
    assert [(line["custom_id"], line["index"]) for line in lines] == [
        (f"c{n}", n) for n in range(1, 6)
    ]
    assert all(line["response"]["status_code"] == 200 and line["error"] is None for line in lines)
    assert lines[0]["response"]["body"]["choices"][0]["message"]["content"]
    assert batch["usage"]["total_tokens"] > 0
    _, file = await asked(http, "GET", f"/files/{batch['output_file_id']}")
    async with http.get(f"/v1/files/{file['id']}/content") as response:
        assert file["bytes"] == len(await response.read())
    assert model_server.stats.by_model["a"] == 5
    assert await results(http, batch) == lines
    assert sorted(line["seq"] for line in lines) == [1, 2, 3, 4, 5]
    assert [one["index"] for one in await results(http, batch, after=3, limit=1)] == [4]


async def test_a_line_is_told_what_it_did_not_get(http: Http) -> None:
    body = {"model": "fusion", "messages": [{"role": "user", "content": "Why?"}]}
    line = {"custom_id": "q", "method": "POST", "url": "/v1/chat/completions"}
    plugin = {"id": "fusion", "tools": [{"type": "openrouter:web_search"}]}
    lines = jsonl(
        {**line, "body": {**body, "plugins": [plugin]}}, {**line, "custom_id": "r", "body": body}
    )
    batch = await standing(http, await made(http, lines), "completed")

    first, second = await content(http, batch["output_file_id"])
    (warning,) = first["response"]["body"]["fusion"]["warnings"]
    assert warning.startswith("'plugins.0.tools' was ignored")
    assert second["response"]["body"]["fusion"]["warnings"] == []


async def test_the_same_key_is_the_same_batch_and_another_file_is_a_conflict(http: Http) -> None:
    body = {"input_file_id": await uploaded(http, prompts(1)), "endpoint": "/v1/chat/completions"}
    headers = {"idempotency-key": "k"}
    _, first = await asked(http, "POST", "/batches", json=body, headers=headers)
    _, again = await asked(http, "POST", "/batches", json=body, headers=headers)
    other = {**body, "input_file_id": await uploaded(http, prompts(2))}
    status, reply = await asked(http, "POST", "/batches", json=other, headers=headers)
    _, unkeyed = await asked(http, "POST", "/batches", json=body)

    assert first["id"] == again["id"] != unkeyed["id"]
    assert (status, reply["error"]["code"]) == (409, "idempotency_conflict")


async def test_a_batch_whose_every_line_fails_is_completed_without_an_output(
    http: Http, model_server: ModelServer
) -> None:
    model_server.set_script(Script.of(*[Fault(kind="bad_request")] * 99))
    batch = await standing(http, await made(http, prompts(3)), "completed")

    assert batch["request_counts"] == {"total": 3, "completed": 0, "failed": 3}
    assert batch["output_file_id"] is None
    lines = await content(http, batch["error_file_id"])
    assert [line["error"]["code"] for line in lines] == ["bad_request"] * 3
    assert not any(line["error"]["retryable"] for line in lines)
    status, reply = await asked(http, "POST", f"/batches/{batch['id']}/retry", json={})
    assert (status, reply["error"]["code"]) == (409, "batch_state")

    model_server.set_script(Script())
    _, retried = await asked(http, "POST", f"/batches/{batch['id']}/retry", json={"only": "all"})
    _, again = await asked(http, "POST", f"/batches/{batch['id']}/retry", json={"only": "all"})
    assert retried["id"] == again["id"] != batch["id"]
    assert retried["metadata"]["retry_of"] == batch["id"]
    over = await standing(http, retried, "completed")
    assert over["request_counts"] == {"total": 3, "completed": 3, "failed": 0}


@pytest.mark.parametrize(
    ("data", "line", "code", "param"),
    [
        (prompts(1) + b"{\n", 2, "invalid_json", None),
        (
            prompts(1) + b'{"custom_id":"c1","prompt":"Again?"}\n',
            2,
            "custom_id_conflict",
            "custom_id",
        ),
        (prompts(1, pool="none"), 1, "unknown_pool", "pool"),
        (prompts(1) + b'{"prompt":"' + b"x" * 20_000 + b'"}', 2, "prompt_too_large", None),
        (prompts(51), 51, "file_too_large", None),
        (b"\n\n", None, "invalid_request", None),
    ],
    ids=["not JSON", "a custom_id twice", "no such pool", "too long", "too many", "nothing"],
)
async def test_an_input_with_a_bad_line_is_refused_whole(
    door: Http, data: bytes, line: int | None, code: str, param: str | None
) -> None:
    batch = await standing(door, await made(door, data), "failed")

    (fault,) = batch["errors"]["data"]
    assert (fault["line"], fault["code"], fault["param"]) == (line, code, param)
    assert batch["failed_at"]
    assert (await asked(door, "GET", "/fusions", params={"id": "none"}))[1]["data"] == []
    assert await results(door, batch) == []


async def test_a_custom_id_of_another_group_is_found(
    door: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusewire_ingest.batches.check.GROUP", 2)
    batch = await standing(
        door, await made(door, prompts(4) + b'{"custom_id":"c1","prompt":"x"}'), "failed"
    )

    (fault,) = batch["errors"]["data"]
    assert (fault["line"], fault["code"]) == (5, "custom_id_conflict")
    assert "line 1" in fault["message"]


async def test_a_price_must_be_known_for_a_limit_of_cost(door: Http) -> None:
    batch = await standing(door, await made(door, prompts(1), max_cost_usd=1.0), "failed")

    assert batch["errors"]["data"][0]["code"] == "price_unknown"


# -- with the requests in its body ------------------------------------------------------------


REQUEST: dict[str, Any] = {
    "custom_id": "q",
    "body": {"messages": [{"role": "user", "content": "Why?"}]},
}
REQUESTS: dict[str, Any] = {
    "endpoint": "/v1/chat/completions",
    "model": "fusion",
    "requests": [REQUEST],
}


async def test_a_batch_may_hold_its_requests(http: Http) -> None:
    headers = {"idempotency-key": "k"}
    status, batch = await asked(http, "POST", "/batches", json=REQUESTS, headers=headers)
    assert (status, batch["model"], batch["results"]) == (202, "fusion", None)
    over = await standing(http, batch, "completed")
    again = await asked(http, "POST", "/batches", json=REQUESTS, headers=headers)

    assert again == (202, over)
    (result,) = over["results"]
    assert (result["custom_id"], result["response"]["status_code"]) == ("q", 200)
    assert await content(http, over["input_file_id"]) == [
        {
            **REQUEST,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "fusion", **REQUEST["body"]},
        }
    ]
    other = {**REQUESTS, "requests": [{**REQUEST, "custom_id": "r"}]}
    status, reply = await asked(http, "POST", "/batches", json=other, headers=headers)
    assert (status, reply["error"]["code"]) == (409, "idempotency_conflict")


async def test_a_bad_batch_of_requests_is_refused(door: Http) -> None:
    cases: tuple[tuple[dict[str, Any], str, str], ...] = (
        ({"requests": []}, "invalid_request", "requests"),
        ({"requests": [REQUEST] * 1_001}, "invalid_request", "requests"),
        ({"requests": [{**REQUEST, "custom_id": 1}]}, "invalid_request", "requests.0.custom_id"),
        ({"callback_url": "https://example.com"}, "unsupported_parameter", "callback_url"),
        ({"provider": {"only": ["x"]}}, "unsupported_parameter", "provider"),
        ({"endpoint": "/v1/embeddings"}, "invalid_request", "endpoint"),
        ({"completion_window": "9d"}, "invalid_request", "completion_window"),
    )
    for changed, code, param in cases:
        status, reply = await asked(door, "POST", "/batches", json={**REQUESTS, **changed})

        error = (reply["error"]["code"], reply["error"]["param"])
        assert (status, *error) == (400, code, param), changed.keys()
        assert (await asked(door, "GET", "/files"))[1]["data"] == []


async def test_a_file_s_lines_name_their_own_models(door: Http) -> None:
    body = {
        "input_file_id": await uploaded(door, prompts(1)),
        "endpoint": "/v1/chat/completions",
        "model": "fusion",
    }
    status, reply = await asked(door, "POST", "/batches", json=body)

    assert (status, reply["error"]["code"], reply["error"]["param"]) == (
        400,
        "unsupported_parameter",
        "model",
    )


# -- the window, stopping and going on --------------------------------------------------------


async def in_flight(http: Http, batch: dict[str, Any], count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}

    async def is_so() -> bool:
        found.update((await asked(http, "GET", f"/batches/{batch['id']}"))[1])
        return bool(found["x_fusewire"]["in_flight"] == count)

    await eventually(is_so)
    return found


async def test_no_more_lines_than_the_window_are_in_flight(door: Http) -> None:
    batch = await in_flight(door, await made(door, prompts(20)), 4)

    assert batch["x_fusewire"]["held"] == 16
    assert (await asked(door, "GET", "/batches"))[1]["data"][0]["id"] == batch["id"]
    other = await made(door, prompts(3))
    await standing(door, other, "in_progress")
    await asyncio.sleep(0)
    assert (await in_flight(door, other, 0))["x_fusewire"]["held"] == 3


async def test_what_was_cancelled_keeps_its_lines_and_goes_on(
    few_at_once: Http, model_server: ModelServer
) -> None:
    http = few_at_once
    model_server.set_script(Script.of(latency_ms=50))
    batch = await made(http, prompts(80))
    await standing(http, batch, "in_progress")
    await model_server.wait_for_requests(1)
    status, stopped = await asked(
        http,
        "POST",
        f"/batches/{batch['id']}/cancel",
        params={"drain": "true", "reason": "interrupted"},
    )
    assert (status, stopped["status"]) == (200, "cancelling")
    stopped = await standing(http, batch, "cancelled")
    done = stopped["request_counts"]["completed"]
    assert 0 < done < 80
    assert stopped["x_fusewire"]["stop_reason"] == "interrupted"
    assert len(await content(http, stopped["output_file_id"])) == done
    errors = await content(http, stopped["error_file_id"])
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
    assert len(errors) == 80 - done

    model_server.set_script(Script())
    status, resumed = await asked(http, "POST", f"/batches/{batch['id']}/resume", json={})
    assert (status, resumed["status"], resumed["output_file_id"]) == (200, "in_progress", None)
    over = await standing(http, batch, "completed")
    assert over["request_counts"] == {"total": 80, "completed": 80, "failed": 0}
    assert len(await content(http, over["output_file_id"])) == 80
    status, reply = await asked(http, "POST", f"/batches/{batch['id']}/resume", json={})
    assert (status, reply["error"]["code"]) == (409, "batch_state")


async def test_cancelling_at_once_ends_what_is_in_flight(
    http: Http, model_server: ModelServer
) -> None:
    model_server.set_script(Script.of(latency_ms=600))
    batch = await made(http, prompts(40))
    await standing(http, batch, "in_progress")
    await asked(http, "POST", f"/batches/{batch['id']}/cancel")
    stopped = await standing(http, batch, "cancelled")

    assert stopped["x_fusewire"]["stop_reason"] == "request"
    failed = [line["error"]["code"] for line in await results(http, stopped) if line["seq"]]
    assert set(failed) <= {"cancelled", None}


async def test_a_batch_that_expires_keeps_what_is_done(door: Http, database: Database) -> None:
    batch = await in_flight(door, await made(door, prompts(6)), 4)
    store = Store(database)
    async with store.write() as connection:
        late = {"late": datetime.now(UTC) - timedelta(seconds=1), "of": batch["id"]}
        await connection.execute(
            text("UPDATE batch_lines SET state = 'ok', settled = line WHERE state = 'flying'")
        )
        ending = text("UPDATE batches SET completed = 4, expires_at = :late WHERE batch_id = :of")
        await connection.execute(ending.bindparams(bindparam("late", type_=UtcDateTime)), late)
    await store.close()

    over = await standing(door, batch, "expired")
    assert over["expired_at"]
    lines = await content(door, over["error_file_id"])
    assert [(line["index"], line["error"]["code"]) for line in lines] == [
        (5, "batch_expired"),
        (6, "batch_expired"),
    ]
    assert all(line["error"]["retryable"] for line in lines)
    _, retried = await asked(door, "POST", f"/batches/{batch['id']}/retry", json={})
    assert retried["request_counts"]["total"] == 2


async def test_a_limit_of_cost_stops_it_and_a_higher_one_goes_on(
    make_settings: MakeSettings, stack: Running
) -> None:
    priced = {"input_usd_per_mtok": 10_000.0, "output_usd_per_mtok": 10_000.0}
    base = make_settings()
    models = {name: model.model_copy(update=priced) for name, model in base.models.items()}
    async with (
        stack(base.model_copy(update={"models": models})) as client,
        Http(client.url) as http,
    ):
        batch = await made(http, prompts(60), max_cost_usd=10.0)
        stopped = await standing(http, batch, "cancelled")
        ours = stopped["x_fusewire"]
        done = stopped["request_counts"]["completed"]
        assert (ours["stop_reason"], ours["n_unpriced"]) == ("budget", 0)
        assert 0 < done < 60
        assert 0 < ours["cost_usd"] <= 10.0 + 2 * ours["cost_usd"] / done
        await asked(http, "POST", f"/batches/{batch['id']}/resume", json={"max_cost_usd": 10_000.0})
        over = await standing(http, batch, "completed")
        assert over["request_counts"]["completed"] == 60


async def test_an_interrupted_check_is_begun_again(
    make_settings: MakeSettings, running: Running, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(nats=Nats(url=nats.url))
    async with running(settings, "ingest") as client, Http(client.url) as http:
        batch = await made(http, prompts(3))
        await standing(http, batch, "in_progress")
    store = Store(settings.database)
    async with store.write() as connection:
        await connection.execute(text("UPDATE batches SET status = 'validating', total = 0"))
        await connection.execute(text("DELETE FROM batch_lines WHERE line = 3"))
    await store.close()
    monkeypatch.setattr(batch_runner, "ORPHANED_AFTER", timedelta(0))
    async with running(settings, "ingest") as client, Http(client.url) as http:
        found = await standing(http, batch, "in_progress")
        assert found["request_counts"]["total"] == 3


async def test_an_analyst_sees_how_batches_stand(
    make_settings: MakeSettings, running: Running, nats: NatsServer, database: Database
) -> None:
    settings = make_settings(nats=Nats(url=nats.url), database=database)
    async with running(settings, "ingest") as client, Http(client.url) as http:
        body = {
            "input_file_id": await uploaded(http, prompts(8)),
            "endpoint": "/v1/chat/completions",
        }
        _, batch = await asked(
            http, "POST", "/batches", json={**body, "metadata": {"name": "nightly"}}
        )
        await standing(http, batch, "in_progress")
    store = Store(settings.database)
    started = datetime.now(UTC) - timedelta(hours=1)
    async with store.write() as connection:
        half = text(
            "UPDATE batches SET completed = 3, failed = 1, n_unpriced = 1, "
            "in_progress_at = :started"
        )
        await connection.execute(
            half.bindparams(bindparam("started", type_=UtcDateTime)), {"started": started}
        )
    async with store.read() as connection:
        (row,) = (await connection.execute(text("SELECT * FROM v_batch"))).mappings().all()
    await store.close()

    assert (row["batch_id"], row["name"], row["status"]) == (batch["id"], "nightly", "in_progress")
    assert (row["total"], row["completed"], row["failed"], row["cost_usd"]) == (8, 3, 1, None)
    eta_at = row["eta_at"]
    eta_at = datetime.fromisoformat(f"{eta_at}+00:00") if isinstance(eta_at, str) else eta_at
    assert abs(eta_at - started - timedelta(hours=2)) < timedelta(minutes=2)


async def test_what_is_not_there_is_a_404(door: Http) -> None:
    for method, path in (
        ("GET", "/batches/batch_x"),
        ("POST", "/batches/batch_x/cancel"),
        ("GET", "/batches/batch_x/results"),
        ("GET", "/files/file-x/content"),
        ("GET", "/batches/a%00b"),
        ("GET", "/files/a%00b"),
    ):
        assert (await asked(door, method, path))[0] == 404, path
    status, reply = await asked(
        door,
        "POST",
        "/batches",
        json={"input_file_id": "file-x", "endpoint": "/v1/chat/completions"},
    )
    assert (status, reply["error"]["code"], reply["error"]["param"]) == (
        404,
        "unknown_file",
        "input_file_id",
    )
    window: Any = {
        "input_file_id": "file-x",
        "endpoint": "/v1/chat/completions",
        "completion_window": "9d",
    }
    status, reply = await asked(door, "POST", "/batches", json=window)
    assert (status, reply["error"]["param"]) == (400, "completion_window")
