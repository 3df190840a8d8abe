"""SetupError: what keeps EchoForge from starting on a machine.

SetupError
├── EmbeddedRedisError   no server, or its data is in use
├── MissingExtra         a part's packages are not installed
├── UpError              the address cannot be listened on
└── DownloadError        no checkpoint came
"""

from __future__ import annotations


class SetupError(Exception):
    """The message is one line for a person, and ends with the way out."""
