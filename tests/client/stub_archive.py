"""A DICOMweb archive of this process that fails as it is told to: QIDO-RS, WADO-RS and STOW-RS over a list."""

import json
import re
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from urllib.parse import parse_qs, urlsplit

from pydicom import dcmread
from pydicom.datadict import tag_for_keyword

from tests.client.dicom_studies import file_of

BOUNDARY = "next-part"
PATH = re.compile(r"/dicom-web/(?:studies(?:/(?P<study>[^/]+))?)?(?:/series/(?P<series>[^/]+))?(?P<rest>/.*)?")
LEVELS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


@dataclass
class Answer:
    """What is answered instead of what the archive has; `length` is told instead of the body's, and it closes early."""

    status: int = 200
    body: bytes = b""
    headers: dict = field(default_factory=dict)
    length: int | None = None


@dataclass
class StubArchive:
    """`faults` are taken one a request whose path they fit: (pattern, Answer), or a function of the usual Answer."""

    objects: list = field(default_factory=list)
    faults: list = field(default_factory=list)
    page: int = 1000  # results that a search gives at most, whatever is asked for
    forgets: bool = False  # what it is given to store
    is_deaf: bool = False  # to filters and offsets
    authorization: str | None = None  # that is wanted
    requests: list = field(default_factory=list)  # method and path with the query
    headers: list = field(default_factory=list)
    before_request: object = lambda archive: None

    def answer(self, method, target, headers, body):
        path = PATH.fullmatch(urlsplit(target).path)
        query = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
        if self.authorization is not None and headers.get("Authorization") != self.authorization:
            return Answer(401)
        if path is None:
            return Answer(404)
        if method == "POST":
            return self.store(headers, body)
        held = [
            ds
            for ds in self.objects
            if path["study"] in (None, ds.StudyInstanceUID) and path["series"] in (None, ds.SeriesInstanceUID)
        ]
        rest = path["rest"] or ""
        if rest == "/metadata":
            return self.json([{k: v for k, v in ds.to_json_dict().items() if k != "7FE00010"} for ds in held])
        if rest.startswith("/instances/"):
            return self.retrieve([ds for ds in held if rest == f"/instances/{ds.SOPInstanceUID}"])
        return self.search(held, LEVELS if rest == "/instances" else LEVELS[:1], query)

    def search(self, held, levels, query):
        for name in () if self.is_deaf else query.keys() - {"limit", "offset"}:
            held = [ds for ds in held if str(ds.get(name)) == query[name]]
        found = dict.fromkeys(tuple(str(ds.get(level)) for level in levels) for ds in held)
        tags = [f"{tag_for_keyword(level):08X}" for level in levels]
        results = [{tag: {"vr": "UI", "Value": [uid]} for tag, uid in zip(tags, uids, strict=True)} for uids in found]
        start = 0 if self.is_deaf else int(query.get("offset", 0))
        return self.json(results[start : start + min(self.page, int(query.get("limit", self.page)))])

    def retrieve(self, held):
        if not held:
            return Answer(404)
        part = b"\r\n--%b\r\nContent-Type: application/dicom\r\n\r\n%b" % (BOUNDARY.encode(), file_of(held[0]))
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        return Answer(200, part + f"\r\n--{BOUNDARY}--\r\n".encode(), {"Content-Type": kind})

    def store(self, headers, body):
        message = BytesParser().parsebytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
        if self.forgets:
            return self.json({})
        self.objects += [dcmread(BytesIO(part.get_payload(decode=True))) for part in message.get_payload()]
        return self.json({})

    def json(self, value, status=200):
        return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/dicom+json"})

    def after_faults(self, method, target, headers, body):
        self.before_request(self)
        self.requests.append(f"{method} {target}")
        self.headers.append(headers)
        for n, (pattern, fault) in enumerate(self.faults):
            if re.search(pattern, f"{method} {target}"):
                del self.faults[n]
                return fault(self.answer(method, target, headers, body)) if callable(fault) else fault
        return self.answer(method, target, headers, body)


class Handler(BaseHTTPRequestHandler):
    archive: StubArchive

    def do_GET(self):
        self.reply(b"")

    def do_POST(self):
        if "Content-Length" in self.headers:
            self.reply(self.rfile.read(int(self.headers["Content-Length"])))
            return
        body = b""
        while size := int(self.rfile.readline(), 16):  # chunked
            body += self.rfile.read(size)
            self.rfile.readline()
        self.reply(body)

    def reply(self, body):
        answer = self.archive.after_faults(self.command, self.path, dict(self.headers), body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *_):
        pass
