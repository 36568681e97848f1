"""The structure of the package: imports point one way, and every module has its place."""

import ast
import importlib
from itertools import groupby
from pathlib import Path

import optwrap_exporter
import pytest
from optwrap_exporter.wire.errors import ExporterError

PACKAGE = Path(optwrap_exporter.__file__).parent

MODULES = """
_version
wire.vocabulary wire.words wire.times wire.errors wire.size wire.requests wire.fields wire.incident wire.answers
wire.step_answers wire.series wire.consistency wire.cursor wire.duplicate_keys
settings
ledger.clocks ledger.evolve ledger.ranges
ledger.state.counters ledger.state.parts ledger.state.streaks ledger.state.incarnation ledger.state.compaction
ledger.state.past ledger.state.conditions ledger.state.pace ledger.state.lost ledger.state.process
ledger.state.incident ledger.state.run
ledger.bounds
ledger.change.conflict ledger.change.divergence ledger.change.failures ledger.change.health ledger.change.events
ledger.change.apply_report
ledger.plan
ledger.incidents.changes ledger.incidents.steps ledger.incidents.conditions ledger.incidents.divergence
ledger.incidents.report ledger.incidents.plans ledger.incidents.summary
ledger.shown.attempts ledger.shown.figures ledger.shown.unseen ledger.shown.summary ledger.shown.labels
ledger.shown.views ledger.shown.run_list
ledger.ledger
store.bulk store.condition store.schema store.connections
store.steps.step_columns store.steps.rollups store.steps.downsample store.steps.scalar_rollups store.steps.grid
store.steps.record_series store.steps.series
store.retention store.event_list store.incident_list store.queries store.reads store.pending store.writer store.opening
store.store
ingest.load ingest.group_commit ingest.event_log ingest.webhook ingest.operations ingest.waiting ingest.ingest
metrics.metric metrics.exporter metrics.incidents metrics.table metrics.own metrics.samples metrics.collector
metrics.render
http.own_file http.scraped http.errors http.api_page
http.query.csv_answer http.query.limiter http.query.parameters http.query.responses http.query.routing
http.middleware http.authorization
http.serving.admission http.serving.connections http.serving.log_limit http.serving.connection_timeout
http.serving.server
http.announcement http.channel http.hub http.page_files
http.routes.changes http.routes.events http.routes.incidents http.routes.metrics http.routes.operation
http.routes.pages http.routes.queries http.routes.reports http.routes.series http.routes.steps http.routes.stream
http.app http.openapi
cli.text cli.exporter cli.render cli.client cli.options cli.main
__main__
"""
"""Every module of the package. A module imports only modules before it, and the modules of a folder stand together. So
no two folders import each other."""
ORDER = MODULES.split()


def modules() -> dict[str, Path]:
    """Every module by its name below the package, without the `__init__` modules."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py"
    }


def imports(path: Path) -> set[str]:
    """The absolute names that a module imports, also inside functions and under TYPE_CHECKING."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_module_has_a_place_in_the_order() -> None:
    assert set(ORDER) == set(modules())


def test_the_modules_of_a_folder_stand_together() -> None:
    packages = [name for name, _ in groupby(ORDER, key=lambda name: name.partition(".")[0])]
    assert len(packages) == len(set(packages))
    folders = [name for name, _ in groupby(name.rpartition(".")[0] for name in ORDER) if name.count(".") == 1]
    assert len(folders) == len(set(folders))


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_modules_before_it(name: str) -> None:
    prefix = "optwrap_exporter."
    inside = {found.removeprefix(prefix) for found in imports(modules()[name]) if found.startswith(prefix)}
    assert inside & set(ORDER) <= set(ORDER[: ORDER.index(name)])


@pytest.mark.parametrize("name", ORDER)
def test_no_module_imports_the_library_or_jax(name: str) -> None:
    assert {found.partition(".")[0] for found in imports(modules()[name])}.isdisjoint({"optwrap", "jax", "optax"})


def test_the_subpackages_import_nothing_themselves() -> None:
    """Importing one module does not import its neighbours."""
    for path in PACKAGE.glob("*/**/__init__.py"):
        assert imports(path) == set(), path


def test_the_package_itself_imports_only_its_version() -> None:
    assert imports(PACKAGE / "__init__.py") == {"optwrap_exporter._version", "optwrap_exporter._version.__version__"}


def test_no_module_is_too_long() -> None:
    """A module of more than 350 lines has more than one idea."""
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_every_error_of_the_package_is_in_the_hierarchy_and_in_its_documentation() -> None:
    """Private ones never leave their module."""
    hierarchy = ast.get_docstring(ast.parse((PACKAGE / "wire" / "errors.py").read_text())) or ""
    found = [
        (name, one)
        for name in modules()
        for one in vars(importlib.import_module(f"optwrap_exporter.{name}")).values()
        if isinstance(one, type) and issubclass(one, BaseException)
        if one.__module__ == f"optwrap_exporter.{name}" and not one.__name__.startswith("_")
    ]
    assert {one for _, one in found if not issubclass(one, ExporterError)} == set()
    listed = {tuple(line.split()[:2]) for line in hierarchy.split("\n\n")[1].splitlines()[1:]}
    assert listed == {(one.__name__, name) for name, one in found if one is not ExporterError}
