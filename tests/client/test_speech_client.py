"""SpeechClient against a small fake API: what it sends, what it survives, what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from client import SpeechApiError, SpeechClient
from tests.client.fake_api import AUDIO, Answer, FakeApi, output, problem


class Naps(list[float]):
    """Records sleeps instead of sleeping."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def api():
    return FakeApi()


@pytest.fixture
def naps():
    return Naps()


@pytest.fixture
def client(api, naps):
    with SpeechClient(transport=api.transport(), sleep=naps) as client:
        yield client


def test_generate_sends_the_text_and_only_the_options_given(client, api):
    job = client.generate("Hello.", temperature=0.7)
    assert job["status"] == "queued"
    assert api.asked[0].body == {"text": "Hello.", "temperature": 0.7}


def test_each_generate_carries_a_key_of_its_own(client, api):
    first, second = client.generate("Hello."), client.generate("Hello.")
    keys = [asked.headers["idempotency-key"] for asked in api.asked]
    assert len(set(keys)) == 2
    assert first["id"] != second["id"]


def test_generate_after_a_lost_answer_finds_the_job_it_had_made(client, api):
    api.faults = [httpx2.ReadError("reset")]
    job = client.generate("Hello.")
    assert list(api.jobs) == [job["id"]]
    assert len(api.asked) == 2


def test_generate_keeps_asking_while_the_server_that_lost_the_answer_restarts(client, api):
    busy = problem(503, "store_unavailable", "Redis is away", Retry_After="2")
    api.faults = [httpx2.ReadError("reset"), httpx2.ConnectError("refused"), busy]
    client.generate("Hello.")
    assert len(api.jobs) == 1


def test_generate_tells_a_full_queue_at_once_and_when_to_return(client, api, naps):
    api.faults = [problem(503, "queue_full", "1000 jobs wait", Retry_After="7")]
    with pytest.raises(SpeechApiError) as caught:
        client.generate("Hello.")
    error = caught.value
    assert (error.status, error.code, error.retry_after_s) == (503, "queue_full", 7.0)
    assert error.message == "1000 jobs wait"
    assert naps == []


def test_a_server_that_is_not_there_is_told_at_once_with_the_way_out(client, api, naps):
    api.faults = [httpx2.ConnectError("refused")]
    with pytest.raises(SpeechApiError, match="echoforge up") as caught:
        client.generate("Hello.")
    assert caught.value.code == "unreachable"
    assert naps == []


def test_an_invalid_field_is_named_in_the_message(client):
    with pytest.raises(SpeechApiError, match="/text: String should have at least") as caught:
        client.generate("")
    assert (caught.value.status, caught.value.code) == (422, "invalid_input")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"text": "\udcff\udcfe bad"}, "/text: holds half a character; is it UTF-8?"),
        ({"text": "x", "temperature": float("nan")}, "/temperature: nan cannot be written"),
        ({"text": "x", "max_audio_seconds": float("inf")}, "/max_audio_seconds: inf cannot"),
    ],
)
def test_what_no_json_can_hold_is_told_without_asking_the_server(client, api, options, says):
    with pytest.raises(SpeechApiError, match=says.replace("?", r"\?")) as caught:
        client.generate(**options)
    assert (caught.value.status, caught.value.code) == (0, "invalid_input")
    assert api.asked == []


def test_an_error_page_of_a_proxy_becomes_a_readable_error(client, api):
    api.faults = [Answer(502, b"<html>Bad gateway</html>", {"Retry-After": "Mon, 23 Nov 2026"})]
    with pytest.raises(SpeechApiError, match="HTTP 502 from http") as caught:
        client.status()
    assert caught.value.code == "http_502"
    assert caught.value.retry_after_s is None


def test_an_answer_that_is_no_json_is_told_as_no_echoforge(client, api):
    api.faults = [Answer(200, b"<html>Welcome to nginx</html>")]
    with pytest.raises(SpeechApiError, match="no EchoForge API"):
        client.status()


@pytest.mark.parametrize("url", ["localhost:8000", "htp://x", "http://[::1"])
def test_a_url_that_is_none_is_told(url):
    with pytest.raises(SpeechApiError, match="is no address"), SpeechClient(url) as client:
        client.status()


def test_job_asks_for_the_text_only_when_told(client, api):
    id = client.generate("x")["id"]
    assert "input" not in client.job(id)
    assert client.job(id, include_input=True)["input"] == {"text": "x"}
    assert api.asked[-1].query == {"include": "input"}


def test_an_id_cannot_lead_to_another_path(client, api):
    with pytest.raises(SpeechApiError):
        client.job("../status?x=")
    assert api.asked[0].path == "/api/jobs/..%2Fstatus%3Fx%3D"


def test_jobs_fills_its_limit_over_several_pages(client, api):
    for _ in range(130):
        client.generate("x")
    api.asked.clear()
    found = client.jobs(limit=120)
    assert [job["id"] for job in found] == list(api.jobs)[:120]
    assert [asked.query["limit"] for asked in api.asked] == ["100", "20"]


