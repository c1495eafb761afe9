"""What `kubectl kustomize` makes of a folder, as far as the files of deploy/kubernetes use it.

No Kustomize was at hand. This knows resources, strategic merge patches, images, a namespace and generated secrets, and
fails at anything else.
"""

import base64
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

# Lists that are merged by a key, from `patchMergeKey` in Kubernetes' API types; other lists are replaced.
MERGE_KEYS = {"containers": "name", "env": "name", "volumeMounts": "mountPath", "volumes": "name"}
KNOWN = {"apiVersion", "kind", "namespace", "resources", "images", "patches", "secretGenerator"}
WITHOUT_NAMESPACE = {"Namespace", "ClusterServingRuntime"}

Object = dict[str, Any]


def documents(path: Path) -> list[Object]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def rendered(folder: Path, files: dict[str, str] | None = None) -> list[Object]:
    """The objects of a kustomization.

    Args:
        files: contents of files that are not committed, by name.
    """
    (kustomization,) = documents(folder / "kustomization.yaml")
    assert not kustomization.keys() - KNOWN
    objects = []
    for name in kustomization["resources"]:
        path = folder / name
        objects += rendered(path, files) if path.is_dir() else documents(path)
    for patch in kustomization.get("patches", []):
        assert patch.keys() == {"path"}
        for change in documents(folder / patch["path"]):
            (index,) = [n for n, object in enumerate(objects) if identity(object) == identity(change)]
            objects[index] = merged(objects[index], change)
    for secret in kustomization.get("secretGenerator", []):
        assert secret["options"] == {"disableNameSuffixHash": True}
        data = {name: base64.b64encode((files or {})[name].encode()).decode() for name in secret["files"]}
        objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret["name"]}, "data": data})
    for image in kustomization.get("images", []):
        for container in containers(objects):
            if container["image"] == image["name"]:
                container["image"] += f":{image['newTag']}"
    for object in objects:
        if object["kind"] not in WITHOUT_NAMESPACE and "namespace" in kustomization:
            object["metadata"]["namespace"] = kustomization["namespace"]
    return objects


def identity(object: Object) -> tuple[str, str]:
    return object["kind"], object["metadata"]["name"]


def merged(value: Any, change: Any, key: str = "") -> Any:
    if isinstance(value, dict) and isinstance(change, dict):
        result = {name: merged(value.get(name), new, name) for name, new in change.items()}
        return {**deepcopy(value), **result}
    if isinstance(value, list) and key in MERGE_KEYS:
        by = MERGE_KEYS[key]
        items = {item[by]: deepcopy(item) for item in value}
        for item in change:
            if item.get("$patch") == "delete":
                del items[item[by]]
            else:
                items[item[by]] = merged(items.get(item[by]), item)
        return list(items.values())
    return deepcopy(change)


def pods(objects: list[Object]) -> list[Object]:
    """The specs of all pods that the objects make."""
    found = []
    for object in objects:
        if object["kind"] == "RayJob":
            cluster = object["spec"]["rayClusterSpec"]
            found += [group["template"]["spec"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]
        elif object["kind"] == "ClusterServingRuntime":
            found.append(object["spec"])
        elif "template" in object.get("spec", {}):
            found.append(object["spec"]["template"]["spec"])
    return found


def containers(objects: list[Object]) -> list[Object]:
    return [container for pod in pods(objects) for container in pod["containers"]]
