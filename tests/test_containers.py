"""The container files, checked without an engine: what can be known before anything is built.

The health checks' commands and the build's torch check are taken out of the files and run as they
are, here on the host. Knows nothing of what Docker makes of the rest.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from client.parts import DRAIN_MARGIN_S
from shared.settings import Settings
from shared.store import JobStore
from shared.workers import WorkerInfo
from tests.valkey import Valkey

ROOT = Path(__file__).resolve().parents[1]
OURS = ("api", "worker")
SERVICES = ("redis", *OURS)
COMPOSE_FILES = ("docker-compose.yml", "docker-compose.cpu.yml")
CONTAINER_FILES = (*COMPOSE_FILES, "Dockerfile.api", "Dockerfile.worker")
UID = "10001"


class Instruction(NamedTuple):
    name: str
    rest: str


class ComposeLoader(yaml.SafeLoader):
    """Compose's own tag `!reset` means: as if it had never been there."""


ComposeLoader.add_constructor("!reset", lambda loader, node: None)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load(read(name), Loader=ComposeLoader)
    return loaded


def service(name: str) -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"][name]
    return found


def instructions(part: str) -> list[Instruction]:
    """Those of Dockerfile.<part>, comments dropped and continued lines joined."""
    lines = [line for line in read(f"Dockerfile.{part}").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def final_stage(part: str) -> list[Instruction]:
    found = instructions(part)
    starts = [n for n, instruction in enumerate(found) if instruction.name == "FROM"]
    return found[starts[-1] :]


def last(part: str, name: str) -> str:
    return [i.rest for i in final_stage(part) if i.name == name][-1]


def image_environment(part: str) -> dict[str, str]:
    words = [word for i in final_stage(part) if i.name == "ENV" for word in shlex.split(i.rest)]
    return dict(word.split("=", 1) for word in words)


def health_command(part: str) -> list[str]:
    command: list[str] = json.loads(last(part, "HEALTHCHECK").partition("CMD ")[2])
    return command


def run_python(command: list[str], **env: str) -> int:
    """The exit code of `python ...`, under this Python and with this environment only."""
    assert command[0] == "python"
    done = subprocess.run(
        [sys.executable, *command[1:]], env=env, cwd=ROOT, capture_output=True, timeout=60
    )
    return done.returncode


def seconds(duration: str) -> float:
    minutes, secs = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration).groups()  # type: ignore[union-attr]
    return 60 * int(minutes or 0) + int(secs or 0)


def num_bytes(size: str) -> int:
    """`512mb` or `1g`, as Valkey and Compose write it."""
    number, unit = re.fullmatch(r"(\d+)([mg])b?", size).groups()  # type: ignore[union-attr]
    return int(number) * {"m": 2**20, "g": 2**30}[unit]


def defaulted(value: str) -> str:
    """`${NAME:-default}` as Compose reads it where NAME is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def complaints(path: Path) -> str:
    """What the Compose specification's schema has against a file; nothing, if all is well."""
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", path],
        capture_output=True,
        text=True,
        timeout=60,
    )
    return "" if checked.returncode == 0 else checked.stdout + checked.stderr


# Compose: the files as such


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_the_compose_files_are_valid_by_the_compose_specification(
    name: str, tmp_path: Path
) -> None:
    plain = tmp_path / name
    plain.write_text(read(name).replace("!reset ", ""))
    assert complaints(plain) == ""


