"""`zfsiloctl token`: bearer tokens for scripts.

Tokens are created and revoked in the store, by root; the daemon reads them at every call.
"""

from __future__ import annotations

import sys
import time

from zfsilod.ctl.join_files import access, new_file, write_join
from zfsilod.ctl.local_trust import opened_store, record
from zfsilod.ctl.output.messages import dumps
from zfsilod.ctl.output.table import say, show_table
from zfsilod.ctl.times import left, rfc3339, show_age
from zfsilod.model.errors import NotFound
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.records import Token
from zfsilod.security.authentication import new_token

if TYPE_CHECKING:
    from argparse import Namespace

    from zfsilod.storage.store import Store

DAY_S = 86400


def create(args: Namespace) -> None:
    """Create a token and print it, or with --file write a join file that holds it."""
    with opened_store(args, "token create") as store:
        token, text = new_token(args.role, args.subject, lasts_s=args.days * DAY_S)
        if not args.file:
            _keep(store, token)
            print(dumps(_plain(token) | {"token": text}) if args.json else text)
            if not (args.json or args.quiet):
                sys.stderr.write(
                    "The token is not shown again. To revoke it: "
                    f"zfsiloctl token revoke {token.id}\n"
                )
            return
        join = access(args.address, token=text)
        with new_file(args.file) as path:
            _keep(store, token)
            write_join(path, join)
    if path is not None and args.json:
        print(dumps(_plain(token) | {"file": str(path)}))
    elif path is not None and not args.quiet:
        print(
            f"wrote {path} for {args.role} {args.subject}\n  use:  zfsiloctl -H {path} volume list"
        )


def list_tokens(args: Namespace) -> None:
    """List tokens; the store holds only their digests."""
    with opened_store(args, "token list") as store, store.read() as txn:
        tokens = list(txn.scan(Token))
    if args.json:
        print(dumps({"tokens": [_plain(token) for token in tokens]}))
    elif args.quiet:
        sys.stdout.writelines(f"{token.id}\n" for token in tokens)
    else:
        now = int(time.time())
        rows = [
            [
                token.id,
                token.role,
                token.subject,
                show_age(now - token.created_at),
                left(token.expires_at),
            ]
            for token in tokens
        ]
        show_table(("NAME", "ROLE", "SUBJECT", "AGE", "LEFT"), rows)


def revoke(args: Namespace) -> None:
    """Revoke a token; its next call is refused."""
    with opened_store(args, "token revoke") as store, store.write() as txn:
        token = txn.get(Token, args.name)
        if token is None:
            raise NotFound(f"there is no token {args.name}; see zfsiloctl token list")
        txn.drop(Token.bucket(), token.key)
    record("token revoke", token.id)
    say(args, f"token {token.id} of {token.role} {token.subject}: revoked")


def _keep(store: Store, token: Token) -> None:
    with store.write() as txn:
        txn.put(token)
    record("token create", f"{token.role} {token.subject} {token.id}")


def _plain(token: Token) -> dict[str, object]:
    expiry = {"expire_time": rfc3339(token.expires_at)} if token.expires_at else {}
    return {
        "id": token.id,
        "role": token.role,
        "subject": token.subject,
        "create_time": rfc3339(token.created_at),
        **expiry,
    }
