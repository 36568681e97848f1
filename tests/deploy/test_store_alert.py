"""While an exporter cannot store reports, the silence of processes is muted, and nothing else is."""

from pathlib import Path

import httpx
import pytest

from tests.deploy import alertmanager as alertmanagers
from tests.polling import wait_until

pytestmark = [pytest.mark.programs("prometheus-alertmanager"), pytest.mark.xdist_group("alerting")]

SILENT = {"OptwrapProcessStale", "OptwrapProcessMissing", "OptwrapStalled"}
OTHERS = {"OptwrapGaveUp", "OptwrapExporterDown", "OptwrapStoreNearlyFull"}


def test_silence_is_muted_where_an_exporter_cannot_store_and_nowhere_else(tmp_path: Path) -> None:
    with (
        alertmanagers.running(tmp_path) as alertmanager,
        httpx.Client(base_url=f"http://{alertmanager.address}/api/v2", trust_env=False, timeout=30) as client,
    ):
        firing = [
            {
                "labels": {
                    "alertname": name,
                    "severity": "critical",
                    "namespace": namespace,
                    "run": f"{namespace}-{name}",
                }
            }
            for namespace in ("ill", "well")
            for name in SILENT | OTHERS
        ]
        firing += [
            {"labels": {"alertname": "OptwrapReportsRejected", "outcome": outcome, "namespace": "ill"}}
            for outcome in ("unavailable", "unauthorized")
        ]
        ill = {"alertname": "OptwrapStoreUnhealthy", "severity": "critical", "namespace": "ill", "condition": "full"}
        firing.append({"labels": ill | {"instance": "node-0:10425"}})
        assert client.post("/alerts", json=firing).status_code == 200

        def in_state(state: str) -> set[tuple[str, str, str]]:
            return {
                (alert["labels"]["namespace"], alert["labels"]["alertname"], alert["labels"].get("outcome", ""))
                for alert in client.get("/alerts").json()
                if alert["status"]["state"] == state
            }

        wait_until(lambda: not in_state("unprocessed"))
        refused = ("ill", "OptwrapReportsRejected", "unavailable")
        assert in_state("suppressed") == {refused, *(("ill", name, "") for name in SILENT)}
