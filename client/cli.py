"""The `echoforge` command. Knows options, terminals and exit codes; the work is done elsewhere.

Exit codes: 0 done, 1 the job or the server failed, 2 wrong usage, 130 Ctrl-C (for `say`, SIGTERM
too).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast, get_args

import typer
from pydantic import ValidationError
from rich.console import Console

from client import options as opt
from client.exits import plain_errors, usage
from client.following import (
    cancel_and_exit,
    deliver,
    follow,
    leave_and_exit,
    sigterm_as_ctrl_c,
)
from client.job_display import job_lines, jobs_table, server_lines
from client.speech_client import DEFAULT_URL, SpeechClient
from shared.jobs import AudioFormat, JobStatus
from shared.settings import Settings, settings_problem

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with `echoforge up --model csm-tiny` in one terminal and "
    '`echoforge say "Hello there." -o hello.wav` in another.',
    help="EchoForge: text to speech with CSM, as durable jobs.",
)


@app.callback()
def main(version: opt.Version = False) -> None:
    """The help stands above, where the app is made."""


@app.command(rich_help_panel="Run the server")
def up(
    host: opt.Host = None,
    port: opt.Port = None,
    allow_remote: opt.AllowRemote = None,
    data: opt.DataDir = None,
    model: opt.Model = None,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Worker processes; they share the cores evenly.")
    ] = 1,
    device: opt.WorkerDevice = None,
    slots: opt.Slots = None,
    redis_url: opt.OwnRedisUrl = None,
) -> None:
    """Start everything on this machine: Redis, the API and the workers.

    Without a Redis URL it runs its own Redis, and keeps its data under --data. Ctrl-C lets running
    jobs end, gives the rest back to the queue, and stops; a second Ctrl-C stops at once.

    Examples:
      echoforge up --model csm-tiny          no download; an untrained model, which makes noise
      echoforge up                           CSM-1B, after `echoforge download`
      echoforge up --workers 2 --device cpu
    """
    given = _given(
        host=host,
        port=port,
        allow_remote=allow_remote,
        data_dir=data,
        model=model,
        device=device,
        slots=slots,
        redis_url=redis_url,
    )
    settings = _settings(given)
    from client.up import Up

    with plain_errors():
        raise typer.Exit(Up(settings, workers, given).run())


@app.command(rich_help_panel="Run the server")
def api(
    host: opt.Host = None,
    port: opt.Port = None,
    allow_remote: opt.AllowRemote = None,
    data: opt.DataDir = None,
    redis_url: opt.RedisUrl = None,
) -> None:
    """Start the API alone, against a Redis that is already there.

    It accepts jobs even while no worker runs; they wait in the queue.

    Example:
      echoforge api --port 8000 --redis-url redis://127.0.0.1:6379/0
    """
    given = _given(
        host=host, port=port, allow_remote=allow_remote, data_dir=data, redis_url=redis_url
    )
    _become("api", given)


@app.command(rich_help_panel="Run the server")
def worker(
    model: opt.Model = None,
    device: opt.WorkerDevice = None,
    slots: opt.Slots = None,
    data: opt.DataDir = None,
    redis_url: opt.RedisUrl = None,
) -> None:
    """Start one worker alone, against a Redis that is already there.

    Any number may run, on this machine or others; all need the same audio directory.

    Example:
      echoforge worker --device cuda --slots 8 --redis-url redis://10.0.0.5:6379/0
    """
    given = _given(model=model, device=device, slots=slots, data_dir=data, redis_url=redis_url)
    _become("worker", given)


@app.command(rich_help_panel="Speak")
def say(
    text: opt.Text,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="The file that is written.", rich_help_panel=opt.JOB),
    ] = Path("speech.wav"),
    format: opt.Format = None,
    speaker_id: opt.SpeakerId = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    seed: opt.Seed = None,
    device: opt.JobDevice = None,
    max_audio_seconds: opt.MaxAudioSeconds = None,
    url: opt.Url = DEFAULT_URL,
) -> None:
    """Speak a text into a file: submit, wait, download. Ctrl-C cancels the job.

    The file appears whole or not at all.

    Examples:
      echoforge say "Hello there." -o hello.wav
      echoforge say "Warmer." -o warm.flac --temperature 0.9 --top-k 40 --seed 7
      cat chapter.txt | echoforge say - -o chapter.wav
    """
    options = _given(
        format=_format(format, output),
        speaker_id=speaker_id,
        seed=seed,
        top_k=top_k,
        temperature=temperature,
        device=device,
        max_audio_seconds=max_audio_seconds,
    )
    _refuse_unwritable(output)
    with plain_errors(), sigterm_as_ctrl_c(), SpeechClient(url) as client:
        accepted = client.generate(_text(text), **options)
        try:
            job = follow(client, accepted["id"])
        except KeyboardInterrupt:
            cancel_and_exit(client, accepted["id"])
        deliver(client, job, output)


@app.command(rich_help_panel="Speak")
def submit(
    text: opt.Text,
    format: opt.Format = None,
    speaker_id: opt.SpeakerId = None,
    temperature: opt.Temperature = None,
    top_k: opt.TopK = None,
    seed: opt.Seed = None,
    device: opt.JobDevice = None,
    max_audio_seconds: opt.MaxAudioSeconds = None,
    url: opt.Url = DEFAULT_URL,
) -> None:
    """Submit a text and print the job's id, without waiting.

    A job outlives this command, the server's restarts and its workers' deaths.

    Example:
      id=$(echoforge submit "A long story." --format flac) && echoforge watch $id -o story.flac
    """
    options = _given(
        format=format,
        speaker_id=speaker_id,
        seed=seed,
        top_k=top_k,
        temperature=temperature,
        device=device,
        max_audio_seconds=max_audio_seconds,
    )
    with plain_errors(), SpeechClient(url) as client:
        print(client.generate(_text(text), **options)["id"])


@app.command(rich_help_panel="Speak")
def watch(
    job_id: opt.JobId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to save the audio.")
    ] = None,
    url: opt.Url = DEFAULT_URL,
) -> None:
    """Show a job's progress until it ends. Ctrl-C leaves the job running.

    With --output the audio is saved, too.

    Example:
      echoforge watch job_01997c1e8f5e7c0a9a3f2b6d11223344 -o out.wav
    """
    if output is not None:
        _refuse_unwritable(output)
    with plain_errors(), SpeechClient(url) as client:
        client.job(job_id)  # an unknown id, or no server, is told at once
        try:
            job = follow(client, job_id)
        except KeyboardInterrupt:
            leave_and_exit(job_id)
        deliver(client, job, output)


@app.command(rich_help_panel="Speak")
def cancel(job_id: opt.JobId, url: opt.Url = DEFAULT_URL) -> None:
    """Cancel a job. One that is running ends within moments; one that has ended stays as it is."""
    with plain_errors(), SpeechClient(url) as client:
        job = client.cancel(job_id)
    is_asked = job["status"] == JobStatus.IN_PROGRESS
    print(f"{job['id']}: {'being cancelled' if is_asked else job['status']}")


@app.command(rich_help_panel="Look")
def status(
    job_id: Annotated[str | None, typer.Argument(help="A job; without it, the server.")] = None,
    as_json: opt.AsJson = False,
    url: opt.Url = DEFAULT_URL,
) -> None:
    """Tell how a job is, or, without an id, how the server and its workers are.

    --json prints the API's answer for other programs.

    Examples:
      echoforge status
      echoforge status job_01997c1e8f5e7c0a9a3f2b6d11223344 --json
    """
    with plain_errors(), SpeechClient(url) as client:
        told = client.job(job_id) if job_id else client.status()
    if as_json:
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        print("\n".join(job_lines(told) if job_id else server_lines(told)))


@app.command(rich_help_panel="Look")
def jobs(
    status: Annotated[JobStatus | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The newest so many.")] = 20,
    as_json: opt.AsJson = False,
    url: opt.Url = DEFAULT_URL,
) -> None:
    """List the newest jobs.

    States: queued, in_progress, completed, failed, cancelled, expired.

    Example:
      echoforge jobs --status failed --limit 5
    """
    with plain_errors(), SpeechClient(url) as client:
        found = client.jobs(status, limit)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        console = _console()
        console.print(jobs_table(found, console.width), soft_wrap=True)


@app.command(rich_help_panel="Set up")
def download(
    repo: Annotated[str, typer.Argument(help="The repository on the Hub.")] = "sesame/csm-1b",
    revision: Annotated[str, typer.Option(help="A branch, a tag or a commit.")] = "main",
    original: Annotated[
        bool,
        typer.Option(
            "--original",
            help="The original layout instead of transformers'. It comes without a codec, so "
            "kyutai/mimi is fetched into its folder `mimi`; a checkpoint from elsewhere needs it "
            "there, too, or in the Hugging Face cache.",
        ),
    ] = False,
    to: Annotated[Path | None, opt.setting("model_dir", "--to")] = None,
) -> None:
    """Download a CSM checkpoint; a broken-off download is resumed by the next.

    sesame/csm-1b asks you to accept its licence first; unsloth/csm-1b is an open mirror of it.

    Examples:
      echoforge download
      echoforge download unsloth/csm-1b
    """
    target = to or _settings({}).model_dir
    from client.download import download as fetch

    with plain_errors():
        print(f"{fetch(target, repo, revision, original=original)} holds {repo}")


@app.command(rich_help_panel="Set up")
def doctor(url: opt.Url = DEFAULT_URL) -> None:
    """Look at this machine: what is installed, which model would speak, Redis, disk, the API."""
    settings = _settings({})
    from client.doctor import Level, examine, table

    with plain_errors():
        rows = list(examine(settings, url))
    _console().print(table(rows))
    raise typer.Exit(int(any(row.level is Level.FAIL for row in rows)))


def _given(**options: object) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _settings(given: Mapping[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        usage(settings_problem(error))


def _become(module: str, given: Mapping[str, Any]) -> NoReturn:
    """This process becomes the part, so that signals and exit code are the part's own."""
    _settings(given)
    from client.parts import part_argv, part_environment, require

    with plain_errors():
        require(module)
    argv = part_argv(module)
    os.execve(argv[0], argv, {**os.environ, **part_environment(given)})


def _text(text: str) -> str:
    try:
        read = sys.stdin.read() if text == "-" else text
        read.encode()  # a shell's raw bytes come as halves of characters
    except UnicodeError:
        usage("the text is not UTF-8; convert it first, with iconv for example")
    return read


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else 160)


def _format(format: AudioFormat | None, output: Path) -> AudioFormat:
    extension = output.suffix.lower().lstrip(".") or format or "wav"
    if format is not None:
        if extension != format and extension in get_args(AudioFormat):
            usage(f"{output} is not for --format {format}; leave one of the two out")
        return format
    if extension not in get_args(AudioFormat):
        usage(f"{output}: no format is called {extension}; use .wav or .flac, or say --format")
    return cast(AudioFormat, extension)


def _refuse_unwritable(output: Path) -> None:
    """Before the job is made, not after it was spoken."""
    if output.is_dir():
        usage(f"{output} is a directory; name a file in it")
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        usage(f"cannot write into {output.parent}; make it, or choose another --output")


if __name__ == "__main__":
    app()
