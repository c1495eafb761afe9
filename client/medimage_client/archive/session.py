"""The HTTP session with an archive: its credentials, its certificates, and how answers are read."""

from __future__ import annotations  # types of libraries that are extras

import ssl
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medimage_client.archive.answers import check_answer
from medimage_client.archive.credentials import Credentials
from medimage_client.errors import InvalidInput

if TYPE_CHECKING:
    from requests import PreparedRequest, Session

# Legal in a query as they are, and Orthanc 1.10 does not unescape them
WILDCARDS = {"%2A": "*", "%3F": "?", "%2C": ","}


def new_session(credentials: Credentials, ca: Path | None, cert: Path | None) -> Session:
    from requests import Session

    check_certificates(ca, cert)

    def prepare(request: PreparedRequest) -> PreparedRequest:
        path, mark, query = (request.url or "").partition("?")
        for escaped, plain in WILDCARDS.items():
            query = query.replace(escaped, plain)
        request.url = path + mark + query
        if (header := credentials.header()) is not None:
            request.headers["Authorization"] = header
        return request

    class ArchiveSession(Session):
        def merge_environment_settings(self, *args: Any, **options: Any) -> Any:
            settings = super().merge_environment_settings(*args, **options)
            if ca is not None:
                settings["verify"] = str(ca)  # which REQUESTS_CA_BUNDLE would take the place of
            elif settings["verify"] is True:  # the system's certificates, as for every other server; not certifi's
                system = ssl.get_default_verify_paths()
                settings["verify"] = system.cafile or system.capath or True
            return settings

    session = ArchiveSession()
    session.auth = prepare  # also where there are none: else ~/.netrc would be looked into
    session.headers["Accept"] = "application/dicom+json"  # where the library names nothing, after a store
    session.hooks["response"] = [check_answer]
    if cert is not None:
        session.cert = str(cert)
    return session


def check_certificates(ca: Path | None, cert: Path | None) -> None:
    """
    Raises:
        InvalidInput: a file is not there, or holds something else.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for path, load, what in (
        (ca, context.load_verify_locations, "certificates in PEM form"),
        (
            cert,
            partial(context.load_cert_chain, password=""),
            "a certificate and its key in PEM form, without a passphrase",
        ),
    ):
        if path is None:
            continue
        if not path.is_file():
            raise InvalidInput(f"no file {path}; expected one in PEM form")
        try:
            load(path)
        except OSError:  # ssl's, too
            raise InvalidInput(f"{path} cannot be read as {what}") from None
