"""deploy/: what it says to Kubernetes, KServe, Azure, Slurm and Compose, against schemas and against our own code."""

import json
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import referencing
from kubernetes_validate.utils import all_versions, schema_contents

from medimage_client.cli.group import medimage
from medimage_server.endpoint.access_log import access_log
from medimage_server.endpoint.app import endpoint_app
from medimage_server.endpoint.settings import EndpointOptions, EndpointSettings
from tests.deploy.kustomization import containers, documents, pods, rendered
from tests.paths import ROOT

DEPLOY = ROOT / "deploy"
OVERLAYS = sorted((DEPLOY / "kubernetes" / "overlays").iterdir())
JOBS = sorted((DEPLOY / "kubernetes" / "jobs").glob("*.yaml"))
KUBERNETES = "1.34"
SCHEMAS = f"kubernetes-json-schema/v{[v for v in all_versions() if v.startswith(KUBERNETES)][-1]}-local-strict"
TRITON_PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
TRITON_PATHS = {"/v2/health/ready", "/v2/health/live"}  # tests/triton/endpoint/test_deployment_files.py asks them
# variables that are not ours
OTHERS = re.compile(r"GF_|SLURM_|JOB_COMPLETION_INDEX|HOME|PATH")


@cache
def objects_of(name: str) -> list[dict[str, Any]]:
    path = DEPLOY / "kubernetes" / name
    return rendered(path, {"keys": "a key"}) if path.is_dir() else documents(path)


SETS = [*(f"overlays/{path.name}" for path in OVERLAYS), *(f"jobs/{path.name}" for path in JOBS)]


def command_of(*names: str) -> click.Command:
    """A subcommand of `medimage`."""
    command: click.Command = medimage
    for name in names:
        assert isinstance(command, click.Group)
        context = click.Context(command)
        found = command.get_command(context, name)
        assert found is not None, name
        command = found
    return command


SERVE, ENDPOINT = command_of("serve"), command_of("endpoint")


def variables(command: click.Command) -> set[str]:
    return {str(parameter.envvar) for parameter in command.params if parameter.envvar}


def default(command: click.Command, name: str) -> Any:
    (parameter,) = [parameter for parameter in command.params if parameter.name == name]
    return parameter.default


def check_command_line(words: list[str]) -> None:
    """That a command line of `medimage` has a subcommand and options that there are."""
    command: click.Command = medimage
    while words and isinstance(command, click.Group):
        command = command_of(*([] if command is medimage else [str(command.name)]), words.pop(0))
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"--help"}
    assert [word for word in words if word.startswith("--") and word.partition("=")[0] not in known] == [], command.name


def commands_in(script: str) -> list[list[str]]:
    """The words of each command of ours in a shell script."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*$", "", script, flags=re.MULTILINE)).splitlines()
    return [
        found[1].split() for line in lines if (found := re.search(r"(?:^|exec |run )medimage ([a-z][^>|&]*)", line))
    ]


@cache
def definitions() -> referencing.Registry:
    contents = schema_contents(f"{SCHEMAS}/_definitions.json", KUBERNETES)
    return referencing.Resource.from_contents(contents) @ referencing.Registry()


@cache  # most objects are in several overlays
def check_schema(text: str) -> None:
    """As `kubernetes_validate.validate(object, KUBERNETES, strict=True)`, which reads all definitions each time."""
    object = json.loads(text)
    group, _, version = object["apiVersion"].rpartition("/")
    kind = "-".join(filter(None, [object["kind"].lower(), group.partition(".")[0], version]))
    schema = schema_contents(f"{SCHEMAS}/{kind}.json", KUBERNETES)
    registry = referencing.Resource.from_contents(schema) @ definitions()
    jsonschema.Draft202012Validator(schema, registry=registry).validate(object)


@pytest.mark.parametrize("name", SETS)
def test_objects_are_those_of_kubernetes_schemas(name):
    objects = objects_of(name)
    known = [object for object in objects if object["apiVersion"] != "ray.io/v1"]
    # of a kind that is not Kubernetes' own, the pods
    known += [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": pod}
        for pod in pods([object for object in objects if object not in known])
    ]
    assert known
    for object in known:
        check_schema(json.dumps(object))


def test_schemas_refuse_what_is_misspelt():
    (deployment,) = [object for object in objects_of("overlays/cpu") if object["kind"] == "Deployment"]
    wrong = deepcopy(deployment)
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(jsonschema.ValidationError, match="readynessProbe"):
        check_schema(json.dumps(wrong))


@pytest.mark.parametrize("name", SETS)
def test_pods_keep_to_the_restricted_standard(name):
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/; and the root file system is read-only."""
    for pod in pods(objects_of(name)):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        for volume in pod["volumes"]:
            assert volume.keys() - {"name"} <= {"emptyDir", "persistentVolumeClaim", "secret"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["capabilities"] == {"drop": ["ALL"]}
            assert context.get("readOnlyRootFilesystem") or name == "jobs/embed-ray.yaml"  # Ray writes beside itself
            assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]


