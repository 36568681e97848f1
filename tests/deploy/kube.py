"""Renders the Kubernetes manifests, and validates objects as strictly as an API server would."""

import functools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate
import yaml
from optwrap_exporter.cli.main import main
from optwrap_exporter.settings import Settings

from tests.deploy.crds import SCHEMAS
from tests.deploy.places import DEPLOY
from tests.programs import located

KUBERNETES: Final = DEPLOY / "kubernetes"
BASES: Final = ("sidecar", "shared", "jobset/tpu", "jobset/gpu", "operator", "gmp")
TOKEN: Final = "0123456789abcdef"
EXPORTER: Final = "optwrap-exporter"
PORT: Final = "optwrap-metrics"

Object = dict[str, Any]


class Unknown(AssertionError):
    """An object is not valid."""


@functools.cache
def rendered(base: str) -> tuple[Object, ...]:
    """The objects of a base. That of the shared exporter gets a token."""
    with tempfile.TemporaryDirectory() as directory:
        copy = copied(Path(directory))
        return kustomize(copy / "kubernetes" / base)


def copied(folder: Path) -> Path:
    """A copy of what bases are made of, with a token, in `folder`."""
    for name in ("kubernetes", "grafana"):
        shutil.copytree(DEPLOY / name, folder / name)
    (folder / "kubernetes" / "shared" / "token").write_text(TOKEN)
    return folder


def kustomize(folder: Path) -> tuple[Object, ...]:
    """The objects that kubectl renders."""
    kubectl = located("kubectl")
    assert kubectl is not None
    made = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert (made.returncode, made.stderr) == (0, "")
    return tuple(yaml.safe_load_all(made.stdout))


def one(objects: tuple[Object, ...], kind: str) -> Any:
    """The only object of a kind."""
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def validate(manifest: Object) -> None:
    """Check an object, and the Jobs in it.

    Raises:
      Unknown: it has an unknown field, lacks one, or a value is wrong.
    """
    schema = SCHEMAS.get(manifest["kind"])
    try:
        if schema is None:
            kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
            return
        jsonschema.validate(manifest, schema)
    except (kubernetes_validate.ValidationError, jsonschema.ValidationError) as error:
        raise Unknown(str(error)) from error
    for job in manifest["spec"].get("replicatedJobs", []):
        validate({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job["name"]}, **job["template"]})


def pods(manifest: Object) -> Iterator[Object]:
    """The pod templates of an object."""
    if manifest["kind"] == "JobSet":
        yield from (job["template"]["spec"]["template"] for job in manifest["spec"]["replicatedJobs"])
    elif "template" in manifest["spec"]:
        yield manifest["spec"]["template"]


def pods_of(manifest: Object) -> list[Object]:
    """The pod templates of any object."""
    return list(pods(manifest)) if "spec" in manifest else []


def containers(template: Object) -> list[Any]:
    """All containers of a pod template, also those that are sidecars."""
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def pod(manifest: Object) -> Object:
    """The only pod template of an object."""
    (found,) = pods(manifest)
    return found


def container(template: Object, name: str) -> Any:
    """A container of a pod template, also one that is a sidecar."""
    (found,) = (each for each in containers(template) if each["name"] == name)
    return found


def environment(of: Object, template: Object, downward: dict[str, str]) -> dict[str, str]:
    """The variables of a container, as the kubelet makes them.

    Args:
      of: the container.
      template: its pod.
      downward: the fields that only a cluster knows, by path.
    """
    known = downward | {
        f"metadata.labels['{name}']": value for name, value in template.get("metadata", {}).get("labels", {}).items()
    }
    made: dict[str, str] = {}
    for variable in of.get("env", []):
        text = variable.get("value", "")
        if "valueFrom" in variable:
            text = known[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        made[variable["name"]] = expanded(text, made)
    return made


def expanded(text: str, variables: dict[str, str]) -> str:
    """`text` with the values of the variables that are defined before it."""
    for name, value in variables.items():
        text = text.replace(f"$({name})", value)
    return text


def options(exporter: Object, template: Object, places: dict[str, Path]) -> tuple[list[str], dict[str, str]]:
    """The arguments and the variables of an exporter's container.

    Args:
      exporter: the container.
      template: its pod.
      places: stand-ins for the directories that are mounted.
    """
    variables = environment(exporter, template, {"metadata.namespace": "training"})

    def here(text: str) -> str:
        return re.sub("|".join(places), lambda found: str(places[found[0]]), text)

    return [here(expanded(text, variables)) for text in exporter.get("args", [])], {
        name: here(value) for name, value in variables.items()
    }


def settings(arguments: list[str], variables: dict[str, str]) -> Settings:
    """What the exporter's own command line makes of them."""
    known = {
        option.envvar or f"OPTWRAP_EXPORTER_{str(option.name).upper()}"
        for option in main.params
        if isinstance(option, click.Option)
    }
    assert {name for name in variables if name.startswith("OPTWRAP_")} <= known
    prepared = main.make_context("optwrap-exporter", list(arguments), resilient_parsing=False)
    return Settings(**prepared.params)
