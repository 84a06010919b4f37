"""Configuration: the environment wins, and each error names its place and its remedy."""

from pathlib import Path
from typing import Any

import pytest

from fusewire.configuration import ConfigError, load
from fusewire.settings import EdgeModel, Settings

MEMBERS = '["gpt", {name = "calm", model = "tiny", temperature = 0.0}]'
GOOD = f"""
[nats]
url = "nats://127.0.0.1:4222"
[models.gpt]
kind = "remote"
base_url = "http://127.0.0.1:1/v1"
model = "gpt-x"
api_key_env = "SOME_KEY"
[models.tiny]
kind = "edge"
path = "~/models/tiny"
[pools.default]
members = {MEMBERS}
judge = "gpt"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "fusewire.toml"
    path.write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    return path


def load_error(path: Path, text: str | None = None) -> ConfigError:
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(path)
    return error.value


def test_a_file_is_read(file: Path) -> None:
    settings = load(file)

    assert settings.nats.url == "nats://127.0.0.1:4222"
    assert [(m.name, m.model) for m in settings.pools["default"].members] == [
        ("gpt", "gpt"),
        ("calm", "tiny"),
    ]
    tiny = settings.models["tiny"]
    assert isinstance(tiny, EdgeModel)
    assert tiny.path == Path.home() / "models/tiny"


def edge_file(file: Path, providers: str) -> str:
    return file.read_text().replace(
        'path = "~/models/tiny"', f'path = "/models/tiny"\nproviders = {providers}'
    )


@pytest.mark.parametrize("providers", ['["openvino:NPU", "qnn"]', '["openvino:NPU", "qnn", "cpu"]'])
def test_the_cpu_is_tried_after_all_other_providers(file: Path, providers: str) -> None:
    file.write_text(edge_file(file, providers))
    tiny = load(file).models["tiny"]
    assert isinstance(tiny, EdgeModel)
    assert tiny.providers == ("openvino:NPU", "qnn", "cpu")


@pytest.mark.parametrize(
    ("providers", "problem"),
    [
        ('["openvno"]', "'openvno' is not a known provider; use coreml, cuda, openvino, qnn"),
        ('["cpu:CPU"]', "'cpu:CPU' is not a known provider"),
        ('["openvino:TPU"]', "'openvino:TPU' names no kind of device; after the colon, use CPU"),
        ('["openvino:"]', "'openvino:' names no kind of device"),
        ('["cpu", "qnn"]', "'cpu' must be the last"),
        ('["qnn", "qnn"]', "a provider is named twice"),
    ],
)
def test_a_list_of_providers_that_cannot_be_meant_is_refused(
    file: Path, providers: str, problem: str
) -> None:
    assert problem in str(load_error(file, edge_file(file, providers)))


def test_it_is_found_in_the_working_folder_or_where_the_environment_says(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "default" in load().pools

    other = tmp_path / "other.toml"
    other.write_text(GOOD.replace("[pools.default]", "[pools.elsewhere]"))
    monkeypatch.setenv("FUSEWIRE_CONFIG", str(other))
    assert set(load().pools) == {"elsewhere"}


def test_without_a_file_the_fallback_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert load().pools == {}
    assert load(fallback={"http": {"port": 1}}).http.port == 1


ENV = [
    ("FUSEWIRE_NATS__URL", "nats://other:1", lambda s: s.nats.url, "nats://other:1"),
    ("FUSEWIRE_HTTP__PORT", "0", lambda s: s.http.port, 0),
    ("FUSEWIRE_HTTP__OPERATIONS_PORT", "8485", lambda s: s.http.operations_port, 8485),
    ("FUSEWIRE_DATA_DIR", "~/here", lambda s: s.data_dir, Path.home() / "here"),
    ("FUSEWIRE_LOG__LEVEL", "debug", lambda s: s.log.level, "debug"),
    ("FUSEWIRE_POOLS__DEFAULT__QUORUM", "0.5", lambda s: s.pools["default"].quorum, 0.5),
    ("FUSEWIRE_MODELS__GPT__MODEL", "gpt-y", lambda s: s.models["gpt"].model, "gpt-y"),
]


@pytest.mark.parametrize(("name", "value", "read", "expected"), ENV, ids=[row[0] for row in ENV])
def test_the_environment_wins_over_the_file_key_by_key(
    file: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, read: Any, expected: object
) -> None:
    monkeypatch.setenv(name, value)

    settings = load(file)

    assert read(settings) == expected
    assert settings.pools["default"].judge == "gpt"
    assert settings.models["tiny"].kind == "edge"


@pytest.mark.parametrize(
    ("data_dir", "url", "expected"),
    [
        (None, None, "sqlite+aiosqlite:///.fusewire/fusewire.db"),
        ("here", None, "sqlite+aiosqlite:///here/fusewire.db"),
        ("/srv/fw", None, "sqlite+aiosqlite:////srv/fw/fusewire.db"),
        ("~/fw", None, f"sqlite+aiosqlite:///{Path.home()}/fw/fusewire.db"),
        ("here", "sqlite+aiosqlite:///own.db", "sqlite+aiosqlite:///own.db"),
    ],
)
def test_the_database_lies_in_the_data_folder_where_nothing_else_is_said(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    data_dir: str | None,
    url: str | None,
    expected: str,
) -> None:
    for name, value in (("FUSEWIRE_DATA_DIR", data_dir), ("FUSEWIRE_DATABASE__URL", url)):
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("FUSEWIRE_DATABASE__POOL_SIZE", "7")

    database = load(file).database

    assert (database.url, database.pool_size) == (expected, 7)


def test_a_data_folder_that_is_none_is_named(file: Path) -> None:
    assert any(
        "data_dir" in problem for problem in load_error(file, "data_dir = 5\n" + GOOD).problems
    )


def without(line: str) -> str:
    assert line in GOOD
    return GOOD.replace(line, "")


BAD = [
    # what, file, parts of the one problem
    (
        "an unknown table",
        GOOD + '\n[natz]\nurl = "x"\n',
        ["natz: not a known key", "did you mean 'nats'"],
    ),
    (
        "an unknown key",
        GOOD + "\n[http]\nprot = 1\n",
        ["http.prot: not a known key", "did you mean 'port'"],
    ),
    (
        "a key like no other",
        GOOD + "\n[http]\nzzz = 1\n",
        ["http.zzz: not a known key", "remove it"],
    ),
    (
        "a model's unknown key",
        GOOD.replace("api_key_env", "api_kye_env"),
        ["models.gpt.api_kye_env", "'api_key_env'"],
    ),
    ("an unknown kind", GOOD.replace('"edge"', '"cloud"'), ["models.tiny", "'edge'", "'remote'"]),
    ("no kind", without('kind = "edge"\n'), ["models.tiny", "kind"]),
    (
        "no base_url",
        without('base_url = "http://127.0.0.1:1/v1"\n'),
        ["models.gpt.base_url", "required"],
    ),
    (
        "a member's unknown model",
        GOOD.replace('["gpt", ', '["gtp", '),
        ["pool 'default'", "member 'gtp'", "configured: gpt, tiny", "add [models.gtp]"],
    ),
    (
        "a judge's unknown model",
        GOOD.replace('judge = "gpt"', 'judge = "g"'),
        ["judge uses model 'g'", "gpt, tiny"],
    ),
    (
        "a member that is called as a vote",
        GOOD.replace('["gpt", ', '[{ name = "tie", model = "gpt" }, '),
        ["pools.default", "a member cannot be called 'tie'", "give it another name"],
    ),
    (
        "a model that is called as a vote",
        GOOD.replace("[models.gpt]", "[models.none]").replace('"gpt"', '"none"'),
        ["a member cannot be called 'none'"],
    ),
    (
        "a member twice",
        GOOD.replace('["gpt", ', '["gpt", "gpt", '),
        ["pools.default", "gpt is named twice", "give each"],
    ),
    ("no members", GOOD.replace(MEMBERS, "[]"), ["pools.default.members", "at least 1"]),
    (
        "a bad model name",
        GOOD.replace("[models.gpt]", '[models."G P"]'),
        ["models.G P", "a-z, 0-9", "letter or digit"],
    ),
    (
        "a dot in a member name",
        GOOD.replace('"calm"', '"ca.lm"'),
        ["members.1.name", "'ca.lm'", "a-z, 0-9"],
    ),
    (
        "a quorum above 1",
        GOOD + "quorum = 1.5\n",
        ["pools.default.quorum", "less than or equal to 1"],
    ),
    ("an unknown mode", GOOD + 'mode = "vote"\n', ["pools.default.mode", "'best-of'", "'merge'"]),
    ("a port out of range", GOOD + "\n[http]\nport = 70000\n", ["http.port", "65535"]),
    (
        "one port for two servers",
        GOOD + "\n[http]\nport = 8484\noperations_port = 8484\n",
        ["http: port and operations_port are both 8484"],
    ),
    ("text for a number", GOOD + '\n[http]\nport = "many"\n', ["http.port", "integer"]),
    (
        "an edge-only pool without an edge",
        GOOD.replace('"tiny"', '"gpt"') + 'residency = "edge-only"\n',
        ["'default' is edge-only", "no edge member", "add one or relax"],
    ),
    (
        "a hosted member in steps",
        GOOD.replace('["gpt", ', '[{ name = "gpt", model = "gpt", in_steps = true }, '),
        ["pool 'default'", "member 'gpt' is in_steps", "'gpt' is hosted", "remove in_steps"],
    ),
    (
        "an unknown model of a tenant",
        GOOD + '\n[tenants.acme]\nmodels = ["gpd"]\n',
        ["tenant 'acme'", "model 'gpd' is not configured", "gpt, tiny", "add it or mend the name"],
    ),
    (
        "a pool of a tenant that needs another model",
        GOOD + '\n[tenants.acme]\nmodels = ["gpt"]\npools = ["default"]\n',
        ["tenant 'acme'", "pool 'default' uses model 'tiny'", "add it to models, or take the pool"],
    ),
    (
        "a tenant without a pool of its models",
        GOOD + '\n[tenants.acme]\nmodels = ["tiny"]\n',
        ["tenant 'acme'", "every pool uses a model that is not among", "(tiny)", "add models, or"],
    ),
]


@pytest.mark.parametrize(("text", "parts"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_mistake_is_named_with_its_place_and_its_remedy(
    file: Path, text: str, parts: list[str]
) -> None:
    error = load_error(file, text)

    assert error.source == str(file)
    assert len(error.problems) == 1
    for part in parts:
        assert part in error.problems[0]
    assert "try again" in error.hint


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("mysql://me:s3cr3t@x/y", "it names the driver 'mysql'"),
        ("sqlite:///x.db", "it names the driver 'sqlite'"),
        ("postgresql://x/y", "it names the driver 'postgresql'"),
        ("me:s3cr3t@x/y", "it is no address"),
    ],
)
def test_a_database_that_it_does_not_know_is_refused(file: Path, url: str, what: str) -> None:
    file.write_text(f'[database]\nurl = "{url}"\n')
    with pytest.raises(ConfigError) as error:
        load(file)

    assert f"{what}; use sqlite+aiosqlite:///FILE" in str(error.value)
    assert "s3cr3t" not in str(error.value)


def test_all_mistakes_are_told_at_once(file: Path) -> None:
    error = load_error(file, GOOD + "quorum = 2\n[http]\nport = -1\n[log]\nlevel = 'loud'\n")

    assert len(error.problems) == 3
    assert {p.partition(":")[0] for p in error.problems} == {
        "pools.default.quorum",
        "http.port",
        "log.level",
    }


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    error = load_error(tmp_path / "none.toml")

    assert "No such file" in error.problems[0]
    assert "create" in error.hint
    assert "FUSEWIRE_CONFIG" in error.hint


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    error = load_error(tmp_path)  # a folder: nobody may read that as a file, not even root

    assert "cannot be read: Is a directory" in error.problems[0]
    assert str(tmp_path) in error.hint


@pytest.mark.parametrize("text", ["[nats\nurl = 1", "a = [1,\nb = 2", "\x00"])
def test_a_file_that_is_not_toml(file: Path, text: str) -> None:
    error = load_error(file, text)

    assert "cannot be parsed" in error.problems[0]
    assert "line" in error.problems[0]


def test_a_file_that_is_not_utf_8(file: Path) -> None:
    file.write_bytes(b'[nats]\nurl = "\xff"\n')

    assert "cannot be parsed" in load_error(file).problems[0]


@pytest.mark.parametrize("name", ["FUSEWIRE_POOLS", "FUSEWIRE_MODELS", "FUSEWIRE_NATS"])
def test_a_broken_variable_is_named(file: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "{not json")

    error = load_error(file)

    assert name.removeprefix("FUSEWIRE_").lower() in " ".join(error.problems).lower()


def test_a_wrong_variable_is_named_like_a_wrong_key(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEWIRE_HTTP__PORT", "many")

    assert load_error(file).problems[0].startswith("http.port: ")


def test_a_tenant_s_pools_have_its_models_alone(file: Path) -> None:
    """Members, judge and jury count."""
    more = """
