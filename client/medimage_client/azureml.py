"""The calls of `azure.ai.ml.MLClient` by which code of Azure's finds and asks an endpoint, for an endpoint of your own.

    from medimage_client.azureml import MLClient  # in place of `from azure.ai.ml import MLClient`

Microsoft's documentation, notebooks and healthcareai toolkit make these calls, with the arguments of azure-ai-ml.
Subscriptions, resource groups, workspaces and credentials are taken and not looked at. Where the endpoints are is in

- a JSON file that MEDIMAGE_ENDPOINTS names, {"NAME": {"scoring_uri": "https://host/score", "key": "KEY"}, …}; without
  `key`, that of MEDIMAGE_API_KEY;
- or else in MEDIMAGE_SCORING_URI and MEDIMAGE_API_KEY, whatever the name of the endpoint.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from medimage_client.client import CXRReportGen, MedImageInsight
from medimage_client.errors import InvalidInput
from medimage_client.schema.json_text import decode_json
from medimage_client.schema.reports import is_report_request
from medimage_client.schema.table import loaded, read_json
from medimage_client.wire.scoring import ScoringEndpoint, is_scoring_uri

FILE, URI, KEY = "MEDIMAGE_ENDPOINTS", "MEDIMAGE_SCORING_URI", "MEDIMAGE_API_KEY"
FORM = '{"NAME": {"scoring_uri": "https://host/score", "key": "KEY"}}'


@dataclass(frozen=True, slots=True)
class OnlineEndpoint:
    """What `get` tells of an endpoint."""

    name: str
    scoring_uri: str
    auth_mode: Literal["key"] = "key"


@dataclass(frozen=True, slots=True)
class EndpointAuthKeys:
    """What `get_keys` gives; both are the same key, None if there is none."""

    primary_key: str | None = field(repr=False)
    secondary_key: str | None = field(repr=False)


class OnlineEndpointOperations:
    """Endpoints by their names.

    Args:
        env: the environment, see above.

    Raises:
        InvalidInput: it tells no endpoint, or its file is not of that form.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._named: dict[str, ScoringEndpoint] = {}
        self._any: ScoringEndpoint | None = None
        key = env.get(KEY) or None
        if env.get(FILE):
            self._named = read_endpoints(Path(env[FILE]), key)
        elif env.get(URI):
            self._any = scoring_endpoint(env[URI], key, place=URI)
        else:
            raise InvalidInput(f"no endpoint is named; set {URI} and {KEY}, or {FILE} to a JSON file {FORM}")

    def get(self, name: str, *, local: bool = False) -> OnlineEndpoint:
        """
        Raises:
            InvalidInput: there is no endpoint of that name.
        """
        check_absent(local=local)
        return OnlineEndpoint(name, self._endpoint(name).url)

    def get_keys(self, name: str) -> EndpointAuthKeys:
        """As `get`."""
        key = self._endpoint(name).key
        return EndpointAuthKeys(key, key)

    def invoke(
        self,
        endpoint_name: str,
        *,
        request_file: str | os.PathLike[str] | None = None,
        deployment_name: str | None = None,
        input_data: object = None,
        params_override: object = None,
        local: bool = False,
        **kwargs: object,
    ) -> str:
        """The JSON text of the answer to a request in Azure's JSON.

        Args:
            request_file: name of the file with the request.
            deployment_name: not looked at, for names of Azure's deployments are free: the columns of the request tell
                the model, or the path of the scoring URI.

        Raises:
            InvalidInput: no such endpoint or file, or the request is wrong; names row and column.
            MedImageError: see `errors.py`; azure-ai-ml raises exceptions of azure-core.
        """
        check_absent(input_data=input_data, params_override=params_override, local=local, **kwargs)
        endpoint = self._endpoint(endpoint_name)
        if request_file is None:
            raise InvalidInput("request_file is None; expected the name of a file with the request")
        request = loaded(Path(request_file))
        if is_report_request(read_json(request)):
            with CXRReportGen(endpoint.url, api_key=endpoint.key) as reports:
                return json.dumps(reports.score(request))
        with MedImageInsight(endpoint.url, api_key=endpoint.key) as embeddings:
            return json.dumps(embeddings.score(request))

    def _endpoint(self, name: str) -> ScoringEndpoint:
        endpoint = self._any or self._named.get(name)
        if endpoint is None:
            raise InvalidInput(f"there is no endpoint {name!r} in the file of {FILE}; it has {sorted(self._named)}")
        return endpoint


class MLClient:
    """Takes the place of `azure.ai.ml.MLClient`, as far as endpoints are asked; see above.

    Raises:
        InvalidInput: the environment tells no endpoint.
    """

    def __init__(
        self,
        credential: object,
        subscription_id: str | None = None,
        resource_group_name: str | None = None,
        workspace_name: str | None = None,
        registry_name: str | None = None,
        **kwargs: object,
    ) -> None:
        self.subscription_id = subscription_id
        self.resource_group_name = resource_group_name
        self.workspace_name = workspace_name
        self.online_endpoints = OnlineEndpointOperations(os.environ)

    @classmethod
    def from_config(
        cls,
        credential: object,
        *,
        path: str | os.PathLike[str] | None = None,
        file_name: str | None = None,
        **kwargs: object,
    ) -> Self:
        """A client of the endpoints that the environment names; Azure's config.json is not looked for."""
        return cls(credential)


def read_endpoints(path: Path, key: str | None) -> dict[str, ScoringEndpoint]:
    """The endpoints of a file.

    Args:
        key: of those without one.

    Raises:
        InvalidInput: it cannot be read, or is of another form; a key is in no message.
    """
    try:
        content: Any = decode_json(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"cannot read {path}, which {FILE} names: {error.strerror}") from None
    except ValueError:
        content = None
    if not isinstance(content, dict) or not content:
        raise InvalidInput(f"{path}, which {FILE} names, is not JSON of the form {FORM}")
    endpoints = {}
    for name, entry in content.items():
        place = f"endpoint {name!r} of {path}"
        values = {"key": key, **entry} if isinstance(entry, dict) else {}
        if values.keys() != {"scoring_uri", "key"} or not isinstance(values["key"], str | None):
            raise InvalidInput(f"is not of the form {FORM}", place=place)
        endpoints[name] = scoring_endpoint(values["scoring_uri"], values["key"], place=place)
    return endpoints


def scoring_endpoint(uri: object, key: str | None, *, place: str) -> ScoringEndpoint:
    if not isinstance(uri, str) or not is_scoring_uri(uri):
        raise InvalidInput("is no scoring URI; expected https://host/score", place=place)
    try:
        return ScoringEndpoint.parse(uri, key)
    except InvalidInput as error:
        raise InvalidInput(error.reason, place=place) from None


def check_absent(**arguments: object) -> None:
    """Refuse what has an effect at Azure's and would have none here."""
    given = [name for name, value in arguments.items() if value]
    if given:
        raise InvalidInput(f"{given[0]} is given, which only Azure's own MLClient knows; leave it out")
