"""The site that the tests of alerts share. They are one xdist group, because each worker would start its own."""

from collections.abc import Iterator

import pytest

from tests.deploy import site as sites
from tests.deploy.site import Site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with sites.running(tmp_path_factory.mktemp("site")) as running:
        yield running