def mounted_at(pod: dict[str, Any], container: dict[str, Any], path: str) -> dict[str, Any]:
    (name,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == path]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == name]
    return volume


SERVERS = [
    *((f"overlays/{path.name}", pod) for path in OVERLAYS for pod in pods(objects_of(f"overlays/{path.name}"))),
    ("kserve", *pods(documents(DEPLOY / "kserve" / "runtime.yaml"))),
]


@pytest.mark.parametrize(("name", "pod"), SERVERS, ids=lambda value: value if isinstance(value, str) else "")
def test_shared_memory_is_memory_and_keys_are_a_secret(name, pod):
    for container in pod["containers"]:
        assert mounted_at(pod, container, "/dev/shm")["emptyDir"]["medium"] == "Memory"
        env = {item["name"]: item["value"] for item in container["env"]}
        if "MEDIMAGE_KEYS_FILE" in env:
            folder = str(Path(env["MEDIMAGE_KEYS_FILE"]).parent)
            assert mounted_at(pod, container, folder)["secret"]["secretName"] == "medimage-keys"
        else:
            assert env["MEDIMAGE_SCORE_PORT"] == ""  # a Triton alone


@pytest.mark.parametrize(("name", "pod"), SERVERS, ids=lambda value: value if isinstance(value, str) else "")
def test_ports_and_probes_are_those_of_the_code(name, pod):
    for container in pod["containers"]:
        env = {item["name"]: item["value"] for item in container["env"]}
        is_triton = env.get("MEDIMAGE_SCORE_PORT") == ""
        ports = {port.get("name", port["containerPort"]): port["containerPort"] for port in container["ports"]}
        assert set(ports.values()) <= ({*TRITON_PORTS.values()} if is_triton else {default(ENDPOINT, "score_port")})
        assert {port: default(SERVE, f"{port}_port") for port in TRITON_PORTS} == TRITON_PORTS
        paths = TRITON_PATHS if is_triton else routes()
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container:
                assert container[probe]["httpGet"]["path"] in paths
                assert ports.get(container[probe]["httpGet"]["port"]) in ports.values()


@cache
def routes() -> set[str]:
    """Of the endpoint."""
    settings = EndpointSettings(tritons=("grpc://a:1",), deployments=("medimageinsight",))
    with access_log(None) as log:
        return {route.path for route in endpoint_app(settings, log).routes}


@pytest.mark.parametrize("name", [*SETS, "../kserve/runtime.yaml"])
def test_commands_options_and_variables_exist(name):
    found = containers(objects_of(name))
    for container in found:
        args = [str(word) for word in container.get("args", [])]
        lines = [args] if args and "command" not in container else commands_in("\n".join(args))
        for words in lines:
            check_command_line(list(words))
        if args and "command" not in container:
            known = variables(command_of(args[0])) if args[0] != "export" else set()
            for item in container.get("env", []):
                assert item["name"] in known | {"MEDIMAGE_KEYS"}
        for mount in container["volumeMounts"]:
            assert mount["mountPath"] not in ("/", "/opt/medimage")
    assert found


def test_ray_job_has_options_that_exist():
    (job,) = documents(DEPLOY / "kubernetes" / "jobs" / "embed-ray.yaml")
    (words,) = commands_in(job["spec"]["entrypoint"])
    assert words[0] == "embed"
    check_command_line(words)


def test_drains_fit_into_the_time_that_a_pod_has_to_end():
    for name in ("overlays/cpu", "overlays/several"):
        (pod,) = [pod for pod in pods(objects_of(name)) if any(c["name"] == "medimage" for c in pod["containers"])]
        env = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
        drains = float(env["MEDIMAGE_DRAIN_DELAY"]) + float(env["MEDIMAGE_DRAIN_LIMIT"])
        assert pod["terminationGracePeriodSeconds"] > drains + 40  # STOP_TIMEOUT_S of the launcher


def reachable(objects: list[dict[str, Any]], component: str) -> list[tuple[list[Any], list[Any]]]:
    """(from, ports) of all rules that let something in to pods of a component."""
    return [
        (rule.get("from"), [port["port"] for port in rule["ports"]])
        for object in objects
        if object["kind"] == "NetworkPolicy"
        and object["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/component") == component
        for rule in object["spec"].get("ingress", [])
    ]


def test_tritons_ports_are_for_the_endpoint_alone():
    objects = objects_of("overlays/several")
    closed = [o for o in objects if o["kind"] == "NetworkPolicy" and o["spec"]["podSelector"] == {}]
    assert [o["spec"]["policyTypes"] for o in closed] == [["Ingress", "Egress"]] and "ingress" not in closed[0]["spec"]
    labels = {"app.kubernetes.io/name": "medimage", "app.kubernetes.io/component": "endpoint"}
    monitoring = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    assert reachable(objects, "triton") == [
        ([{"podSelector": {"matchLabels": labels}}], ["grpc"]),
        ([{"namespaceSelector": monitoring}], ["metrics"]),
    ]


