"""A Flower federation on one machine: its processes, as Flower documents them, on loopback alone.

One SuperLink and a SuperNode for each client, with TLS and SuperNode authentication, keys and
certificates made for this federation. Each SuperNode starts a ClientApp for every message, and the
SuperLink a ServerApp for every run: processes, too. All are ended by ``stop``, and by a watchdog
if whoever started them is gone.
"""

__all__ = ["Loopback", "installed"]

import contextlib
import datetime
import ipaddress
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from fedlib._checks import check_path, refuse

# Ends what it is told of when its input does: when it is closed, or whoever held it is gone. Lines
# are "+group" and "-group".
_WATCHDOG = """
import os, signal, sys, time
groups = set()
for line in sys.stdin:
    (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
def end(group, signum):
    try:
        os.killpg(group, signum)
        return True
    except (ProcessLookupError, PermissionError):
        return False
left = [group for group in groups if end(group, signal.SIGTERM)]
until = time.monotonic() + 5
while left and time.monotonic() < until:
    time.sleep(0.1)
    left = [group for group in left if end(group, 0)]
for group in left:
    end(group, signal.SIGKILL)
"""

_OURS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
    "NO_COLOR": "1",
}
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
START = 120.0
"""Seconds in which a process must have started."""


class Loopback:
    """A federation of processes on this machine; a context manager.

    Args:
        folder: made if it is not there; holds keys, certificates, logs and Flower's own files.
        clients: a folder for each client, its disk: see ``fedlib.flower.client_app``.

    Example:
        >>> Loopback("/tmp/federation", clients=[])
        Traceback (most recent call last):
        ...
        ValueError: Invalid clients=[]: no client. Use a folder for each client.
    """

    def __init__(self, folder: str | Path, *, clients: list[Path]) -> None:
        if not clients:
            refuse("clients", clients, "no client", "a folder for each client")
        self.folder = check_path("folder", folder).resolve()
        self.clients = [Path(client).resolve() for client in clients]
        self.processes: dict[str, subprocess.Popen] = {}
        self._watchdog: subprocess.Popen | None = None
        home = str(self.folder / "flower")
        self._env = os.environ | _OURS | {"FLWR_HOME": home, "PATH": _scripts()}
        if not installed():
            raise ImportError("Flower is not installed. Use: pip install 'fedlib[flower]'.")

    def __enter__(self) -> "Loopback":
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self) -> "Loopback":
        """Make keys and certificates, start all processes, and register the clients' keys."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_certificates(self.folder)
        self.port, *self._ports = free_ports(1 + len(self.clients))
        home = Path(self._env["FLWR_HOME"])
        home.mkdir(exist_ok=True)
        connection = (
            f'address = "127.0.0.1:{self.port}"\nroot-certificates = "{self._file("ca.crt")}"'
        )
        text = f'[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\n{connection}\n'
        (home / "config.toml").write_text(text)
        self._watchdog = subprocess.Popen(
            [sys.executable, "-c", _WATCHDOG],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self.start_superlink()
            # Flower's commands take a second each to load: all at once.
            names = [f"client_{i}" for i in range(len(self.clients))]
            for name in names:
                make_key(self.folder / name)
            commands = [
                self._command(
                    "flwr", "supernode", "register", self._file(f"{name}.pub"), "loopback"
                )
                for name in names
            ]
            for command in commands:
                self._finish(command)
            for i in range(len(self.clients)):
                self.start_supernode(i)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all processes, and wait until they have ended."""
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            watchdog.stdin.close()
            watchdog.wait()
        while self.processes:
            self.processes.popitem()[1].wait()

    def start_superlink(self) -> None:
        """Start the SuperLink, and wait until it answers; its database outlives it."""
        tls = ["--ssl-ca-certfile", "ca.crt", "--ssl-certfile", "server.crt"]
        self._start(
            "superlink",
            "flower-superlink",
            *(self._file(word) if word.endswith(".crt") else word for word in tls),
            "--ssl-keyfile",
            self._file("server.key"),
            "--enable-supernode-auth",
            "--disable-runtime-dependency-installation",
            "--database",
            self._file("superlink.db"),
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        )
        trusted = ssl.create_default_context(cafile=self._file("ca.crt"))
        ask = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)
        )
        until = time.monotonic() + START
        while True:
            try:
                ask.open(f"https://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                self._check("superlink", until)
                time.sleep(0.1)

    def start_supernode(self, client: int, *, key: str | None = None) -> None:
        """Start a client's SuperNode; with another key, say one that nobody registered."""
        name = f"client_{client}"
        config = f'client={client} folder="{self.clients[client]}"'
        self._start(
            key or name,
            "flower-supernode",
            "--superlink",
            f"127.0.0.1:{self.port}",
            "--root-certificates",
            self._file("ca.crt"),
            "--auth-supernode-private-key",
            self._file(key or name),
            "--node-config",
            config,
            "--ssl-ca-certfile",
            self._file("ca.crt"),
            "--ssl-certfile",
            self._file("server.crt"),
            "--ssl-keyfile",
            self._file("server.key"),
            "--port",
            str(free_ports(1)[0] if key else self._ports[client]),
        )

    def kill(self, name: str) -> None:
        """Kill a process and its children, as a failing machine would: "superlink", "client_0"."""
        process = self.processes.pop(name)
        for pid in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        self._tell(f"-{process.pid}")

    def submit(self, app: str | Path, **config: str | int | float) -> subprocess.Popen:
        """Start a run of an app, a folder with a pyproject.toml; give it to ``finish``.

        Args:
            app: the folder.
            config: values that the app's run configuration takes.
        """
        values = " ".join(
            f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"
            for name, value in config.items()
        )
        options = ["--run-config", values] if config else []
        place = str(check_path("app", app).resolve())
        return self._command("flwr", "run", place, "loopback", "--stream", *options)

    def finish(self, run: subprocess.Popen, *, timeout: float = 600.0) -> str:
        """Wait for a run's end; return what the ServerApp logged."""
        return self._finish(run, timeout)

    def run(self, app: str | Path, **config: str | int | float) -> str:
        """Run an app; return what the ServerApp logged."""
        return self.finish(self.submit(app, **config))

    def log(self, name: str) -> str:
        """Return what a process, and its children, have written so far."""
        return _COLOURS.sub("", (self.folder / f"{name}.log").read_text(errors="replace"))

    def _file(self, name: str) -> str:
        return str(self.folder / name)

    def _tell(self, line: str) -> None:
        self._watchdog.stdin.write(f"{line}\n")
        self._watchdog.stdin.flush()

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=self._env,
                start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        self.processes[name] = process
        self._tell(f"+{process.pid}")

    def _command(self, *command: str) -> subprocess.Popen:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=self._env, start_new_session=True, cwd=self.folder, text=True,
        )  # fmt: skip
        self._tell(f"+{process.pid}")
        return process

    def _finish(self, process: subprocess.Popen, timeout: float = START) -> str:
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            self._tell(f"-{process.pid}")
        if process.returncode:
            raise RuntimeError(f"`{shlex.join(process.args)}` failed:\n{output}")
        return _COLOURS.sub("", output)

    def _check(self, name: str, until: float) -> None:
        process = self.processes[name]
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"The {name} did not start. It wrote:\n{self.log(name)[-2000:]}")


