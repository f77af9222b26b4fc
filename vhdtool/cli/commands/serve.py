"""`vhdtool serve`: an image for NBD clients."""

import itertools
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vhdtool.cli.arguments import format_option, image_argument

if TYPE_CHECKING:
    from vhdtool.nbd.sockets import PassedSocket, TcpAddress
    from vhdtool.nbd.tls.context import Tls

_TCP = "127.0.0.1:10809"
"""The address of --tcp alone: the port of NBD."""


class _Serve(click.Command):
    """Takes `--tcp IMAGE` for `--tcp` alone and the image: the option's value may be left out."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for at, (word, following) in enumerate(itertools.pairwise(args)):
            if word == "--tcp" and ":" not in following and os.path.exists(following):
                args = [*args[:at], f"--tcp={_TCP}", *args[at + 1 :]]
                break
        return super().parse_args(ctx, args)


@click.command(cls=_Serve)
@image_argument
@click.option("--socket", type=click.Path(), help="Listen on this Unix socket (mode 0600).")
@click.option(
    "--tcp",
    metavar="[HOST:PORT]",
    is_flag=False,
    flag_value=_TCP,
    help="Listen on this address, alone 127.0.0.1:10809; port 0: any free port.",
)
@click.option(
    "--run",
    metavar="COMMAND",
    help="Serve this shell command, which finds $uri, and end with its exit code.",
)
@format_option
@click.option("--raw", is_flag=True, help="The same as --format raw.")
@click.option("--cached", is_flag=True, help="Use the page cache; not for shared storage.")
@click.option(
    "-r",
    "--read-only",
    is_flag=True,
    help="Serve reads only, without a lease; several hosts may do so.",
)
@click.option(
    "-s",
    "--snapshot",
    is_flag=True,
    help="As --read-only, but writes go to a temporary file, and are lost at the end.",
)
@click.option("--exit-last", is_flag=True, help="End when the last client has left.")
@click.option("--exit-with-parent", is_flag=True, help="End when the parent process ends.")
@click.option(
    "--max-clients",
    type=click.IntRange(min=1),
    metavar="N",
    help="Refuse more clients at once.",
)
@click.option(
    "--ready-fd",
    type=click.IntRange(min=3),
    metavar="N",
    help="Write the URI to this descriptor when clients can connect.",
)
@click.option("--pid-file", type=click.Path(), help="Write the process id there meanwhile.")
@click.option("-v", "--verbose", is_flag=True, help="Log clients and events to standard error.")
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
    run: str | None,
    snapshot: bool,
    exit_last: bool,
    exit_with_parent: bool,
    max_clients: int | None,
    ready_fd: int | None,
    pid_file: str | None,
    verbose: bool,
) -> int:
    """Serve an image to NBD clients: QEMU, nbd-client, libnbd.

    Prints the URI to connect to. The image is a VHD (dynamic, fixed, or differencing with its
    parents), a qcow2 image or a raw disk. No other process may write the image or its parents
    meanwhile, by any name. Ctrl-C or TERM replies to the requests in flight, closes the image,
    removes the socket, releases the lease and exits with 0.

    \b
    --lease sanlock:LOCKSPACE:NAME:FILE[:OFFSET]     a lease of sanlock's daemon
    --lease scsi:iscsi://HOST[:PORT]/TARGET/LUN      a persistent reservation of the LUN

    \b
    Exit codes: 0 ended by Ctrl-C, TERM, or the last client; 1 refused, failed, or the lease was
    lost; with --run the command's, or 128 + N after signal N.

    \b
    Example: vhdtool serve disk.vhd --socket disk.sock
             qemu-img info 'nbd+unix:///?socket=disk.sock'
    """
    from vhdtool.errors import UsageError
    from vhdtool.tapdisk.ending import Ending

    if snapshot and read_only:
        raise UsageError("choose one of --read-only and --snapshot")
    if run is not None and exit_last:
        raise UsageError("--run ends with its command; leave out --exit-last")
    if raw and kind not in (None, "raw"):
        raise UsageError(f"choose one of --raw and --format {kind}")
    if (read_only or snapshot) and (force is not None or record is not None):
        option = "--snapshot" if snapshot else "--read-only"
        raise UsageError(f"{option} takes no lease; it excludes --force and --record")
    if verbose:
        _log_to_stderr()
    ended = Ending()
    with ended.on_signals(), ExitStack() as opened:
        if exit_with_parent:
            ended.set_with_parent()
        # Imported late, with signals handled: it takes most of the start.
        from vhdtool.tapdisk.serve import Service
        from vhdtool.tapdisk.serve import serve as serve_image

        out = opened.enter_context(open(events, "a")) if events is not None else None
        return serve_image(
            Service(
                image=Path(image),
                address=_address(socket, tcp, run, opened),
                host=host or os.uname().nodename,
                kind="raw" if raw else kind,
                guard=not faithful,
                direct=not cached,
                follow=not no_follow,
                force_epoch=force,
                lease=lease,
                record=Path(record) if record is not None else None,
                read_only=read_only or snapshot,
                overlay=(os.environ.get("TMPDIR") or "/var/tmp") if snapshot else None,
                run=run,
                exit_last=exit_last,
                max_clients=max_clients,
                ready_fd=ready_fd,
                pid_file=Path(pid_file) if pid_file is not None else None,
                events=out,
                metrics=_tcp_address("--metrics", metrics) if metrics is not None else None,
                tls=_tls(tls_certificates, tls_verify_peer, tls_psk),
            ),
            # The command's output is its own.
            click.echo if run is None else lambda uri: None,
            ended,
        )


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")


def _address(
    socket: str | None, tcp: str | None, run: str | None, opened: ExitStack
) -> "Path | TcpAddress | PassedSocket":
    """Where to listen: one of the options, a passed socket, or a private one for --run."""
    from vhdtool.errors import UsageError
    from vhdtool.tapdisk.service.manager import passed_socket

    passed = passed_socket()
    given = [one for one in (socket, tcp) if one is not None]
    if passed is not None:
        if given or run is not None:
            raise UsageError("a socket is passed (LISTEN_FDS): leave out --socket, --tcp and --run")
        return passed
    if len(given) > 1 or (not given and run is None):
        raise UsageError("choose one of --socket PATH and --tcp HOST:PORT, or --run COMMAND")
    if socket is not None:
        return Path(socket)
    if tcp is not None:
        return _tcp_address("--tcp", tcp)
    from tempfile import TemporaryDirectory

    return Path(opened.enter_context(TemporaryDirectory(prefix="vhdtool-"))) / "nbd"


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
