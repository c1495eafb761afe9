"""What the files of deploy/ ask a running endpoint and Triton for: paths, and the metrics of the dashboard."""

import json
import re
from http.client import HTTPConnection

import pytest

from tests.deploy.kustomization import containers, documents, rendered
from tests.paths import ROOT
from tests.triton.commands import texts
from tests.triton.endpoint.raw_http import KEY

DEPLOY = ROOT / "deploy"
METRIC = re.compile(r"\b(?:medimage|nv)_[a-z_]+\b")
# What Triton tells of GPUs alone: "GPU Metrics" in its user guide's page on metrics.
OF_GPUS = {"nv_gpu_utilization", "nv_gpu_memory_total_bytes", "nv_gpu_memory_used_bytes"}


def ask(address, path, body=None, **headers):
    connection = HTTPConnection(*address, timeout=60)
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def samples(page):
    return set(re.findall(r"^([a-z_]+)(?:{| )", page, re.MULTILINE))


@pytest.fixture(scope="module")
def exported_metrics(triton, endpoint):
    """Names of all samples of the endpoint and of Triton, once there has been a request."""
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    assert ask(endpoint.address, "/score", texts("a text"), **headers)[0] == 200
    status, own = ask(endpoint.address, "/metrics", **headers)
    assert status == 200
    _, tritons = ask(("127.0.0.1", triton.server.metrics_port), "/metrics")
    return samples(own) | samples(tritons) | OF_GPUS


def test_dashboard_shows_metrics_that_there_are(exported_metrics):
    dashboard = json.loads((DEPLOY / "monitoring" / "grafana" / "medimage.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown = {name for expression in expressions for name in METRIC.findall(expression)}
    assert shown - exported_metrics == set()
    assert len(shown) > 15 and "medimage_report_tokens_total" in shown and "nv_inference_queue_duration_us" in shown


def test_autoscalers_look_at_metrics_that_there_are(exported_metrics):
    (values,) = documents(DEPLOY / "kubernetes" / "prometheus-adapter.yaml")
    for rule in values["rules"]["custom"]:
        assert set(METRIC.findall(rule["metricsQuery"] + rule["seriesQuery"])) <= exported_metrics


def test_probes_are_answered_without_a_key(triton, endpoint):
    objects = rendered(DEPLOY / "kubernetes" / "overlays" / "several", {"keys": "a key"})
    addresses = {"medimage": endpoint.address, "triton": ("127.0.0.1", triton.server.http_port)}
    for container in containers(objects):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert ask(addresses[container["name"]], container[probe]["httpGet"]["path"])[0] == 200
