"""API keys: their form and digest, the pepper, and on which addresses they are required."""

import re
import secrets
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewire.errors import StartupError
from fusewire.http_server import check_encryption, needs_keys
from fusewire.settings import Http, Settings
from fusewire_ingest.admission import keys
from fusewire_ingest.pepper import FILE, pepper

RANDOM = st.binary(min_size=keys.RANDOM_BYTES, max_size=keys.RANDOM_BYTES)
PEPPER = b"0123456789abcdef"
FIXED = keys.make(bytes(range(keys.RANDOM_BYTES)))


@given(RANDOM)
def test_a_key_tells_its_id_and_holds_256_bits(random: bytes) -> None:
    key = keys.make(random)

    assert re.fullmatch(r"fw-[0-9a-v]{8}-[A-Za-z0-9_-]{43}", key)
    assert keys.key_id(key) == key[3:11]


@given(RANDOM, RANDOM)
def test_other_bytes_make_another_key_and_another_digest(
    random: bytes, other_random: bytes
) -> None:
    first, second = keys.make(random), keys.make(other_random)

    assert (first == second) == (random == other_random)
    same = keys.is_same(keys.digest(first, PEPPER), keys.digest(second, PEPPER))
    assert same == (random == other_random)


def test_a_digest_is_the_hmac_of_the_whole_key() -> None:
    # printf %s KEY | openssl dgst -sha256 -hmac 0123456789abcdef
    assert FIXED == "fw-000g40o4-BQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4fICEiIyQ"
    assert (
        keys.digest(FIXED, PEPPER)
        == "639b7512eacd46163c82fd6aa0d5dd725df52a772507af0250ce0dcd31f6edee"
    )
    assert keys.digest(FIXED, PEPPER + b"x") != keys.digest(FIXED, PEPPER)
    assert keys.digest("fw-1" + FIXED[4:], PEPPER) != keys.digest(FIXED, PEPPER)


@pytest.mark.parametrize("length", [0, keys.RANDOM_BYTES - 1, keys.RANDOM_BYTES + 1])
def test_a_key_is_made_of_neither_less_nor_more(length: int) -> None:
    with pytest.raises(ValueError, match="37 random bytes"):
        keys.make(b"x" * length)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fw-",
        "sk-abc",
        FIXED[:-1],
        FIXED + "x",
        FIXED + "\n",
        " " + FIXED,
        FIXED.upper(),
        FIXED.replace("-", "_"),
    ],
)
def test_what_is_not_written_as_a_key_has_no_id(text: str) -> None:
    assert keys.key_id(text) is None


@given(st.text(max_size=80))
def test_any_text_can_be_read(text: str) -> None:
    assert keys.key_id(text) is None or text.startswith(keys.PREFIX)
    assert not keys.is_same(text, keys.digest(FIXED, PEPPER))


# -- the pepper -------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


def test_the_pepper_is_made_once_for_its_owner_alone(settings: Settings) -> None:
    first = pepper(settings)

    assert pepper(settings) == first
    assert len(first) == 64
    assert stat.S_IMODE((settings.data_dir / FILE).stat().st_mode) == 0o600
    assert [path.name for path in settings.data_dir.iterdir()] == [FILE]


def test_several_that_make_it_at_once_have_the_same(settings: Settings) -> None:
    barrier = Barrier(8)

    def make(_: int) -> bytes:
        barrier.wait()
        return pepper(settings)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(make, range(8)))) == 1
    assert [path.name for path in settings.data_dir.iterdir()] == [FILE]


def test_the_environment_goes_before_the_file(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSEWIRE_KEY_PEPPER", secret := secrets.token_hex(16))

    assert pepper(settings) == secret.encode()
    assert not settings.data_dir.exists()


@pytest.mark.parametrize("value", ["", "tooshort", " " * 40])
def test_a_short_pepper_is_refused_without_being_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("FUSEWIRE_KEY_PEPPER", value)

    with pytest.raises(StartupError, match="fewer than 16 bytes") as error:
        pepper(settings)
    assert "tooshort" not in str(error.value)


def test_a_pepper_that_cannot_be_read_is_named(settings: Settings) -> None:
    (settings.data_dir / FILE).mkdir(parents=True)

    with pytest.raises(StartupError, match="key-pepper, cannot be used: Is a directory"):
        pepper(settings)


# -- where keys are asked for -----------------------------------------------------------------

HERE = ["127.0.0.1", "127.8.8.8", "::1", "localhost"]
PUBLIC = [
    "0.0.0.0",
    "::",
    "10.0.0.1",
    "192.168.1.4",
    "fusewire.example",
    "localhost.example",
    "fe80::1%eth0",
    "",
]


@pytest.mark.parametrize("host", HERE)
def test_on_this_machine_neither_keys_nor_tls_are_needed(host: str) -> None:
    check_encryption(Http(host=host))
    assert not needs_keys(Http(host=host))
    assert needs_keys(Http(host=host, keys="required"))


@pytest.mark.parametrize("host", PUBLIC)
def test_beyond_it_both_are(host: str) -> None:
    assert needs_keys(Http(host=host))
    with pytest.raises(StartupError) as error:
        check_encryption(Http(host=host))
    assert "there is no TLS" in error.value.what
    assert all(
        word in error.value.mend for word in ("tls_cert", "tls_key", "allow_insecure", "127.0.0.1")
    )

    check_encryption(Http(host=host, tls_cert=Path("cert.pem"), tls_key=Path("key.pem")))
    check_encryption(Http(host=host, allow_insecure=True))
    assert needs_keys(Http(host=host, allow_insecure=True)), (
        "a proxy's TLS says nothing of who comes"
    )
