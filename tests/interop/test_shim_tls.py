"""TLS with real clients (libnbd and QEMU are GnuTLS): who is let in, and who is not."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.shim_process import MIB, Served, run, serving
from tests.support.waiting import wait_for
from vhdtool.image.check.image import check
from vhdtool.image.create.empty import create_dynamic
from vhdtool.nbd import protocol as wire
from vhdtool.storage import FileStorage

CERTIFICATES = {
    "ca": "cn = test\nca\ncert_signing_key\ncrl_signing_key\n",
    "server": 'cn = server\ndns_name = "localhost"\nip_address = "127.0.0.1"\ntls_www_server\n',
    "client": "cn = client\ntls_www_client\n",
    "expired": "cn = late\ntls_www_client\n"
    'activation_date = "2001-01-01 00:00:00"\nexpiration_date = "2002-01-01 00:00:00"\n',
}
KEY = "61" * 32


@dataclass(frozen=True)
class Pki:
    """Directories as QEMU and libnbd want them."""

    server: Path
    client: Path
    expired: Path
    stranger: Path
    """A client of another authority, which believes the server's."""
    doubter: Path
    """A client that believes only another authority."""


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    top = tmp_path_factory.mktemp("pki")
    for authority in ("one", "two"):
        folder = top / authority
        folder.mkdir()
        for name, template in CERTIFICATES.items():
            make_certificate(folder, name, template)

    def place(name: str, role: str, certificate: str, ca: Path) -> Path:
        folder = top / name
        folder.mkdir()
        for source, target in (
            (ca, "ca-cert.pem"),
            (top / f"{certificate}-cert.pem", f"{role}-cert.pem"),
            (top / f"{certificate}-key.pem", f"{role}-key.pem"),
        ):
            (folder / target).write_bytes(source.read_bytes())
        return folder

    one, two = top / "one/ca-cert.pem", top / "two/ca-cert.pem"
    return Pki(
        place("server", "server", "one/server", one),
        place("client", "client", "one/client", one),
        place("expired", "client", "one/expired", one),
        place("stranger", "client", "two/client", one),
        place("doubter", "client", "one/client", two),
    )


def make_certificate(folder: Path, name: str, template: str) -> None:
    key, certificate = folder / f"{name}-key.pem", folder / f"{name}-cert.pem"
    (folder / f"{name}.info").write_text(template + "signing_key\n")
    run("certtool", "--generate-privkey", "--key-type=ecdsa", "--outfile", str(key))
    words = ["--load-privkey", str(key), "--template", str(folder / f"{name}.info")]
    how = ["--generate-self-signed"]
    if name != "ca":
        ca = ["--load-ca-certificate", str(folder / "ca-cert.pem")]
        how = ["--generate-certificate", *ca, "--load-ca-privkey", str(folder / "ca-key.pem")]
    run("certtool", *how, *words, "--outfile", str(certificate))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    create_dynamic(tmp_path / "d.vhd", 16 * MIB)
    return tmp_path / "d.vhd"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    run("psktool", "-u", "alice", "-p", str(tmp_path / "keys.psk"))
    return tmp_path / "keys.psk"


def nbdinfo(uri: str, check: bool = True) -> str:
    """The size that the server tells; else the error."""
    return run("nbdinfo", "--size", uri, check=check).strip()


def with_certificates(uri: str, folder: Path) -> str:
    return f"{uri}{'&' if '?' in uri else '?'}tls-certificates={folder}"


def with_key(uri: str, file: Path, user: str = "alice") -> str:
    where = uri.replace("alice@", f"{user}@")
    return f"{where}{'&' if '?' in uri else '?'}tls-psk-file={file}"


def qemu_io(creds: str, uri: str, *commands: str) -> None:
    """QEMU's own client, on TCP."""
    host, _, port = uri.rpartition("/")[2].rpartition("@")[2].rpartition(":")
    where = f"driver=nbd,server.type=inet,server.host={host},server.port={port},tls-creds=t"
    words = [part for command in commands for part in ("-c", command)]
    out = run("qemu-io", "--object", creds, "--image-opts", where, *words)
    assert "failed" not in out


def one_line(served: Served, told: str, already: int = 0) -> None:
    """The server is still there, and has said why, once."""
    wait_for(lambda: len(served.log()) > already, failure="the log has nothing new")
    assert served.process.poll() is None
    (line,) = served.log()[already:]
    assert told in line


