"""The Helm chart: its values, what Helm makes of them, and what Kubernetes and PostgreSQL take.

Helm's own library renders it, where `pip install helm-python-sdk kubernetes-validate` was run.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from service.settings import Settings

ROOT = Path(__file__).parent.parent.parent
CHART = ROOT / "docker" / "helm" / "rankpress"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
KUBERNETES = "1.30"
WARNING = 2
"""How severe a finding of Helm's linter is."""

CUSTOM = {"ScaledObject", "TriggerAuthentication", "ServiceMonitor"}
"""Kinds that Kubernetes itself does not know."""

ALL = {
    "server": {"gpu": True, "variables": {"RANKPRESS_WORKERS": 2}},
    "worker": {"gpu": True, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
    "decoder": {"nodeSelector": {"disk": "ssd"}},
    "nginx": {"secret": "write"},
    "images": {"pullSecrets": ["registry"]},
    "ingress": {"enabled": True, "className": "public", "tlsSecret": "tls"},
    "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "mon"}}}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "mon"}},
    "variables": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"},
}
"""Values with which everything is made that can be."""

PLAIN = {"worker": {"scaling": {"enabled": False}}, "networkPolicy": {"enabled": False}}
"""Values with which nothing is made that need not be."""

Change = Callable[[dict[str, Any]], Any]


def optional(name: str, package: str) -> ModuleType:
    """A package that is too large for the extra `dev`."""
    module: ModuleType = pytest.importorskip(name, reason=f"pip install {package}")
    return module


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    """What Helm would send to Kubernetes, as a release `pictures` in the namespace `prod`."""
    helm = optional("helm_python", "helm-python-sdk")
    with helm.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="pictures", namespace="prod")
    documents = [d for text in files.values() for d in yaml.safe_load_all(text)]
    return [document for document in documents if document]


