"""What TLS is made from: files of keys, directories of certificates, and the Pythons that can."""

import contextlib
import ctypes
import platform
import socket
import ssl
import sys
from pathlib import Path

import pytest

from vhdtool.errors import UsageError
from vhdtool.nbd import protocol as wire
from vhdtool.nbd import server as nbd_server
from vhdtool.nbd.backend import Backend
from vhdtool.nbd.tls import context as tls
from vhdtool.nbd.tls import psk as tls_psk

KEY = "0f" * 32


def test_keys_are_read_as_psktool_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"alice:{KEY}\n\nbob:{KEY.upper()}\n")
    assert tls_psk.read_keys(file) == {"alice": b"\x0f" * 32, "bob": b"\x0f" * 32}
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert set(tls_psk.read_keys(file)) == {"alice", "bob"}
    assert tls.by_keys(file).in_uri == ""
    file.write_text(f"a b@c:{KEY}\n")
    assert tls.by_keys(file).in_uri == "a%20b%40c@"


@pytest.mark.parametrize(
    "text",
    ["alice", f":{KEY}", "alice:", "a:xyz", "a:0f0f", f"a:{KEY}\na:{KEY}", "a:" + "0f" * 65],
)
def test_a_line_that_is_no_key_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"root:{KEY}\n{text}\n")
    with pytest.raises(UsageError, match=r"keys: line [23]: write `user:key`"):
        tls.by_keys(file)


def test_no_keys_at_all(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(UsageError, match="holds no key"):
        tls.by_keys(tmp_path / "keys")
    with pytest.raises(UsageError, match="No such file"):
        tls.by_keys(tmp_path / "none")


def test_an_unknown_tls_user_is_named_and_refused() -> None:
    keys = tls_psk.Keys({"alice": b"k" * 16})
    assert (keys("alice"), keys.hint()) == (b"k" * 16, "")
    assert (keys(None), keys.hint()) == (b"", " (there is no key for the user '')")
    assert (keys("eve"), keys.hint()) == (b"", " (there is no key for the user 'eve')")
    keys.begin()
    assert keys.hint() == ""


def test_certificates_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"server-cert\.pem: not there"):
        tls.by_certificates(tmp_path, verify_peer=False)
    for name in (tls.CERTIFICATE, tls.KEY):
        (tmp_path / name).write_text("nonsense")
    with pytest.raises(UsageError, match="no pair of certificate and key"):
        tls.by_certificates(tmp_path, verify_peer=False)
    with pytest.raises(UsageError, match=r"ca-cert\.pem: not there"):
        tls.by_certificates(tmp_path, verify_peer=True)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python does it by itself")
def test_a_python_of_which_too_little_is_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    keys = tls_psk.Keys({})
    with monkeypatch.context() as patch:
        patch.setattr(platform, "python_implementation", lambda: "PyPy")
        with pytest.raises(UsageError, match=r"use Python 3\.13 or newer"):
            tls_psk.use_keys(context, keys)
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda path: object())
        with pytest.raises(UsageError, match=r"use Python 3\.13 or newer"):
            tls_psk.use_keys(context, keys)
    with monkeypatch.context() as patch:
        # The library says something else about what is at that address.
        patch.setattr(ssl.SSLContext, "options", 12345)
        with pytest.raises(UsageError, match=r"use Python 3\.13 or newer"):
            tls_psk.use_keys(context, keys)
    tls_psk.use_keys(context, keys)


def test_nothing_older_than_tls_1_2_and_no_resumed_sessions(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"alice:{KEY}\n")
    context = tls.by_keys(tmp_path / "keys").context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.num_tickets == 0
    names = [one["name"] for one in context.get_ciphers() if one["protocol"] == "TLSv1.2"]
    assert names
    assert all(name.startswith("ECDHE-PSK") for name in names)


@pytest.mark.parametrize("said", [b"", b"\x16\x03", b"\x16\x03\x01\x40\x00" + bytes(100)])
def test_a_client_that_stalls_in_the_tls_handshake_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(nbd_server, "HANDSHAKE_PATIENCE", 0.3)
    (tmp_path / "keys").write_text("alice:" + "ab" * 32)
    server = nbd_server.NbdServer(Nothing(), tmp_path / "s", tls.by_keys(tmp_path / "keys"))
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(tmp_path / "s"))
        start = wire.OPTION.pack(wire.OPTION_MAGIC, wire.OPT_STARTTLS, 0)
        client.sendall(b"\0\0\0\3" + start + said)
        left = 18 + wire.OPTION_REPLY.size
        while left:
            left -= len(client.recv(left))
        with contextlib.suppress(ConnectionError):
            while client.recv(1000):
                pass
    server.stop()


class Nothing(Backend):
    """A backend that nobody asks."""

    def export_size(self) -> int:
        return 512

    def read(self, offset: int, length: int) -> bytes:
        raise AssertionError

    def write(self, offset: int, data: memoryview) -> None:
        raise AssertionError

    def write_zeroes(self, offset: int, length: int) -> None:
        raise AssertionError

    def flush(self) -> None:
        raise AssertionError
