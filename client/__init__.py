"""The public client: `SpeechClient` speaks to the API over HTTP, and knows nothing behind it."""

from client.api_error import SpeechApiError
from client.speech_client import SpeechClient

__all__ = ["SpeechApiError", "SpeechClient"]
