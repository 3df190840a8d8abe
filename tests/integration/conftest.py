from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.service import Service

pytestmark = pytest.mark.integration


@pytest.fixture
def make_service(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Service]]:
    services: list[Service] = []

    def make(**changes: object) -> Service:
        root = tmp_path / f"s{len(services)}"
        root.mkdir()
        services.append(Service(root, **changes))
        return services[-1]

    yield make
    for service in services:
        service.stop()
        print(service.logs())  # pytest shows it when the test failed


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    return make_service()
