"""A real sshd on the loopback, with keys of its own, run by whoever runs the tests."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
BANNER = "Welcome to the cluster; all use is monitored"


class SshServer:
    """Started in a folder, where its keys and its log lie.

    Attributes
    ----------
    command
        How to run something on the "remote" machine: words to put before it.
    """

    def __init__(self, folder):
        if not Path(SSHD).exists() or not shutil.which("ssh") or not shutil.which("ssh-keygen"):
            pytest.skip(
                "no sshd, ssh or ssh-keygen on this machine: install openssh-server and openssh-client"
            )
        if os.geteuid() == 0:  # what the service does when it starts
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        self.folder = folder
        self.port = _free_port()
        for name in ("host", "user"):
            words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        public = (folder / "user.pub").read_text()
        talkative = f'echo "{BANNER}"; exec sh -c \\"$SSH_ORIGINAL_COMMAND\\"'.replace(
            f'"{BANNER}"', f"'{BANNER}'"
        )
        (folder / "authorized_keys").write_text(f'command="{talkative}" {public}')
        lines = {
            "Port": self.port,
            "ListenAddress": "127.0.0.1",
            "HostKey": folder / "host",
            "AuthorizedKeysFile": folder / "authorized_keys",
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "prohibit-password",
        }
        (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        self._process = None
        self.command = [
            *("ssh", "-F", "/dev/null", "-p", str(self.port), "-i", str(folder / "user")),
            *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=accept-new"),
            *("-o", f"UserKnownHostsFile={folder / 'known_hosts'}", "-o", "LogLevel=ERROR"),
            f"{getpass.getuser()}@127.0.0.1",
        ]

    def start(self):
        log = (self.folder / "log").open("ab")
        words = [SSHD, "-D", "-e", "-f", str(self.folder / "config")]
        self._process = subprocess.Popen(words, stderr=log, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return self
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self):
        """No more connections; those that are there go on."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


def _free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
