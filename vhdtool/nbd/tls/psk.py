"""Keys that both sides know beforehand (PSK), for servers on every Python.

Python 3.13 can do that by itself. Before, the callback is set in OpenSSL through ctypes, which
needs the address of the SSL_CTX behind an SSLContext: CPython keeps it as the first field of the
object, up to and with 3.12. Where that is not so, or OpenSSL is not a shared library, it is
refused.
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
_kept: list[object] = []
"""Callbacks that OpenSSL may call for as long as the process lives."""


def read_keys(path: Path) -> dict[str, bytes]:
    """User -> key of a file of lines `user:hexkey`, as psktool writes. Raises UsageError."""
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
    """Finds a user's key. One handshake runs in one thread, which may ask who was unknown."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        self._keys = keys
        self._seen = threading.local()

    def __call__(self, user: str | None) -> bytes:
        """The key, or nothing, which no client can have."""
        key = self._keys.get(user or "", b"")
        self._seen.unknown = None if key else user or ""
        return key

    def begin(self) -> None:
        self._seen.unknown = None

    def hint(self) -> str:
        """What to add to the reason why a handshake failed."""
        user = getattr(self._seen, "unknown", None)
        return "" if user is None else f" (there is no key for the user {user[:64]!r})"


def use_keys(context: ssl.SSLContext, key_of: Keys) -> None:
    """Lets in who knows one of the keys. Raises UsageError where this Python cannot do it."""
    if sys.version_info >= (3, 13):
        context.set_psk_server_callback(key_of)
    else:
        _set_through_openssl(context, key_of)


def _set_through_openssl(context: ssl.SSLContext, key_of: Callable[[str], bytes]) -> None:
    kind = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_uint
    )

    def found(_connection: int, user: bytes | None, room: int, most: int) -> int:
        try:
            key = key_of((user or b"").decode("utf-8", "replace"))
        except Exception:
            log.exception("defect while looking for a key")
            return 0
        if len(key) > most:
            return 0
        ctypes.memmove(room, key, len(key))
        return len(key)

    callback = kind(found)
    setter, address = _setter(context)
    setter(address, callback)
    _kept.append(callback)


def _setter(context: ssl.SSLContext) -> tuple[Callable[[int, object], object], int]:
    """(SSL_CTX_set_psk_server_callback, the SSL_CTX of this context). Raises UsageError."""
    refusal = UsageError(
        "--tls-psk: this Python cannot do it; use Python 3.13 or newer, or --tls-certificates"
    )
    try:
        import _ssl

        # What the module is linked with is found through it, so it is the library in use.
        library = ctypes.CDLL(_ssl.__file__)
        setter = library.SSL_CTX_set_psk_server_callback
        options = library.SSL_CTX_get_options
    except (ImportError, AttributeError, OSError):
        raise refusal from None
    if platform.python_implementation() != "CPython":
        raise refusal
    address = ctypes.c_void_p.from_address(id(context) + object.__basicsize__).value
    options.argtypes, options.restype = [ctypes.c_void_p], ctypes.c_uint64
    # The address was read out of an object: that two answers agree shows that it is the right one.
    if not address or options(address) != context.options:
        raise refusal
    setter.argtypes, setter.restype = [ctypes.c_void_p, ctypes.c_void_p], None
    return setter, address
