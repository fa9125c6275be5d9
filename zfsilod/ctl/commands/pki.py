"""`zfsiloctl pki`: whom this host believes over the network, and what it is believed by.

init and issue make an authority and certificates, for root on the storage host; renew is what the
timer zfsilo-renew.timer runs on both sides; import takes certificates from elsewhere.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod.ctl import paths, rpc_errors, server_files
from zfsilod.ctl.local import new_file, opened_store, record, write_join
from zfsilod.ctl.output.table import say, show_table
from zfsilod.ctl.require_local import check_here
from zfsilod.model.errors import AlreadyExists, InvalidArgument, NotFound, ZfsiloError
from zfsilod.model.identity import Identity
from zfsilod.model.names import split_address
from zfsilod.model.records import Issued
from zfsilod.model.validation import check_id
from zfsilod.security import certificates, join_file

if TYPE_CHECKING:
    from argparse import Namespace

WHAT = "certificates are made"
RENEW_S = 30.0
SHORT_ID = 8  # digits that are enough of a certificate's id


def files() -> join_file.Files:
    """Return where this host's certificates lie."""
    return join_file.Files(paths.state() / "tls")


def init(given: Namespace) -> None:
    """Make this host's authority, and its own certificate."""
    check_here(given, WHAT)
    if files().authority.exists():
        raise AlreadyExists(
            f"this host has an authority: {files().authority}", reason="HAS_AUTHORITY"
        )
    ensure(tuple(given.name))
    record("pki init", host_id())
    if not given.quiet:
        print(f"{host_id()} is its own authority now, and known as {', '.join(_names())}")
        print("  once:            systemctl enable --now zfsilo-renew.timer")
        print("                   systemctl enable zfsilod-tcp.socket")
        print("                   systemctl restart zfsilod.service")
        print("  for each host:   zfsiloctl pki issue host NAME --file NAME.join")


def ensure(names: tuple[str, ...] = ()) -> None:
    """Make what is missing of authority and own certificate."""
    paths.state().mkdir(mode=0o700, parents=True, exist_ok=True)
    if not files().authority.exists():
        files().write_authority(certificates.make_authority(host_id()))
    if not files().host.exists():
        write_own(names)


def issue(given: Namespace) -> None:
    """Make a certificate for a host or a person, and the one file that carries it there."""
    check_id(given.subject, f"{given.kind} id")
    if (given.kind == "user") != bool(given.role):
        raise InvalidArgument("a user has a --role, a host has none", reason="USAGE")
    identity = Identity(kind=given.kind, id=given.subject, role=given.role or "host")
    with opened_store(given, WHAT) as store:
        made = certificates.issue(files().own_authority(), identity, days=given.days)
        join = access(given.address, pair=made)
        with new_file(given.file or f"{given.subject}.join") as path:
            with store.write() as txn:
                txn.put(certificates.record_of(made.certificate_pem, identity))
            write_join(path, join)
    record("pki issue", str(identity))
    if path is not None:
        use = f"join {path.name}" if given.kind == "host" else f"-H {path.name} volume list"
        _told(
            given,
            {"file": str(path), "subject": str(identity), "address": join.address},
            f"{path}: for {identity}, who reaches this server at {join.address}\n"
            f"  over there:  zfsiloctl {use}",
        )


def list_issued(given: Namespace) -> None:
    """List the certificates that were made here."""
    from zfsilod.ctl.commands.token import left

    with opened_store(given, WHAT) as store, store.read() as txn:
        found = sorted(txn.scan(Issued), key=lambda each: (each.subject, each.created_at))
    if given.json:
        print(rpc_errors.dumps({"certificates": [_plain(each) for each in found]}))
    elif given.quiet:
        sys.stdout.writelines(f"{each.id[:16]}\n" for each in found)
    else:
        rows = [
            [f.id[:16], f.subject, f.role, "revoked" if f.revoked_at else left(f.expires_at)]
            for f in found
        ]
        show_table(("NAME", "SUBJECT", "ROLE", "LEFT"), rows)


def revoke(given: Namespace) -> None:
    """Make certificates worthless, on open connections too: host/NAME, user/NAME, or one id."""
    with opened_store(given, WHAT) as store, store.write() as txn:
        now = int(time.time())
        found = [each for each in txn.scan(Issued) if _is_meant(each, given.name)]
        if not found:
            raise NotFound(f"there is no certificate of {given.name}: zfsiloctl pki list")
        for each in found:
            txn.put(each.but(revoked_at=each.revoked_at or now))
    record("pki revoke", given.name)
    if not (given.quiet or given.json):
        print("".join(f"{each.id[:16]} of {each.subject}: revoked\n" for each in found), end="")


