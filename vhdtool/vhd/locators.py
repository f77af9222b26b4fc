"""Paths in parent locators: text <-> the bytes that each platform code wants."""

from urllib.parse import unquote

MACX, W2KU, W2RU = b"MacX", b"W2ku", b"W2ru"
KNOWN_CODES = (W2RU, W2KU, MACX, b"Wi2r", b"Wi2k", b"Mac ")
_FILE_URL = "file://"


def encode_locator(code: bytes, path: str) -> bytes:
    """A POSIX path as `code` keeps it: a file URL in UTF-8, or UTF-16LE with backslashes.

    Relative Windows paths must start with a dot and a backslash. Raises ValueError for a code
    that is never written.
    """
    if code == MACX:
        return (_FILE_URL + path).encode()
    if code in (W2KU, W2RU):
        if not path.startswith("/"):
            path = path if path.startswith("../") else "./" + path.removeprefix("./")
        return path.replace("/", "\\").encode("utf-16-le")
    raise ValueError(f"locators of code {code!r} are not written")


def decode_locator(code: bytes, raw: bytes) -> str | None:
    """The path in POSIX form, or None where the code or the text cannot be understood.

    Drive letters are kept: they tell the reader that the path is a Windows one.
    """
    try:
        if code == MACX:
            text = raw.rstrip(b"\0").decode()
            if not text.startswith(_FILE_URL):
                return None
            return text.removeprefix(_FILE_URL).removeprefix("localhost") or None
        if code in (W2KU, W2RU):
            text = raw.decode("utf-16-le")
        elif code in (b"Wi2r", b"Wi2k"):
            text = raw.decode("latin-1")
        else:
            return None
    except UnicodeDecodeError:
        return None
    return text.split("\0", 1)[0].replace("\\", "/") or None


def url_decoded(path: str) -> str:
    """What a writer that follows RFC 2396 meant; blktap does not escape its file URLs."""
    return unquote(path)
