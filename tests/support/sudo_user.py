"""A local host with a login that becomes root by sudo, and with a second Python."""

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

PORT = 2222
PYTHON = "/run/operator/python3"

USER = """
cd /run
for f in passwd shadow group sudoers; do cat /etc/$f >u-$f; chmod 600 u-$f; done
chmod 644 u-passwd u-group
echo 'operator:x:4321:4321::/run/operator:/bin/sh' >>u-passwd
echo 'operator:*:19000:0:99999:7:::' >>u-shadow
echo '{rule}' >>u-sudoers
for f in passwd shadow group sudoers; do mount --bind u-$f /etc/$f; done
mkdir -p operator
ln -sf "$(command -v python3)" operator/python3
cp vhdlab-sshd/authorized_keys operator/keys
chmod 644 operator/keys
chown 4321 operator
sed -e 's,^AuthorizedKeysFile.*,AuthorizedKeysFile /run/operator/keys,' \
    -e 's,^ListenAddress.*,ListenAddress 127.0.0.1:2222,' vhdlab-sshd/sshd_config-beta >u-sshd
echo $$ >u-pid
exec /usr/sbin/sshd -D -f u-sshd
"""


@contextmanager
def sudo_user(ssh: list[str], rule: str) -> Iterator[None]:
    """Adds the user `operator` with a line in sudoers to the host that `ssh` reaches as root.

    An sshd on 127.0.0.1, port 2222 of the host accepts the key of the lab for that user.
    """
    script = ["unshare", "--mount", "sh", "-c", USER.format(rule=rule)]
    with subprocess.Popen([*ssh, "exec", shlex.join(script)]) as server:
        try:
            while subprocess.run([*ssh, f"nc -z 127.0.0.1 {PORT}"], check=False).returncode:
                assert server.poll() is None
            yield
        finally:
            # Else a failure above would wait for it for ever.
            subprocess.run([*ssh, "kill $(cat /run/u-pid)"], check=False)
            server.terminate()
