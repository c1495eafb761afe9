"""Requests whose HTTP is wrong, or that ask for what is not there."""

import gzip
import zlib

from tests.triton.endpoint.broken_files import MB
from tests.triton.endpoint.case import IMAGE, Case, base64_text, embeddings
from tests.triton.endpoint.raw_http import CANARY, KEY, chunked, request

BODY = embeddings([[None, CANARY]])
NO_KEY = "no key; send the header Authorization: Bearer KEY"
WRONG_KEY = "the key is not valid here"
NOT_JSON = "Expects Content-Type to be application/json"
ENCODED = "Content-Encoding is not supported"
LARGE = "the body is larger than 67108864 bytes"
NOTHING = "there is nothing here"
METHOD = "this method is not for this path"
NOT_SERVED = "this deployment is not served here; there is medimageinsight and cxrreportgen and cxr_findings and views"
INVALID = "Invalid HTTP request received."
TWICE = "is given 2 times; expected once"
TWO_LENGTHS = "Content-Length and Transfer-Encoding"


def score(**changes):
    return request(body=BODY, **changes)


def large(n_bytes=70 * MB):
    return b'{"input_data": "%b' % CANARY.encode() + bytes(n_bytes)


KEYS = {
    "none": (score(authorization=None), 401, NO_KEY),
    "empty-header": (score(authorization=""), 401, NO_KEY),
    "scheme-alone": (score(authorization="Bearer"), 401, NO_KEY),
    "spaces": (score(authorization="Bearer    "), 401, NO_KEY),
    "without-scheme": (score(authorization=KEY), 401, NO_KEY),
    "basic": (score(authorization=f"Basic {KEY}"), 401, NO_KEY),
    "digest": (score(authorization=f'Digest username="{KEY}"'), 401, NO_KEY),
    "in-another-header": (score(authorization=None, api_key=KEY), 401, NO_KEY),
    "in-the-query": (score(authorization=None, path=f"/score?key={KEY}"), 401, NO_KEY),
    "wrong": (score(key="a-wrong-key-1234567890"), 403, WRONG_KEY),
    "cut": (score(key=KEY[:-1]), 403, WRONG_KEY),
    "with-a-letter-more": (score(key=KEY + "a"), 403, WRONG_KEY),
    "in-capitals": (score(key=KEY.upper()), 403, WRONG_KEY),
    "twice": (score(key=f"{KEY} {KEY}"), 403, WRONG_KEY),
    "wrong-before-right": (score(key=f"{CANARY}\r\nauthorization: Bearer {KEY}"), 400, TWICE),
    "right-before-wrong": (score(key=f"{KEY}\r\nauthorization: Bearer {CANARY}"), 400, TWICE),
    "with-a-no-break-space": (score(key=f"{KEY}\xa0"), 403, WRONG_KEY),
    "quoted": (score(key=f'"{KEY}"'), 403, WRONG_KEY),
    "of-latin-letters": (score(key="Schlüssel-äöüß-1234567"), 403, WRONG_KEY),
    "of-other-bytes": (score(key="\x80\xff\xfe" * 10), 403, WRONG_KEY),
    "of-10000-letters": (score(key="k" * 10_000), 403, WRONG_KEY),
    "none-for-the-status": (request("GET", "/status", authorization=None), 401, NO_KEY),
    "wrong-for-the-metrics": (request("GET", "/metrics", key=CANARY), 403, WRONG_KEY),
    "none-for-another-deployment": (score(path=f"/{CANARY}/score", authorization=None), 401, NO_KEY),
}
CONTENT = {
    "type-missing": (score(content_type=None), 415, NOT_JSON),
    "type-empty": (score(content_type=""), 415, NOT_JSON),
    "type-text": (score(content_type="text/plain"), 415, NOT_JSON),
    "type-form": (score(content_type="application/x-www-form-urlencoded"), 415, NOT_JSON),
    "type-multipart": (score(content_type=f"multipart/form-data; boundary={CANARY}"), 415, NOT_JSON),
    "type-image": (score(content_type="image/png"), 415, NOT_JSON),
    "type-of-json-lines": (score(content_type="application/jsonl"), 415, NOT_JSON),
    "type-ends-in-json": (score(content_type="application/problem+json"), 415, NOT_JSON),
    "type-any": (score(content_type="*/*"), 415, NOT_JSON),
    "type-twice": (score(content_type="application/json\r\ncontent-type: text/plain"), 400, TWICE),
    "type-two": (score(content_type="text/plain, application/json"), 415, NOT_JSON),
    "charset-utf-16": (
        request(body=BODY.decode().encode("utf-16"), content_type="application/json; charset=utf-16"),
        415,
        "charset",
    ),
    "charset-utf-16-of-utf-8": (score(content_type="application/json;charset=UTF-16"), 415, "charset"),
    "charset-latin-1": (score(content_type='application/json; charset="iso-8859-1"'), 415, "charset"),
    "encoding-gzip": (request(body=gzip.compress(BODY, mtime=0), content_encoding="gzip"), 415, ENCODED),
    "encoding-gzip-of-plain-json": (score(content_encoding="gzip"), 415, ENCODED),
    "encoding-deflate": (request(body=zlib.compress(BODY), content_encoding="deflate"), 415, ENCODED),
    "encoding-brotli": (score(content_encoding="br"), 415, ENCODED),
    "encoding-zstandard": (score(content_encoding="zstd"), 415, ENCODED),
    "encoding-twice": (score(content_encoding="gzip, gzip"), 415, ENCODED),
    "encoding-unknown": (score(content_encoding=CANARY), 415, ENCODED),
    "encoding-bomb": (
        request(body=gzip.compress(bytes(64 * MB), mtime=0), content_encoding="gzip"),
        415,
        ENCODED,
    ),
}
SIZES = {
    "70-mb": (lambda: request(body=large()), 413, LARGE),
    "70-mb-in-chunks": (lambda: chunked(*[large(MB)] * 70), 413, LARGE),
    "70-mb-with-a-wrong-key": (lambda: request(body=large(), key=CANARY), 403, WRONG_KEY),
    "a-byte-too-much": (lambda: request(body=large(64 * MB)), 413, LARGE),
    "70-mb-stated-and-not-sent": (score(content_length=str(70 * MB), expect="100-continue"), 413, LARGE),
    "exabyte-stated": (score(content_length=str(10**18), expect="100-continue"), 413, LARGE),
    "length-of-19-digits": (score(content_length="9" * 19, expect="100-continue"), 413, LARGE),
}
ROUTES = {
    "path-unknown": (score(path=f"/{CANARY}"), 404, NOTHING),
    "path-of-triton": (request("GET", "/v2/health/ready"), 404, NOTHING),
    "path-of-tritons-models": (request(path="/v2/repository/models/image_encoder/unload"), 404, NOTHING),
    "path-with-a-slash-behind": (score(path="/score/"), 404, NOTHING),
    "path-with-two-slashes": (score(path="//score"), 404, NOTHING),
    "path-in-capitals": (score(path="/Score"), 404, NOTHING),
    "path-with-an-encoded-slash": (score(path="/medimageinsight%2Fscore"), 404, NOTHING),
    "path-with-an-encoded-letter": (score(path="/%73core"), 404, NOTHING),
    "path-with-an-encoded-line-break": (score(path="/score%0a"), 404, NOTHING),
    "path-traversal": (request("GET", "/../../../../etc/passwd"), 404, NOTHING),
    "path-traversal-in-percent": (request("GET", "/docs/%2e%2e%2f%2e%2e%2fetc/passwd"), 404, NOTHING),
    "path-traversal-behind-docs": (request("GET", "/docs/../../server/medimage_server/cli.py"), 404, NOTHING),
    "path-traversal-as-deployment": (score(path="/../score"), 404, NOT_SERVED),
    "path-of-nul": (request("GET", f"/%00{CANARY}"), 404, NOTHING),
    "path-of-broken-percent": (request("GET", "/%zz%"), 404, NOTHING),
    "path-of-broken-utf-8": (request("GET", "/%ff%fe"), 404, NOTHING),
    "path-with-line-break": (request("GET", f"/%0d%0aset-cookie:{CANARY}"), 404, NOTHING),
    "path-of-10000-letters": (request("GET", "/" + "a" * 10_000), 404, NOTHING),
    "path-absolute": (score(path=f"http://{CANARY}.example/score"), 404, ""),
    "path-star": (request("GET", "*"), 404, NOTHING),
    "version-prefix": (score(path="/v1/medimageinsight/score"), 404, NOTHING),
    "get": (request("GET"), 405, METHOD),
    "put": (score(method="PUT"), 405, METHOD),
    "patch": (score(method="PATCH"), 405, METHOD),
    "delete": (score(method="DELETE"), 405, METHOD),
    "options": (score(method="OPTIONS", origin="https://example.org"), 405, METHOD),
    "trace": (request("TRACE"), 405, METHOD),
    "connect": (request("CONNECT", f"{CANARY}.example:443"), 404, NOTHING),
    "method-of-our-own": (score(method=CANARY.upper()), 405, METHOD),
    "method-in-small-letters": (score(method="post"), 405, METHOD),
    "get-of-a-deployment": (request("GET", "/medimageinsight/score"), 405, METHOD),
    "post-to-health": (score(path="/"), 405, METHOD),
    "post-to-metrics": (score(path="/metrics"), 405, METHOD),
    "websocket": (request("GET", connection="upgrade", upgrade="websocket", sec_websocket_version="13"), 405, METHOD),
    "deployment-in-the-path-unknown": (score(path=f"/{CANARY}/score"), 404, NOT_SERVED),
    "deployment-in-the-path-in-capitals": (score(path="/MedImageInsight/score"), 404, NOT_SERVED),
    "deployment-of-a-part": (score(path="/image_encoder/score"), 404, NOT_SERVED),
    "deployment-unknown": (score(azureml_model_deployment=CANARY), 404, NOT_SERVED),
    "deployment-empty": (score(azureml_model_deployment=""), 404, NOT_SERVED),
    "deployment-list": (score(azureml_model_deployment="medimageinsight,cxrreportgen"), 404, NOT_SERVED),
    "deployment-conflicting": (
        score(path="/medimageinsight/score", azureml_model_deployment="cxrreportgen"),
        400,
        "expected one of them",
    ),
    "deployment-not-that-of-the-columns": (
        score(azureml_model_deployment="cxrreportgen"),
        400,
        "entry 0 of 'columns' is a string of 5 characters",
    ),
    "layout-unknown": (score(medimage_layout=CANARY), 400, "medimage-layout is none of rows, card, object"),
    "layout-empty": (score(medimage_layout=""), 400, "medimage-layout is none of"),
    "layout-in-capitals": (score(medimage_layout="ROWS"), 400, "medimage-layout is none of"),
}
SMUGGLED = f"GET /status HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {KEY}\r\n\r\n".encode()
HTTP = {
    "garbage": (bytes(range(128, 256)) * 4 + b"\r\n\r\n", 400, INVALID),
    "nul-bytes": (bytes(1000), 400, INVALID),
    "line-of-rubbish": (b"hello " + CANARY.encode() + b"\r\n\r\n", 400, INVALID),
    "tls-hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(501), 400, INVALID),
    "ssh": (b"SSH-2.0-OpenSSH_9.7\r\n\r\n", 400, INVALID),
    "http-0.9": (b"GET /\r\n\r\n", 400, INVALID),
    "http-2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "expected HTTP/1.1"),
    "http-9.9-of-letters": (score(version="x.y"), 400, INVALID),
    "line-break-before": (b"\r\n" + score(), 400, INVALID),
    "json-alone": (BODY + b"\r\n\r\n", 400, INVALID),
    "host-missing": (score(host=None), 400, INVALID),
    "host-twice": (score(host=f"a\r\nhost: {CANARY}"), 400, INVALID),
    "header-without-colon": (score(host=f"a\r\n{CANARY}"), 400, INVALID),
    "header-with-space-before-its-colon": (score(host="a\r\nx-a : b"), 400, INVALID),
    "header-without-name": (score(host="a\r\n: b"), 400, INVALID),
    "header-with-nul": (score(x_a="a\0b"), 400, INVALID),
    "header-with-carriage-return": (score(x_a="a\rb"), 400, INVALID),
    "header-of-a-megabyte": (score(x_a="a" * MB), 400, INVALID),
    "100000-headers": (b"GET / HTTP/1.1\r\nhost: a\r\n" + b"a: b\r\n" * 100_000 + b"\r\n", 400, INVALID),
    "path-of-a-megabyte": (score(path="/" + "a" * MB), 400, INVALID),
    "path-with-space": (score(path=f"/score {CANARY}"), 400, INVALID),
    "path-of-other-bytes": (score(path="/\xff\xfe"), 400, INVALID),
    "path-missing": (b"GET  HTTP/1.1\r\nhost: a\r\n\r\n", 400, INVALID),
    "length-negative": (score(content_length="-1"), 400, INVALID),
    "length-with-plus": (score(content_length="+5"), 400, INVALID),
    "length-hexadecimal": (score(content_length="0x10"), 400, INVALID),
    "length-of-letters": (score(content_length=CANARY), 400, INVALID),
    "length-empty": (score(content_length=""), 400, INVALID),
    "length-of-400-digits": (score(content_length="9" * 400), 400, INVALID),
    "lengths-two-that-differ": (score(content_length="5\r\ncontent-length: 6"), 400, INVALID),
    "lengths-two-in-one": (score(content_length="5, 6"), 400, INVALID),
    "length-none": (score(content_length=None), 400, "the request is not valid JSON"),
    "length-zero": (score(content_length="0"), 400, "the request is not valid JSON"),
    "length-short": (score(content_length=str(len(BODY) - 2)), 400, "the request is not valid JSON"),
    "smuggled-by-chunks-in-http-1.0": (chunked(BODY, version="1.0"), 400, "not part of HTTP/1.0"),
    "smuggled-by-both-lengths": (chunked(BODY, content_length="5"), 400, TWO_LENGTHS),
    "smuggled-behind-chunks": (
        request(
            body=b"0\r\n\r\n" + SMUGGLED,
            content_length=str(5 + len(SMUGGLED)),
            transfer_encoding="chunked",
            connection=None,
        ),
        400,
        TWO_LENGTHS,
    ),
    "smuggled-by-space-before-colon": (score(content_length="5\r\ntransfer-encoding : chunked"), 400, INVALID),
    "smuggled-by-vertical-tab": (score(transfer_encoding="\x0bchunked"), 400, INVALID),
    "smuggled-by-two-encodings": (score(transfer_encoding="chunked\r\ntransfer-encoding: identity"), 400, INVALID),
    "smuggled-by-encoding-in-two": (score(transfer_encoding="gzip, chunked"), 400, INVALID),
    "smuggled-by-unknown-encoding": (score(transfer_encoding="xchunked"), 400, INVALID),
    "chunk-without-size": (chunked(b"").replace(b"0\r\n\r\n0", b"zz\r\n\r\n0"), 400, INVALID),
    "chunk-of-negative-size": (chunked(b"").replace(b"0\r\n\r\n0", b"-1\r\n\r\n0"), 400, INVALID),
    "chunk-of-endless-size": (chunked(b"").replace(b"0\r\n\r\n0", b"f" * 30 + b"\r\n\r\n0"), 400, INVALID),
    "chunk-longer-than-it-says": (chunked(BODY).replace(b"\r\n%x\r\n" % len(BODY), b"\r\n5\r\n"), 400, INVALID),
    "chunks-of-no-json": (chunked(b"{", CANARY.encode()), 400, "the request is not valid JSON"),
    "chunks-that-cut-a-letter": (chunked(b'"\xc3', b'x"'), 400, "the request is not valid UTF-8"),
}
GROUPS = {"key": KEYS, "content": CONTENT, "size": SIZES, "route": ROUTES, "http": HTTP}

