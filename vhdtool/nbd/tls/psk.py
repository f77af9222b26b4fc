"""Pre-shared keys (PSK), for servers on every Python.

Python 3.13 supports them. For older ones the callback is set in OpenSSL through ctypes, which needs
the address of the SSL_CTX behind an SSLContext: CPython up to 3.12 keeps it as the first field of
the object. Where that does not hold, or OpenSSL is not a shared library, PSK is refused.
"""

import ctypes
import logging
import platform
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from vhdtool.errors import UsageError

log = logging.getLogger("nbd")
LEAST_KEY, LARGEST_KEY = 16, 64
"""Bytes. psktool makes 32; fewer than 16 can be guessed, GnuTLS takes no more than 64."""
_callbacks: list[object] = []
"""Callbacks that OpenSSL may call for as long as the process lives."""


def read_keys(path: Path) -> dict[str, bytes]:
    """Reads user -> key from a file of lines `user:hexkey`, as of psktool. Raises UsageError."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "is no text"
        raise UsageError(f"{path}: cannot read the keys: {why}") from None
    keys: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        user, colon, digits = line.strip().partition(":")
        try:
            key = bytes.fromhex(digits) if colon and user else b""
        except ValueError:
            key = b""
        if not LEAST_KEY <= len(key) <= LARGEST_KEY or user in keys:
            raise UsageError(
                f"{path}: line {number}: write `user:key` with a key of {2 * LEAST_KEY} to "
                f"{2 * LARGEST_KEY} hexadecimal digits, once a user; psktool makes such files"
            )
        keys[user] = key
    if not keys:
        raise UsageError(f"{path}: holds no key; `psktool -u USER -p {path}` makes one")
    return keys


class Keys:
    """Finds users' keys. Each handshake has a thread, which can ask for the user without a key."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        self._keys = keys
        self._seen = threading.local()

    def __call__(self, user: str | None) -> bytes:
        """Returns the user's key; an empty one, which no client can have, for an unknown user."""
        key = self._keys.get(user or "", b"")
        self._seen.unknown = None if key else user or ""
        return key

    def begin(self) -> None:
        self._seen.unknown = None

    def hint(self) -> str:
        """Returns what to add to the reason of a failed handshake."""
        user = getattr(self._seen, "unknown", None)
        return "" if user is None else f" (there is no key for the user {user[:64]!r})"


def use_keys(context: ssl.SSLContext, key_of: Keys) -> None:
    """Makes a context accept the keys. Raises UsageError where this Python cannot do it."""
    if sys.version_info >= (3, 13):
        context.set_psk_server_callback(key_of)
    else:
        _set_through_openssl(context, key_of)


def _set_through_openssl(context: ssl.SSLContext, key_of: Callable[[str], bytes]) -> None:
    kind = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint
    )

    def found(_connection: int, user: bytes | None, buffer: int, most: int) -> int:
        try:
            key = key_of((user or b"").decode("utf-8", "replace"))
        except Exception:
            log.exception("defect in the look-up of a key")
            return 0
        if len(key) > most:
            return 0
        ctypes.memmove(buffer, key, len(key))
        return len(key)

    callback = kind(found)
    setter, address = _setter(context)
    setter(address, callback)
    _callbacks.append(callback)


def _setter(context: ssl.SSLContext) -> tuple[Callable[[int, object], object], int]:
    """Returns (SSL_CTX_set_psk_server_callback, address of the SSL_CTX). Raises UsageError."""
    refusal = UsageError(
        "--tls-psk: this Python cannot do it; use Python 3.13 or newer, or --tls-certificates"
    )
    try:
        import _ssl

        # Looked up through the module, the functions are those of the library that it uses.
        library = ctypes.CDLL(_ssl.__file__)
        setter = library.SSL_CTX_set_psk_server_callback
        options = library.SSL_CTX_get_options
    except (ImportError, AttributeError, OSError):
        raise refusal from None
    if platform.python_implementation() != "CPython":
        raise refusal
    address = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    options.argtypes, options.restype = [ctypes.c_void_p], ctypes.c_uint64
    # The address was read out of an object: equal options show that it is the right one.
    if not address or options(address) != context.options:
        raise refusal
    setter.argtypes, setter.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    return setter, address
