"""`zfsiloctl token`: who may talk to this host's daemon over the network. For root, on the spot.

Tokens are made and revoked in the store itself, which the daemon reads at every call.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zfsilod import certs
from zfsilod.auth import new_token
from zfsilod.ctl import answers, places
from zfsilod.ctl.amount import show_age
from zfsilod.ctl.table import show_table
from zfsilod.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from zfsilod.model import Token
from zfsilod.store import Store

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

STDOUT = "-"


def create(given: Namespace) -> None:
    """Make a token, or with --file the join file that carries it to a host."""
    with _store(given) as store:
        token, text = new_token(given.role, given.subject)
        if not given.file:
            _keep(store, token)
            _show_token(given, token, text)
            return
        join = join_for(given.address, text)
        with _new_file(given.file) as path:
            _keep(store, token)
            if path is None:
                sys.stdout.write(certs.make_join(join))
            else:
                path.write_text(certs.make_join(join))
    if path is not None and not given.quiet:
        print(
            f"{path}: for {given.role} {given.subject}, who reaches this server at {join.address}"
        )
        print("  once here:   systemctl enable zfsilod-tcp.socket")
        print("               systemctl restart zfsilod.service")
        print(f"  over there:  {_use(given.role, path)}")


def list_tokens(given: Namespace) -> None:
    """List tokens; the tokens themselves are kept nowhere."""
    with _store(given) as store, store.read() as txn:
        found = list(txn.scan(Token))
    if given.json:
        print(answers.dumps({"tokens": [_plain(each) for each in found]}))
    elif given.quiet:
        sys.stdout.writelines(f"{each.id}\n" for each in found)
    else:
        now = int(time.time())
        rows = [[t.id, t.role, t.subject, show_age(now - t.created_at)] for t in found]
        show_table(("NAME", "ROLE", "SUBJECT", "AGE"), rows)


def revoke(given: Namespace) -> None:
    """Make a token worthless, from the next call on."""
    with _store(given) as store, store.write() as txn:
        found = txn.get(Token, given.name)
        if found is None:
            raise NotFound(f"there is no token {given.name}: zfsiloctl token list")
        txn.drop(Token.bucket(), found.key)
    if not (given.quiet or given.json):
        print(f"{found.id} (of {found.role} {found.subject}): revoked")


def join_for(address: str, token: str) -> certs.Join:
    """Return the join file's content for a token of this server."""
    from zfsilod.config import load

    host_id = load(places.etc()).daemon.host_id
    name = socket.gethostname()
    certificate = certs.load_or_make(places.state() / "tls", (host_id, name))
    return certs.Join(
        name=host_id, address=_with_port(address or name), token=token,
        certificate_pem=certificate.certificate_pem.decode(),
    )  # fmt: skip


def _with_port(address: str) -> str:
    """Return an address with a port; a bare IPv6 address gets its brackets."""
    if address.count(":") > 1 and not address.startswith("["):
        address = f"[{address}]"
    complete = (
        address if address.rpartition(":")[2].isdecimal() and not address.endswith("]") else ""
    )
    complete = complete or f"{address}:{places.PORT}"
    certs.split_address(complete)
    return complete


@contextmanager
def _store(given: Namespace) -> Iterator[Store]:
    """Open the store of this host's daemon."""
    if given.remote:
        raise InvalidArgument("tokens are made on the server itself, without -H", reason="LOCAL")
    path = places.state() / "store"
    if not os.access(places.state(), os.R_OK | os.W_OK | os.X_OK) and places.state().exists():
        raise PermissionDenied(f"{places.state()} is for root only: use sudo", reason="NOT_ROOT")
    if not path.exists():
        raise FailedPrecondition(
            f"there is no store in {places.state()} yet: systemctl start zfsilod.service",
            reason="NO_STORE",
        )
    store = Store(places.state())
    try:
        store.check(store.host)
        yield store
    finally:
        store.close()


def _keep(store: Store, token: Token) -> None:
    with store.write() as txn:
        txn.put(token)


@contextmanager
def _new_file(name: str) -> Iterator[Path | None]:
    """Make an empty file for root only, and remove it again when what follows fails."""
    if name == STDOUT:
        yield None
        return
    path = Path(name)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError as error:
        raise AlreadyExists(f"{path} exists: name another file, or remove it") from error
    except OSError as error:
        raise InvalidArgument(f"{path}: {os.strerror(error.errno or 0)}") from error
    try:
        yield path
    except BaseException:
        path.unlink()
        raise


def _show_token(given: Namespace, token: Token, text: str) -> None:
    if given.json:
        print(answers.dumps(_plain(token) | {"token": text}))
        return
    print(text)
    if not given.quiet:
        sys.stderr.write("It is shown this once. Revoke it: ")
        sys.stderr.write(f"zfsiloctl token revoke {token.id}\n")


def _plain(token: Token) -> dict[str, object]:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(token.created_at))
    return {
        "id": token.id, "role": token.role, "subject": token.subject, "create_time": moment
    }  # fmt: skip


def _use(role: str, path: Path) -> str:
    if role == "host":
        return f"zfsiloctl server join {path.name}"
    return f"zfsiloctl -H {path.name} volume list"