def test_jobs_of_one_status_and_no_more_than_there_are(client):
    client.generate("x")
    assert client.jobs(status="failed") == []
    assert len(client.jobs(status="queued", limit=500)) == 1


def test_wait_returns_the_ended_job_and_tells_each_step(client):
    steps = []
    job = client.wait(client.generate("x")["id"], lambda job: steps.append(job["status"]))
    assert job["status"] == "completed"
    assert steps == ["queued", "in_progress", "completed"]


def test_wait_polls_long_when_nobody_listens_and_short_when_someone_does(client, api):
    id = client.generate("x")["id"]
    client.wait(id)
    client.wait(id, lambda job: None)
    assert {asked.query["wait"] for asked in api.asked[1:4]} == {"30"}
    assert api.asked[-1].query["wait"] == "1"


def test_wait_survives_lost_connections_and_a_restarting_server(client, api, naps):
    id = client.generate("x")["id"]
    away = problem(503, "store_unavailable", "Redis is away", Retry_After="3")
    api.faults = [httpx2.ReadError("reset"), httpx2.ConnectError("refused"), away, None, away]
    assert client.wait(id)["status"] == "completed"
    assert naps[:3] == [0.25, 0.5, 3.0]


def test_wait_gives_up_on_a_server_that_stays_away(api):
    with SpeechClient(transport=api.transport(), patience_s=0.6) as client:
        id = client.generate("x")["id"]
        api.faults = [httpx2.ConnectError("refused")] * 50
        with pytest.raises(SpeechApiError, match="cannot reach"):
            client.wait(id)


def test_wait_does_not_ask_again_for_a_job_that_is_gone(client, api):
    with pytest.raises(SpeechApiError, match="there is no job"):
        client.wait("job_1")
    assert len(api.asked) == 1


def test_wait_ends_at_its_timeout(client, api):
    api.script = ["in_progress"]
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.2 s"):
        client.wait(client.generate("x")["id"], timeout_s=0.2)


def test_wait_does_not_hammer_a_server_that_answers_at_once(client, naps):
    client.wait(client.generate("x")["id"])
    assert naps == [0.25, 0.25]


def test_download_writes_the_whole_audio_and_nothing_else(client, tmp_path):
    id = client.say("x", tmp_path / "first.wav")["id"]
    assert client.download(id, str(tmp_path / "again.wav")) == tmp_path / "again.wav"
    assert (tmp_path / "again.wav").read_bytes() == AUDIO
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.wav", "first.wav"]


@pytest.mark.parametrize("damage", [AUDIO[:-1], AUDIO[:-1] + b"\0"], ids=["short", "other"])
def test_damaged_audio_never_gets_its_name(client, api, tmp_path, damage):
    target = tmp_path / "out.wav"
    target.write_bytes(b"what was there")
    api.audio = damage
    api.extra = {"output": output(AUDIO)}
    job = client.wait(client.generate("x")["id"])
    with pytest.raises(SpeechApiError, match="arrived damaged"):
        client.download(job["id"], target)
    assert target.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [target]


def test_download_begins_again_when_the_connection_breaks(client, api, tmp_path):
    id = client.wait(client.generate("x")["id"])["id"]
    api.faults = [None, httpx2.ReadError("reset")]
    client.download(id, tmp_path / "out.wav")
    assert (tmp_path / "out.wav").read_bytes() == AUDIO


def test_audio_of_an_unfinished_job_is_not_asked_for(client, api, tmp_path):
    api.script = ["in_progress"]
    with pytest.raises(SpeechApiError, match="wait for it") as caught:
        client.download(client.generate("x")["id"], tmp_path / "out.wav")
    assert caught.value.code == "audio_not_ready"


def test_audio_that_has_expired_is_told(client, api, tmp_path):
    api.extra = {"output": None, "result_url": None}
    id = client.wait(client.generate("x")["id"])["id"]
    with pytest.raises(SpeechApiError, match="has expired"):
        client.download(id, tmp_path / "out.wav")


def test_say_raises_what_the_job_failed_of(client, api, tmp_path):
    api.script = ["failed"]
    with pytest.raises(SpeechApiError, match="too long for this card") as caught:
        client.say("x", tmp_path / "out.wav")
    assert (caught.value.status, caught.value.code) == (0, "out_of_memory")
    assert list(tmp_path.iterdir()) == []


def test_cancel_and_delete(client, api):
    id = client.generate("x")["id"]
    assert client.cancel(id)["status"] == "cancelled"
    client.delete(id)
    assert api.jobs == {}


def test_ready_means_that_a_worker_is(client, api):
    assert client.is_ready()
    api.is_ready = False
    assert not client.is_ready()
    api.faults = [httpx2.ConnectError("refused")]
    assert not client.is_ready()


def test_the_client_imports_neither_the_model_nor_the_server():
    root = Path(__file__).parents[2]
    code = (
        "import client, sys; print({'torch', 'api', 'worker', 'redis', 'typer'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert said.stdout == "set()\n", said.stderr
