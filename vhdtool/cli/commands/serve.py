"""`vhdtool serve`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vhdtool.cli.arguments import image_argument

if TYPE_CHECKING:
    from vhdtool.nbd.sockets import TcpPlace
    from vhdtool.nbd.tls.context import Tls


@click.command()
@image_argument
@click.option("--socket", type=click.Path(), help="Listen on this Unix socket (mode 0600).")
@click.option("--tcp", metavar="HOST:PORT", help="Listen here instead; port 0: any free one.")
@click.option(
    "-f",
    "--format",
    "kind",
    type=click.Choice(["vhd", "qcow2", "raw"]),
    help="What the file is.  [default: vhd or qcow2, as it shows; never raw]",
)
@click.option("--raw", is_flag=True, help="The same as --format raw.")
@click.option("--cached", is_flag=True, help="Use the page cache. Not for shared storage.")
@click.option("--read-only", is_flag=True, help="Serve reads only; many hosts may do so at once.")
@click.option("--no-follow", is_flag=True, help="Refuse an image that is a symbolic link.")
@click.option("--force", type=int, metavar="EPOCH", help="Take the lease of a host that is dead.")
@click.option("--faithful", is_flag=True, help="Guard off: act as tapdisk2 did, no lease.")
@click.option("--lease", metavar="KIND:...", help="Another keeper of the lease; see below.")
@click.option("--record", type=click.Path(), help="The epoch record.  [default: beside the image]")
@click.option("--host", help="This host's name in the lease.  [default: its node name]")
@click.option("--metrics", metavar="HOST:PORT", help="Figures for Prometheus under /metrics.")
@click.option(
    "--tls-certificates",
    type=click.Path(),
    metavar="DIR",
    help="Only TLS, with server-cert.pem and server-key.pem of this directory.",
)
@click.option("--tls-verify-peer", is_flag=True, help="Clients need one that ca-cert.pem signed.")
@click.option(
    "--tls-psk",
    type=click.Path(),
    metavar="FILE",
    help="Only TLS, for those who know a key of this file (lines user:hexkey).",
)
@click.option("--events", type=click.Path(), help="Append events to this file, JSON lines.")
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

    Prints the URI to connect to. VHDs (dynamic, fixed, differencing with their parents), qcow2, and
    disks as they are. Ctrl-C or TERM answers what is in flight, closes the image, removes the
    socket, gives the lease up and exits 0. While it serves, nobody else may write the image or its
    parents, by any name.

    \b
    --lease sanlock:LOCKSPACE:NAME:FILE[:OFFSET]     sanlock's daemon keeps the lease
    --lease scsi:iscsi://HOST[:PORT]/TARGET/LUN      the LUN does, by a persistent reservation

    \b
    Example: vhdtool serve disk.vhd --socket disk.sock
             qemu-img info 'nbd+unix:///?socket=disk.sock'
    """
    from vhdtool.errors import UsageError
    from vhdtool.tapdisk.serve import Service
    from vhdtool.tapdisk.serve import serve as run

    if (socket is None) == (tcp is None):
        raise UsageError("choose where to listen: either --socket PATH or --tcp HOST:PORT")
    if raw and kind not in (None, "raw"):
        raise UsageError(f"choose one of --raw and --format {kind}")
    if read_only and (force is not None or record is not None):
        raise UsageError(
            "--read-only: a reader takes no lease, so --force and --record say nothing"
        )
    out = open(events, "a") if events is not None else None  # noqa: SIM115 - closed below
    try:
        run(
            Service(
                image=Path(image),
                place=Path(socket) if socket is not None else _tcp_place("--tcp", tcp or ""),
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
                metrics=_tcp_place("--metrics", metrics) if metrics is not None else None,
                tls=_tls(tls_certificates, tls_verify_peer, tls_psk),
            ),
            ready=click.echo,
        )
    finally:
        if out is not None:
            out.close()


def _tls(folder: str | None, verify_peer: bool, keys: str | None) -> "Tls | None":
    from vhdtool.errors import UsageError

    if folder is None and verify_peer:
        raise UsageError("--tls-verify-peer goes with --tls-certificates DIR")
    if folder is None and keys is None:
        return None
    if folder is not None and keys is not None:
        raise UsageError("choose one of --tls-certificates and --tls-psk")
    from vhdtool.nbd.tls.context import by_certificates, by_keys

    if folder is not None:
        return by_certificates(Path(folder), verify_peer)
    return by_keys(Path(keys or ""))


def _tcp_place(option: str, text: str) -> "TcpPlace":
    from vhdtool.errors import UsageError
    from vhdtool.nbd.sockets import TcpPlace

    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and len(port) < 10):
        raise UsageError(f"{option} {text}: write HOST:PORT, for example 127.0.0.1:10809")
    return TcpPlace(host.strip("[]") or "127.0.0.1", int(port))
