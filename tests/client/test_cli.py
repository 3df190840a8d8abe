"""The `echoforge` command against a fake API behind a real socket."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client import SpeechClient
from client.cli import app
from tests.client.fake_api import AUDIO, NOTICE, FakeApi, problem, served
from tests.client.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def api():
    return FakeApi()


@pytest.fixture
def echoforge(api, monkeypatch, tmp_path):
    """Runs one command line against the fake."""
    with served(api) as url:
        monkeypatch.setenv("ECHOFORGE_URL", url)
        monkeypatch.chdir(tmp_path)
        yield lambda *argv, stdin=None: CliRunner().invoke(app, argv, input=stdin)


def test_say_writes_the_file_and_tells_what_came_out(echoforge, api):
    result = echoforge("say", "Hello.", "-o", "out.wav")
    assert result.exit_code == 0, result.output
    assert Path("out.wav").read_bytes() == AUDIO
    assert "out.wav: 3.20 s of audio · RTF 0.64 · csm-tiny on cpu · seed 7" in result.stdout


def test_say_says_in_plain_words_that_the_model_is_untrained(echoforge):
    assert f"note: {NOTICE}" in echoforge("say", "Hello.").stdout


def test_say_tells_of_another_device_than_asked(echoforge, api):
    api.extra = {"device_fallback": "no cuda worker is alive; spoken on cpu"}
    assert "note: no cuda worker is alive" in echoforge("say", "Hello.", "--device", "cuda").stdout


def test_say_without_a_terminal_prints_plain_lines_of_progress_once_each(echoforge, api):
    api.script = ["queued", "queued", "in_progress", "in_progress", "completed"]
    lines = echoforge("say", "Hello.").stderr.splitlines()
    assert lines == [
        "queued, position 2, starts in about 4 s",
        "speaking, 1.3 s of audio, about 2 s left",
        "completed",
    ]


def test_say_sends_what_was_asked_and_leaves_the_rest_to_the_server(echoforge, api):
    echoforge("say", "Hello.", "--top-k", "40", "--temperature", "0.7", "--seed", "3")
    assert api.asked[0].body == {
        "text": "Hello.",
        "format": "wav",
        "top_k": 40,
        "temperature": 0.7,
        "seed": 3,
    }


def test_say_reads_standard_input_for_a_dash(echoforge, api):
    echoforge("say", "-", stdin="From a pipe.")
    assert api.asked[0].body["text"] == "From a pipe."


@pytest.mark.parametrize(
    ("argv", "format"),
    [
        (["-o", "a.flac"], "flac"),
        (["-o", "a.FLAC"], "flac"),
        (["-o", "a"], "wav"),
        (["-o", "a.bin", "--format", "flac"], "flac"),
    ],
)
def test_the_format_follows_the_extension_unless_said(echoforge, api, argv, format):
    assert echoforge("say", "Hello.", *argv).exit_code == 0
    assert api.asked[0].body["format"] == format


@pytest.mark.parametrize(
    "argv",
    [
        ["say"],
        ["say", "x", "-o", "a.mp3"],
        ["say", "x", "-o", "a.flac", "--format", "wav"],
        ["say", "x", "-o", "a.WAV", "--format", "flac"],
        ["say", "x", "-o", "no/such/dir/a.wav"],
        ["say", "x", "-o", "."],
        ["say", "x", "--device", "tpu"],
        ["sing", "x"],
        ["jobs", "--status", "lost"],
    ],
)
def test_wrong_usage_is_exit_code_2_before_anything_is_sent(echoforge, api, argv):
    result = echoforge(*argv)
    assert result.exit_code == 2
    assert api.asked == []


def test_a_failed_job_is_exit_code_1_and_one_line(echoforge, api):
    api.script = ["failed"]
    result = echoforge("say", "Hello.")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "echoforge: too long for this card"
    assert not Path("speech.wav").exists()


def test_a_refused_request_is_exit_code_1_and_one_line(echoforge):
    result = echoforge("say", "")
    assert result.exit_code == 1
    assert result.stderr == "echoforge: /text: String should have at least 1 character\n"


def test_no_server_is_exit_code_1_and_the_way_out(echoforge):
    result = echoforge("say", "Hello.", "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "echoforge up" in result.stderr


def test_submit_prints_the_id_alone(echoforge, api):
    assert echoforge("submit", "Hello.").stdout.split() == list(api.jobs)


def test_watch_follows_a_job_and_saves_its_audio(echoforge):
    id = echoforge("submit", "Hello.").stdout.strip()
    result = echoforge("watch", id, "-o", "out.wav")
    assert result.exit_code == 0
    assert Path("out.wav").read_bytes() == AUDIO


def test_watch_of_an_unknown_job_is_told_at_once(echoforge):
    result = echoforge("watch", "job_1")
    assert (result.exit_code, result.stderr) == (1, "echoforge: there is no job job_1\n")


def test_status_of_the_server_names_its_workers_and_their_notice(echoforge):
    said = echoforge("status").stdout
    assert "worker w1: csm-tiny on cpu" in said
    assert NOTICE in said


def test_status_of_a_server_without_workers_says_that_jobs_wait(echoforge, api):
    api.workers = []
    assert "no worker is ready; jobs wait until one is" in echoforge("status").stdout


def test_status_of_a_job_in_words_and_in_json(echoforge):
    id = echoforge("submit", "Hello.").stdout.strip()
    assert f"{id}: queued, position 2" in echoforge("status", id).stdout
    assert json.loads(echoforge("status", id, "--json").stdout)["status"] == "in_progress"


def test_cancel_tells_what_became_of_the_job(echoforge):
    id = echoforge("submit", "Hello.").stdout.strip()
    assert echoforge("cancel", id).stdout == f"{id}: cancelled\n"


def test_jobs_lists_them(echoforge):
    ids = [echoforge("submit", "Hello.").stdout.strip() for _ in range(3)]
    said = echoforge("jobs").stdout
    assert all(id in said for id in ids)
    assert [job["id"] for job in json.loads(echoforge("jobs", "--json").stdout)] == ids


def test_an_error_of_the_server_is_one_line_whatever_the_command(echoforge, api):
    for argv in (["jobs"], ["status"], ["cancel", "job_1"], ["watch", "job_1"]):
        api.faults = [problem(503, "store_unavailable", "Redis is away; try again")]
        result = echoforge(*argv)
        assert (result.exit_code, result.stderr) == (1, "echoforge: Redis is away; try again\n")


def interrupted(api, number: int, argv: list[str], num_looks: int = 2) -> tuple[int, str]:
    """A command in a process of its own that gets the signal while it follows its job."""
    with served(api) as url:
        env = {**os.environ, "ECHOFORGE_URL": url, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, *argv]
        with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True) as run:
            until(lambda: len(api.asked) > num_looks)
            run.send_signal(number)
            _, told = run.communicate(timeout=20)
    assert "Traceback" not in told
    return run.returncode, told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_say_that_is_ended_cancels_its_job_on_the_server(api, tmp_path, number):
    api.script = ["in_progress"]
    out = str(tmp_path / "o.wav")
    code, told = interrupted(api, number, ["-m", "client.cli", "say", "Hello.", "-o", out])
    assert code == 130
    assert "cancelled job_" in told
    assert [asked.path for asked in api.asked][-1].endswith("/cancel")


def test_ctrl_c_in_watch_says_that_the_job_goes_on_and_how_to_cancel_it(api):
    api.script = ["in_progress"]
    with SpeechClient(transport=api.transport()) as client:
        id = client.generate("Hello.")["id"]
    code, told = interrupted(api, signal.SIGINT, ["-m", "client.cli", "watch", id], num_looks=4)
    assert code == 130
    assert f"echoforge: {id} goes on; `echoforge cancel {id}` ends it\n" in told
    assert not any(asked.path.endswith("/cancel") for asked in api.asked)


def test_say_without_a_worker_says_so_once(echoforge, api):
    api.workers = []
    api.script = ["queued", "queued", "queued", "completed"]
    lines = echoforge("say", "Hello.").stderr.splitlines()
    assert lines == [
        "queued, position 2",
        "no worker is ready; jobs wait until one is",
        "completed",
    ]
    assert sum(asked.path == "/api/status" for asked in api.asked) == 1


def test_watch_without_a_worker_says_so_too(echoforge, api):
    api.workers, api.script = [], ["queued", "queued", "completed"]
    id = echoforge("submit", "Hello.").stdout.strip()
    assert "no worker is ready; jobs wait until one is" in echoforge("watch", id).stderr


def test_say_does_not_ask_for_the_workers_when_one_is_expected(echoforge, api):
    echoforge("say", "Hello.")
    assert not any(asked.path == "/api/status" for asked in api.asked)


def test_a_job_without_a_notice_is_told_without_one(echoforge, api):
    api.extra = {"model_notice": None}
    assert "note" not in echoforge("say", "Hello.").stdout


@pytest.mark.parametrize("command", ["say", "submit"])
def test_bytes_that_are_no_text_are_one_line_and_exit_code_2(api, tmp_path, command):
    with served(api) as url:
        env = {**os.environ, "ECHOFORGE_URL": url, "PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-m", "client.cli", command]
        given = {"cwd": tmp_path, "env": env, "capture_output": True}
        as_argument = subprocess.run([*argv, b"\xff\xfe bad"], **given)
        as_input = subprocess.run([*argv, "-"], input=b"\xff\xfe bad", **given)
    for ended in (as_argument, as_input):
        assert ended.returncode == 2
        assert ended.stderr == (
            b"echoforge: the text is not UTF-8; convert it first, with iconv for example\n"
        )
    assert api.asked == []


def test_a_number_that_is_none_is_one_line_and_exit_code_1(echoforge, api):
    result = echoforge("say", "Hello.", "--temperature", "nan")
    assert result.exit_code == 1
    assert result.stderr == "echoforge: /temperature: nan cannot be written as JSON\n"
    assert api.asked == []


def test_the_version_is_told(echoforge):
    result = echoforge("--version")
    assert result.exit_code == 0
    assert result.stdout.split() == ["echoforge", importlib.metadata.version("echoforge")]


def test_a_setting_that_is_wrong_is_named(echoforge, monkeypatch):
    monkeypatch.setenv("ECHOFORGE_SLOTS", "0")
    result = echoforge("doctor")
    assert result.exit_code == 2
    assert "ECHOFORGE_SLOTS" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_wrong_setting_is_told_without_its_value(echoforge, monkeypatch):
    monkeypatch.setenv("ECHOFORGE_REDIS_URL", "http://:secret@host")
    result = echoforge("doctor")
    assert result.exit_code == 2
    assert "ECHOFORGE_REDIS_URL" in result.stderr
    assert "secret" not in result.stderr


def test_every_command_has_help_with_its_defaults(echoforge):
    for command in ("up", "api", "worker", "say", "submit", "watch", "jobs", "download"):
        result = echoforge(command, "--help")
        assert result.exit_code == 0
        assert "default" in result.stdout or "required" in result.stdout
        assert "echoforge" in result.stdout


def test_one_part_takes_the_commands_place_whatever_lies_in_the_users_folder(tmp_path):
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "__init__.py").touch()
    (tmp_path / "api" / "__main__.py").write_text(
        "import os; print(os.getpid(), *map(os.getenv, "
        "['ECHOFORGE_PORT', 'ECHOFORGE_HOST', 'ECHOFORGE_ALLOW_REMOTE']))"
    )
    (tmp_path / "mine" / "api").mkdir(parents=True)
    (tmp_path / "mine" / "api" / "__init__.py").write_text("raise SystemExit('not that one')")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    argv = [sys.executable, "-P", "-m", "client.cli", "api", "--port", "8123", "--allow-remote"]
    with subprocess.Popen(
        argv, cwd=tmp_path / "mine", env=env, stdout=subprocess.PIPE, text=True
    ) as part:
        said, _ = part.communicate(timeout=20)
    assert said == f"{part.pid} 8123 None True\n"


def script(url: str, cwd: Path, *options: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(ROOT / "scripts" / "test_voice_api.py"), "Hello.", *options]
    env = {**os.environ, "ECHOFORGE_URL": url, "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True)


def test_the_script_speaks_through_the_public_client(api, tmp_path):
    out = tmp_path / "out.wav"
    with served(api) as url:
        ended = script(url, tmp_path, "--top-k", "40", "--device", "cuda", "-o", str(out))
    assert ended.returncode == 0, ended.stderr
    assert out.read_bytes() == AUDIO
    assert f"note: {NOTICE}" in ended.stdout
    assert api.asked[0].body == {
        "text": "Hello.",
        "temperature": 0.9,
        "top_k": 40,
        "device": "cuda",
        "speaker_id": 1,
        "style": "default",
    }


def test_the_script_refuses_an_output_it_cannot_write_before_it_asks(api, tmp_path):
    with served(api) as url:
        ended = script(url, tmp_path, "-o", "no/such/dir/out.wav")
    assert (ended.returncode, ended.stderr) == (1, "failed: cannot write no/such/dir/out.wav\n")
    assert api.asked == []


def test_the_scripts_ctrl_c_is_one_line(api, tmp_path):
    api.script = ["in_progress"]
    argv = [str(ROOT / "scripts" / "test_voice_api.py"), "Hello.", "-o", str(tmp_path / "o.wav")]
    code, told = interrupted(api, signal.SIGINT, argv)
    assert code == 130
    assert told.splitlines()[-1] == "interrupted; a job that was accepted goes on without us"
