"""A local host that behaves as one with systemd and an NFS client.

This kernel has neither. In the mount namespace of the host `mount -t nfs` binds the directory that
both hosts share, or one where root may not write, and `systemctl` starts and stops mount units.
Nothing outside of the host's namespaces and tmpfs is changed.
"""

import shlex
import subprocess

MOUNT = r"""#!/bin/sh
case " $* " in *" -t nfs "*) ;; *) exec /run/fake/mount.real "$@";; esac
for word; do before=$last; last=$word; done
case $(cat /run/fake/export) in
    absent) echo "mount.nfs: access denied by server while mounting $before" >&2; exit 32;;
    squashed) exec /run/fake/mount.real --bind /run/fake/squashed "$last";;
    *) exec /run/fake/mount.real --bind /srv/vhdlab "$last";;
esac
"""

SYSTEMCTL = r"""#!/bin/sh
units=/etc/systemd/system
verb=$1; unit=$2
where() { sed -n 's/^Where=//p' "$units/$unit"; }
active() { case $unit in *.mount) mountpoint -q "$(where)";; *) false;; esac; }
case $verb in
    show) [ -f "$units/$unit" ] && echo LoadState=loaded || echo LoadState=not-found
        active && echo ActiveState=active || echo ActiveState=inactive;;
    is-enabled) [ -f "/run/fake/enabled-$unit" ] && echo enabled || { echo disabled; exit 1; };;
    enable) touch "/run/fake/enabled-$unit";;
    disable) rm -f "/run/fake/enabled-$unit";;
    start|restart) active && exit 0; mkdir -p "$(where)"
        exec mount -t nfs -o "$(sed -n 's/^Options=//p' "$units/$unit")" \
            "$(sed -n 's/^What=//p' "$units/$unit")" "$(where)";;
    stop) active && umount "$(where)" || :;;
esac
"""

PREPARE = """
set -e
mkdir -p /run/fake/squashed
mount -t tmpfs none /etc/systemd/system
chattr +i /run/fake/squashed
cp "$(readlink -f /usr/bin/mount)" /run/fake/mount.real
printf %s {mount} >/run/fake/mount
printf %s {systemctl} >/run/fake/systemctl
chmod 755 /run/fake/mount /run/fake/systemctl
/run/fake/mount.real --bind /run/fake/mount /usr/bin/mount
/run/fake/mount.real --bind /run/fake/systemctl /usr/bin/systemctl
"""

RESTORE = """
umount /usr/bin/mount /usr/bin/systemctl /etc/systemd/system
chattr -i /run/fake/squashed
rm -r /run/fake
"""


class NfsHost:
    """`ssh` is a command that reaches the host as root."""

    def __init__(self, ssh: list[str]) -> None:
        self.ssh = ssh

    def run(self, command: str) -> str:
        """Standard output of a shell command. Raises CalledProcessError."""
        done = subprocess.run([*self.ssh, command], check=True, capture_output=True, text=True)
        return done.stdout

    def __enter__(self) -> "NfsHost":
        scripts = {"mount": shlex.quote(MOUNT), "systemctl": shlex.quote(SYSTEMCTL)}
        self.run(PREPARE.format(**scripts))
        return self

    def __exit__(self, *_: object) -> None:
        self.run(RESTORE)

    def set_export(self, how: str) -> None:
        """What the server gives: `absent`, `squashed` (root may not write), or `good`."""
        self.run(f"echo {how} >/run/fake/export")

    def units(self) -> list[str]:
        """Names of the unit files that somebody has written."""
        return self.run("ls /etc/systemd/system").split()
