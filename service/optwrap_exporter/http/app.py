"""Builds one exporter from its parts, and runs it."""

import contextlib
import dataclasses
import gc
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import click
from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from optwrap_exporter._version import __version__
from optwrap_exporter.http import announcement, errors
from optwrap_exporter.http.authorization import Authorization
from optwrap_exporter.http.hub import Hub
from optwrap_exporter.http.middleware import Head, HostCheck, SecurityHeaders
from optwrap_exporter.http.page_files import PageFiles
from optwrap_exporter.http.query.limiter import Limiter
from optwrap_exporter.http.routes import (
    changes,
    events,
    incidents,
    metrics,
    operation,
    pages,
    queries,
    reports,
    series,
    steps,
    stream,
)
from optwrap_exporter.http.scraped import Scraped
from optwrap_exporter.http.serving.admission import PATH, Admission
from optwrap_exporter.http.serving.server import (
    StartError,
    allow_connections,
    bind_all,
    bound_unix,
    configure_logging,
    server_of,
)
from optwrap_exporter.ingest.event_log import EventLog, EventLogError
from optwrap_exporter.ingest.ingest import Ingest, Retention
from optwrap_exporter.ingest.webhook import Webhook
from optwrap_exporter.ledger.bounds import Limits
from optwrap_exporter.ledger.clocks import Clock
from optwrap_exporter.ledger.ledger import Ledger
from optwrap_exporter.metrics.collector import OwnCollector, StoreFigures
from optwrap_exporter.metrics.own import Statistics
from optwrap_exporter.metrics.render import Renderer
from optwrap_exporter.settings import Address, Settings
from optwrap_exporter.store.opening import StoreError
from optwrap_exporter.store.store import Store, holds_store

BYTES_FOR_AN_INCARNATION: Final = 4096
"""Twice what one takes in the store. So new runs leave half of it to the history of known runs."""
COMPRESSED_BYTES: Final = 1024
"""Answers from this size on are compressed if the client accepts gzip."""
_LEVEL: Final = 4
"""zlib's level: JSON becomes a fourth of its size."""
DISTRIBUTION: Final = "optwrap-exporter"
_SWITCH_SECONDS: Final = 0.001
"""How long one thread may hold Python's lock while another waits. The writer gives it up for each row, so that with
Python's 5 ms a busy event loop would stop it."""
_COLLECT_AFTER: Final = 20_000
"""Objects after which Python looks for unused reference cycles. A group of reports makes thousands of objects that
stay, and hardly a cycle. At Python's 700 the search was a fifth of what a report costs in a job of 4,096 processes."""


