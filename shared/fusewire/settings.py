"""What can be configured: a table of the file is a class, a key is a field."""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from fusewire.contracts import NAME, VOTES_BESIDE_MEMBERS, Mode, Policy, Residency


def _name(value: str) -> str:
    if not re.match(NAME, value):
        raise ValueError(
            f"'{value}' must be 1 to 63 of a-z, 0-9, '-' and '_', and begin with a letter or digit"
        )
    return value


DATABASES = ("sqlite+aiosqlite", "postgresql+asyncpg")
"""The drivers that a database's address may name."""


def _database(value: str) -> str:
    driver, separator, _ = value.partition("://")
    if driver in DATABASES:
        return value
    # The value is not repeated in the message: it may hold a password.
    what = f"it names the driver '{driver[:40]}'" if separator else "it is no address"
    raise ValueError(f"{what}; use sqlite+aiosqlite:///FILE or postgresql+asyncpg://USER@HOST/NAME")


EDGE_PROVIDERS = ("coreml", "cuda", "openvino", "qnn", "tensorrt-rtx", "vitisai", "webgpu")
"""Execution providers of onnxruntime beside `cpu`, by our names."""
EDGE_DEVICES = ("CPU", "GPU", "NPU")


def _provider(name: str) -> str:
    """Check the name of an execution provider, such as `cpu`, `qnn` or `openvino:NPU`."""
    source, separator, device = name.partition(":")
    if source not in EDGE_PROVIDERS and name != "cpu":
        sources = ", ".join(EDGE_PROVIDERS)
        raise ValueError(f"'{name}' is not a known provider; use {sources} or cpu")
    if separator and device not in EDGE_DEVICES:
        kinds = ", ".join(EDGE_DEVICES)
        raise ValueError(f"'{name}' names no kind of device; after the colon, use {kinds}")
    return name


def _providers(names: tuple[str, ...]) -> tuple[str, ...]:
    """Add `cpu`, which is tried after all others."""
    if "cpu" in names[:-1]:
        raise ValueError("'cpu' must be the last, as nothing after it would ever be tried")
    if len(set(names)) < len(names):
        raise ValueError("a provider is named twice; name each once")
    return names if names[-1:] == ("cpu",) else (*names, "cpu")


Name = Annotated[str, AfterValidator(_name)]
EdgeProvider = Annotated[str, AfterValidator(_provider)]
FilePath = Annotated[Path, AfterValidator(lambda p: p.expanduser())]


class Section(BaseModel):
    """A table of the file. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Database(Section):
    """`[database]`"""

    url: Annotated[str, AfterValidator(_database)] = "sqlite+aiosqlite:///.fusewire/fusewire.db"
    """`sqlite+aiosqlite:///FILE` or `postgresql+asyncpg://USER@HOST/NAME`. Unset: `fusewire.db` in
    `data_dir`."""
    analyst_url: Annotated[str, AfterValidator(_database)] | None = None
    """On PostgreSQL, the same database as a role that may only read the views, for SQL that people
    write: `fusewire db analyst NAME` makes the role and prints this address."""
    pool_size: int = Field(default=5, ge=1)
    """Connections that one service keeps."""


class Nats(Section):
    """`[nats]`"""

    url: str = "embedded"
    """`nats://HOST:PORT`, or `embedded`: a server that `fusewire up` starts and ends."""
    credentials: FilePath | None = None
    """A NATS credentials file (JWT and seed)."""
    nkey: FilePath | None = None
    """A file with the seed of the nkey that the server knows this service by; or the folder that
    `fusewire topology nkeys` makes, where each service takes its own."""
    js_prefix: str = "$JS.API"
    """Subject prefix of JetStream's API: `fwjs` for workers whose NATS account is not that of the
    streams, as in deploy/nats/accounts.conf. With a folder of nkeys it is set by itself."""
    site: Name | None = None
    """The name of the edge site whose NATS server this is, a leaf of the hub (docs/decisions/0049):
    worker-edge stores its answers there, and forwards them when the link is up."""
    tls_ca: FilePath | None = None
    """The certificate authority to trust, where the system's store does not have it."""
    replicas: int = Field(default=1, ge=1, le=5)
    """Copies of each stream that `topology apply` asks for; 3 in a cluster."""
    storage_mb: int | None = Field(default=None, ge=128)
    """MiB that all streams together may take (one copy). Unset: 21 GiB; for the embedded server
    half of what is free on its disk, if that is less."""

    @model_validator(mode="after")
    def _identity(self) -> "Nats":
        if self.credentials is not None and self.nkey is not None:
            raise ValueError("credentials and nkey both say who this is; remove one of them")
        return self