def containers(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The one container of each Deployment, by role, with its pod."""
    pods = {
        d["metadata"]["labels"]["app.kubernetes.io/component"]: d["spec"]["template"]["spec"]
        for d in documents
        if d["kind"] == "Deployment"
    }
    return {role: {**pod["containers"][0], "pod": pod} for role, pod in pods.items()}


def test_the_values_that_ship_follow_their_schema() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.Draft7Validator(SCHEMA).validate(VALUES)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["server"].update(replica=2),
        lambda v: v["server"].update(replicas="2"),
        lambda v: v["worker"]["scaling"].update(jobs=0),
        lambda v: v["objects"].update(url="/a/folder"),
        lambda v: v["database"].update(sslmode="yes"),
        lambda v: v["database"].update(password="in the open"),
        lambda v: v["server"].update(secret=""),
        lambda v: v["images"].pop("cpu"),
        lambda v: v["nginx"].update(cacheSize="10g; evil"),
    ],
)
def test_wrong_values_are_refused(change: Change) -> None:
    values = copy.deepcopy(VALUES)
    change(values)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate(values)


def test_the_images_and_files_of_nginx_are_those_of_compose() -> None:
    assert VALUES["images"]["nginx"] == COMPOSE["nginx"]["image"]
    for name in ("nginx.conf", "nginx.sh"):
        assert (CHART / "files" / name).resolve() == ROOT / "docker" / name


@pytest.mark.platform
@pytest.mark.parametrize("values", [{}, ALL, PLAIN], ids=["default", "all", "plain"])
def test_helm_makes_documents_that_kubernetes_knows(values: dict[str, Any]) -> None:
    helm = optional("helm_python", "helm-python-sdk")
    findings = helm.lint(str(CHART), values)
    assert all(found["severity"] < WARNING for found in findings["messages"]), findings
    assert not findings["errors"]
    documents = rendered(values)
    validate = optional("kubernetes_validate", "kubernetes-validate").validate
    names = [(d["kind"], d["metadata"]["name"]) for d in documents]
    assert len(names) == len(set(names))
    for document in documents:
        if document["kind"] not in CUSTOM:
            validate(document, KUBERNETES, strict=True)


@pytest.mark.platform
def test_pods_are_hardened_as_the_containers_of_compose_and_know_their_own_secrets() -> None:
    found = containers(rendered(ALL))
    assert set(found) == {"server", "worker", "decoder", "nginx"}
    for role, container in found.items():
        pod, security = container["pod"], container["securityContext"]
        assert pod["enableServiceLinks"] is False, "RANKPRESS_PORT would be a service's"
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        assert security["readOnlyRootFilesystem"] and security["capabilities"] == {"drop": ["ALL"]}
        assert security["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"]["memory"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (
            role in ("server", "worker")
        )
        secret = VALUES[role]["secret"] or "write"
        assert container["envFrom"] == [{"secretRef": {"name": secret}}]
        assert ("readinessProbe" in container) == (role != "worker")
    for role in ("server", "decoder"):
        assert found[role]["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert found[role]["livenessProbe"]["httpGet"]["path"] == "/livez"


@pytest.mark.platform
def test_pods_have_the_settings_of_the_containers_of_compose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = containers(rendered({}))
    for role, service in (("server", "server-1"), ("worker", "worker"), ("decoder", "decoder")):
        env = {each["name"]: each["value"] for each in found[role]["env"]}
        with monkeypatch.context() as patch:
            for name, value in env.items():
                assert name.removeprefix("RANKPRESS_").lower() in {
                    *Settings.model_fields,
                    "aws_region",
                }
                patch.setenv(name, value)
            settings = Settings(decode_only=role == "decoder")
        assert settings.objects_url == "s3://rankpress"
        theirs = {n for n in COMPOSE[service]["environment"] if n.startswith("RANKPRESS_")}
        behind = {"RANKPRESS_STATE", "RANKPRESS_JOB_THREADS"}  # compose's worker has an option
        ours = {n for n in env if n.startswith("RANKPRESS_")}
        no_http = {"RANKPRESS_FORWARDED_ALLOW_IPS", "RANKPRESS_MAX_SPOOL_BYTES"}
        assert ours | behind == theirs - (no_http if role == "worker" else set()) | behind, role
    nginx = {each["name"]: each["value"] for each in found["nginx"]["env"]}
    assert nginx["SERVERS"] == "pictures-server.prod.svc.cluster.local:8000"
    assert nginx["CACHE_SIZE"] == "10g"


@pytest.mark.platform
def test_what_is_named_is_there() -> None:
    documents = rendered(ALL)
    by_kind: dict[str, dict[str, Any]] = {}
    for document in documents:
        by_kind.setdefault(document["kind"], {})[document["metadata"]["name"]] = document
    labels = {
        name: d["spec"]["template"]["metadata"]["labels"]
        for name, d in by_kind["Deployment"].items()
    }
    selectors = [d["spec"]["selector"] for d in by_kind["Service"].values()]
    selectors += [
        d["spec"]["selector"]["matchLabels"] for d in by_kind["PodDisruptionBudget"].values()
    ]
    selectors += [
        d["spec"]["podSelector"]["matchLabels"] for d in by_kind["NetworkPolicy"].values()
    ]
    for selector in selectors:
        assert sum(selector.items() <= each.items() for each in labels.values()) == 1
    (scaled,) = by_kind["ScaledObject"].values()
    assert scaled["spec"]["scaleTargetRef"]["name"] in labels
    (trigger,) = scaled["spec"]["triggers"]
    assert trigger["authenticationRef"]["name"] in by_kind["TriggerAuthentication"]
    assert "replicas" not in by_kind["Deployment"]["pictures-worker"]["spec"]
    assert "ScaledObject" not in {d["kind"] for d in rendered(PLAIN)}
    (ingress,) = by_kind["Ingress"].values()
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"]["name"] in by_kind["Service"]
    files = by_kind["ConfigMap"]["pictures-nginx"]["data"]
    for name, text in files.items():
        assert text.strip() == (ROOT / "docker" / name).read_text().strip()


def scaling_query() -> str:
    """The query by which KEDA counts jobs; test_rights.py runs it."""
    text = (CHART / "templates" / "scaling.yaml").read_text()
    found = re.search(r"query: >-\n(.*?)\n +targetQueryValue", text, re.DOTALL)
    assert found is not None
    return " ".join(found[1].split())