class _App(FastAPI):
    """Sends POST /v1/reports straight to its ASGI route; the middleware still applies."""

    reports: ASGIApp
    admission: Admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI event."""
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST":
            self.admission.begin()
            await self.reports(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def create_app(
    settings: Settings,
    *,
    store: Store,
    ledger: Ledger,
    ingest: Ingest,
    hub: Hub,
    clock: Clock,
    statistics: Statistics | None = None,
) -> FastAPI:
    """The ASGI app. The caller starts and closes the parts.

    Args:
      settings: who may report, and the names under which the exporter is reached.
      store: what queries and streams read.
      ledger: what queries and /metrics read.
      ingest: where reports go. It must be started.
      hub: wakes the streams. The app runs it.
      clock: the exporter's clock, which is also the ledger's.
      statistics: counts the exporter's work; by default new ones.
    """
    statistics = statistics or Statistics()
    admission = Admission(ingest, ingest.load, statistics)
    authorization = Authorization(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Admission]]:
        async with hub.running():
            yield {"admission": admission}  # for the connections

    app = _App(
        title=DISTRIBUTION,
        description="Skipped steps and non-finite gradients of training jobs.",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    errors.install(app)
    figures = StoreFigures(store.size, store.limit_bytes, lambda: store.state.condition)
    own = OwnCollector(ledger, statistics, figures, load=ingest.load, version=app.version)
    renderer = Renderer(ledger, own, clock=clock)
    app.include_router(reports.router())
    scraped = Scraped(ledger)
    ingest.subscribe(scraped.committed)
    limiter = Limiter()
    app.include_router(queries.router(ledger, limiter))
    app.include_router(steps.router(store, ledger, limiter))
    app.include_router(series.router(store, ledger, limiter))
    app.include_router(events.router(store, ledger, limiter))
    app.include_router(incidents.router(store, ledger, limiter))
    app.include_router(changes.router(ingest, authorization))
    app.include_router(stream.router(store, hub))
    app.include_router(metrics.router(renderer, statistics, scraped))
    app.include_router(operation.router(lambda: ingest.alive, lambda: hub.closed, lambda: store.state, scraped))
    files = PageFiles(pages.PAGE)
    app.include_router(pages.router(app.openapi, files, settings.scope, grafana=settings.grafana_url))
    app.mount("/page", files)
    app.admission = admission
    app.reports = SecurityHeaders(
        HostCheck(reports.ReportRoute(authorization, ingest, admission, statistics), settings)
    )
    # The middleware added last handles a request first.
    app.add_middleware(GZipMiddleware, minimum_size=COMPRESSED_BYTES, compresslevel=_LEVEL)
    app.add_middleware(Head)
    app.add_middleware(HostCheck, settings=settings)
    app.add_middleware(SecurityHeaders)
    return app


def serve(settings: Settings, clock: Clock = time.time) -> None:
    """Run an exporter until SIGTERM or SIGINT.

    Args:
      settings: where it listens, and what it keeps.
      clock: seconds since 1970.

    Raises:
      click.ClickException: it cannot start. The message is one line.
    """
    configure_logging(settings.log_level)
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.set_threshold(_COLLECT_AFTER, *gc.get_threshold()[1:])
    try:
        most_connections = allow_connections()
        with contextlib.ExitStack() as stack:
            sockets, bound = bind_all(settings.listen)
            for sock in sockets:
                stack.callback(sock.close)
            settings = dataclasses.replace(settings, listen=bound)
            if settings.announce is not None:
                # Prometheus sends the host of the target as the Host header.
                names = (*settings.allowed_hosts, announcement.target(settings).host)
                settings = dataclasses.replace(settings, allowed_hosts=names)
            store = Store(settings.data_dir, limit_bytes=settings.retention_bytes, recover=settings.recover)
            stack.callback(store.close)
            if settings.ingest_socket is not None:
                mode, group = settings.ingest_socket_mode, settings.ingest_socket_group
                sockets.append(stack.enter_context(bound_unix(settings.ingest_socket, mode=mode, group=group)))
            limits = Limits(settings.new_runs_per_minute, settings.retention_bytes // BYTES_FOR_AN_INCARNATION)
            ledger = Ledger(clock, time.monotonic, limits, settings.scope)
            retention = Retention(seconds=settings.retention_days * 86_400)
            ingest = Ingest(store, ledger, retention=retention)
            statistics = Statistics()
            if settings.event_log is not None:
                event_log = EventLog(store, settings.event_log, statistics.event_log_failed)
                stack.callback(event_log.close)
                ingest.subscribe(event_log.committed)
                event_log.start()
            if settings.webhook is not None:
                link = f"http://{announcement.target(settings)}"
                webhook = Webhook(settings.webhook, ledger, link=link, failed=statistics.webhook_failed)
                stack.callback(webhook.close)
                ingest.subscribe(webhook.committed)
                webhook.start()
            stack.callback(ingest.close)  # before the event log and the webhook, which send what is left
            ingest.start()
            hub = Hub(ingest.subscribe, store, ledger)
            app = create_app(
                settings, store=store, ledger=ledger, ingest=ingest, hub=hub, clock=clock, statistics=statistics
            )
            announced = stack.enter_context(contextlib.ExitStack())
            if settings.announce is not None:
                announced.enter_context(announcement.announced(settings.announce, settings))

            def stopping() -> None:
                announced.close()  # first, so that Prometheus does not see a target that is down
                hub.close()

            server = server_of(
                app,
                started=lambda: _say_where(settings),
                stopping=stopping,
                most_connections=most_connections,
            )
            server.run(sockets)
    except (StartError, StoreError, EventLogError) as error:
        raise click.ClickException(str(error)) from error


def _say_where(settings: Settings) -> None:
    """Print one line to standard error, at any log level: where the exporter listens and where its data is."""
    urls = " and ".join(_url(one) + " (every address)" * one.wildcard for one in settings.listen)
    line = [f"{DISTRIBUTION}: listening on {urls}, data in {settings.data_dir}"]
    if settings.ingest_socket is not None:
        line.append(f"reports also over {settings.ingest_socket}")
    if settings.closed:
        where = "TCP" if settings.closed == settings.listen else " and ".join(map(_url, settings.closed))
        line.append(f"no reports over {where} (beyond loopback they need --token-file)")
    print(", ".join(line), file=sys.stderr, flush=True)


def _url(address: Address) -> str:
    return f"http://{Address('127.0.0.1', address.port) if address.wildcard else address}"


def forget_run(data_dir: Path, name: str) -> None:
    """Delete a run from the store in `data_dir`. No exporter may be running on it.

    Raises:
      click.ClickException: the directory is in use, contains no store, or the store has no such run.
    """
    if not holds_store(data_dir):
        raise click.ClickException(f"--data-dir {data_dir}: contains no store")
    try:
        with contextlib.closing(Store(data_dir)) as store:
            ingest = Ingest(store, Ledger(time.time), tick=0)
            ingest.start()
            with contextlib.closing(ingest):
                if not ingest.forget(name):
                    raise click.ClickException(f"the store in {data_dir} has no run {name!r}")
    except StoreError as error:
        raise click.ClickException(str(error)) from error