class Http(Section):
    """`[http]`: where ingest's API and every service's health and metrics listen."""

    host: str = "127.0.0.1"
    """The address to bind."""
    port: int = Field(default=8484, ge=0, le=65535)
    """0 takes any free port."""
    operations_port: int | None = Field(default=None, ge=0, le=65535)
    """A port of their own for `/healthz`, `/readyz` and `/metrics`, over plain HTTP and without a
    key: for probes and scrapers, behind a firewall. `port` then serves the API with `/healthz` and
    `/readyz`, and services without an API do not use it. Unset: all are served on `port`."""
    tls_cert: FilePath | None = None
    """A certificate chain (PEM); with `tls_key`, HTTPS is served."""
    tls_key: FilePath | None = None
    """Its private key (PEM)."""
    keys: Literal["auto", "required"] = "auto"
    """Whether the API asks for keys (`fusewire keys create`): `auto` asks wherever others than this
    machine can reach it."""
    allow_insecure: bool = False
    """Whether ingest may listen beyond this machine without TLS, because a proxy before it has
    TLS."""
    attach: bool = True
    """Whether a chat request whose client has left, or that a client sends again, is answered by
    the fusion that it began the first time. A request with an `Idempotency-Key` always is."""
    keep_alive_s: int = Field(default=75, ge=1)
    """How long an idle connection is kept open: longer than the proxy before it keeps one, or
    requests are lost."""
    origins: tuple[str, ...] = ()
    """Web pages that may call the API, such as `https://app.example`; `*` is all of them."""
    panel_comments: bool = True
    """Whether streams tell in comments how many members have answered, for clients that cannot read
    comments."""
    pepper_env: str = "FUSEWIRE_KEY_PEPPER"
    """The environment variable with the secret that API keys are hashed with; where it is not set,
    a file in `data_dir` that is made at the first use. All replicas of ingest need the same."""

    @model_validator(mode="after")
    def _two_ports(self) -> "Http":
        if self.port and self.port == self.operations_port:
            raise ValueError(f"port and operations_port are both {self.port}; change one of them")
        return self


class Console(Section):
    """`[console]`: the web page of analysts and operators."""

    enabled: bool = True
    """Whether `fusewire up` serves it."""
    port: int | None = Field(default=None, ge=0, le=65535)
    """Where `fusewire up` serves it, on the address of `http.host`; unset is the port after
    `http.port` that is not `http.operations_port`, and 0 takes any free one. A process of its own
    serves it on `http.port`."""
    api_url: str | None = None
    """Where a process of its own reaches ingest's API, such as `http://fusewire-ingest:8484`;
    `fusewire up` knows it."""
    operators: tuple[Name, ...] = ("default",)
    """Tenants whose keys with the scope `admin` see what adds up all tenants: judges, models,
    costs, and SQL. Where no keys are asked for, everybody sees it."""

    def port_beside(self, http_port: int, operations_port: int | None) -> int:
        """The port where `fusewire up` serves it beside the API on `http_port`.

        >>> Console().port_beside(8484, None), Console().port_beside(8484, 8485)
        (8485, 8486)
        """
        if self.port is not None:
            return self.port
        port = http_port + (2 if operations_port == http_port + 1 else 1)
        return port if http_port and port <= 65535 else 0


