"""The OpenAPI document: the committed file, and what of it a server serves."""

from collections.abc import Collection
from importlib.resources import files
from typing import Any

import yaml

from medimage_server.endpoint.settings import is_head

TEXT = (files(__package__) / "openapi.yaml").read_bytes()
CONDITION = "x-if"  # of a node: the deployment without which it is not there, or HEADS or KEYS
NAMES = "x-names"  # of a text: that it is one of the names of the heads
HEADS, KEYS = "heads", "keys"


def openapi(deployments: Collection[str], *, keys: bool) -> dict[str, Any]:
    """The document of a server that serves these deployments, as what JSON is made of.

    Args:
        keys: whether the server asks for one.
    """
    # the loader in C, where PyYAML is built with it, takes a tenth of the time
    document: dict[str, Any] = yaml.load(TEXT, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    heads = [name for name in deployments if is_head(name)]
    served = {*deployments, *([KEYS] if keys else []), *([HEADS] if heads else [])}
    left_out = {CONDITION} if keys else {CONDITION, "security"}

    def is_there(node: Any) -> bool:
        if not isinstance(node, dict):
            return True
        if "$ref" in node:
            return is_there(referred(document, node["$ref"]))
        return CONDITION not in node or node[CONDITION] in served

    def narrowed(node: Any) -> Any:
        if isinstance(node, dict):
            if NAMES in node:
                return {**{key: part for key, part in node.items() if key not in (NAMES, CONDITION)}, "enum": heads}
            return {key: narrowed(part) for key, part in node.items() if key not in left_out and is_there(part)}
        if isinstance(node, list):
            return [narrowed(part) for part in node if is_there(part)]
        return node

    narrow: dict[str, Any] = narrowed(document)
    return narrow


def referred(document: dict[str, Any], reference: str) -> Any:
    node: Any = document
    for key in reference.removeprefix("#/").split("/"):
        node = node[key]
    return node
