"""`vhd-util key`: the hash that identifies the key of an encrypted image.

It is the SHA-256 of nonce and key, as the crypto library of blktap computes it.
"""

import errno
import hashlib
import os
import re
import sys

from vhdtool.cli.vhd_util.conventions import Options, WrongArguments, errno_of, open_image, require
from vhdtool.errors import UsageError, VhdtoolError
from vhdtool.image.edit.batmap_fields import KEY_BYTES, read_batmap_fields, set_key

_KEY_BITS = (512, 256)
_HEX = re.compile(r"[0-9a-fA-F]{64}")


def key(options: Options) -> int:
    if "C" in options:
        require(options, "k")
        nonce = _hex(options.get("N", "00" * KEY_BYTES))
        print(_digest(options["k"], nonce).hex())
        return 0
    require(options, "n")
    if "s" in options:
        return _set(options)
    if "c" in options:
        return _check(options)
    if "p" not in options:
        raise WrongArguments
    storage, meta = open_image(options["n"])
    storage.close()
    marks = read_batmap_fields(meta).key
    print("none" if marks is None else f"{marks[0].hex()} {marks[1].hex()}")
    return 0


def _set(options: Options) -> int:
    if "c" in options or ("k" in options) == ("H" in options):
        raise WrongArguments
    nonce = _hex(options.get("N", "00" * KEY_BYTES))
    try:
        digest = _hex(options["H"]) if "H" in options else _digest(_key_file(options), nonce)
        set_key(options["n"], digest, nonce)
    except VhdtoolError as error:
        print(f"setting key failed: {-errno_of(error)} ({error})", file=sys.stderr)
        return errno_of(error)
    return 0


def _check(options: Options) -> int:
    require(options, "k")
    if "N" in options or "H" in options:
        raise WrongArguments
    storage, meta = open_image(options["n"])
    storage.close()
    marks = read_batmap_fields(meta).key
    if marks is None or _digest(_key_file(options), marks[0]) != marks[1]:
        print(f"key check failed: {-errno.EINVAL}", file=sys.stderr)
        return errno.EINVAL
    return 0


def _hex(text: str) -> bytes:
    if not _HEX.fullmatch(text):
        raise UsageError(f"{text!r}: not 64 hexadecimal digits")
    return bytes.fromhex(text)


def _key_file(options: Options) -> str:
    """The key file, if its name is one for this image. Raises UsageError."""
    stem = os.path.basename(options["n"]).split(".vhd")[0]
    name = os.path.basename(options["k"])
    if any(name.startswith(f"{stem},aes-xts-plain,{bits}.key") for bits in _KEY_BITS):
        return options["k"]
    raise UsageError(f"{options['k']}: a key for {stem} is named {stem},aes-xts-plain,512.key")


def _digest(path: str, nonce: bytes) -> bytes:
    with open(path, "rb") as file:
        data = file.read(_KEY_BITS[0] // 8 + 1)
    if len(data) * 8 not in _KEY_BITS:
        raise UsageError(f"{path}: a key has 32 or 64 bytes")
    return hashlib.sha256(nonce + data).digest()
