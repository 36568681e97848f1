"""Prints service/openapi.json: `python -m optwrap_exporter.http.openapi > service/openapi.json`."""

import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from optwrap_exporter.http.app import create_app
from optwrap_exporter.http.hub import Hub
from optwrap_exporter.ingest.ingest import Ingest
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.settings import DEFAULT_LISTEN, Settings, parse_address
from optwrap_exporter.store.store import Store


def document() -> dict[str, Any]:
    """The OpenAPI document of an app with an empty temporary store."""
    with tempfile.TemporaryDirectory() as directory, contextlib.closing(Store(Path(directory) / "store")) as store:
        ledger = Ledger(time.time)
        ingest = Ingest(store, ledger, tick=0)
        hub = Hub(ingest.subscribe, store, ledger)
        settings = Settings((parse_address(DEFAULT_LISTEN),), Path(directory))
        app = create_app(settings, store=store, ledger=ledger, ingest=ingest, hub=hub, clock=time.time)
        return app.openapi()


def text() -> str:
    """The document as committed text."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
