"""`vhdtool serve`: an image for NBD clients."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vhdtool.cli.arguments import image_argument

if TYPE_CHECKING:
    from vhdtool.nbd.sockets import TcpAddress
    from vhdtool.nbd.tls.context import Tls


@click.command()
@image_argument
@click.option("--socket", type=click.Path(), help="Listen on this Unix socket (mode 0600).")
@click.option("--tcp", metavar="HOST:PORT", help="Listen on this address; port 0: any free port.")
@click.option(
    "-f",
    "--format",
    "kind",
    type=click.Choice(["vhd", "qcow2", "raw"]),
    help="Format of the image.  [default: vhd or qcow2, by its content; never raw]",
)
@click.option("--raw", is_flag=True, help="The same as --format raw.")
@click.option("--cached", is_flag=True, help="Use the page cache; not for shared storage.")
@click.option(
    "--read-only", is_flag=True, help="Serve reads only, without a lease; several hosts may do so."
)
@click.option("--no-follow", is_flag=True, help="Refuse a symbolic link.")
@click.option("--force", type=int, metavar="EPOCH", help="Take over the lease of a dead host.")
@click.option(
    "--faithful", is_flag=True, help="Turn the guard off: behave as tapdisk2, without a lease."
)
@click.option("--lease", metavar="KIND:...", help="Use another lock manager; see above.")
@click.option(
    "--record", type=click.Path(), help="Path of the epoch record.  [default: beside the image]"
)
@click.option("--host", help="Name of this host in the lease.  [default: its node name]")
@click.option("--metrics", metavar="HOST:PORT", help="Serve Prometheus metrics under /metrics.")
@click.option(
    "--tls-certificates",
    type=click.Path(),
    metavar="DIR",
    help="Require TLS, with server-cert.pem and server-key.pem of this directory.",
)
@click.option(
    "--tls-verify-peer", is_flag=True, help="Require a client certificate signed by ca-cert.pem."
)
@click.option(
    "--tls-psk",
    type=click.Path(),
    metavar="FILE",
    help="Require TLS with a pre-shared key of this file (lines user:hexkey).",
)
@click.option("--events", type=click.Path(), help="Append events to this file as JSON lines.")
def serve(
    image: str,
    socket: str | None,
    tcp: str | None,
    kind: str | None,
    raw: bool,
    cached: bool,
    read_only: bool,
    no_follow: bool,
    force: int | None,
    faithful: bool,
    lease: str | None,
    record: str | None,
    host: str | None,
    metrics: str | None,
    tls_certificates: str | None,
    tls_verify_peer: bool,
    tls_psk: str | None,
    events: str | None,
) -> None:
    """Serve an image to NBD clients: QEMU, nbd-client, libnbd.

    Prints the URI to connect to. The image is a VHD (dynamic, fixed, or differencing with its
    parents), a qcow2 image or a raw disk. No other process may write the image or its parents
    meanwhile, by any name. Ctrl-C or TERM replies to the requests in flight, closes the image,
    removes the socket, releases the lease and exits with 0.

    \b
    --lease sanlock:LOCKSPACE:NAME:FILE[:OFFSET]     a lease of sanlock's daemon
    --lease scsi:iscsi://HOST[:PORT]/TARGET/LUN      a persistent reservation of the LUN

    \b
    Example: vhdtool serve disk.vhd --socket disk.sock
             qemu-img info 'nbd+unix:///?socket=disk.sock'
    """
    from vhdtool.errors import UsageError
    from vhdtool.tapdisk.ending import Ending

    if (socket is None) == (tcp is None):
        raise UsageError("choose one of --socket PATH and --tcp HOST:PORT")
    if raw and kind not in (None, "raw"):
        raise UsageError(f"choose one of --raw and --format {kind}")
    if read_only and (force is not None or record is not None):
        raise UsageError("--read-only takes no lease; it excludes --force and --record")
    ended = Ending()
    with ended.on_signals(), ExitStack() as opened:
        # Imported late, with signals handled: it takes most of the start.
        from vhdtool.tapdisk.serve import Service
        from vhdtool.tapdisk.serve import serve as serve_image

        out = opened.enter_context(open(events, "a")) if events is not None else None
        serve_image(
            Service(
                image=Path(image),
                address=Path(socket) if socket is not None else _tcp_address("--tcp", tcp or ""),
                host=host or os.uname().nodename,
                kind="raw" if raw else kind,
                guard=not faithful,
                direct=not cached,
                follow=not no_follow,
                force_epoch=force,
                lease=lease,
                record=Path(record) if record is not None else None,
                read_only=read_only,
                events=out,
                metrics=_tcp_address("--metrics", metrics) if metrics is not None else None,
                tls=_tls(tls_certificates, tls_verify_peer, tls_psk),
            ),
            click.echo,
            ended,
        )


def _tls(folder: str | None, verify_peer: bool, keys: str | None) -> "Tls | None":
    from vhdtool.errors import UsageError

    if folder is None and verify_peer:
        raise UsageError("--tls-verify-peer needs --tls-certificates DIR")
    if folder is None and keys is None:
        return None
    if folder is not None and keys is not None:
        raise UsageError("choose one of --tls-certificates and --tls-psk")
    from vhdtool.nbd.tls.context import by_certificates, by_keys

    if folder is not None:
        return by_certificates(Path(folder), verify_peer)
    return by_keys(Path(keys or ""))


def _tcp_address(option: str, text: str) -> "TcpAddress":
    from vhdtool.errors import UsageError
    from vhdtool.nbd.sockets import TcpAddress

    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and len(port) < 10):
        raise UsageError(f"{option} {text}: write HOST:PORT, for example 127.0.0.1:10809")
    return TcpAddress(host.strip("[]") or "127.0.0.1", int(port))
