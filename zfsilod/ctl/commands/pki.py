"""`zfsiloctl pki`: certificates for access over the network.

init and issue create an authority and certificates, as root on the server; renew is run by
zfsilo-renew.timer on servers and clients; import takes certificates from another authority.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from zfsilod.ctl import paths, server_files
from zfsilod.ctl.join_files import access, files, host_id, new_file, write_join
from zfsilod.ctl.local_trust import opened_store, record
from zfsilod.ctl.output.messages import dumps
from zfsilod.ctl.output.table import say, show_table
from zfsilod.ctl.require_local import check_root
from zfsilod.ctl.times import left, rfc3339
from zfsilod.model.errors import AlreadyExists, InvalidArgument, ZfsiloError
from zfsilod.model.identity import IMPORTED, Identity
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import Issued, Revocation
from zfsilod.model.validation import check_id
from zfsilod.security import certificates, credentials, join_file

if TYPE_CHECKING:
    from argparse import Namespace

RENEW_S = 30.0


def init(args: Namespace) -> None:
    """Create the authority and the certificate of this host."""
    check_root(args, "pki init")
    if files().authority.exists():
        raise AlreadyExists(
            f"this host already has an authority, {files().authority}", reason="HAS_AUTHORITY"
        )
    ensure(tuple(args.name))
    record("pki init", host_id())
    if not args.quiet:
        print(
            f"created the authority of {host_id()}, and its certificate for {', '.join(_names())}"
        )
        print("  next, once:      systemctl enable --now zfsilo-renew.timer")
        print("                   systemctl enable zfsilod-tcp.socket")
        print("                   systemctl restart zfsilod.service")
        print("  for each host:   zfsiloctl pki issue host NAME --file NAME.join")


def ensure(names: tuple[str, ...] = ()) -> None:
    """Create the authority and the certificate of this host where they do not exist."""
    paths.state().mkdir(mode=0o700, parents=True, exist_ok=True)
    if not files().authority.exists():
        files().write_authority(certificates.make_authority(host_id()))
    if not files().host.exists():
        write_own(names)


def issue(args: Namespace) -> None:
    """Issue a certificate to a host or a user, and write the join file that holds it."""
    check_id(args.subject, f"{args.kind} id")
    if args.kind == "user" and not args.role:
        raise InvalidArgument(
            "--role is missing; a user needs one",
            reason="USAGE",
            usage="zfsiloctl pki issue --help",
        )
    if args.kind == "host" and args.role:
        raise InvalidArgument(
            "--role is for users only", reason="USAGE", usage="zfsiloctl pki issue --help"
        )
    identity = Identity(kind=args.kind, id=args.subject, role=args.role or "host")
    with opened_store(args, "pki issue") as store:
        pair = certificates.issue(files().own_authority(), identity, days=args.days)
        join = access(args.address, pair=pair)
        with new_file(args.file or f"{args.subject}.join") as path:
            with store.write() as txn:
                txn.put(certificates.record_of(pair.certificate_pem, identity))
            write_join(path, join)
    record("pki issue", str(identity))
    if path is None:
        return
    if args.json:
        print(dumps({"file": str(path), "subject": str(identity), "address": join.address}))
        return
    joins = args.kind == "host" or args.role == "replica"
    place = f"on {args.subject}" if joins else "use"
    command = f"join {path.name}" if joins else f"-H {path.name} volume list"
    say(
        args,
        f"wrote {path} for {identity}, with this server's address {join.address}\n"
        f"  {place}:  zfsiloctl {command}",
    )


def list_issued(args: Namespace) -> None:
    """List the certificates that this host issued."""
    with opened_store(args, "pki list") as store, store.read() as txn:
        all_issued = sorted(
            (credentials.as_revoked(txn, issued) for issued in txn.scan(Issued)),
            key=lambda issued: (issued.subject, issued.created_at),
        )
        revocations = [record for record in txn.scan(Revocation) if record.id.startswith(IMPORTED)]
    if args.json:
        plain = [
            {
                "id": issued.id,
                "subject": issued.subject,
                "role": issued.role,
                "create_time": rfc3339(issued.created_at),
                "expire_time": rfc3339(issued.expires_at),
                **({"revoke_time": rfc3339(issued.revoked_at)} if issued.revoked_at else {}),
            }
            for issued in all_issued
        ]
        imported = [
            {"subject": record.id, "revoke_time": rfc3339(record.revoked_at)}
            for record in revocations
        ]
        print(dumps({"certificates": plain} | ({"revocations": imported} if imported else {})))
    elif args.quiet:
        sys.stdout.writelines(f"{issued.id[:16]}\n" for issued in all_issued)
    else:
        rows = [
            [
                issued.id[:16],
                issued.subject,
                issued.role,
                "revoked" if issued.revoked_at else left(issued.expires_at),
            ]
            for issued in all_issued
        ]
        rows += [["", record.id, "", "revoked"] for record in revocations]
        show_table(("NAME", "SUBJECT", "ROLE", "LEFT"), rows)


def revoke(args: Namespace) -> None:
    """Revoke an identity or a certificate, also on open connections, or withdraw that."""
    with opened_store(args, "pki revoke") as store, store.write() as txn:
        if args.undo:
            credentials.withdraw(txn, args.name)
            revoked = []
        else:
            revoked = credentials.revoke(txn, args.name, int(time.time()), unknown=args.unknown)
    record("pki revoke --undo" if args.undo else "pki revoke", args.name)
    for item in revoked:
        say(args, f"{item}: revoked")
    if args.undo:
        say(args, f"identity {args.name}: not revoked any more")


def renew(args: Namespace) -> None:
    """Renew certificates that expire soon: this host's own, and those for its servers."""
    check_root(args, "pki renew")
    failed: list[ZfsiloError] = []
    own = files()
    renewed = (
        own.authority.exists()
        and own.host.exists()
        and certificates.identify_pem(own.host.read_bytes(), own.authority.read_bytes()).own
        and _is_due(args, own.host.read_text())
    )
    if renewed:
        write_own(())
        say(args, f"own certificate: renewed until {_expiry_day(files().host.read_text())}")
    for name in server_files.names():
        try:
            renewed |= _renew_for(args, name)
        except ZfsiloError as error:
            failed.append(error)
    if failed:
        sentence = "; ".join(error.message for error in failed)
        raise type(failed[0])(sentence, reason="NOT_RENEWED")
    if not renewed:
        say(args, "no certificate expires soon")