[pools.gpt-alone]
members = ["gpt"]
[pools.judged]
members = ["gpt"]
judge = "tiny"
[pools.with-jury]
members = ["gpt"]
jury = ["gpt", "tiny"]
[tenants.acme]
models = ["gpt"]
[tenants.bolt]
pools = ["judged", "default"]
"""
    file.write_text(GOOD + more)
    settings = load(file)

    usable = {name: settings.tenant(name).usable_pools(settings.pools) for name in ("acme", "bolt")}
    assert usable == {"acme": ("gpt-alone",), "bolt": ("judged", "default")}
    assert len(settings.tenant("other").usable_pools(settings.pools)) == 4


def test_a_secret_is_read_when_it_is_used_and_never_shown(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(file)
    gpt = settings.models["gpt"]
    assert gpt.kind == "remote"
    assert gpt.api_key is None

    monkeypatch.setenv("SOME_KEY", "s3cr3t")

    assert gpt.api_key is not None
    assert gpt.api_key.get_secret_value() == "s3cr3t"
    assert "s3cr3t" not in repr(settings) + str(gpt.api_key) + settings.model_dump_json()


def test_the_hash_is_of_a_pool_and_its_models_alone(file: Path) -> None:
    base = load(file)

    def load_with(old: str, new: str) -> Settings:
        file.write_text(GOOD.replace(old, new))
        return load(file)

    assert base.config_hash("default") == load(file).config_hash("default")
    assert load_with("4222", "4223").config_hash("default") == base.config_hash("default")
    for old, new in [
        ("gpt-x", "gpt-y"),
        ("temperature = 0.0", "temperature = 0.1"),
        ('"calm"', '"cool"'),
    ]:
        assert load_with(old, new).config_hash("default") != base.config_hash("default")


def test_settings_cannot_be_load_with(file: Path) -> None:
    settings = load(file)

    with pytest.raises(ValueError, match="frozen"):
        settings.nats.url = "nats://other:1"  # type: ignore[misc]


def test_onnxruntime_genai_has_one_slot_whatever_is_set(file: Path) -> None:
    file.write_text(
        GOOD.replace(
            'path = "~/models/tiny"', 'path = "~/models/tiny"\nengine = "genai"\nslots = 8'
        )
    )
    tiny = load(file).models["tiny"]
    assert isinstance(tiny, EdgeModel)
    assert (tiny.engine, tiny.slots) == ("genai", 1)


def test_prepacked_weights_are_for_one_engine(file: Path) -> None:
    extra = 'engine = "genai"\nprepacked_dir = "/var/cache/fusewire"'
    error = load_error(
        file, GOOD.replace('path = "~/models/tiny"', f'path = "~/models/tiny"\n{extra}')
    )
    assert 'prepacked_dir is for engine = "onnxruntime" alone' in str(error)
