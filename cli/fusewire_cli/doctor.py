"""`fusewire doctor`: check everything that Fusewire needs."""

import asyncio
import contextlib
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

from nats.js.errors import BucketNotFoundError

from fusewire import provision
from fusewire.bus import Bus
from fusewire.configuration import find_file
from fusewire.errors import EXIT_BAD_INPUT, StartupError, Transient
from fusewire.http_server import listen, listen_console, listen_operations
from fusewire.settings import EdgeModel, Nats, RemoteModel, Settings
from fusewire.store import migrate
from fusewire.store.engine import Store
from fusewire.topology import ALARM, DIALECT_BUCKET, STORES, topology
from fusewire_cli import local_models
from fusewire_cli.local import nats
from fusewire_cli.local.run_file import broker, running
from fusewire_cli.local.runner import storage_mb
from fusewire_cli.session import settings

LEAST_FREE_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    check: str
    state: Literal["ok", "warning", "fault"]
    what: str
    mend: str = ""


def doctor(*, as_json: bool, models: bool, shared: bool) -> None:
    """Run every check and print the results; exit with code 2 if one finds a fault.

    Args:
        as_json: print JSON.
        models: also say which parameters hosted models refuse.
        shared: check NATS and the database alone.
    """
    config = settings()
    results = [] if shared else [*_local(config)]
    results += asyncio.run(_remote(config))
    if models:
        results += asyncio.run(_dialects(config))
    if as_json:
        print(json.dumps([asdict(result) for result in results]))
    else:
        for result in results:
            _show(result)
    if any(result.state == "fault" for result in results):
        sys.exit(EXIT_BAD_INPUT)


def _show(result: CheckResult) -> None:
    print(f"{result.state:8} {result.check:10} {result.what}")
    if result.mend:
        print(f"{'':19} {result.mend}")


def _local(config: Settings) -> Iterator[CheckResult]:
    yield CheckResult("config", "ok", str(find_file() or "built-in; there is no fusewire.toml"))
    yield CheckResult("python", "ok", sys.version.split()[0])
    yield _disk(config)
    try:
        yield CheckResult("storage", "ok", f"streams may take {storage_mb(config)} MiB in all")
    except StartupError as exc:
        yield CheckResult("storage", "fault", exc.what, exc.mend)
    if url := running(config):
        yield CheckResult("stack", "ok", f"runs at {url}")
    else:
        yield _ports(config)
    yield from _models(config)


def _ports(config: Settings) -> CheckResult:
    """Check that the ports of `fusewire up` are free."""
    with contextlib.ExitStack() as stack:
        try:
            socks = [stack.enter_context(listen(config.http))]
            if config.console.enabled:
                api_port = socks[0].getsockname()[1]
                sock = listen_console(config.http, config.console, api_port)
                socks.append(stack.enter_context(sock))
            if operations_sock := listen_operations(config.http):
                socks.append(stack.enter_context(operations_sock))
        except StartupError as exc:
            return CheckResult("port", "fault", exc.what, exc.mend)
        ports = [str(sock.getsockname()[1]) for sock in socks]
    what = f"{ports[0]} is free" if len(ports) == 1 else f"{' and '.join(ports)} are free"
    return CheckResult("port", "ok", what)


def _disk(config: Settings) -> CheckResult:
    where = config.data_dir if config.data_dir.exists() else config.data_dir.absolute().parent
    free = shutil.disk_usage(where).free
    what = f"{free / 1024**3:.1f} GiB free at {where}"
    if free > LEAST_FREE_BYTES:
        return CheckResult("disk", "ok", what)
    # After a full disk a nats-server needs a restart before it takes messages again.
    return CheckResult("disk", "warning", what, "make room")


def _models(config: Settings) -> Iterator[CheckResult]:
    for name, model in sorted(config.models.items()):
        if isinstance(model, EdgeModel):
            yield _edge_model(name, model)
        elif model.api_key_env and not os.environ.get(model.api_key_env):
            yield CheckResult(
                "model",
                "fault",
                f"{name}: no key in {model.api_key_env}",
                f"export {model.api_key_env}=…",
            )
        else:
            yield CheckResult("model", "ok", f"{name}: {model.model} at {model.base_url}")


def _edge_model(name: str, model: EdgeModel) -> CheckResult:
    if not local_models.are_supported():
        what = f"{name}: {model.path} is not checked, as fusewire-cli[local] is not installed"
        return CheckResult("model", "warning", what, "run `fusewire model verify` where it runs")
    from fusewire_worker_edge.folder import ModelFolderError, verify

    try:
        verify(model.path)
    except ModelFolderError as exc:
        return CheckResult("model", "fault", f"{name}: {exc.what} ({exc.folder})", exc.mend)
    return _providers(name, model)


