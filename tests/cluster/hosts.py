"""Three machines simulated on one: network namespaces on a bridge, each with its own processes, folders and sshd.

They share the network and one folder, as machines share a mount. The module needs root, `ip` (iproute2), `sshd`
(openssh-server) and `rsync`. Every process that is started here ends with it, and all traffic stays on the bridge.
"""

import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BRIDGE = "kdbridge"
NETWORK = "10.77.0"
COUNT = 3
TOOLS = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync"}
ALONE = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child"]


def lacking() -> str | None:
    """Return why such machines cannot be made here, or None."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    for tool, package in TOOLS.items():
        if _tool(tool) is None:
            return f"needs {tool}: apt-get install {package}"
    if Path(sys.prefix).is_relative_to("/tmp"):
        return "needs Python outside of /tmp, of which each host has its own"
    made = subprocess.run([_tool("ip") or "ip", "netns", "add", "kdtry"], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"cannot make network namespaces ({made.stderr.strip()})"
    _call("ip", "netns", "del", "kdtry")
    return None


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _call(*words: str, check: bool = True) -> None:
    subprocess.run([_tool(words[0]) or words[0], *words[1:]], check=check, capture_output=True, text=True)


class Host:
    """One machine. Its first process is sshd; when that ends, all others end."""

    def __init__(self, number: int, base: Path) -> None:
        self.name, self.address = f"kd{number}", f"{NETWORK}.{10 + number}"
        self.folder = base / self.name
        self.home = self.folder / "home"
        self._base = base
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        _call("ip", "netns", "add", self.name)
        _call("ip", "link", "add", f"{self.name}out", "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _call("ip", "link", "set", f"{self.name}out", "master", BRIDGE, "up")
        for words in (["addr", "add", f"{self.address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"]):
            _call("ip", "-n", self.name, *words)
        _call("ip", "-n", self.name, "link", "set", "lo", "up")
        (self.folder / "tmp").mkdir(parents=True, mode=0o1777)
        self.home.mkdir()
        self._write_files()
        self._make_environment()
        script = (
            f"mount --make-rprivate / && mount --bind {self.folder}/tmp /tmp && mount -t tmpfs tmpfs /dev/shm"
            f" && mount --bind {self.folder}/passwd /etc/passwd && mount --bind {self.folder}/hosts /etc/hosts"
            f" && hostname {self.name} && mkdir -p /run/sshd && exec {_tool('sshd')} -D -e -f {self.folder}/sshd_config"
        )
        with open(self.folder / "sshd.log", "wb") as log:
            self._process = subprocess.Popen(
                [_tool("ip") or "ip", "netns", "exec", self.name, *ALONE, "bash", "-c", script],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._await_ssh()

    def kill(self) -> None:
        """Everything on it at once, as when its power fails."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def remove(self) -> None:
        self.kill()
        _call("ip", "netns", "del", self.name, check=False)
        _call("ip", "link", "del", f"{self.name}out", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write_files(self) -> None:
        lines = Path("/etc/passwd").read_text().splitlines()
        root = [":".join([*line.split(":")[:5], str(self.home), "/bin/bash"]) for line in lines if line[:5] == "root:"]
        (self.folder / "passwd").write_text("\n".join([*root, *(line for line in lines if line[:5] != "root:")]) + "\n")
        names = "".join(f"{NETWORK}.{10 + i} kd{i}\n" for i in range(COUNT))
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        (self.folder / "sshd_config").write_text(
            f"ListenAddress {self.address}\nHostKey {self._base}/host_key\nAuthorizedKeysFile {self._base}/key.pub\n"
            "PermitRootLogin yes\nStrictModes no\nUsePAM no\nPidFile none\nMaxStartups 50\nMaxSessions 50\n"
            "Subsystem sftp internal-sftp\n"
        )

    def _make_environment(self) -> None:
        """~/venv: an environment of its own that sees the packages of this one, so that the set-up commands of a
        cluster file install the project into it and find all else there."""
        venv = self.home / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        packages = venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        (packages / "shared.pth").write_text("\n".join(site.getsitepackages()) + "\n")
        for command, module in (("ray", "ray.scripts.scripts"), ("pip", "pip._internal.cli.main")):
            file = venv / "bin" / command
            file.write_text(f"#!{venv}/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
            file.chmod(0o755)
        # there is no index on the bridge: what builds the project is what lies in that environment
        (self.home / ".config" / "pip").mkdir(parents=True)
        settings = "[global]\nno-index = true\nno-build-isolation = false\n"
        (self.home / ".config" / "pip" / "pip.conf").write_text(settings)
        (self.home / ".bashrc").write_text("export OMP_NUM_THREADS=1\n")

    def _await_ssh(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection((self.address, 22), timeout=2).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "sshd.log").read_text()) from None
                time.sleep(0.2)


@contextmanager
def machines(count: int = COUNT) -> Iterator[tuple[Path, list[Host]]]:
    """(a folder that all hosts see, the hosts)."""
    base = Path(tempfile.mkdtemp(prefix="kd-cluster-", dir="/var/tmp"))
    made = [Host(number, base) for number in range(count)]
    try:
        for name in ("key", "host_key"):
            _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(base / name))
        _call("ip", "link", "add", BRIDGE, "type", "bridge")
        _call("ip", "addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        _call("ip", "link", "set", BRIDGE, "up")
        for host in made:
            host.start()
        yield base, made
    finally:
        for host in made:
            host.remove()
        _call("ip", "link", "del", BRIDGE, check=False)
        shutil.rmtree(base, ignore_errors=True)
