"""The error tree. A class knows its public code and HTTP status; a message ends with the way out.

SpeechError
├── BadRequest 422            InvalidInput, IdempotencyConflict
├── UnsupportedMediaType 415
├── NotFound 404              JobNotFound
├── Conflict 409              AudioNotReady, NoAudio
├── Gone 410                  AudioExpired
└── Unavailable 503           QueueFull, StoreUnavailable, StorageFull, NoReadyWorker
                              (each carries retry_after_s)

What can go wrong inside the model has its own tree, in worker/engine/errors.py.
"""

from __future__ import annotations


class SpeechError(Exception):
    """Base of every expected failure."""

    code = "internal"
    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class BadRequest(SpeechError):
    code = "bad_request"
    status = 422


class InvalidInput(BadRequest):
    """`pointer` is a JSON pointer (RFC 6901) to the field at fault."""

    code = "invalid_input"

    def __init__(self, message: str, pointer: str | None = None) -> None:
        super().__init__(message)
        self.pointer = pointer


class IdempotencyConflict(BadRequest):
    code = "idempotency_conflict"


class UnsupportedMediaType(SpeechError):
    code = "unsupported_media_type"
    status = 415


class NotFound(SpeechError):
    code = "not_found"
    status = 404


class JobNotFound(NotFound):
    code = "job_not_found"


class Conflict(SpeechError):
    code = "conflict"
    status = 409


class AudioNotReady(Conflict):
    code = "audio_not_ready"


class NoAudio(Conflict):
    """The job ended without audio; waiting will not help."""

    code = "no_audio"


class Gone(SpeechError):
    code = "gone"
    status = 410


class AudioExpired(Gone):
    code = "audio_expired"


class Unavailable(SpeechError):
    code = "unavailable"
    status = 503

    def __init__(self, message: str, retry_after_s: int = 5) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Unavailable):
    code = "queue_full"


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class StorageFull(Unavailable):
    code = "storage_full"


class NoReadyWorker(Unavailable):
    code = "no_ready_worker"
