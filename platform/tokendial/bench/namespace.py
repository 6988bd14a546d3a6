"""The endpoint behind Ray's HAProxy, which listens on every interface: measured in a network namespace made for it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

from tokendial import environment
from tokendial.bench.records import Row
from tokendial.experiments import ConfigError
from tokendial.failures import WorkFailed

FASTEST = {"RAY_SERVE_ENABLE_HA_PROXY": "1"}
# From <linux/sockios.h> and <linux/if.h>.
_SET_FLAGS, _UP = 0x8914, 1


def haproxy_rows(folder: Path, rounds: int) -> list[Row]:
    """`serve_edge.edge_rows` in a process that sees no network but a loopback of its own; WorkFailed where it fails."""
    if shutil.which("unshare") is None:
        raise ConfigError("the part `haproxy` needs Linux and its program `unshare`, which is not here")
    # Whoever is not root may still have a namespace as the root of a namespace of users.
    alone = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    command = [*alone, sys.executable, "-m", __name__, str(folder), str(rounds)]
    done = subprocess.run(command, env=os.environ | FASTEST, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkFailed(f"no measurement in a network namespace: {done.stderr.strip()[-400:]}")
    return [Row.model_validate(row) for row in json.loads(done.stdout.splitlines()[-1])]


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP))


if __name__ == "__main__":
    _loopback_up()
    environment.apply()
    from tokendial.bench.serve_edge import edge_rows

    print(json.dumps([row.model_dump(mode="json") for row in edge_rows(Path(sys.argv[1]), int(sys.argv[2]))]))
