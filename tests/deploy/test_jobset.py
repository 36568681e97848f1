"""The JobSets: what their trainers report as, and what becomes of a job that stops itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import optwrap
from optwrap._monitor.settings import resolve
from tests.conftest import RunningExporter
from tests.deploy.kube import EXPORTER, TOKEN, Object, container, environment, one, options, pod, pods, rendered

pytestmark = [pytest.mark.programs("kubectl")]
BASES = ["jobset/tpu", "jobset/gpu"]


def trainers(jobset: Object) -> list[Any]:
    return [each for template in pods(jobset) for each in template["spec"]["containers"]]


def seen(
    trainer: Any, *, index: int = 0, restart: int = 0, uid: str = "5c1e4f0a-0000-4000-8000-00000000abcd"
) -> dict[str, str]:
    """The variables of a trainer in the Job of this index, after so many restarts of its JobSet."""
    labels = {"jobset-name": "lm", "jobset-uid": uid, "restart-attempt": str(restart), "job-index": str(index)}
    downward = {f"metadata.labels['jobset.sigs.k8s.io/{name}']": value for name, value in labels.items()}
    downward["metadata.annotations['jobset.sigs.k8s.io/coordinator']"] = "lm-host-0-0.lm"
    return environment(trainer, {}, downward)


@pytest.mark.parametrize("base", BASES)
def test_slices_are_one_run_and_each_restart_of_the_jobset_is_an_attempt(base: str) -> None:
    """By what the Monitor makes of the variables that the kubelet sets from JobSet's labels."""
    made = one(rendered(base), "JobSet")
    found = [resolve(seen(trainer, index=index)) for trainer in trainers(made) for index in (0, 1)]
    assert {(each.run, each.attempt) for each in found if each} == {("lm", "5c1e4f0a-0000-4000-8000-00000000abcd-0")}
    assert {each.token_file for each in found if each} == {"/etc/optwrap/token"}
    assert len({resolve(seen(trainers(made)[0], restart=count)) for count in range(3)}) == 3
    assert resolve(seen(trainers(made)[0], uid="")) is not None  # an older controller sets no such label


def test_real_monitors_of_two_slices_are_one_run_of_the_shared_exporter(
    start_exporter: Callable[..., RunningExporter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both containers of a pod in each slice, and again after a restart of the JobSet, by their variables alone."""
    (tmp_path / "token").write_text(TOKEN)
    template = pod(one(rendered("shared"), "StatefulSet"))
    arguments, _ = options(container(template, EXPORTER), template, {"/etc/optwrap": tmp_path})
    exporter = start_exporter(*arguments)
    made = one(rendered("jobset/tpu"), "JobSet")
    for restart in range(2):
        for process, (trainer, index) in enumerate((each, index) for index in (0, 1) for each in trainers(made)):
            for name, value in seen(trainer, index=index, restart=restart).items():
                monkeypatch.setenv(name, value)
            # The name of the Service and the directory of the Secret are a cluster's.
            monkeypatch.setenv("OPTWRAP_ENDPOINT", exporter.url)
            monkeypatch.setenv("OPTWRAP_TOKEN_FILE", str(tmp_path / "token"))
            optwrap.Monitor(process=process).close()
        (run,) = httpx.get(f"{exporter.url}/v1/runs", trust_env=False).json()["items"]
        assert (run["run"], run["attempts_total"]) == ("lm", restart + 1)
        whole = httpx.get(f"{exporter.url}/v1/runs/lm", trust_env=False).json()
        assert [each["attempt"] for each in whole["attempts"]][-1].endswith(f"-{restart}")
        assert len(whole["processes"]) == 4


@pytest.mark.parametrize("base", BASES)
def test_a_stop_decision_ends_the_jobset_and_anything_else_restarts_it(base: str) -> None:
    made = one(rendered(base), "JobSet")
    assert made["spec"]["failurePolicy"]["maxRestarts"] > 0
    (rule,) = made["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    for job in made["spec"]["replicatedJobs"]:
        spec = job["template"]["spec"]
        assert spec["backoffLimit"] == 0
        assert spec["template"]["spec"]["restartPolicy"] == "Never"  # Kubernetes wants it for a podFailurePolicy
        judged = {rule["onExitCodes"]["containerName"]: rule for rule in spec["podFailurePolicy"]["rules"]}
        assert set(judged) == {each["name"] for each in spec["template"]["spec"]["containers"]}
        for rule in judged.values():
            assert rule["action"] == "FailJob"
            assert rule["onExitCodes"]["operator"] == "In"
            assert rule["onExitCodes"]["values"] == [optwrap.Stop.exit_code]


@pytest.mark.parametrize("base", BASES)
def test_trainers_on_their_hosts_network_reach_the_shared_exporter(base: str) -> None:
    """By the name of its Service, with its Secret, which may be missing, and a label that its policy lets in."""
    made = one(rendered(base), "JobSet")
    service = one(rendered("shared"), "Service")
    (template,) = pods(made)
    for trainer in template["spec"]["containers"]:
        endpoint = httpx.URL(seen(trainer)["OPTWRAP_ENDPOINT"])
        assert (endpoint.host, endpoint.port) == (service["metadata"]["name"], service["spec"]["ports"][0]["port"])
        (mount,) = (each for each in trainer["volumeMounts"] if each["name"] == "optwrap-token")
        assert Path(seen(trainer)["OPTWRAP_TOKEN_FILE"]) == Path(mount["mountPath"]) / "token"
    (volume,) = (each for each in template["spec"]["volumes"] if each["name"] == "optwrap-token")
    assert volume["secret"]["secretName"] == one(rendered("shared"), "Secret")["metadata"]["name"]
    assert volume["secret"]["optional"] is True
    assert volume["secret"]["defaultMode"] == 0o444
    assert template["spec"]["hostNetwork"] is True
    assert template["spec"]["dnsPolicy"] == "ClusterFirstWithHostNet"
    clients = [
        peer["podSelector"]["matchLabels"]
        for rule in one(rendered("shared"), "NetworkPolicy")["spec"]["ingress"]
        for peer in rule["from"]
    ]
    assert template["metadata"]["labels"] in clients
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]


def test_the_examples_have_the_processes_that_they_say() -> None:
    """Two slices of 16 hosts with two processes each, as 4x4x4 chips are; four hosts with one each."""
    (slices,) = one(rendered("jobset/tpu"), "JobSet")["spec"]["replicatedJobs"]
    job = slices["template"]["spec"]
    chips = sum(each["resources"]["limits"]["google.com/tpu"] for each in job["template"]["spec"]["containers"])
    assert (slices["replicas"], job["parallelism"], job["completions"]) == (2, 16, 16)
    topology = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    x, y, z = map(int, topology.split("x"))
    assert chips * job["parallelism"] == x * y * z
    (hosts,) = one(rendered("jobset/gpu"), "JobSet")["spec"]["replicatedJobs"]
    job = hosts["template"]["spec"]
    (trainer,) = job["template"]["spec"]["containers"]
    assert int(seen(trainer)["PROCESSES"]) == job["parallelism"] == job["completions"]
    coordinator = one(rendered("jobset/gpu"), "JobSet")["spec"]["coordinator"]
    assert coordinator == {"replicatedJob": hosts["name"]}