def installed() -> bool:
    """Tell whether Flower is installed beside this Python."""
    return shutil.which("flower-superlink", path=_scripts()) is not None


def _scripts() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def descendants(pid: int) -> list[int]:
    """Return the processes that a process started, and those that they started."""
    table = subprocess.run(["ps", "-A", "-o", "ppid=,pid="], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in table.splitlines()]
    found, left = [], [pid]
    while left:
        left = [child for parent, child in pairs if parent in left]
        found += left
    return found


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody uses."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def make_key(path: Path) -> None:
    """Write a SuperNode's private key to ``path``, and its public key to ``path.pub``."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    _write_secret(path, private)
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    path.with_name(f"{path.name}.pub").write_bytes(public)


def make_certificates(folder: Path) -> None:
    """Write an authority's certificate, ``ca.crt``, and a server's for 127.0.0.1 with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("ca", "server")}
    names = {
        name: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedlib loopback {name}")])
        for name in keys
    }
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    ours = x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["ca"].public_key())
    for name, key in keys.items():
        made = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["ca"])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=7))
            .add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(ours, False)
        )
        if name == "server":
            made = made.add_extension(loopback, critical=False)
        signed = made.sign(keys["ca"], hashes.SHA256())
        (folder / f"{name}.crt").write_bytes(signed.public_bytes(form.Encoding.PEM))
    secret = keys["server"].private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    )
    _write_secret(folder / "server.key", secret)


def _write_secret(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
