"""`zfsiloctl token`: bearer tokens for scripts. For root, on the spot.

Tokens are made and revoked in the store itself, which the daemon reads at every call.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from zfsilod.ctl import rpc_errors
from zfsilod.ctl.commands.pki import access
from zfsilod.ctl.local import new_file, opened_store, record, write_join
from zfsilod.ctl.output.table import say, show_table
from zfsilod.ctl.parse import show_age
from zfsilod.model.errors import NotFound
from zfsilod.model.records import Token
from zfsilod.security.authentication import new_token

if TYPE_CHECKING:
    from argparse import Namespace

    from zfsilod.storage.store import Store

WHAT = "tokens are made"
DAY_S = 86400


def create(given: Namespace) -> None:
    """Make a token, or with --file the join file that carries it to a script."""
    with opened_store(given, WHAT) as store:
        token, text = new_token(given.role, given.subject, lasts_s=given.days * DAY_S)
        if not given.file:
            _keep(store, token)
            _show_token(given, token, text)
            return
        join = access(given.address, token=text)
        with new_file(given.file) as path:
            _keep(store, token)
            write_join(path, join)
    if path is not None and given.json:
        print(rpc_errors.dumps(_plain(token) | {"file": str(path)}))
    elif path is not None and not given.quiet:
        print(f"{path}: for {given.role} {given.subject}, who uses it as: zfsiloctl -H {path} ...")


def list_tokens(given: Namespace) -> None:
    """List tokens; the tokens themselves are kept nowhere."""
    with opened_store(given, WHAT) as store, store.read() as txn:
        found = list(txn.scan(Token))
    if given.json:
        print(rpc_errors.dumps({"tokens": [_plain(each) for each in found]}))
    elif given.quiet:
        sys.stdout.writelines(f"{each.id}\n" for each in found)
    else:
        now = int(time.time())
        rows = [
            [t.id, t.role, t.subject, show_age(now - t.created_at), left(t.expires_at)]
            for t in found
        ]
        show_table(("NAME", "ROLE", "SUBJECT", "AGE", "LEFT"), rows)


def revoke(given: Namespace) -> None:
    """Make a token worthless, from the next call on."""
    with opened_store(given, WHAT) as store, store.write() as txn:
        found = txn.get(Token, given.name)
        if found is None:
            raise NotFound(f"there is no token {given.name}: zfsiloctl token list")
        txn.drop(Token.bucket(), found.key)
    record("token revoke", found.id)
    say(given, f"{found.id} (of {found.role} {found.subject}): revoked")


def left(expires_at: int) -> str:
    """Say how long something is still good."""
    remaining = expires_at - int(time.time())
    if not expires_at:
        return "for ever"
    return show_age(remaining) if remaining > 0 else "ended"


def moment(seconds: int) -> str:
    """Return a time as protobuf's JSON has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _keep(store: Store, token: Token) -> None:
    with store.write() as txn:
        txn.put(token)
    record("token create", f"{token.role} {token.subject} {token.id}")


def _show_token(given: Namespace, token: Token, text: str) -> None:
    if given.json:
        print(rpc_errors.dumps(_plain(token) | {"token": text}))
        return
    print(text)
    if not given.quiet:
        sys.stderr.write("It is shown this once. Revoke it: ")
        sys.stderr.write(f"zfsiloctl token revoke {token.id}\n")


def _plain(token: Token) -> dict[str, object]:
    ends = {"expire_time": moment(token.expires_at)} if token.expires_at else {}
    return {
        "id": token.id,
        "role": token.role,
        "subject": token.subject,
        "create_time": moment(token.created_at),
        **ends,
    }
