"""Names in Redis: the prefix of the job keys, the doorbell queues, the prefix of Celery's own keys.

Knows names only; the store and the doorbell meet here, and need not know each other.
"""

from __future__ import annotations

from typing import Literal

from shared.jobs import Device

DeviceClass = Literal["cpu", "cuda"]

JOB_PREFIX = "{echoforge}:"  # one hash tag: every script stays within one slot
CELERY_PREFIX = "echoforge:celery:"
DEVICES: tuple[Device, ...] = ("auto", "cuda", "cpu")


def device_class(device: str) -> DeviceClass:
    """`cuda:0` -> `cuda`."""
    return "cuda" if device.startswith("cuda") else "cpu"


def doorbell_queue(device: Device) -> str:
    return f"echoforge.{device}"


def queues_for(device: str) -> list[str]:
    """The doorbells a worker on this device answers."""
    return [doorbell_queue("auto"), doorbell_queue(device_class(device))]


def celery_list(queue: str) -> str:
    """The Redis list in which kombu keeps the waiting messages of a queue."""
    return f"{CELERY_PREFIX}{queue}"
