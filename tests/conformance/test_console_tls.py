"""How the console knows an API that has its own certificate, over real TLS."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from fusewire.errors import StartupError
from fusewire.http_server import tls
from fusewire.settings import Http
from fusewire.testing.eventually import PATIENCE_S
from fusewire_console.api import Api, ApiError, own_context

EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")


def openssl(folder: Path, *words: str) -> None:
    command = ["openssl", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates `own` and `other` of one authority, each with its chain, and `alone`."""
    folder = tmp_path_factory.mktemp("tls")
    openssl(folder, "req", "-x509", *EC, "-subj", "/CN=CA", "-out", "ca.pem", "-keyout", "ca.key")
    for name in ("own", "other"):
        subject = ("-subj", f"/CN={name}.example")
        openssl(folder, "req", *EC, *subject, "-out", f"{name}.csr", "-keyout", f"{name}.key")
        files = ("-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-out", f"{name}.crt")
        openssl(folder, "x509", "-req", "-days", "2", "-CAcreateserial", *files)
        chain = (folder / f"{name}.crt").read_text() + (folder / "ca.pem").read_text()
        (folder / f"{name}.pem").write_text(chain)
    openssl(
        folder,
        *("req", "-x509", *EC, "-subj", "/CN=alone.example"),
        *("-out", "alone.pem", "-keyout", "alone.key"),
    )
    return folder


def http(folder: Path, name: str) -> Http:
    return Http(tls_cert=folder / f"{name}.pem", tls_key=folder / f"{name}.key")


@asynccontextmanager
async def served(settings: Http) -> AsyncIterator[str]:
    """A fake of the API, which answers everything alike; yields its address."""

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"object": "caller"})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls(settings))
    await site.start()
    yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize(
    ("api_name", "is_known"), [("own", True), ("other", False), ("alone", False)]
)
async def test_the_certificate_itself_is_trusted_and_not_what_its_authority_signed(
    folder: Path, api_name: str, is_known: bool
) -> None:
    async with served(http(folder, api_name)) as url:
        api = Api(url, own_context(http(folder, "own")))
        api.start()
        try:
            if is_known:
                assert await api.get("fw-key", "/v1/caller") == {"object": "caller"}
            else:
                with pytest.raises(ApiError, match="the API does not answer"):
                    await api.get("fw-key", "/v1/caller")
        finally:
            await api.stop()


async def test_without_a_certificate_what_this_machine_trusts_is_trusted(folder: Path) -> None:
    assert own_context(Http()) is None
    async with served(http(folder, "alone")) as url:
        api = Api(url, None)
        api.start()
        with pytest.raises(ApiError):
            await api.get(None, "/v1/caller")
        await api.stop()


def test_a_certificate_that_is_not_there_is_told_with_what_to_do(folder: Path) -> None:
    absent = Http(tls_cert=folder / "absent.pem", tls_key=folder / "own.key")
    with pytest.raises(StartupError) as error:
        own_context(absent)
    assert "No such file" in error.value.what
    assert "tls_cert" in error.value.mend