def test_certificates_on_tcp_with_libnbd_and_qemu(image: Path, pki: Pki, tmp_path: Path) -> None:
    source, back = tmp_path / "in", tmp_path / "out"
    source.write_bytes(os.urandom(16 * MIB))
    words = ("--tcp", "127.0.0.1:0", "--tls-certificates", str(pki.server), "--tls-verify-peer")
    with serving(image, *words) as served:
        assert served.uri.startswith("nbds://127.0.0.1:")
        uri = with_certificates(served.uri, pki.client)
        assert nbdinfo(uri) == str(16 * MIB)
        run("nbdcopy", "--connections=4", str(source), uri)
        run("nbdcopy", uri, str(back))
        assert source.read_bytes() == back.read_bytes()
        creds = f"tls-creds-x509,id=t,dir={pki.client},endpoint=client"
        qemu_io(creds, served.uri, "write -P 5 1M 5M", "read -P 5 1M 5M", "write -z 2M 64k")
        old = f"{creds},priority=NORMAL:-VERS-TLS1.3"
        qemu_io(old, served.uri, "read -P 5 1M 1M", "read -P 0 2M 64k", "discard 0 1M", "flush")
        assert served.log() == []
    with FileStorage(image) as storage:
        assert check(storage).exit_code == 0


def test_a_client_without_a_good_certificate_is_refused(image: Path, pki: Pki) -> None:
    where = ("--socket", str(image.with_name("s")), "--tls-certificates", str(pki.server))
    with serving(image, *where, "--tls-verify-peer") as served:
        assert served.uri.startswith("nbds+unix:///?socket=")
        for folder, told in ((pki.stranger, "certificate verify failed"), (pki.expired, "expired")):
            already = len(served.log())
            assert "nbdinfo:" in nbdinfo(with_certificates(served.uri, folder), check=False)
            one_line(served, told, already)
        assert nbdinfo(with_certificates(served.uri, pki.client)) == str(16 * MIB)
    with serving(image, "--tcp", "127.0.0.1:0", *where[2:]) as served:
        # Not asked: whoever believes the server comes in, and nobody else.
        assert nbdinfo(with_certificates(served.uri, pki.stranger)) == str(16 * MIB)
        assert "nbdinfo:" in nbdinfo(with_certificates(served.uri, pki.doubter), check=False)
        one_line(served, "TLS handshake")


def test_a_revoked_certificate_is_no_good(image: Path, pki: Pki, tmp_path: Path) -> None:
    one = pki.server.parent / "one"
    folder = tmp_path / "server"
    folder.mkdir()
    for file in pki.server.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (tmp_path / "crl.info").write_text("crl_next_update = 365\ncrl_number = 1\n")
    run(
        "certtool", "--generate-crl", "--template", str(tmp_path / "crl.info"),
        "--load-ca-privkey", str(one / "ca-key.pem"),
        "--load-ca-certificate", str(one / "ca-cert.pem"),
        "--load-certificate", str(one / "client-cert.pem"),
        "--outfile", str(folder / "ca-crl.pem"),
    )  # fmt: skip
    where = ("--socket", str(tmp_path / "s"), "--tls-certificates", str(folder))
    with serving(image, *where, "--tls-verify-peer") as served:
        assert "nbdinfo:" in nbdinfo(with_certificates(served.uri, pki.client), check=False)
        one_line(served, "revoked")


def test_keys_with_libnbd_and_qemu(image: Path, keys: Path, tmp_path: Path) -> None:
    with serving(image, "--tcp", "127.0.0.1:0", "--tls-psk", str(keys)) as served:
        assert served.uri.startswith("nbds://alice@127.0.0.1:")
        assert nbdinfo(with_key(served.uri, keys)) == str(16 * MIB)
        creds = f"tls-creds-psk,id=t,dir={tmp_path},username=alice,endpoint=client"
        qemu_io(creds, served.uri, "write -P 5 1M 5M", "read -P 5 1M 5M")
        old = f"{creds},priority=NORMAL:-VERS-TLS1.3:+ECDHE-PSK"
        qemu_io(old, served.uri, "read -P 5 1M 5M")
        assert served.log() == []
        with pytest.raises(AssertionError):
            qemu_io(f"{creds},priority=NORMAL:-VERS-ALL:+VERS-TLS1.1:+ECDHE-PSK", served.uri)
        one_line(served, "unsupported protocol")


