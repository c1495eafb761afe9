"""TLS of the endpoint: a certificate with its key."""

import ssl

from medimage_server.endpoint.settings import EndpointOptions
from medimage_server.errors import LaunchError


def tls_context(options: EndpointOptions) -> ssl.SSLContext | None:
    """What handshakes use from now on; None for plain HTTP.

    A new one each time: one into which another certificate is loaded keeps those of other kinds, so that a renewed one
    of ECDSA would be served beside the one of RSA that it replaces.

    Raises:
        LaunchError: one file is given without the other, they cannot be read, or do not fit each other.
    """
    certificate, key = options.tls_certificate, options.tls_key
    if (certificate is None) != (key is None):
        raise LaunchError("TLS needs both --tls-certificate and --tls-key")
    if certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # asks nobody
    except (OSError, ssl.SSLError) as error:
        is_of_files = isinstance(error, OSError) and not isinstance(error, ssl.SSLError)
        reason = error.strerror if is_of_files else "they do not fit"
        raise LaunchError(f"cannot use --tls-certificate {certificate} with --tls-key {key}: {reason}") from error
    return context