class Log(Section):
    """`[log]`"""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum log level."""
    format: Literal["json", "console"] = "json"
    """`json` for machines, `console` for people."""


class Telemetry(Section):
    """`[telemetry]`"""

    otlp_endpoint: str | None = None
    """Where to send traces (OTLP over HTTP); unset sends none."""


class Limits(Section):
    """`[limits]`"""

    prompt_bytes: int = Field(default=262_144, ge=1024, le=524_288)
    """The largest prompt accepted; it has to fit a NATS message several times over."""
    image_bytes: int = Field(default=20_971_520, ge=0, le=67_108_864)
    """The most bytes that the images of one request may have together, beside `prompt_bytes`; 0
    takes only what fits there. A body with more than that must say its length."""
    text_bytes: int = Field(default=4_194_304, ge=0, le=16_777_216)
    """The most bytes that the long texts of one request may have together, beside `prompt_bytes`,
    which hosted models alone are asked about then; 0 takes none. A body with more than
    `prompt_bytes` must say its length."""
    unknown_price_usd_per_mtok: float | None = Field(default=None, ge=0)
    """What a million tokens of a model without a known price count as, for budgets; unset refuses
    prompts that could reach such a model and have a budget."""
    image_days: float = Field(default=7, ge=0.01)
    """How long a large image or text is kept after the last request with it; a replay later than
    that is without."""
    image_memory_mb: int = Field(default=64, ge=1)
    """MiB of bodies with large images or texts that a process of ingest reads at once; more of them
    wait."""
    keep_days: float | None = Field(default=None, gt=0)
    """How long what has ended is kept in the database, batches with their files included; unset is
    for ever. A tenant's own `keep_days` wins. A custom_id that comes again later than that is a new
    fusion."""
    keep_bodies_days: float | None = Field(default=None, gt=0)
    """How long the texts of what has ended are kept: prompts, answers, reasons of judges, and input
    files of batches. After it only figures remain, as long as `keep_days` says; unset is as long as
    those. A tenant's own `keep_bodies_days` wins."""
    drain_s: float = Field(default=10, gt=0)
    """How long a service may finish what it began after it was told to stop."""
    call_drain_s: float = Field(default=120, gt=0)
    """How long worker-remote may wait then for calls that are under way, which are paid for; it
    begins none."""
    file_bytes: int = Field(default=2_147_483_648, ge=1024)
    """The largest file that may be uploaded for a batch."""
    batch_lines: int = Field(default=1_000_000, ge=1)
    """The most lines that a batch may have."""
    batch_window: int = Field(default=256, ge=1)
    """Lines of all batches that are in flight at once, fewer while other prompts come and this
    process is late; tenants share them in fair turns."""