def import_pem(args: Namespace) -> None:
    """Import an authority to trust, or this host's own certificate with its key."""
    check_root(args, "pki import")
    pem = _read(args.file)
    record("pki import", args.file)
    if certificates.is_authority(pem) and not args.key:
        say(args, f"added trusted CA {files().write_trusted(pem)}")
        return
    if not args.key:
        raise InvalidArgument(
            "--key is missing; a host's own certificate needs its key", reason="USAGE"
        )
    certificates.identify_pem(pem, b"")  # raises unless it is a host's
    files().write_host(certificates.KeyPair(pem, _read(args.key)))
    say(args, f"own certificate: imported from {args.file}, expires {_expiry_day(pem.decode())}")


def _renew_for(args: Namespace, name: str) -> bool:
    """Ask a server to renew its certificate for this host, if it expires soon."""
    from zfsilod.ctl import messages as pb
    from zfsilod.ctl.client import Server

    server_access = server_files.read(name)
    if not server_access.certificate or not _is_due(args, server_access.certificate):
        return False
    new = certificates.make_request()
    request = pb.RenewCertificateRequest(request=new.certificate_pem.decode())
    channel = server_files.channel_to(server_access)
    server = Server(channel, f"{name} ({server_access.address})", args.timeout or RENEW_S)
    answer = server.ask("RenewCertificate", request)
    server_access.certificate, server_access.key = answer.certificate, new.key_pem.decode()
    server_files.write(server_access)
    say(args, f"certificate for {name}: renewed until {_expiry_day(server_access.certificate)}")
    return True


def write_own(names: tuple[str, ...]) -> None:
    """Issue this host's own certificate, for the names of the present one and further names."""
    present = _names() if files().host.exists() else (socket.gethostname(), socket.getfqdn())
    identity = Identity(kind="host", id=host_id(), role="host")
    own = files().own_authority()
    files().write_host(certificates.issue(own, identity, tuple(dict.fromkeys((*present, *names)))))


def _is_due(args: Namespace, pem: str) -> bool:
    left_s = join_file.expiry(pem) - time.time()
    return args.now or left_s < certificates.RENEWED_DAYS * 86400


def _names() -> tuple[str, ...]:
    return certificates.server_names(files().host.read_bytes())


def _expiry_day(pem: str) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(join_file.expiry(pem)))


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"cannot read {name}: {error.strerror}", reason="USAGE") from error