def renew(given: Namespace) -> None:
    """Renew what ends soon: this host's own certificate, and those for its servers."""
    check_here(given, WHAT)
    failed: list[ZfsiloError] = []
    renewed = _is_own() and _is_due(given, files().host.read_text())
    if renewed:
        write_own(())
        say(given, f"own certificate: renewed until {_end(files().host)}")
    for name in server_files.names():
        try:
            renewed |= _renew_for(given, name)
        except ZfsiloError as error:
            failed.append(error)
    if failed:
        sentence = "; ".join(error.message for error in failed)
        raise type(failed[0])(sentence, reason="NOT_RENEWED")
    if not renewed:
        say(given, "there is nothing to renew")


def import_pem(given: Namespace) -> None:
    """Take a certificate from elsewhere: an authority, or this host's own with its key."""
    check_here(given, WHAT)
    pem = _read(given.file)
    record("pki import", given.file)
    if certificates.is_authority(pem) and not given.key:
        path = files().write_trusted(pem)
        say(given, f"added trusted CA {path}")
        return
    if not given.key:
        raise InvalidArgument("a host's own certificate needs its --key", reason="USAGE")
    certificates.identify_pem(pem, b"")  # it is a host's
    files().write_host(certificates.Pair(pem, _read(given.key)))
    say(given, f"own certificate: the one in {given.file}, until {_end(files().host)}")


def _renew_for(given: Namespace, name: str) -> bool:
    """Ask a server for the successor of the certificate that it gave us, when it is due."""
    from zfsilo.v1 import service_pb2

    from zfsilod.ctl.client import Server

    known = server_files.read(name)
    if not known.certificate or not _is_due(given, known.certificate):
        return False
    made = certificates.make_request()
    request = service_pb2.RenewCertificateRequest(request=made.certificate_pem.decode())
    with server_files.channel_to(known) as channel:
        server = Server(channel, f"{name} ({known.address})", given.timeout or RENEW_S)
        answer = server.ask(server.api.service.RenewCertificate, request)
    known.certificate, known.key = answer.certificate, made.key_pem.decode()
    server_files.write(known)
    say(given, f"certificate for {name}: renewed until {_day(known.certificate)}")
    return True


def write_own(names: tuple[str, ...]) -> None:
    """Make this host's own certificate, for the names it had and further ones."""
    had = _names() if files().host.exists() else (socket.gethostname(), socket.getfqdn())
    identity = Identity(kind="host", id=host_id(), role="host")
    own = files().own_authority()
    files().write_host(certificates.issue(own, identity, tuple(dict.fromkeys((*had, *names)))))


def access(
    address: str, *, pair: certificates.Pair | None = None, token: str = ""
) -> join_file.Access:
    """Return how this server is reached: by a certificate and its key, or by a token."""
    address = paths.with_port(address or socket.gethostname(), paths.PORT)
    split_address(address)
    return join_file.Access(
        name=host_id(),
        address=address,
        tls_name=certificates.tls_name(host_id()),
        authority=files().own_authority().certificate_pem.decode(),
        token=token,
        certificate=pair.certificate_pem.decode() if pair else "",
        key=pair.key_pem.decode() if pair else "",
    )


def host_id() -> str:
    """Return this host's id."""
    from zfsilod.config import load

    return load(paths.etc()).daemon.host_id


def _is_meant(found: Issued, name: str) -> bool:
    return name == found.subject or (len(name) >= SHORT_ID and found.id.startswith(name))


def _is_due(given: Namespace, pem: str) -> bool:
    left_s = join_file.expiry(pem) - time.time()
    return given.now or left_s < certificates.RENEWED_DAYS * 86400


def _names() -> tuple[str, ...]:
    return certificates.server_names(files().host.read_bytes())


def _is_own() -> bool:
    """Tell whether this host's certificate is one of its own authority."""
    if not (files().authority.exists() and files().host.exists()):
        return False
    return certificates.identify_pem(files().host.read_bytes(), files().authority.read_bytes()).own


def _end(path: Path) -> str:
    return _day(path.read_text())


def _day(pem: str) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(join_file.expiry(pem)))


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{name} cannot be read: {error.strerror}", reason="USAGE") from error


def _told(given: Namespace, answer: dict[str, str], text: str) -> None:
    """Print what was made, for programs or for people."""
    if given.json:
        print(rpc_errors.dumps(answer))
    else:
        say(given, text)


def _plain(found: Issued) -> dict[str, object]:
    from zfsilod.ctl.commands.token import moment

    gone = {"revoke_time": moment(found.revoked_at)} if found.revoked_at else {}
    return {
        "id": found.id,
        "subject": found.subject,
        "role": found.role,
        "create_time": moment(found.created_at),
        "expire_time": moment(found.expires_at),
        **gone,
    }
