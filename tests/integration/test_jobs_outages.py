"""What goes away between a laptop and a run: the connection while it is followed, and then the whole cluster."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from jobs_lab import TINY, local_cluster
from run_lab import finished, until
from tracking_samples import Server

pytestmark = pytest.mark.slow


class Relay:
    """Connections to a local port, passed on, until they are cut."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._listen()

    def cut(self) -> None:
        """Every connection breaks, and new ones are refused."""
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._listen()

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=_pass, args=(source, sink), daemon=True).start()


def _pass(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(1 << 16):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)


def test_a_dropped_connection_is_taken_up_and_logs_outlive_the_cluster(tmp_path: Path) -> None:
    tracking = Server(tmp_path / "mlflow")
    tracking.start()
    try:
        with local_cluster() as place:
            relay = Relay(int(place.url.rpartition(":")[2]))
            through = f"http://127.0.0.1:{relay.port}"
            client = place.start(
                tmp_path, "train", "digits.tiny", *TINY[2:], "budget.steps=200", "checkpoint.every=20",
                f"tracking.uri={tracking.uri}", "--on", through, "--name", "dropped",
            )  # fmt: skip
            until("a checkpoint", lambda: any((place.home / "dropped").glob("checkpoints/*/manifest.json")), client)
            relay.cut()
            # Longer than one question takes, so that the client meets a closed door and not only a broken one.
            time.sleep(5)
            relay.mend()
            ended = finished(client)
            assert ended.code == 0, ended.err
            assert "the cluster does not answer; trying again" in ended.err + ended.out
            relay.cut()
        told = place.say(tmp_path, "logs", "dropped", MLFLOW_TRACKING_URI=tracking.uri)
        assert told.code == 0, told.err
        assert "starting workers" in told.out
        rank = place.say(tmp_path, "logs", "dropped", "--rank", "0", MLFLOW_TRACKING_URI=tracking.uri)
        assert "rank 0 of 1" in rank.out, rank.err
        nowhere = place.say(tmp_path, "logs", "dropped")
        assert nowhere.code == 2, nowhere.out
        assert "does not answer" in nowhere.err
    finally:
        tracking.kill()
