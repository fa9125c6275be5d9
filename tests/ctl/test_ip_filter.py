"""The IP filter of the daemon's unit: which addresses have to be added."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.ctl import ip_filter
from zfsilod.ctl.ip_filter import PRIVATE, name_servers, outside
from zfsilod.host.run import Completed

if TYPE_CHECKING:
    import pytest

UNIT = Path(__file__).parents[2] / "units/zfsilod.service"
WORDS = {  # systemd.resource-control(5)
    "localhost": ("127.0.0.0/8", "::1/128"),
    "link-local": ("169.254.0.0/16", "fe80::/64"),
    "multicast": (),
}


def test_private_addresses_are_allowed() -> None:
    inside = ["10.77.0.1", "192.168.1.9", "fd00::1", "fe80::1%eth0", "127.0.0.53", "100.64.0.7"]
    assert outside([*inside, "203.0.113.5", "203.0.113.5", "2001:db8::1"]) == [
        "203.0.113.5",
        "2001:db8::1",
    ]


def test_addresses_that_the_unit_does_not_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "127.0.0.0/8 10.0.0.0/8\n"
    done = Completed(argv=(), rc=0, stdout=shown, stderr="")
    monkeypatch.setattr(ip_filter, "Runner", lambda: lambda *_argv, **_options: done)
    monkeypatch.setattr(ip_filter, "resolved", lambda name: [name])
    assert ip_filter.blocked("10.1.2.3") == []
    assert ip_filter.blocked("203.0.113.5") == ["203.0.113.5"]


def test_an_older_unit_allows_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    done = Completed(argv=(), rc=0, stdout="\n", stderr="")
    monkeypatch.setattr(ip_filter, "Runner", lambda: lambda *_argv, **_options: done)
    assert ip_filter.blocked("127.0.0.1") == []


def test_the_unit_allows_the_same_networks() -> None:
    lines = UNIT.read_text().splitlines()
    words = [
        word for line in lines if line.startswith("IPAddressAllow=") for word in line[15:].split()
    ]
    allowed = {network for word in words for network in WORDS.get(word, (word,))}
    assert allowed == set(PRIVATE)


def test_name_servers_of_resolv_conf(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("# made by hand\nsearch example\nnameserver 192.0.2.53\nnameserver\n")
    assert name_servers(conf) == ["192.0.2.53"]
    conf.write_bytes(b"# von J\xfcrgen\nnameserver 192.0.2.53\nnameserver dns.example\n")
    assert name_servers(conf) == ["192.0.2.53"]
    assert name_servers(tmp_path / "none") == []