class EdgeModel(Section):
    """`[models.<name>]` with `kind = "edge"`: an ONNX folder on this machine."""

    kind: Literal["edge"]
    """Where it runs."""
    path: FilePath
    """The model folder, as `fusewire model pull` leaves it."""
    engine: Literal["onnxruntime", "genai"] = "onnxruntime"
    """What runs it: onnxruntime, or onnxruntime-genai, which has to be installed, generates one
    answer at a time and takes all of `kv_cache_mb` that its context needs at once."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of one engine; unset takes the processors that this process may use, by its
    affinity and by its container's CPU limit."""
    slots: int = Field(default=4, ge=1, le=64)
    """Answers that are generated at once. With `engine = "genai"` it is 1, whatever is set."""
    kv_cache_mb: int = Field(default=2048, ge=1)
    """MiB for the keys and values of running answers, and of prompts kept for those that begin
    alike."""
    prepacked_dir: FilePath | None = None
    """A folder on this machine's disk for prepacked weights, which the replicas on it share; takes
    up to 2.5 times the model's size. Unset packs the weights at each start, in every replica."""
    providers: Annotated[tuple[EdgeProvider, ...], AfterValidator(_providers)] = ("cpu",)
    """Execution providers of onnxruntime in the order in which they are tried, such as
    `["openvino:NPU", "cpu"]`; the CPU comes last, named or not. See docs/edge.md."""
    speculate: Literal["off", "prompt"] = "off"
    """`prompt` guesses the next tokens of an answer that runs alone by what followed the same few
    tokens before, and checks several in one step: faster where an answer repeats its prompt, as in
    an edit of code. A near tie between two tokens may then go the other way."""
    tools: bool = True
    """Whether it is asked where a prompt has tools."""
    max_tokens: int = Field(default=256, ge=1)
    """Answer length where the prompt does not say."""
    family: str | None = None
    """Model family; derived from the name if it is not set."""

    @model_validator(mode="before")
    @classmethod
    def _set_slots(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("engine") == "genai":
            return {**data, "slots": 1}
        return data

    @model_validator(mode="after")
    def _check_prepacked_dir(self) -> "EdgeModel":
        if self.engine == "genai" and self.prepacked_dir is not None:
            raise ValueError(
                'prepacked_dir is for engine = "onnxruntime" alone; remove one of them'
            )
        return self


Provider = Literal["openai", "anthropic", "gemini", "mistral", "deepseek"]

BASE_URLS = {
    "anthropic": "https://api.anthropic.com/v1",
    "gemini": "https://generativelanguage.googleapis.com/v1beta",
    "mistral": "https://api.mistral.ai/v1",
    "deepseek": "https://api.deepseek.com/v1",
}


class RemoteModel(Section):
    """`[models.<name>]` with `kind = "remote"`: a hosted model."""

    kind: Literal["remote"]
    """Where it runs."""
    provider: Provider = "openai"
    """The protocol it speaks: `openai` is any OpenAI-compatible server."""
    base_url: str
    """Up to and without `/chat/completions`, `/messages` or `/models/…`. Only `openai`, which many
    servers speak, has no default."""
    model: str
    """The name it has at the provider."""
    api_key_env: str | None = None
    """The environment variable that holds the key."""
    max_concurrency: int = Field(default=32, ge=1)
    """The most calls in flight at once, per worker. Fewer are made while the provider has too many,
    and models with the same address, name and key share the least of theirs."""
    breaker: bool = True
    """Whether it is not called for a while where its calls fail, so that fusions go on without it;
    `false` suits a proxy that chooses among providers by itself."""
    timeout_s: float = Field(default=120, gt=0)
    """How long one call may take."""
    max_attempts: int = Field(default=3, ge=1, le=10)
    """Calls made for one task, after restarts too."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Answer length where the prompt does not say."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Further parameters, sent as they are, such as `{reasoning_effort = "low"}`."""
    drop: tuple[str, ...] = ()
    """Parameters that are never sent, such as `["seed"]`. What a server refuses by name is found
    out by itself."""
    always_stream: bool = False
    """Whether it is asked for a stream in any case, for servers and proxies that end long silent
    calls."""
    images: bool = False
    """Whether it takes images; a model that does not is left out of prompts that hold some."""
    price_provider: str | None = None
    """The provider's id in the price list, where it cannot be told from `base_url`."""
    input_usd_per_mtok: float | None = Field(default=None, ge=0)
    """USD per million prompt tokens; with `output_usd_per_mtok`, in place of the price list."""
    output_usd_per_mtok: float | None = Field(default=None, ge=0)
    """USD per million tokens of answers."""
    family: str | None = None
    """Model family; derived from the name if it is not set."""

    @model_validator(mode="before")
    @classmethod
    def _base_url(cls, data: Any) -> Any:
        if isinstance(data, dict) and "base_url" not in data and data.get("provider") in BASE_URLS:
            return {**data, "base_url": BASE_URLS[data["provider"]]}
        return data

    @model_validator(mode="after")
    def _prices(self) -> "RemoteModel":
        if (self.input_usd_per_mtok is None) != (self.output_usd_per_mtok is None):
            raise ValueError(
                "input_usd_per_mtok and output_usd_per_mtok belong together; give both or neither"
            )
        return self

    @property
    def api_key(self) -> SecretStr | None:
        """The key, read from the environment at each use so that it is never stored.

        Space around it is removed: a line break at its end, as from a file, would make the header
        invalid.
        """
        value = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        return SecretStr(value) if value else None


Model = Annotated[EdgeModel | RemoteModel, Field(discriminator="kind")]


class Member(Section):
    """A member of a pool: a model, and what it does differently there."""

    name: Name
    """Its name in this pool."""
    model: Name
    """A configured model."""
    weight: float = Field(default=1.0, gt=0)
    """Its weight in votes, until outcomes tell more than you know: what is learned begins from it.
    Twice that of another: its odds of being right are twice as high."""
    required: bool = False
    """Whether an outcome waits for it, quorum or not, until the panel's deadline."""
    system: str | None = None
    """A system prompt put before the conversation when it brings none of its own."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """Where the prompt does not say."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Where the prompt does not say."""
    in_steps: bool = False
    """Whether it writes the steps to its answer first, which are kept as its reasoning; edge models
    only. A small model gets more right so, and takes longer."""


Preset = Literal["high", "budget", "fast"]

PRESETS: dict[str, dict[str, Any]] = {
    "high": {
        "quorum": 1.0,
        "early_stop": 1.0,
        "debate_rounds": 2,
        "control_share": 0.05,
        "route": "all",
    },
    "budget": {"gate": "edge-first", "early_stop": 0.87, "debate_rounds": 1},
    "fast": {
        "quorum": 0.5,
        "early_stop": 0.87,
        "grace_most_s": 1.0,
        "hedge": 0.1,
        "debate_rounds": 1,
    },
}


class Pool(Policy, Section):
    """`[pools.<name>]`. Keys that are not here are those of `Policy`."""

    members: tuple[Member, ...] = Field(min_length=1, max_length=16)
    """Names of models, or tables as `[[pools.<name>.members]]`."""
    judge: Name | None = None
    """The model that judges, and writes merges. Unset: closed answers are voted, open ones chosen
    by similarity. A judge that is also a member does not vote on its own answer."""
    jury: tuple[Name, ...] = Field(default=(), max_length=5)
    """Several models that judge together, best of different families; `judge` (or the first) then
    writes merges."""
    judge_by: Literal["margin", "words"] = "margin"
    """How edge judges choose. `margin`: by how much more probable the model finds one answer than
    the others as its own reply; small models that write a verdict name whatever stands first.
    Hosted judges always write."""
    judge_own: bool = False
    """Whether a judge by margin has a voice on answers of its own model too, for pools in which the
    strongest model is both."""
    preset: Preset | None = None
    """A set of defaults for the keys below; a key that is given wins. See
    docs/how-to/modes-and-judges.md."""
    mode: Mode = "best-of"
    """Where the prompt does not say."""
    quorum: float = Field(default=0.67, gt=0, le=1)
    """The share of the pool's weight that must have answered before grace begins to run."""
    deadline_s: float = Field(default=60, gt=0)
    """From acceptance to outcome."""
    batch_deadline_s: float = Field(default=86_400, gt=0)
    """The deadline of a prompt that belongs to a batch."""
    residency: Residency = "any"
    """`edge-only`: content goes to edge models alone. A prompt can tighten it, never loosen it."""
    debate_rounds: int = Field(default=2, ge=1, le=2)
    """At most this many turns of a debate."""
    max_tokens: int | None = Field(default=None, ge=1)
    """The members' answer length where the prompt does not say."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(preset := data.get("preset"), str):
            return {**PRESETS.get(preset, {}), **data}
        return data

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("members"), list | tuple):
            members = [
                {"name": member, "model": member} if isinstance(member, str) else member
                for member in data["members"]
            ]
            return {**data, "members": members}
        return data

    @property
    def judges(self) -> tuple[str, ...]:
        """The models that judge or write, each once."""
        models = (self.judge, *self.jury) if self.judge else self.jury
        return tuple(dict.fromkeys(models))

    @model_validator(mode="after")
    def _distinct(self) -> "Pool":
        names = [member.name for member in self.members]
        repeated_names = sorted({name for name in names if names.count(name) > 1})
        if repeated_names:
            raise ValueError(
                f"member {', '.join(repeated_names)} is named twice;"
                " give each member a name of its own"
            )
        for name in names:
            _check_not_a_vote("member", name)
        return self

    @model_validator(mode="after")
    def _two_cascades(self) -> "Pool":
        if self.route == "learned" and self.gate != "none":
            raise ValueError(
                f'route = "learned" and gate = "{self.gate}" both say who is asked first; set'
                ' gate = "none", or remove route'
            )
        return self


class Tenant(Section):
    """`[tenants.<name>]`: the rules of a tenant. A tenant without a table has these defaults."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    """Prompts and other requests of the API, per ingest process; lines of batches do not count."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Tokens of prompts and of the longest answers that they allow, likewise."""
    prompts_in_flight: int | None = Field(default=None, ge=1)
    """Prompts of the API that may wait for their outcomes at once, likewise."""
    budget_usd: float | None = Field(default=None, ge=0)
    """What may be spent in each period. The highest cost of a prompt is reserved when it is
    accepted, and its true cost settled at its outcome. All models it can reach need prices, or
    `limits.unknown_price_usd_per_mtok`. A limit of `fusewire budget set` wins."""
    budget_soft_usd: float | None = Field(default=None, ge=0)
    """Spending beyond this is reported in each period, and stops nothing."""
    budget_period: Literal["day", "month", "total"] = "month"
    """When spending begins anew (UTC)."""
    residency: Residency = "any"
    """`edge-only`: none of its content goes to hosted models. A prompt can tighten it, never loosen
    it."""
    pools: tuple[Name, ...] = ()
    """The pools that it may use; empty: all."""
    models: tuple[Name, ...] = ()
    """The models that may see its prompts; empty: all. Pools with another member or judge cannot be
    used."""
    keep_days: float | None = Field(default=None, gt=0)
    """How long what has ended is kept, in place of `limits.keep_days`."""
    keep_bodies_days: float | None = Field(default=None, gt=0)
    """How long its texts are kept, in place of `limits.keep_bodies_days`."""
    share: float = Field(default=1.0, ge=0.01, le=100)
    """Its share of the batch window, relative to other tenants that have lines waiting."""

    @model_validator(mode="after")
    def _soft_budget(self) -> "Tenant":
        hard_usd = math.inf if self.budget_usd is None else self.budget_usd
        if self.budget_soft_usd is not None and self.budget_soft_usd > hard_usd:
            raise ValueError(
                f"budget_soft_usd = {self.budget_soft_usd} is above budget_usd = {hard_usd} and"
                " would never be passed; lower it"
            )
        return self

    def usable_pools(self, pools: Mapping[str, Pool]) -> tuple[str, ...]:
        """The names of the pools that it may use."""
        return tuple(name for name in self.pools or pools if not self.barred_models(pools[name]))

    def barred_models(self, pool: Pool) -> list[str]:
        """The models of a pool that may not see its prompts, sorted."""
        models = {member.model for member in pool.members} | set(pool.judges)
        return sorted(models - set(self.models)) if self.models else []


class Settings(BaseSettings):
    """Everything that can be configured."""

    model_config = SettingsConfigDict(
        env_prefix="FUSEWIRE_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    data_dir: FilePath = Path(".fusewire")
    """Where the embedded broker, the database and the run file live."""
    database: Database = Database()
    nats: Nats = Nats()
    http: Http = Http()
    console: Console = Console()
    log: Log = Log()
    telemetry: Telemetry = Telemetry()
    limits: Limits = Limits()
    models: dict[Name, Model] = Field(default_factory=dict)
    pools: dict[Name, Pool] = Field(default_factory=dict)
    tenants: dict[Name, Tenant] = Field(default_factory=dict)
    aliases: dict[str, Name] = Field(default_factory=dict)
    """Other names under which clients may ask for a model, such as `"openai/gpt-latest" =
    "gpt"`."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file, whose content `load` passes as arguments."""
        return env_settings, init_settings

    @model_validator(mode="before")
    @classmethod
    def _database_in_data_dir(cls, data: Any) -> Any:
        """Put the default database into `data_dir`.

        Each data folder has a broker of its own; with a common database, each would work on the
        other's prompts.
        """
        database = data.get("database", {})
        data_dir = data.get("data_dir")
        # Values of a wrong type are left to the validation of the fields, which names them.
        if not isinstance(data_dir, str | Path) or not isinstance(database, dict):
            return data
        if "url" in database:
            return data
        file = Path(data_dir).expanduser() / "fusewire.db"
        return {**data, "database": {**database, "url": f"sqlite+aiosqlite:///{file}"}}

    @model_validator(mode="after")
    def _references(self) -> "Settings":
        for name in self.models:
            # Where a prompt names the members itself, they are called as their models.
            _check_not_a_vote("model", name)
        model_names = ", ".join(sorted(self.models)) or "none"
        for name, pool in self.pools.items():
            self._check_models(name, pool, model_names)
            self._check_tiers(name, pool)
        for alias, model in self.aliases.items():
            if model not in self.models:
                raise ValueError(
                    f"alias '{alias}' names model '{model}', which is not configured"
                    f" (configured: {model_names})"
                )
        for name, tenant in self.tenants.items():
            self._check_tenant(name, tenant, model_names)
        return self

    def _check_tenant(self, name: str, tenant: Tenant, model_names: str) -> None:
        """Check what a tenant may use."""
        pool_names = ", ".join(sorted(self.pools)) or "none"
        if unknown_pools := sorted(set(tenant.pools) - self.pools.keys()):
            raise ValueError(
                f"tenant '{name}': pool '{unknown_pools[0]}' is not configured"
                f" (configured: {pool_names}); add it or mend the name"
            )
        if unknown_models := sorted(set(tenant.models) - self.models.keys()):
            raise ValueError(
                f"tenant '{name}': model '{unknown_models[0]}' is not configured"
                f" (configured: {model_names}); add it or mend the name"
            )
        for pool in tenant.pools:
            if barred_models := tenant.barred_models(self.pools[pool]):
                raise ValueError(
                    f"tenant '{name}': its pool '{pool}' uses model '{barred_models[0]}', which is"
                    " not among its models; add it to models, or take the pool from pools"
                )
        if self.pools and not tenant.usable_pools(self.pools):
            raise ValueError(
                f"tenant '{name}': every pool uses a model that is not among its models"
                f" ({', '.join(tenant.models)}); add models, or a pool of these alone"
            )

    @model_validator(mode="after")
    def _retention(self) -> "Settings":
        limits = self.limits
        _check_retention("limits.", limits.keep_bodies_days, limits.keep_days)
        for name, rules in self.tenants.items():
            keep_days = rules.keep_days or limits.keep_days
            _check_retention(f"tenant '{name}': ", rules.keep_bodies_days, keep_days)
        return self

    def _check_models(self, name: str, pool: Pool, model_names: str) -> None:
        """Check that the models of a pool are configured."""
        models = [(f"member '{member.name}'", member.model) for member in pool.members]
        models += [("judge", model) for model in pool.judges]
        for role, model in models:
            if model not in self.models:
                raise ValueError(
                    f"pool '{name}': {role} uses model '{model}', which is not configured"
                    f" (configured: {model_names}); add [models.{model}] or mend the name"
                )

    def _check_tiers(self, name: str, pool: Pool) -> None:
        """Check what a pool demands of its members' tiers."""
        has_edge_member = any(self.models[member.model].kind == "edge" for member in pool.members)
        if pool.residency == "edge-only" and not has_edge_member:
            raise ValueError(
                f"pool '{name}' is edge-only but has no edge member; add one or relax residency"
            )
        for member in pool.members:
            if member.in_steps and self.models[member.model].kind != "edge":
                raise ValueError(
                    f"pool '{name}': member '{member.name}' is in_steps, which edge models alone"
                    f" can be; model '{member.model}' is hosted: remove in_steps, or ask for steps"
                    " in its system prompt"
                )

    def tenant(self, name: str) -> Tenant:
        """The rules of a tenant."""
        return self.tenants.get(name, Tenant())

    def config_hash(self, pool: str) -> str:
        """Twelve hex digits over the settings of a pool and its models, without secrets."""
        rules = self.pools[pool]
        names = {member.model for member in rules.members} | set(rules.judges)
        content = {
            "pool": rules.model_dump(mode="json"),
            "models": {name: self.models[name].model_dump(mode="json") for name in sorted(names)},
        }
        return _hash(content)

    def rules_hash(self) -> str:
        """Twelve hex digits over all that decides how prompts are answered, without secrets.

        Addresses, ports and folders may differ from start to start, and are left out.
        """
        rules = {"models", "pools", "tenants", "aliases", "limits"}
        return _hash(self.model_dump(mode="json", include=rules))


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _check_not_a_vote(kind: str, name: str) -> None:
    if name in VOTES_BESIDE_MEMBERS:
        raise ValueError(
            f"a {kind} cannot be called '{name}': who votes for '{name}' means no member by it;"
            " give it another name"
        )


def _check_retention(where: str, keep_bodies_days: float | None, keep_days: float | None) -> None:
    if keep_bodies_days and keep_days and keep_bodies_days > keep_days:
        raise ValueError(
            f"{where}keep_bodies_days is {keep_bodies_days:g}, and keep_days {keep_days:g}: texts"
            " cannot outlive their fusions; lower keep_bodies_days, or raise keep_days"
        )
