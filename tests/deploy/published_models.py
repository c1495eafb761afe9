"""Whether files are what KServe's and Azure's own packages take: `python published_models.py DEPLOY`.

In an environment with kserve and azure-ai-ml, which are too heavy for that of the tests. Prints a line for each object,
and fails at the first fault.
"""

import sys
import types
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import yaml

DEPLOY = Path(sys.argv[1])


def check_kserve() -> None:
    """Each object goes through the package's model and comes back; what the model does not know would be lost."""
    spec = find_spec("kserve")
    package = types.ModuleType("kserve")  # without its __init__, which imports a web server
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["kserve"] = package
    models, kubernetes_client = import_module("kserve.models"), import_module("kubernetes.client")

    client = kubernetes_client.ApiClient()
    for name, kinds in {
        "runtime.yaml": {"ClusterServingRuntime": "V1alpha1ClusterServingRuntime"},
        "service.yaml": {"InferenceService": "V1beta1InferenceService"},
    }.items():
        (document,) = yaml.safe_load_all((DEPLOY / "kserve" / name).read_text(encoding="utf-8"))
        model = getattr(models, kinds[document["kind"]])
        read = deserialized(client, models, document, model)
        lost = differences(document, client.sanitize_for_serialization(read))
        assert not lost, f"{name}: {lost}"
        sys.stdout.write(f"kserve/{name}: {model.__name__}\n")


def deserialized(client, models, document, model):
    """As ApiClient.deserialize, which knows the models of Kubernetes alone."""
    of_kubernetes = import_module("kubernetes.client.models")
    for name in dir(models):
        if name.startswith("V1") and not hasattr(of_kubernetes, name):
            setattr(of_kubernetes, name, getattr(models, name))
    return client._ApiClient__deserialize(document, model)


def differences(given, came_back, place="") -> list[str]:
    if isinstance(given, dict):
        missing = [f"{place}.{name}" for name in given if name not in (came_back or {})]
        return missing + [
            found
            for name in given.keys() & (came_back or {}).keys()
            for found in differences(given[name], came_back[name], f"{place}.{name}")
        ]
    if isinstance(given, list):
        if len(given) != len(came_back):
            return [place]
        return [
            f for n, (a, b) in enumerate(zip(given, came_back, strict=True)) for f in differences(a, b, f"{place}[{n}]")
        ]
    return [] if given == came_back else [f"{place}: {came_back!r}"]


def check_azure() -> None:
    """The package's own loaders, which refuse what their schemas do not know."""
    ml = import_module("azure.ai.ml")
    environment = ml.load_environment(DEPLOY / "azureml" / "environment.yaml")
    assert set(environment.inference_config) == {"livenessRoute", "readinessRoute", "scoringRoute"}
    endpoint = ml.load_online_endpoint(DEPLOY / "azureml" / "endpoint.yaml")
    deployment = ml.load_online_deployment(DEPLOY / "azureml" / "deployment.yaml")
    assert deployment.endpoint_name == endpoint.name and endpoint.auth_mode == "key"
    assert deployment.request_settings.request_timeout_ms == 90000
    for entity in (environment, endpoint, deployment):
        sys.stdout.write(f"azureml: {type(entity).__name__} {entity.name}\n")


if __name__ == "__main__":
    check_kserve()
    check_azure()
