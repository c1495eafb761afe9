"""Exit code 0 if what runs in this container is ready: the endpoint, or Triton alone where there is no endpoint.

It asks at the port that the environment gives to `medimage serve` or `medimage endpoint`.
"""

import os
import ssl
import sys
import urllib.request

LIMIT_S = 4.0


def url() -> str:
    if port := os.environ.get("MEDIMAGE_SCORE_PORT"):
        scheme = "https" if os.environ.get("MEDIMAGE_TLS_CERTIFICATE") else "http"
        return f"{scheme}://127.0.0.1:{port}/"
    return f"http://127.0.0.1:{os.environ.get('MEDIMAGE_HTTP_PORT', '8000')}/v2/health/ready"


def main() -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the certificate is for another name
    try:
        urllib.request.urlopen(url(), timeout=LIMIT_S, context=context).close()
    except OSError as error:  # also an answer that it is not ready
        sys.exit(f"{url()}: {error}")


if __name__ == "__main__":
    main()
