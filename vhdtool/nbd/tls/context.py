"""TLS of the NBD server: from a certificate directory, or a file of keys.

File names are those of QEMU, libnbd and nbdkit.
"""

import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from vhdtool.errors import UsageError
from vhdtool.nbd.protocol import WireError
from vhdtool.nbd.tls.psk import Keys, read_keys, use_keys
from vhdtool.nbd.tls.stream import TlsStream

CERTIFICATE, KEY = "server-cert.pem", "server-key.pem"
AUTHORITY, REVOKED = "ca-cert.pem", "ca-crl.pem"
_PSK_CIPHERS = "ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384"
"""For TLS 1.2, forward-secret ones; TLS 1.3 has its own."""


@dataclass(frozen=True)
class Tls:
    """How connections are encrypted. `user`: the only user that has a key, for the URI."""

    context: ssl.SSLContext
    user: str = ""
    keys: Keys | None = None

    @property
    def in_uri(self) -> str:
        """The user as it stands before the host in the URI."""
        return f"{quote(self.user, safe='')}@" if self.user else ""

    def start(self, client: socket.socket) -> TlsStream:
        """Begins TLS on a connection whose client asked for it. Raises WireError."""
        stream = TlsStream(client, self.context)
        if self.keys is None:
            stream.handshake()
            return stream
        self.keys.begin()
        try:
            stream.handshake()
        except WireError as error:
            raise WireError(f"{error}{self.keys.hint()}") from None
        return stream


def by_certificates(folder: Path, verify_peer: bool) -> Tls:
    """Returns TLS by the certificates in `folder`; with `verify_peer` clients must have one too.

    Raises UsageError for what is missing in `folder` or does not fit together.
    """
    context = _context()
    certificate, key = folder / CERTIFICATE, folder / KEY
    for path in (certificate, key, *([folder / AUTHORITY] if verify_peer else [])):
        if not os.access(path, os.R_OK):
            raise UsageError(f"{path}: not there, or not readable; --tls-certificates needs it")
    try:
        # An encrypted key would ask on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        raise UsageError(f"{certificate}, {KEY}: no pair of certificate and key: {error}") from None
    if verify_peer:
        context.verify_mode = ssl.CERT_REQUIRED
        _load(context, folder / AUTHORITY)
        if (folder / REVOKED).exists():
            _load(context, folder / REVOKED)
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    return Tls(context)


def by_keys(path: Path) -> Tls:
    """Returns TLS by keys that both sides know (PSK), of the users in the file `path`.

    Raises UsageError for a malformed file, or a Python that cannot do it.
    """
    known = read_keys(path)
    context, keys = _context(), Keys(known)
    context.set_ciphers(_PSK_CIPHERS)
    use_keys(context, keys)
    return Tls(context, next(iter(known)) if len(known) == 1 else "", keys)


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    # A session that is resumed would skip the check of the client's certificate.
    context.num_tickets = 0
    return context


def _load(context: ssl.SSLContext, path: Path) -> None:
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(f"{path}: no certificates in it: {error}") from None