def test_selectors_find_the_pods_and_autoscalers_what_they_scale():
    for name in (f"overlays/{path.name}" for path in OVERLAYS):
        objects = objects_of(name)
        deployments = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "Deployment"}
        labels = [spec["template"]["metadata"]["labels"] for spec in deployments.values()]
        for object in objects:
            if object["kind"] == "Service":
                assert object["spec"]["selector"] in labels
                ports = {
                    p["name"]
                    for spec in deployments.values()
                    for p in spec["template"]["spec"]["containers"][0]["ports"]
                }
                assert {port["targetPort"] for port in object["spec"]["ports"]} <= ports
            if object["kind"] == "PodDisruptionBudget":
                assert object["spec"]["selector"]["matchLabels"] in labels
            if object["kind"] == "HorizontalPodAutoscaler":
                assert object["spec"]["scaleTargetRef"]["name"] in deployments
                assert object["spec"]["metrics"][0]["pods"]["metric"]["name"] in adapter_names()


def adapter_names() -> set[str]:
    (values,) = documents(DEPLOY / "kubernetes" / "prometheus-adapter.yaml")
    return {rule["name"]["as"] for rule in values["rules"]["custom"]}


def test_endpoint_finds_the_tritons_by_the_name_of_their_service():
    objects = objects_of("overlays/several")
    (url,) = [
        item["value"] for c in containers(objects) for item in c.get("env", []) if item["name"] == "MEDIMAGE_TRITON"
    ]
    headless = {
        f"dns+grpc://{o['metadata']['name']}:{port['port']}"
        for o in objects
        if o["kind"] == "Service" and o["spec"].get("clusterIP") == "None"
        for port in o["spec"]["ports"]
    }
    assert headless == {url}


def test_no_more_requests_come_to_a_pod_than_it_takes():
    (autoscaler,) = [o for o in objects_of("overlays/cpu") if o["kind"] == "HorizontalPodAutoscaler"]
    assert int(autoscaler["spec"]["metrics"][0]["pods"]["target"]["averageValue"]) < EndpointOptions().max_requests
    (azure,) = documents(DEPLOY / "azureml" / "deployment.yaml")
    assert azure["request_settings"]["max_concurrent_requests_per_instance"] == EndpointOptions().max_requests
    variables = azure["environment_variables"]
    assert azure["request_settings"]["request_timeout_ms"] > 1000 * float(variables["MEDIMAGE_TIMEOUT"])


def test_azure_asks_routes_and_sets_variables_that_exist():
    (environment,) = documents(DEPLOY / "azureml" / "environment.yaml")
    for route in environment["inference_config"].values():
        assert route["port"] == default(ENDPOINT, "score_port") and route["path"] in routes()
    (deployment,) = documents(DEPLOY / "azureml" / "deployment.yaml")
    assert deployment["environment_variables"].keys() <= variables(SERVE) | {"MEDIMAGE_KEYS"}
    assert (DEPLOY / "azureml" / deployment["model"]["path"]).is_dir()


@pytest.mark.parametrize("path", sorted((DEPLOY / "slurm").iterdir()), ids=lambda path: path.name)
def test_batch_scripts_use_options_and_variables_that_exist(path):
    script = path.read_text(encoding="utf-8")
    lines = commands_in(script)
    assert lines
    for words in lines:
        check_command_line(words)
    named = set(re.findall(r"\b(MEDIMAGE_[A-Z_]+)", script))
    assert named <= variables(SERVE)


def test_compose_file_sets_variables_and_opens_ports_that_exist():
    (compose,) = documents(DEPLOY / "compose.yaml")
    services = compose["services"]
    assert services["medimage"]["environment"].keys() <= variables(SERVE)
    assert services["medimage"]["ports"] == [
        f"127.0.0.1:{default(ENDPOINT, 'score_port')}:{default(ENDPOINT, 'score_port')}"
    ]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))
    assert Path(services["medimage"]["environment"]["MEDIMAGE_KEYS_FILE"]).parent == Path("/run/secrets")
    check_command_line(services["export"]["entrypoint"][1:])
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source.startswith("${") or (DEPLOY / source).is_file(), source
    (prometheus,) = documents(DEPLOY / "monitoring" / "prometheus.yaml")
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"medimage:{default(ENDPOINT, 'score_port')}"]}]
    assert job["authorization"]["credentials_file"] == "/run/secrets/metrics-key"
    assert services["prometheus"]["secrets"] == ["metrics-key"]


def test_every_variable_of_ours_in_deploy_exists():
    """Wherever it stands, also in a comment."""
    known = variables(SERVE) | variables(ENDPOINT) | {"MEDIMAGE_KEYS"}
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            named = set(re.findall(r"\bMEDIMAGE_[A-Z_]+\b", path.read_text(encoding="utf-8")))
            assert named <= known, path