def test_a_wrong_key_and_an_unknown_user(image: Path, keys: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.psk"
    wrong.write_text(f"alice:{KEY}\neve:{KEY}\n")
    with serving(image, "--socket", str(tmp_path / "s"), "--tls-psk", str(keys)) as served:
        for user, told in (("alice", "does not verify"), ("eve", "no key for the user 'eve'")):
            already = len(served.log())
            assert "nbdinfo:" in nbdinfo(with_key(served.uri, wrong, user), check=False)
            one_line(served, told, already)
        assert nbdinfo(with_key(served.uri, keys)) == str(16 * MIB)


def test_nobody_is_served_in_clear(image: Path, keys: Path, tmp_path: Path) -> None:
    where = tmp_path / "s"
    with serving(image, "--socket", str(where), "--tls-psk", str(keys)) as served:
        clear = served.uri.replace("nbds", "nbd").replace("alice@", "")
        assert "nbdinfo:" in nbdinfo(clear, check=False)
        assert "TLS" in run("qemu-img", "info", clear, check=False)
        with greeted(where) as client:
            for option in (wire.OPT_LIST, wire.OPT_GO, wire.OPT_STRUCTURED_REPLY, 77):
                assert ask(client, option, bytes(6)) == wire.REP_ERR_TLS_REQD
            assert ask(client, wire.OPT_STARTTLS, b"data") == wire.REP_ERR_INVALID
            assert ask(client, wire.OPT_ABORT) == wire.REP_ACK
        with greeted(where) as client:
            client.sendall(option_of(wire.OPT_EXPORT_NAME))
            assert client.recv(1) == b""


def test_plaintext_behind_starttls_is_never_obeyed(image: Path, keys: Path, tmp_path: Path) -> None:
    where = tmp_path / "s"
    go = option_of(wire.OPT_GO, bytes(6))
    with serving(image, "--socket", str(where), "--tls-psk", str(keys)) as served:
        with greeted(where) as client:
            client.sendall(option_of(wire.OPT_STARTTLS) + go)
            assert rest(client) == wire.option_reply(wire.OPT_STARTTLS, wire.REP_ACK)
        one_line(served, "in clear behind the request for TLS")
        with greeted(where) as client:
            assert ask(client, wire.OPT_STARTTLS) == wire.REP_ACK
            client.sendall(go)
            # An alert of TLS perhaps, and no word of NBD.
            assert wire.OPTION_REPLY_MAGIC.to_bytes(8, "big") not in rest(client)
        one_line(served, "TLS handshake: wrong version number", 1)
        with greeted(where) as client:
            assert ask(client, wire.OPT_STARTTLS) == wire.REP_ACK
        assert nbdinfo(with_key(served.uri, keys)) == str(16 * MIB)


def test_without_tls_the_request_for_it_is_refused(image: Path, tmp_path: Path) -> None:
    with serving(image, "--socket", str(tmp_path / "s")) as served:
        with greeted(tmp_path / "s") as client:
            assert ask(client, wire.OPT_STARTTLS) == wire.REP_ERR_UNSUP
        uri = served.uri.replace("nbd+", "nbds+")
        assert "nbdinfo:" in nbdinfo(uri, check=False)


def test_a_server_that_ends_takes_clients_with_it_that_use_tls(
    image: Path, keys: Path, tmp_path: Path
) -> None:
    with serving(image, "--tcp", "127.0.0.1:0", "--tls-psk", str(keys)) as served:
        port = served.uri.rpartition(":")[2]
        creds = f"tls-creds-psk,id=t,dir={tmp_path},username=alice,endpoint=client"
        where = f"driver=nbd,server.type=inet,server.host=127.0.0.1,server.port={port},tls-creds=t"
        writes = ("-c", "write 0 1M", "-c", "sleep 60000")
        client = subprocess.Popen(
            ["qemu-io", "--object", creds, "--image-opts", where, *writes],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(lambda: image.stat().st_size >= 2 * MIB, 20, failure="the client did not write")
    client.kill()
    client.wait()
    with FileStorage(image) as storage:
        assert check(storage).exit_code == 0


@contextmanager
def greeted(where: Path) -> Iterator[socket.socket]:
    """A connection on which the server has greeted, and the client told its flags."""
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(10)
        client.connect(str(where))
        assert client.recv(18, socket.MSG_WAITALL) == wire.HELLO
        client.sendall(b"\0\0\0\3")
        yield client


def option_of(number: int, data: bytes = b"") -> bytes:
    return wire.OPTION.pack(wire.OPTION_MAGIC, number, len(data)) + data


def ask(client: socket.socket, number: int, data: bytes = b"") -> int:
    client.sendall(option_of(number, data))
    head = client.recv(wire.OPTION_REPLY.size, socket.MSG_WAITALL)
    _, _, kind, length = wire.OPTION_REPLY.unpack(head)
    assert len(client.recv(length, socket.MSG_WAITALL)) == length
    assert isinstance(kind, int)
    return kind


def rest(client: socket.socket) -> bytes:
    data = b""
    try:
        while part := client.recv(4096):
            data += part
    except ConnectionResetError:
        # The server closed while something of ours was unread.
        pass
    return data
