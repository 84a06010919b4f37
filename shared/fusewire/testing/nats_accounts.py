"""Real servers with the accounts of deploy/nats, and the keys for them, for tests only."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nkeys
from nats.aio.client import Client

from fusewire.accounts import api_prefix, render, render_site, users
from fusewire.settings import Nats
from fusewire.testing.nats_server import NatsServer


@dataclass(frozen=True)
class Keys:
    """An nkey for each user, in a folder."""

    folder: Path
    public: Mapping[str, str]
    """The variables with the public keys."""
    sites: tuple[str, ...] = ()
    """Names of the edge sites."""
    tenants: tuple[str, ...] = ()
    """Names of the tenants that submit prompts over NATS."""

    @classmethod
    def make(cls, folder: Path, sites: Sequence[str] = (), tenants: Sequence[str] = ()) -> "Keys":
        """Make one for each user."""
        folder.mkdir(parents=True)
        public = {}
        for user in users(sites, tenants):
            seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
            (folder / f"{user.name}.seed").write_bytes(seed)
            public[user.variable.removeprefix("$")] = nkeys.from_seed(
                bytearray(seed)
            ).public_key.decode()
        return cls(folder, public, tuple(sites), tuple(tenants))

    def seed(self, user: str) -> str:
        """The seed of a user."""
        return (self.folder / f"{user}.seed").read_text()

    def settings(self, user: str, url: str, site: str | None = None) -> Nats:
        """How a user connects."""
        nkey = self.folder / f"{user}.seed"
        return Nats(url=url, nkey=nkey, js_prefix=api_prefix(user), site=site)


def embedded_broker(data_dir: Path) -> Nats:
    """How to connect to the embedded broker of a stack that runs on a data folder."""
    record = json.loads((data_dir / "up.json").read_text())
    return Nats(url=record["nats"], nkey=data_dir / "nats" / "keys")


async def connect(data_dir: Path, user: str = "ops") -> Client:
    """A connection to the embedded broker of such a stack, as one of its users."""
    return await connect_to(embedded_broker(data_dir), user)


async def connect_to(settings: Nats, user: str) -> Client:
    """A connection to an embedded broker as one of its users, whose keys are in a folder."""
    assert settings.nkey is not None
    tenant = user.removeprefix("tenant-")
    inbox = f"_INBOX_{user}" if tenant == user else f"_INBOX.{tenant}"
    client = Client()
    await client.connect(
        settings.url,
        nkeys_seed=str(settings.nkey / f"{user}.seed"),
        inbox_prefix=inbox.encode(),
    )
    return client


def hub(folder: Path, deploy: Path, keys: Keys) -> NatsServer:
    """The hub of `deploy/nats/hub.conf`."""
    config = _on_free_ports(deploy / "hub.conf", folder)
    (folder / "accounts.conf").write_text(render(keys.sites, keys.tenants))
    return NatsServer(folder, config, keys.public)


def edge_site(folder: Path, deploy: Path, keys: Keys, *, name: str, hub_port: int) -> NatsServer:
    """A site of `deploy/nats/edge-site.conf`, which reaches the hub on a port of this machine."""
    config = _on_free_ports(deploy / "edge-site.conf", folder)
    (folder / "edge-site-users.conf").write_text(render_site(name))
    env = {
        **keys.public,
        "FW_SITE": name,
        "FW_HUB": f"nats://127.0.0.1:{hub_port}",
        "FW_EDGE_SITE_SEED": keys.seed(f"edge-site-{name}"),
    }
    return NatsServer(folder, config, env)


def _on_free_ports(config: Path, folder: Path) -> Path:
    """A copy of a configuration that listens on free ports of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    text = config.read_text()
    for listener in ("0.0.0.0:4222", "127.0.0.1:8222", "0.0.0.0:7422"):
        text = text.replace(listener, "127.0.0.1:-1")
    copy = folder / config.name
    # As `NatsServer` does without a configuration, and for the same reason.
    store = f'"{folder / "store"}"\n  max_file_store: 1TB'
    copy.write_text(text.replace('"/var/lib/nats"', store))
    return copy
