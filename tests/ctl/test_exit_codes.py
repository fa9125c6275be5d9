"""Exit codes, error messages and hints, from errors of a real daemon."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zfsilod.ctl.failures import (
    EXIT_CODES,
    EXIT_CODES_HELP,
    HINTS,
    UNIT_EXIT_CODES,
    complain,
    hint_for,
    unit_exit_code,
)
from zfsilod.model.errors import (
    BY_NAME,
    Busy,
    Conflict,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    ZfsiloError,
)

if TYPE_CHECKING:
    from tests.ctl.shell import Shell


def test_0_done_and_0_again(ctl: Shell) -> None:
    assert ctl.ok("volume create again 1G") == "create again: done\n"
    assert "already so" in ctl.ok("volume create again 1G")


def test_0_an_absent_volume_is_disconnected_already(ctl: Shell) -> None:
    assert ctl.ok("volume disconnect nowhere --force") == "disconnect nowhere: already so\n"


def test_1_a_failure_is_rolled_back(ctl: Shell) -> None:
    ctl.daemon.front.fixture.host.facts.light_fuse(1, when="before", how="fail")
    complaint = ctl.fails(1, "volume create fused 1G")
    operation = ctl.daemon.operations()[-1].id
    assert complaint == (
        "zfsiloctl: the fuse of the simulated host blew\n"
        "  create fused: failed at step 'create zvol tank/zfsilo/fused "
        "(1 GiB, thin, blocks of 16 KiB, snapdev=hidden, sync=always, volmode=dev)', "
        "and was rolled back\n"
        f"  try: zfsiloctl operation show {operation}\n"
    )
    assert ctl("volume show fused").code == 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("volume create x 0", "invalid size 0 B; use 1.0 MiB to 1.0 EiB"),
        ("volume create x 10X", "invalid size '10X'"),
        ("volume create x", "name a SIZE; only a clone has that of its source"),
        ("volume create UPPER 1G", "invalid volume id 'UPPER'"),
        ("volume create x.mount 1G", "ends like a systemd unit"),
        ("volume create x 1G -o volsize=1", "'volsize' cannot be set"),
        ("volume create x 1G -o compression", "write NAME=VALUE"),
        ("volume list --filter 'x = 1'", "unknown field 'x'"),
        (
            "volume list --filter 'state = BOGUS'",
            "unknown state 'BOGUS': expected one of ABSENT, CREATED,",
        ),
        ("volume update x", "nothing to change"),
        ("volume unpublish x", "name a HOST, or use --all"),
        ("volume unpublish x take --all", "name a HOST, or use --all, not both"),
        ("volume unpublish x take --grace 3", "--grace needs --fence"),
        ("volume nonsense", "invalid choice: 'nonsense'"),
        ("volume list --nonsense", "unrecognized arguments: --nonsense"),
        ("operation show 01uuuuuuuuuuuuuuuuuuuuuuuu", "invalid operation id '01u"),
        ("volume connect x", "no server is known; add one with zfsiloctl join FILE"),
        ("volume list --timeout -1", "invalid number of seconds '-1'"),
        ("volume list --timeout 0", "invalid timeout 0"),
        ("pki issue user b --role reader --days 999999999", "invalid number of days '999999999'"),
        ("pki issue host b --days 0", "invalid number of days '0': expected 1 to 3650"),
        ("token create b --role reader --days 3651", "expected 1 to 3650"),
        ("volume list --timeout nan", "invalid number of seconds 'nan'"),
        ("volume connect x --server give --epoch 99999999999999999999", "expected 0 to 999999999"),
        ("volume show \udcff", "is not UTF-8"),
        ("volume show 'ä'", "invalid volume id 'ä'"),
    ],
)
def test_2_the_request_is_wrong(ctl: Shell, line: str, said: str) -> None:
    complaint = ctl.fails(2, line)
    assert complaint.startswith("zfsiloctl: ")
    assert said in complaint


def test_2_no_command_shows_the_help(ctl: Shell) -> None:
    ran = ctl("volume")
    assert ran.code == 2
    assert "usage: zfsiloctl volume" in ran.out


def test_3_not_found(ctl: Shell) -> None:
    assert ctl.fails(3, "volume show none") == "zfsiloctl: there is no volume none on this host\n"
    for line in ("host show none", "host delete none"):
        assert ctl.fails(3, line) == "zfsiloctl: there is no host none\n"
    ctl.ok("volume create homeless 1G")
    assert ctl.fails(3, "volume publish homeless none") == (
        "zfsiloctl: unknown host none: register it first\n"
        "  try: zfsiloctl pki issue host none, then on none: zfsiloctl join none.join\n"
    )
    for line in ("rotate-secrets none", "rotate-secrets none take"):
        assert "there is no volume none" in ctl.fails(3, line)
    assert "unknown server none" in ctl.fails(3, "-H none volume list")


def test_3_a_volume_that_is_not_for_this_host(ctl: Shell) -> None:
    ctl.ok("volume create private 1G")
    assert ctl.fails(3, "volume connect private --server give").endswith(
        "server give has no volume private for this host\n"
        "  try: on give, if private exists there: zfsiloctl volume update private --host HOST\n"
    )


def test_4_it_exists_with_other_parameters(ctl: Shell) -> None:
    ctl.ok("volume create other 1G")
    assert "with another capacity_bytes" in ctl.fails(4, "volume create other 2G")


def test_5_wrong_state(ctl: Shell) -> None:
    ctl.ok("volume create held 1G")
    ctl.ok("volume publish held take")
    complaint = ctl.fails(5, "volume delete held --yes")
    assert complaint == (
        "zfsiloctl: held is published to take: unpublish it first\n"
        "  try: zfsiloctl volume unpublish held --all\n"
    )


def test_6_permission_denied(ctl: Shell) -> None:
    join = ctl.daemon.join_file("reader", "mon", by_token=True)
    complaint = ctl.fails(6, f"-H {join} volume create denied 1G")
    assert "may not call CreateVolume" in complaint
    join.write_text(join.read_text().replace("zfsilo-0", "zfsilo-1"))
    assert "unknown bearer token" in ctl.fails(6, f"-H {join} volume list")


def test_7_not_enough_space(ctl: Shell) -> None:
    assert "limited to 2.0 TiB in all" in ctl.fails(7, "volume create large 1E")
    complaint = ctl.fails(7, "volume create large 1P --thick")
    assert "large needs 1.0 PiB at once, but tank/zfsilo has 1.0 TiB free" in complaint
    assert "make it smaller or thin, or free space" in complaint
    assert complaint.endswith("  try: zfsiloctl capacity\n")


def test_8_changed_since_it_was_read(ctl: Shell) -> None:
    ctl.ok("volume create changed 1G")
    assert "read it again" in ctl.fails(8, "volume update changed -l a=b --etag 1")


def test_9_no_daemon(ctl: Shell, tmp_path: Path) -> None:
    complaint = ctl.fails(9, f"--socket {tmp_path}/none volume list")
    assert complaint == (
        f"zfsiloctl: zfsilod is not running: its socket {tmp_path}/none does not exist\n"
        "  try: systemctl start zfsilod.socket\n"
    )


def test_9_a_dead_socket(ctl: Shell, tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/dead")
    complaint = ctl.fails(9, f"--socket {tmp_path}/dead volume list")
    assert "does not answer" in complaint
    assert "systemctl start zfsilod.socket" in complaint


def test_10_still_running(ctl: Shell) -> None:
    ctl.daemon.hold()
    complaint = ctl.fails(10, "volume create slow 1G --timeout 1")
    assert "is still in progress: zfsiloctl operation wait" in complaint
    operation = ctl.daemon.operations()[-1].id
    assert operation in complaint
    assert operation in ctl.fails(10, f"operation wait {operation} --timeout 1")
    ctl.daemon.calm()
    assert ctl.ok(f"operation wait {operation}") == "create slow: done\n"


def test_every_error_has_an_exit_code() -> None:
    assert {error.code for error in BY_NAME.values()} <= set(EXIT_CODES)


def test_every_exit_code_is_documented() -> None:
    documented = {int(line.split()[0]) for line in EXIT_CODES_HELP.splitlines()[1:-1]}
    assert documented == {0, *EXIT_CODES.values(), 130}


FACTS = ("volume", "host", "server", "operation", "package", "usage", "needs")


@pytest.mark.parametrize("reason", HINTS)
def test_hints_need_their_facts(reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    facts = dict.fromkeys(FACTS, "fact")
    complain(ZfsiloError("it failed", reason=reason, **facts))
    assert "\n  try: " in capsys.readouterr().err
    if "{" in HINTS[reason][-1]:
        complain(ZfsiloError("it failed", reason=reason))
        assert capsys.readouterr().err == "zfsiloctl: it failed\n"


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("PUBLISHED", "on vm: zfsiloctl volume unpublish e vmx"),
        ("NOT_ITS_HOST", "on vm: zfsiloctl volume update e --host vmx"),
        ("SESSION_LIVE", "on vmx: zfsiloctl volume disconnect e"),
    ],
)
def test_a_hint_for_an_error_of_a_server_names_it(reason: str, hint: str) -> None:
    assert hint_for(ZfsiloError("", reason=reason, volume="e", host="vmx", server="vm")) == hint


def test_a_hint_for_a_local_error_names_no_server() -> None:
    refused = ZfsiloError("", reason="NOT_ITS_HOST", volume="e", host="vmx")
    assert hint_for(refused) == "on its server: zfsiloctl volume update e --host vmx"
    refused = ZfsiloError("", reason="PUBLISHED", volume="e", host="vmx")
    assert hint_for(refused) == "zfsiloctl volume unpublish e vmx"


def test_a_hint_that_the_message_has_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert complain(Conflict("try zfsiloctl capacity", reason="POOL_FULL")) == 5
    assert capsys.readouterr().err == "zfsiloctl: try zfsiloctl capacity\n"


@pytest.mark.parametrize(
    ("error", "synchronised", "code"),
    [
        (InvalidArgument("volumes.d/far.toml: unknown key"), True, 78),
        (NotFound("unknown volume far"), True, 66),
        (NotFound("there is no volume far on this host", server="give"), True, 69),
        (PermissionDenied("no access"), True, 77),
        (Unauthenticated("refused this host's certificate"), True, 77),
        (Unauthenticated("certificate is not yet valid"), True, 77),
        (Unauthenticated("certificate is not yet valid"), False, 69),
        (Unauthenticated("refused: SSLV3_ALERT_CERTIFICATE_EXPIRED"), False, 69),
        (Unauthenticated("refused this host's certificate"), False, 77),
        (Unavailable("no answer"), True, 69),
        (Busy("claimed"), True, 75),
        (Conflict("exists"), True, 1),
    ],
)
def test_exit_codes_for_units(error: ZfsiloError, *, synchronised: bool, code: int) -> None:
    assert unit_exit_code(error, clock_is_right=synchronised) == code


def test_the_unit_ends_its_retries_after_permanent_errors() -> None:
    root = Path(__file__).parents[2]
    text = (root / "units/zfsilo-volume@.service").read_text()
    assert re.findall(r"^RestartPreventExitStatus=(.*)$", text, re.M) == ["66 77 78"]
    page = (root / "docs/man/zfsilo-volume@.service.5").read_text()
    section = page.partition(".SH EXIT STATUS\n")[2].partition(".SH")[0]
    documented = set(map(int, re.findall(r"^\.B (\d+)$", section, re.M)))
    assert documented == {0, 1, *UNIT_EXIT_CODES.values()}