def test_that_validation_refuses_a_misspelt_key(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yml"
    wrong.write_text("services: {a: {image: a, prots: ['80:80']}}")
    assert "prots" in complaints(wrong)


def test_every_named_volume_is_declared_and_every_declared_one_is_used() -> None:
    used = {volume.split(":")[0] for name in SERVICES for volume in service(name)["volumes"]}
    assert used == set(compose()["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined_limited_and_restarted(name: str) -> None:
    found = service(name)
    assert found["restart"] == "unless-stopped"
    assert found["init"] is True
    assert found["read_only"] is True
    assert [mount.split(":")[0] for mount in found["tmpfs"]] == ["/tmp"]
    assert found["cap_drop"] == ["ALL"]
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert found["mem_limit"]
    assert found["pids_limit"] > 0
    assert {"max-size", "max-file"} <= found["logging"]["options"].keys()
    assert not found.get("privileged")
    assert "network_mode" not in found


# Compose: Redis


def redis_flags() -> dict[str, str]:
    program, *words = service("redis")["command"]
    assert program == "valkey-server"
    return dict(zip(words[::2], words[1::2], strict=True))


def test_redis_keeps_every_acknowledged_job() -> None:
    flags = redis_flags()
    assert flags["--appendonly"] == "yes"
    assert flags["--appendfsync"] == "always"
    assert flags["--maxmemory-policy"] == "noeviction"
    assert flags["--save"] == ""
    assert "redis:/data" in service("redis")["volumes"]


def test_redis_refuses_jobs_before_its_container_runs_out_of_memory() -> None:
    assert num_bytes(service("redis")["mem_limit"]) >= 2 * num_bytes(redis_flags()["--maxmemory"])


def test_redis_publishes_no_port() -> None:
    assert "ports" not in service("redis")


def test_redis_does_not_start_as_root_which_would_need_capabilities() -> None:
    assert service("redis")["user"] == "valkey"


@pytest.mark.parametrize("name", OURS)
def test_our_parts_wait_for_a_healthy_redis(name: str) -> None:
    assert service(name)["depends_on"] == {"redis": {"condition": "service_healthy"}}
    assert "valkey-cli ping" in service("redis")["healthcheck"]["test"][1]


# Compose: the API and the workers


def test_the_api_is_published_on_this_host_only() -> None:
    assert service("api")["ports"] == ["127.0.0.1:8000:8000"]


def test_workers_can_be_scaled_since_nothing_of_theirs_exists_only_once() -> None:
    assert {"container_name", "hostname", "ports"}.isdisjoint(service("worker"))


def test_a_worker_asks_for_one_nvidia_card() -> None:
    (device,) = service("worker")["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_the_cpu_file_takes_back_the_gpu_and_nothing_else() -> None:
    assert compose("docker-compose.cpu.yml") == {
        "services": {"worker": {"deploy": None, "environment": {"ECHOFORGE_DEVICE": "cpu"}}}
    }
    assert re.search(r"^    deploy: !reset null\b", read("docker-compose.cpu.yml"), re.MULTILINE)


def test_a_worker_is_given_more_time_to_stop_than_it_drains() -> None:
    drain_s = float(service("worker")["environment"]["ECHOFORGE_DRAIN_S"])
    assert drain_s == Settings.model_fields["drain_s"].default
    assert seconds(service("worker")["stop_grace_period"]) > drain_s + DRAIN_MARGIN_S


@pytest.mark.parametrize("name", CONTAINER_FILES)
def test_every_variable_of_ours_that_is_named_is_a_setting(name: str) -> None:
    known = {f"ECHOFORGE_{field.upper()}" for field in Settings.model_fields}
    assert set(re.findall(r"ECHOFORGE_[A-Z_]+", read(name))) <= known


@pytest.mark.parametrize("name", OURS)
def test_what_a_container_is_told_by_default_is_accepted_by_settings(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = image_environment(name) | service(name)["environment"]
    for variable, value in told.items():
        monkeypatch.setenv(variable, defaulted(value))
    settings = Settings()
    assert settings.redis_url == "redis://redis:6379/0"
    assert settings.data_dir == Path("/data")
    assert settings.host == ("0.0.0.0" if name == "api" else "127.0.0.1")


def test_workers_write_audio_where_the_api_reads_it() -> None:
    assert "data:/data" in service("api")["volumes"]
    assert "data:/data" in service("worker")["volumes"]


def test_a_downloaded_model_lands_in_a_volume() -> None:
    told = image_environment("worker")
    assert "models:/models" in service("worker")["volumes"]
    assert told["ECHOFORGE_MODEL_DIR"].startswith("/models/")
    assert told["HF_HOME"].startswith("/models/")


@pytest.mark.parametrize("name", OURS)
def test_a_fresh_volume_belongs_to_the_user_who_writes_to_it(name: str) -> None:
    made = re.search(rf"install -d -o {UID} -g {UID} (.+)", last(name, "RUN"))
    assert made is not None
    assert set(made[1].split()) == {volume.split(":")[1] for volume in service(name)["volumes"]}


# The images


@pytest.mark.parametrize("name", OURS)
def test_each_service_is_built_from_its_own_dockerfile(name: str) -> None:
    build = service(name)["build"]
    assert (build["context"], build["dockerfile"]) == (".", f"Dockerfile.{name}")
    declared = {i.rest.split("=")[0] for i in instructions(name) if i.name == "ARG"}
    assert build.get("args", {}).keys() == declared


@pytest.mark.parametrize("name", OURS)
def test_each_image_is_a_pinned_python(name: str) -> None:
    bases = [i.rest.split()[0] for i in instructions(name) if i.name == "FROM"]
    assert set(bases) == {"python:3.11-slim"}


@pytest.mark.parametrize("name", OURS)
def test_no_image_runs_as_root(name: str) -> None:
    assert last(name, "USER") == f"{UID}:{UID}"


@pytest.mark.parametrize("name", OURS)
def test_sigterm_reaches_python_since_no_shell_stands_between(name: str) -> None:
    command = json.loads(last(name, "CMD"))
    assert command == ["python", "-m", name]
    assert "ENTRYPOINT" not in [i.name for i in instructions(name)]
    assert "command" not in service(name)


@pytest.mark.parametrize("name", OURS)
def test_the_module_that_an_image_runs_exists(name: str) -> None:
    assert find_spec(f"{name}.__main__") is not None


@pytest.mark.parametrize("name", OURS)
def test_the_dockerfiles_keep_to_what_every_builder_takes(name: str) -> None:
    text = read(f"Dockerfile.{name}")
    assert not re.search(r"^#\s*syntax\s*=", text, re.MULTILINE | re.IGNORECASE)
    for instruction in instructions(name):
        assert "<<" not in instruction.rest
        assert not re.search(r"--(mount|chmod|link|parents)\b", instruction.rest)


@pytest.mark.parametrize("name", OURS)
def test_each_image_installs_its_own_extras_and_no_others(name: str) -> None:
    runs = " ".join(i.rest for i in instructions(name) if i.name == "RUN")
    extras = {"api": "api", "worker": "worker,cpu"}
    assert re.findall(r"\.\[([^]]*)\]", runs) == [extras[name]]


@pytest.mark.parametrize("name", OURS)
def test_each_image_holds_its_own_part_and_not_the_other(name: str) -> None:
    assert copied(name) == {"pyproject.toml", "shared", "client", name}


def test_the_build_context_holds_what_is_copied_and_nothing_else() -> None:
    patterns = [line for line in read(".dockerignore").splitlines() if not line.startswith("#")]
    assert patterns[0] == "*"
    allowed = {pattern[1:] for pattern in patterns if pattern.startswith("!")}
    assert allowed == copied("api") | copied("worker")


def copied(name: str) -> set[str]:
    """What Dockerfile.<name> takes from the build context."""
    copies = [i.rest.split()[:-1] for i in instructions(name) if i.name == "COPY"]
    return {source for sources in copies if "--from=build" not in sources for source in sources}


def test_the_api_extra_asks_for_no_torch() -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    assert not [wanted for wanted in extras["api"] if "torch" in wanted or "worker" in wanted]


def test_the_api_build_stops_where_torch_can_be_imported() -> None:
    (check,) = [
        shlex.split(i.rest) for i in instructions("api") if i.name == "RUN" and "torch" in i.rest
    ]
    assert run_python(check) == 1  # this Python has torch
    assert run_python([check[0], "-I", "-S", *check[1:]]) == 0  # without site-packages it has none


# The health checks, run


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """An HTTP server on the port, which answers each request so, and the paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()


def api_checks() -> dict[str, list[str]]:
    """By path: the image's asks after the process, Compose's after the service."""
    kind, *compose_command = service("api")["healthcheck"]["test"]
    assert kind == "CMD"
    return {"/healthz": health_command("api"), "/readyz": compose_command}


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_the_api_is_healthy_only_when_it_says_so(path: str) -> None:
    command = api_checks()[path]
    assert "127.0.0.1:8000/" in command[-1]
    for status, code in ((200, 0), (503, 1)):
        with answering(status) as (port, asked):
            here = [word.replace(":8000/", f":{port}/") for word in command]
            assert run_python(here) == code
        assert asked == [path]
    assert run_python(here) == 1  # and by now nobody listens there


@pytest.mark.integration
def test_a_worker_is_healthy_only_while_its_own_heartbeat_is_in_the_store(valkey: Valkey) -> None:
    with valkey.client() as client:
        client.flushall()
    store = JobStore.connect(Settings(redis_url=valkey.url))
    store.heartbeat(worker_on("another-container"))
    assert run_python(health_command("worker"), ECHOFORGE_REDIS_URL=valkey.url) == 1
    store.heartbeat(worker_on(socket.gethostname()))
    assert run_python(health_command("worker"), ECHOFORGE_REDIS_URL=valkey.url) == 0
    store.leave(worker_on(socket.gethostname()).id)
    assert run_python(health_command("worker"), ECHOFORGE_REDIS_URL=valkey.url) == 1


def worker_on(host: str) -> WorkerInfo:
    return WorkerInfo(
        id=f"worker-on-{host}", host=host, pid=1, device="cpu", model="csm-tiny", slots=4,
        started_at=time.time(),
    )  # fmt: skip


def test_a_worker_that_cannot_ask_the_store_is_not_healthy(tmp_path: Path) -> None:
    nowhere = f"redis+socket://{tmp_path}/nobody.sock"
    assert run_python(health_command("worker"), ECHOFORGE_REDIS_URL=nowhere) == 1
