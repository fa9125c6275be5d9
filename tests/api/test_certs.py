"""The server's certificate and the join file."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from zfsilod import certs
from zfsilod.auth import new_token
from zfsilod.errors import InvalidArgument

if TYPE_CHECKING:
    from pathlib import Path


def test_it_is_made_once_and_reused(tmp_path: Path) -> None:
    directory = tmp_path / "tls"
    names = ("give", "give.example.org", "10.77.0.1", "fd00::1", "give", "")
    made = certs.load_or_make(directory, names)
    again = certs.load_or_make(directory, ("other",))
    assert (made.certificate_pem, made.key_pem) == (again.certificate_pem, again.key_pem)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / certs.KEY).stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in directory.iterdir()) == [certs.KEY, certs.CERTIFICATE]
    found = x509.load_pem_x509_certificate(made.certificate_pem)
    alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == ["zfsilo", "give", "give.example.org"]
    addresses = alternative.get_values_for_type(x509.IPAddress)
    assert [str(each) for each in addresses] == ["10.77.0.1", "fd00::1"]
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    key = load_pem_private_key(made.key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert key.public_key() == found.public_key()


def test_a_start_that_was_cut_short_is_made_good(tmp_path: Path) -> None:
    certs.load_or_make(tmp_path, ("a",))
    (tmp_path / certs.CERTIFICATE).unlink()
    made = certs.load_or_make(tmp_path, ("b",))
    key = load_pem_private_key((tmp_path / certs.KEY).read_bytes(), None)
    found = x509.load_pem_x509_certificate(made.certificate_pem)
    assert key.public_key() == found.public_key()


def test_tls_below_13_is_turned_off_before_grpc_is_there() -> None:
    script = """
import os, sys
from zfsilod import certs
assert "grpc" not in sys.modules and "asyncio" not in sys.modules
certs.require_tls13()
assert os.environ["GRPC_SSL_CIPHER_SUITES"] == "ECDHE-RSA-AES128-GCM-SHA256"
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def join(**fields: str) -> certs.Join:
    token = new_token("host", "take")[1]
    pem = certs.make(("give",)).certificate_pem.decode()
    known = {"name": "give", "address": "10.77.0.1:7450", "certificate_pem": pem, "token": token}
    return certs.Join(**(known | fields))


def test_a_join_file_reads_back() -> None:
    given = join()
    found = certs.parse_join(certs.make_join(given))
    assert vars(found) == vars(given)
    assert given.token not in repr(given)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "No Name"}, {"address": "give"}, {"address": "give:0"}, {"address": "give:70000"},
        {"address": "fd00::1:7450"}, {"address": ":7450"}, {"certificate_pem": "x"},
        {"address": 'x"\ny:1'},
    ],
)  # fmt: skip
def test_no_bad_join_file_is_handed_out(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        certs.make_join(join(**fields))


@pytest.mark.parametrize(
    "text", ["", "x", "name = 3", 'name = "give"\n', "[server]\n", "x" * 20000]
)
def test_what_is_no_join_file(text: str) -> None:
    with pytest.raises(InvalidArgument):
        certs.parse_join(text)


def test_errors_never_quote_a_join_file() -> None:
    given = join()
    for text in (
        certs.make_join(given).replace('token = "', "token = ").replace("certificate", "cert"),
        certs.make_join(given) + f'more = "{given.token}"',
        certs.make_join(given).replace('name = "give"', f'name = "{given.token.upper()}"')[:9],
    ):
        with pytest.raises(InvalidArgument) as found:
            certs.parse_join(text)
        assert given.token not in str(found.value)
        assert found.value.__cause__ is None


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("give:1", ("give", 1)), ("10.0.0.1:3260", ("10.0.0.1", 3260)),
        ("[fd00::1]:65535", ("fd00::1", 65535)),
    ],
)  # fmt: skip
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert certs.split_address(address) == expected