def _providers(name: str, model: EdgeModel) -> CheckResult:
    """Which execution provider a model would be tried on first, and why those before it are not."""
    from fusewire_worker_edge.engine.providers import ProviderError, find_provider

    passed_over = []
    provider = "cpu"
    for choice in model.providers:
        try:
            provider = find_provider(choice).name
            break
        except ProviderError as exc:
            passed_over.append(f"{choice} is passed over: {exc}")
    what = f"{name}: {model.path}" + (f", on {provider}" if model.providers != ("cpu",) else "")
    if not passed_over:
        return CheckResult("model", "ok", what)
    what = "; ".join([what, *passed_over])
    return CheckResult("model", "warning", what, "see docs/edge.md, Execution providers")


async def _remote(config: Settings) -> list[CheckResult]:
    return [await _nats(config), await _database(config)]


async def _nats(config: Settings) -> CheckResult:
    connection = broker(config)
    if config.nats.url == "embedded":
        try:
            binary = nats.find()
        except StartupError as exc:
            return CheckResult("nats", "fault", exc.what, exc.mend)
        if connection is None:
            return CheckResult("nats", "ok", f"embedded, {binary}")
    assert connection is not None
    try:
        async with _operator(connection) as bus:
            return await _streams(bus, config, connection.url)
    except (StartupError, Transient) as exc:
        return CheckResult("nats", "fault", str(exc))


@contextlib.asynccontextmanager
async def _operator(connection: Nats) -> AsyncIterator[Bus]:
    """A connection to the broker. Raises StartupError."""
    bus = Bus("ops", connection)
    try:
        await bus.connect(timeout_s=3)
        yield bus
    finally:
        await bus.stop()


async def _streams(bus: Bus, config: Settings, url: str) -> CheckResult:
    """Check that streams and durables exist and have room. Raises Transient."""
    models = {name: model.kind for name, model in config.models.items()}
    absent = await provision.missing(bus.js, topology(models, config.pools))
    if absent:
        what = f"missing: {', '.join(absent)}"
        return CheckResult("nats", "fault", what, "run `fusewire topology apply`")
    usages = {name: await provision.stream_usage(bus.js, name) for name in STORES}
    full = [f"{name} {usage.share:.0%}" for name, usage in usages.items() if usage.share >= ALARM]
    if full:
        what = f"stores fill: {', '.join(full)}"
        return CheckResult(
            "nats", "warning", what, "add workers or judges, or widen [nats] storage_mb"
        )
    return CheckResult("nats", "ok", f"{url.rpartition('@')[2]}, streams and durables are there")


async def _dialects(config: Settings) -> list[CheckResult]:
    """What workers have found each hosted model to refuse."""
    from fusewire_worker_remote.dialects import KvDialects

    connection = broker(config)
    if connection is None:
        what = "no broker runs here, which keeps it"
        return [CheckResult("dialect", "warning", what, "start `fusewire up`")]
    models = {
        name: model
        for name, model in sorted(config.models.items())
        if isinstance(model, RemoteModel)
    }
    try:
        async with _operator(connection) as bus:
            dialects = KvDialects(await bus.key_value(DIALECT_BUCKET))
            await dialects.load(list(models.values()))
    except (StartupError, Transient, BucketNotFoundError) as exc:
        what = f"what models refuse cannot be read: {exc}"
        return [CheckResult("dialect", "fault", what, "see the check `nats`")]
    results = []
    for name, model in models.items():
        refusals = dialects.of(model).describe() or "nothing is refused"
        results.append(CheckResult("dialect", "ok", f"{name}: {refusals}"))
    return results


async def _database(config: Settings) -> CheckResult:
    try:
        store = Store(config.database)
    except StartupError as exc:
        return CheckResult("database", "fault", exc.what, exc.mend)
    try:
        await migrate.check(store)
    except StartupError as exc:
        # Before the first `up` there is no schema, and that is no fault.
        state: Literal["warning", "fault"] = "warning" if await _is_empty(store) else "fault"
        return CheckResult("database", state, exc.what, exc.mend)
    finally:
        await store.close()
    return CheckResult("database", "ok", store.url.render_as_string(hide_password=True))


async def _is_empty(store: Store) -> bool:
    try:
        return await migrate.current(store) is None
    except Transient:
        return False
