"""What can go wrong inside the engine. Knows no job and no HTTP; `code` is what a caller may show.

EngineError
├── ModelNotFound        nothing that is a CSM where it was looked for
├── CheckpointInvalid    found, but damaged, incomplete or of another shape
├── PackInvalid          the cached quantised weights are not what their name says
├── PrecisionUnavailable the device cannot run the precision asked for
├── MemoryTooSmall       the slots asked for do not fit
├── PromptTooLong        text and context leave no room for speech
├── DeadlinePassed       the utterance did not end in time
├── UtteranceCancelled
└── EngineStopped        the engine ended before the utterance did
"""

from __future__ import annotations


class EngineError(Exception):
    code = "engine_error"


class ModelNotFound(EngineError):
    code = "model_not_found"


class CheckpointInvalid(EngineError):
    code = "checkpoint_invalid"


class PackInvalid(EngineError):
    code = "pack_invalid"


class PrecisionUnavailable(EngineError):
    code = "precision_unavailable"


class MemoryTooSmall(EngineError):
    code = "memory_too_small"


class PromptTooLong(EngineError):
    code = "prompt_too_long"


class DeadlinePassed(EngineError):
    code = "deadline_exceeded"


class UtteranceCancelled(EngineError):
    code = "cancelled"


class EngineStopped(EngineError):
    code = "engine_stopped"