CASES = [Case(f"{group}-{word}", *case) for group, cases in GROUPS.items() for word, case in cases.items()]

# Answered by a time limit, after five to ten seconds
SLOW = [
    Case("slow-head-without-end", b"POST /score HTTP/1.1\r\nhost: test\r\nx-a: " + CANARY.encode(), 400, "head"),
    Case("slow-body-shorter-than-stated", score(content_length="1000"), 408, "the body came too slowly"),
    Case("slow-chunks-without-end", chunked(BODY)[:-5], 408, "the body came too slowly"),
    Case("slow-body-of-two-lengths", score(transfer_encoding="chunked"), 400, TWO_LENGTHS),
    Case("slow-body-after-a-wrong-key", score(key=CANARY, content_length="1000"), 403, WRONG_KEY),
]

# What is unusual and yet right
HARMLESS = [
    Case("odd-scheme-in-capitals", score(authorization=f"BEARER {KEY}"), 200),
    Case("odd-type-with-charset", score(content_type='Application/JSON; charset="UTF-8"'), 200),
    Case("odd-encoding-identity", score(content_encoding="identity"), 200),
    Case("odd-http-1.0", score(version="1.0"), 200),
    Case("odd-query", score(path=f"/score?{CANARY}=1"), 200),
    Case("odd-lines-without-carriage-return", score().replace(b"\r\n", b"\n"), 200),
    Case("odd-folded-header", score(x_a=f"a\r\n {CANARY}"), 200),
    Case("odd-same-length-twice", score(content_length=f"{len(BODY)}\r\ncontent-length: {len(BODY)}"), 200),
    Case("odd-chunks-of-one-byte", chunked(*(BODY[n : n + 1] for n in range(len(BODY)))), 200),
    Case("odd-chunk-extension", chunked(BODY).replace(b"\r\n%x\r\n" % len(BODY), b"\r\n%x;a=b\r\n" % len(BODY)), 200),
    Case("odd-bytes-in-a-header", score(x_a="\x80\xff"), 200),
    Case("odd-request-id", score(x_request_id=f"{CANARY} {{}}"), 200),
    Case("odd-request-id-of-10000-letters", score(x_request_id=CANARY * 1600), 200),
    Case("odd-upgrade-to-http-2", score(connection="upgrade", upgrade="h2c"), 200),
    Case("odd-image-of-many-lines", request(body=embeddings([["\r\n".join(base64_text(IMAGE)), None]])), 200),
]
