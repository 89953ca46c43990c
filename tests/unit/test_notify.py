"""Messages to the service manager, which here is a socket."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from nvmeofd.notify import ServiceManager


def test_another_main_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(10)
        manager = ServiceManager()
        assert manager.present
        done = threading.Event()

        def replace() -> None:
            manager.replace_main(4711)
            done.set()

        thread = threading.Thread(target=replace)
        thread.start()
        assert listener.recv(100) == b"MAINPID=4711"
        message, (barrier,), _, _ = socket.recv_fds(listener, 100, 1)
        assert message == b"BARRIER=1"
        assert not done.wait(0.1)
        os.close(barrier)
        assert done.wait(2)
        thread.join()
        manager.close()
