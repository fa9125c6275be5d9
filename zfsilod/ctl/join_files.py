"""Join files for hosts, users and scripts, made with the certificates of this host."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import contextmanager
from pathlib import Path

from zfsilod.ctl import paths
from zfsilod.model.errors import AlreadyExists, InvalidArgument
from zfsilod.model.lean import TYPE_CHECKING
from zfsilod.model.names import split_address
from zfsilod.security import certificates, join_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zfsilod.model.settings import Settings

STDOUT = "-"


def files() -> join_file.Files:
    """Return the paths of this host's certificates."""
    return join_file.Files(paths.state() / "tls")


def host_id() -> str:
    """Return this host's id."""
    return _settings().host_id


def _settings() -> Settings:
    from zfsilod.config import load

    return load(paths.etc(), paths.state()).settings


def access(
    address: str, *, pair: certificates.KeyPair | None = None, token: str = ""
) -> join_file.Access:
    """Return the access to this server by a certificate with its key, or by a token."""
    address = paths.with_port(address or socket.gethostname(), paths.PORT)
    split_address(address)
    return join_file.Access(
        name=host_id(),
        address=address,
        tls_name=certificates.tls_name(host_id()),
        authority=files().own_authority().certificate_pem.decode(),
        iqn_prefix=_settings().export.prefix,
        token=token,
        certificate=pair.certificate_pem.decode() if pair else "",
        key=pair.key_pem.decode() if pair else "",
    )


@contextmanager
def new_file(name: str) -> Iterator[Path | None]:
    """Create an empty file for root only, and remove it when an error follows; None: stdout."""
    if name == STDOUT:
        yield None
        return
    path = Path(name)
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError as error:
        raise AlreadyExists(
            f"{path} exists; remove it, or name another file with --file"
        ) from error
    except OSError as error:
        raise InvalidArgument(f"cannot create {path}: {os.strerror(error.errno or 0)}") from error
    try:
        yield path
    except BaseException:
        path.unlink()
        raise


def write_join(path: Path | None, access: join_file.Access) -> None:
    """Write a join file into the file of `new_file`, or to standard output."""
    text = join_file.make_join(access)
    if path is None:
        sys.stdout.write(text)
    else:
        path.write_text(text)
