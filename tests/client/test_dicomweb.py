"""An archive over DICOMweb: what is asked of it, what is done when it fails, and what is logged; of a stub."""

import json
import logging
import os
import re
import ssl
import subprocess
from contextlib import contextmanager
from io import BytesIO
from itertools import count
from threading import Event

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import JPEGBaseline8Bit

from medimage_client import (
    Archive,
    Credentials,
    InvalidInput,
    MedImageError,
    NotFound,
    RequestTimeout,
    ResponseError,
    ServerError,
    Stored,
    TransportError,
    Unavailable,
    read_studies,
)
from medimage_client.archive.dicomweb import Resource
from medimage_client.images.encoding import encode_image
from tests.client.dicom_studies import ct_slice, file_of, radiograph, text_object, uid, with_pixels
from tests.client.http_server import serving
from tests.client.stub_archive import Answer, Handler, StubArchive

URL = "https://host/dicom-web"


@pytest.fixture(autouse=True)
def _fast(monkeypatch, no_delay):
    monkeypatch.setattr("medimage_client.archive.dicomweb.BETWEEN_LOOKS_S", 0.0)


@pytest.fixture
def stub():
    return StubArchive([radiograph(1, 1, ViewPosition="PA"), radiograph(1, 2, ViewPosition="LL"), text_object()])


@pytest.fixture
def url(stub):
    with serving(type("ArchiveHandler", (Handler,), {"archive": stub})) as root:
        yield f"{root}/dicom-web"


@pytest.fixture
def archive(url):
    with Archive(url) as archive:
        yield archive


STUDY = Resource("", study=uid(1))
ODD_UIDS = [
    "1.2",
    {"vr": "UI"},
    {"Value": []},
    {"Value": None},
    {"Value": [None]},
    {"Value": [{}]},
    {"Value": ["../x"]},
]


@pytest.mark.parametrize(
    ("source", "resource"),
    [
        (f"dicomweb+{URL}/studies/1.2", Resource(URL, "1.2")),
        (f"dicomweb+{URL}/studies/1.2/", Resource(URL, "1.2")),
        (f"dicomweb+{URL}/studies/1.2/series/3.4", Resource(URL, "1.2", "3.4")),
        (f"dicomweb+{URL}/studies/1.2/series/3.4/instances/5", Resource(URL, "1.2", "3.4", "5")),
        (f"dicomweb+{URL}/studies?ModalitiesInStudy=CR", Resource(URL, query={"ModalitiesInStudy": "CR"})),
        (f"dicomweb+{URL}?PatientID=", Resource(URL, query={"PatientID": ""})),
        ("dicomweb+http://h:8042/studies", Resource("http://h:8042")),
    ],
)
def test_source_names_what_it_says(source, resource):
    assert Resource.parse(source) == resource


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://host/studies/1", "is no DICOMweb source"),
        ("dicomweb+https://", "is no DICOMweb source"),
        ("dicomweb+https://host:99999/studies/1", "is no DICOMweb source"),
        ("dicomweb+https://jane:secret@host/studies/1", "credentials in it, which others can see"),
        ("dicomweb+https://host/studies/1?PatientName=Doe", "a study and a query"),
        ("dicomweb+https://host/studies/a b", "a UID that is none"),
    ],
)
def test_what_is_no_source_is_refused_without_being_quoted(source, message):
    with pytest.raises(InvalidInput, match=message) as caught:
        Resource.parse(source)
    assert not re.search("jane|secret|Doe", str(caught.value))


def test_study_is_read_from_its_headers_alone(archive, stub):
    found = archive.read(STUDY)
    assert [(one.sop_uid, one.view) for one in found.instances] == [(uid(1, 1, 1), "PA"), (uid(1, 1, 2), "LL")]
    assert found.left_out == (f"{place(archive)}/series/{uid(1, 9)}/instances/{uid(1, 9, 1)}: " + TEXT,)
    assert not [request for request in stub.requests if re.search(r"/instances/", request)]
    assert dcmread(BytesIO(found.instances[0].read())) == stub.objects[0]
    by_name = read_studies(found.instances[1].name)
    assert [one.sop_uid for one in by_name.instances] == [uid(1, 1, 2)]


TEXT = "has no pixels (Basic Text SR Storage)"


def place(archive):
    return f"dicomweb+{archive.url}/studies/{uid(1)}"


def test_series_of_a_study_can_be_named(archive, stub):
    stub.objects.append(radiograph(1, 5, series=2))
    found = archive.read(Resource("", study=uid(1), series=uid(1, 2)))
    assert [one.sop_uid for one in found.instances] == [uid(1, 2, 5)]
    with pytest.raises(NotFound, match="no such study or series"):
        archive.read(Resource("", study=uid(1), series=uid(1, 3)))
    with pytest.raises(NotFound, match=r"no such study$"):
        archive.read(Resource("", study=uid(7)))


@pytest.mark.parametrize(("page", "is_deaf"), [(2, False), (1000, True)], ids=["short pages", "ignores offset"])
def test_all_pages_of_a_query_are_read_and_no_more(archive, stub, page, is_deaf):
    stub.objects = [radiograph(n, 1) for n in range(5)]
    stub.page, stub.is_deaf = page, is_deaf
    assert archive.query({}) == [uid(n) for n in range(5)]
    assert len(stub.requests) == (4 if page == 2 else 2)


def test_archive_that_cuts_its_results_and_has_no_further_page_is_told(archive, stub, monkeypatch):
    monkeypatch.setattr("medimage_client.archive.dicomweb.ARCHIVE_PAGE", 2)
    stub.objects = [radiograph(n, 1) for n in range(3)]
    stub.is_deaf = True
    with pytest.raises(ResponseError, match="the same results again and no more; narrow the query"):
        archive.query({})


def test_limit_and_offset_of_a_query_hold(archive, stub):
    stub.objects = [radiograph(n, 1) for n in range(5)]
    assert archive.query({"limit": "2", "offset": "1"}) == [uid(1), uid(2)]
    with pytest.raises(InvalidInput, match="whole numbers"):
        archive.query({"limit": "Doe"})


def test_query_is_sent_as_it_was_given(archive, stub):
    stub.objects = []
    with pytest.raises(NotFound, match="no study of the archive fits the query"):
        archive.read(Resource.parse(f"dicomweb+{URL}/studies?PatientName=Doe*&ModalitiesInStudy=CR,DX"))
    assert stub.requests == ["GET /dicom-web/studies?ModalitiesInStudy=CR,DX&PatientName=Doe*&limit=100&offset=0"]


# ---- credentials


@pytest.mark.parametrize(
    ("env", "header"),
    [
        ({"USER": "jane", "PASSWORD": "s:e"}, "Basic amFuZTpzOmU="),
        ({"TOKEN": "abc"}, "Bearer abc"),
        ({"CREDENTIALS": "jane:s:e\n"}, "Basic amFuZTpzOmU="),
        ({"CREDENTIALS": "bearer abc\n"}, "Bearer abc"),
        ({}, None),
    ],
)
def test_credentials_are_of_the_environment_or_a_file(archive, stub, url, tmp_path, env, header):
    if "CREDENTIALS" in env:
        path = tmp_path / "credentials"
        path.write_text(env["CREDENTIALS"])
        env = {"CREDENTIALS": str(path)}
    credentials = Credentials.from_env({f"MEDIMAGE_ARCHIVE_{name}": value for name, value in env.items()})
    with Archive(url, credentials=credentials) as archive:
        archive.query({})
    assert stub.headers[0].get("Authorization") == header
    assert not re.search("s:e|abc", repr(credentials))


def test_token_in_a_file_may_be_renewed(url, stub, tmp_path):
    path = tmp_path / "token"
    with Archive(url, credentials=Credentials(file=path)) as archive:
        for token in ("one", "two"):
            path.write_text(f"Bearer {token}")
            stub.authorization = f"Bearer {token}"
            assert archive.query({}) == [uid(1)]
        path.write_text("secret")
        with pytest.raises(InvalidInput, match="is not one line, user:password or Bearer TOKEN") as caught:
            archive.query({})
        assert "secret" not in str(caught.value)


def test_netrc_is_not_looked_into(url, stub, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login jane password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with Archive(url) as archive:
        archive.query({})
    assert "Authorization" not in stub.headers[0]


@pytest.mark.parametrize("token", ["", "two words", "ä", "a\nHost: b"])
def test_token_that_no_header_carries_is_refused(url, stub, token):
    with (
        Archive(url, credentials=Credentials(token=token)) as archive,
        pytest.raises(InvalidInput, match="the token alone"),
    ):
        archive.query({})
    assert stub.requests == []


def test_user_without_password_is_refused():
    with pytest.raises(InvalidInput, match="expected both"):
        Credentials.from_env({"MEDIMAGE_ARCHIVE_USER": "jane"})


def test_refused_credentials_are_told_at_once(archive, url, stub):
    stub.authorization = "Bearer right"
    with pytest.raises(ResponseError, match="none were given, set MEDIMAGE_ARCHIVE_") as caught:
        archive.read(STUDY)
    assert (caught.value.status, len(stub.requests)) == (401, 1)
    with Archive(url, credentials=Credentials(token="wrong")) as other, pytest.raises(ResponseError) as caught:
        other.read(STUDY)
    assert "none were given" not in str(caught.value) and "wrong" not in str(caught.value)


# ---- faults


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_busy_archive_is_asked_again(archive, stub, status):
    stub.faults = [
        ("GET", Answer(status)),
        ("GET", Answer(status, headers={"Retry-After": "0"})),
        ("metadata", Answer(status)),
    ]
    assert len(archive.read(STUDY).instances) == 2


def test_archive_that_stays_busy_is_given_up(archive, stub):
    stub.faults = [("GET", Answer(503))] * 9
    with pytest.raises(Unavailable, match="the archive answered HTTP 503"):
        archive.read(STUDY)
    assert len(stub.requests) == 5


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (Answer(400), InvalidInput, "HTTP 400, the archive refuses the request"),
        (Answer(500, b"Jane Doe"), ServerError, "HTTP 500, the archive failed"),
        (Answer(302, headers={"Location": "http://elsewhere/"}), ResponseError, "a redirect, which is not followed"),
        (Answer(200, b"<html>Jane Doe"), ResponseError, "the archive's answer is not what DICOMweb has here"),
    ],
)
def test_other_answers_are_told_at_once(archive, stub, answer, error, message):
    stub.faults = [("GET", answer)]
    with pytest.raises(error, match=message) as caught:
        archive.read(STUDY)
    assert len(stub.requests) == 1
    assert not re.search("Doe|elsewhere|127", str(caught.value))


def cut(answer):
    """The first half of it, as if it were whole."""
    return Answer(200, answer.body[: len(answer.body) // 2], answer.headers)


def broken(answer):
    """The first half, and then the connection closes."""
    return Answer(200, answer.body[: len(answer.body) // 2], answer.headers, length=len(answer.body))


@pytest.mark.parametrize("fault", [cut, broken])
def test_half_a_multipart_is_asked_for_again(archive, stub, fault):
    one = archive.read(STUDY).instances[0]
    stub.faults = [("/instances/", fault)] * 2
    assert one.read() == file_of(stub.objects[0])
    stub.faults = [("/instances/", fault)] * 9
    with pytest.raises(TransportError, match=r"ended in the middle|cannot reach the archive"):
        one.read()


def test_slow_archive_is_given_up_in_time(url, stub, monkeypatch):
    ended = Event()
    stub.faults = [("GET", lambda answer: (ended.wait(30) and answer) or answer)] * 9
    monkeypatch.setattr("medimage_client.archive.dicomweb.ARCHIVE_SILENCE_S", 0.1)
    with (
        Archive(url, retries=1) as archive,
        pytest.raises(TransportError, match=r"the archive sent nothing for 0\.1 s"),
    ):
        archive.query({})
    assert len(stub.requests) == 2
    ended.set()


def test_archive_that_sends_for_ever_is_given_up_in_time(url, stub, monkeypatch):
    """Each piece comes in time, and the whole does not."""
    clock = count(0, 7)
    monkeypatch.setattr("medimage_client.archive.answers.monotonic", lambda: next(clock))
    with Archive(url, timeout=5) as archive, pytest.raises(RequestTimeout, match="still sending at the end"):
        archive.query({})


def test_answer_beyond_all_bounds_is_not_held(archive, stub, monkeypatch):
    monkeypatch.setattr("medimage_client.archive.answers.MAX_OBJECT_BYTES", 100)
    with pytest.raises(ResponseError, match="the archive's answer has more than"):
        archive.read(STUDY)


def test_nothing_listens(url):
    with Archive("http://127.0.0.1:9/dicom-web") as archive, pytest.raises(TransportError) as caught:
        archive.query({"PatientName": "Doe"})
    assert str(caught.value) == "cannot reach the archive (ConnectionError)"


def test_other_object_than_asked_for_is_refused(archive, stub):
    one = archive.read(STUDY).instances[0]
    stub.faults = [("/instances/", lambda answer: stub.retrieve(stub.objects[1:]))]
    with pytest.raises(ResponseError, match="another object than the one asked for"):
        one.read()


def test_object_without_its_envelope_is_taken(archive, stub):
    one = archive.read(STUDY).instances[0]
    bare = Answer(200, file_of(stub.objects[0]), {"Content-Type": "application/dicom"})
    stub.faults = [("/instances/", bare)]
    assert one.read() == bare.body


def test_archive_that_gives_no_stored_syntax_is_asked_for_a_plain_one(archive, stub):
    one = archive.read(STUDY).instances[0]
    stub.faults = [("/instances/", Answer(406))]
    assert one.read() == file_of(stub.objects[0])
    accepted = [headers["Accept"] for headers in stub.headers[-2:]]
    assert ["transfer-syntax=*" in accept for accept in accepted] == [True, False]


def test_wrong_transfer_syntax_is_told_where_the_pixels_are_read(archive, stub):
    stub.objects[0].file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    stub.objects[0].PixelData = b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0\x04\x00\x00\x00\xff\xd8\xff\xd9"
    stub.objects[0]["PixelData"].is_undefined_length = True
    file = archive.read(STUDY).instances[0].read()
    with pytest.raises(InvalidInput):
        encode_image(file)


def test_study_that_grows_is_looked_at_again(archive, stub):
    grown = iter([radiograph(1, 3), radiograph(1, 4)])

    def grow(stub):
        if "metadata" in " ".join(stub.requests[-1:]):
            stub.objects += [ds for ds in [next(grown, None)] if ds is not None]

    stub.before_request = grow
    found = archive.read(STUDY)
    assert [one.number for one in found.instances] == [1, 2, 3, 4]
    assert found.notes == ()


def test_study_that_does_not_stop_growing_is_told(archive, stub):
    numbers = iter(range(3, 99))

    def grow(stub):
        if "metadata" in " ".join(stub.requests[-1:]):
            stub.objects.append(radiograph(1, next(numbers)))

    stub.before_request = grow
    found = archive.read(STUDY)
    assert len(found.instances) > 3
    assert found.notes == ("the study grew while it was read; images that came last may be missing",)


def test_object_that_is_gone_is_named(archive, stub):
    stub.faults = [(f"{uid(1, 9)}/metadata", Answer(404))]
    found = archive.read(STUDY)
    del stub.objects[0]
    with pytest.raises(NotFound, match="the archive has no such object"):
        found.instances[0].read()


# ---- storing


def test_store_sends_what_the_archive_lacks(archive, stub):
    new = [radiograph(3, 1), radiograph(3, 2)]
    assert archive.store(stub.objects[:1] + new) == Stored(tuple([uid(3, 1, 1), uid(3, 1, 2)]), tuple([uid(1, 1, 1)]))
    assert archive.store(new) == Stored((), tuple([uid(3, 1, 1), uid(3, 1, 2)]))
    assert [ds.SOPInstanceUID for ds in stub.objects[3:]] == [uid(3, 1, 1), uid(3, 1, 2)]
    assert stub.objects[3] == new[0]
    assert archive.has(uid(3), uid(3, 1, 1)) and not archive.has(uid(3), uid(3, 1, 3))


@pytest.mark.parametrize("is_deaf", [False, True])
def test_store_whose_answer_is_lost_is_not_sent_twice(archive, stub, is_deaf):
    stub.is_deaf = is_deaf  # and answers a search with all that it has
    stub.faults = [("POST", lambda answer: Answer(200, b"", length=10)), ("POST", Answer(503))]
    assert archive.store([radiograph(3, 1)]) == Stored(tuple([uid(3, 1, 1)]), ())
    assert [request.split()[0] for request in stub.requests].count("POST") == 1
    assert len(stub.objects) == 4


def test_store_larger_than_a_piece_is_sent_whole(archive, stub):
    large = with_pixels(radiograph(3, 1), np.arange(1200 * 1000, dtype=np.uint16).reshape(1200, 1000))
    archive.store([large])
    assert stub.objects[-1] == large


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(409), "HTTP 409, the archive does not store the object"),
        (
            Answer(409, b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [290]}}]}}'),
            "it does not take this kind of object (0122)",
        ),
        (
            Answer(
                202,
                b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [42752]}}]}}',
                {"Content-Type": "application/dicom+json; charset=utf-8"},
            ),
            "out of resources (A700)",
        ),
    ],
)
def test_refused_store_says_why_and_what_is_done(archive, stub, answer, message):
    stub.faults = [(f"GET.*{uid(3, 1, 2)}", lambda usual: (stub.faults.append(("POST", answer)), usual)[1])]
    with pytest.raises(ResponseError) as caught:
        archive.store([radiograph(3, 1), radiograph(3, 2), radiograph(3, 3)])
    assert message in str(caught.value)
    assert str(caught.value).startswith("object 2: ")
    assert str(caught.value).endswith("(1 stored before, 0 were there)")
    assert [ds.SOPInstanceUID for ds in stub.objects[3:]] == [uid(3, 1, 1)]


def test_store_that_leaves_nothing_is_told(archive, stub):
    stub.forgets = True
    with pytest.raises(ResponseError, match="the archive took the object and does not have it"):
        archive.store([radiograph(3, 1)])


def test_duplicate_told_by_the_archive_counts_as_found(archive, stub):
    body = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [273]}}]}}'
    stub.faults = [("POST", Answer(202, body, {"Content-Type": "application/dicom+json"}))]
    assert archive.store([radiograph(3, 1)]) == Stored((), tuple([uid(3, 1, 1)]))


@pytest.mark.parametrize(
    "answer",
    [None, {"a": 1}, ["x"], [None], [{}], *([{"0020000D": one}] for one in ODD_UIDS)],
    ids=repr,
)
@pytest.mark.parametrize("ask", [lambda archive: archive.query({}), lambda archive: archive.read(Resource(""))])
def test_result_without_a_uid_is_told_and_nothing_else_raised(archive, stub, answer, ask):
    stub.faults = [("GET", stub.json(answer))]
    with pytest.raises(ResponseError, match=r"a result of the archive has no UID|is not what DICOMweb has here"):
        ask(archive)
    assert len(stub.requests) == 1


@pytest.mark.parametrize("answer", [{"a": 1}, ["x"], [None], [{"0020000E": {"Value": [uid(1, 1)]}}]], ids=repr)
def test_list_of_objects_that_is_none_is_told(archive, stub, answer):
    stub.faults = [("/instances", stub.json(answer))]
    with pytest.raises(ResponseError, match=r"a result of the archive has no UID|is not what DICOMweb has here"):
        archive.read(STUDY)


def test_headers_of_another_study_and_without_uid_are_left_out(archive, stub):
    def lie(answer):
        first, second, *others = json.loads(answer.body)
        del first["00080018"]
        second["0020000D"]["Value"] = ["1.2.3"]
        return stub.json([first, second, *others])

    stub.faults = [("/metadata", lie)]
    found = archive.read(STUDY)
    assert found.instances == ()
    assert sorted(line.rpartition(": ")[2] for line in found.left_out) == [
        "has no pixels (Basic Text SR Storage)",
        "is listed and has no header",
        "is told to be of another study",
    ]


def test_text_of_a_header_is_printable(archive, stub):
    def lie(answer):
        items = json.loads(answer.body)
        items[0]["00185101"]["Value"] = ["P\u001b[2JA\ud800"]
        return stub.json(items)

    stub.faults = [("/metadata", lie)]
    assert [one.view for one in archive.read(STUDY).instances] == ["P [2JA", "LL"]


def test_forked_process_asks_by_connections_of_its_own(stub):
    """Else the answers to both come over one connection, and each takes the other's."""
    handler = type("ArchiveHandler", (Handler,), {"archive": stub, "protocol_version": "HTTP/1.1"})  # which keeps it
    with serving(handler) as root, Archive(f"{root}/dicom-web", retries=0) as archive:
        expected = [archive.retrieve(uid(1), uid(1, 1), uid(1, 1, n)) for n in (1, 2)]

        def ask():
            return all(archive.retrieve(uid(1), uid(1, 1), uid(1, 1, n + 1)) == expected[n] for n in (0, 1) * 10)

        children = []
        for _ in range(2):
            child = os.fork()
            if not child:
                try:
                    os._exit(0 if ask() else 1)
                finally:  # also where it raises: the tests are the parent's
                    os._exit(1)
            children.append(child)
        assert ask()
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


def test_passphrase_of_a_key_is_not_asked_for(url, tmp_path):
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-passout", "pass:word", "-keyout", "both.pem", "-out", "cert.pem", "-subj", "/CN=localhost"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_text((tmp_path / "cert.pem").read_text() + both.read_text())
    with pytest.raises(InvalidInput, match="cannot be read as a certificate and its key in PEM form, without a pass"):
        Archive(url, cert=both)


@pytest.mark.parametrize("option", ["ca", "cert"])
def test_file_that_is_no_certificate_is_named(url, tmp_path, option):
    (tmp_path / "key").write_text("secret")
    with pytest.raises(InvalidInput, match=f"{tmp_path}/key cannot be read as .* in PEM form"):
        Archive(url, **{option: tmp_path / "key"})
    with pytest.raises(InvalidInput, match=f"no file {tmp_path}/none; expected one in PEM form"):
        Archive(url, **{option: tmp_path / "none"})


# ---- TLS and logs


@contextmanager
def secured(stub, folder, *, wants_certificate=False):
    """The archive behind TLS, with a certificate that signs itself."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:localhost"], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    if wants_certificate:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "cert.pem")

    class Secured(Handler):
        archive = stub

        def setup(self):
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def finish(self):
            super().finish()
            self.request.close()

    with serving(Secured) as root:
        yield root.replace("http://127.0.0.1", "https://localhost") + "/dicom-web"


def test_certificate_is_checked_and_its_own_authority_can_be_given(stub, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv(
        "REQUESTS_CA_BUNDLE", ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    )  # which would otherwise win
    with secured(stub, tmp_path) as url:
        with (
            Archive(url) as archive,
            pytest.raises(MedImageError, match=r"not trusted \(self") as caught,
        ):
            archive.query({})
        assert type(caught.value) is MedImageError  # not tried again
        with Archive(url, ca=tmp_path / "cert.pem") as archive:
            assert archive.query({}) == [uid(1)]
    with pytest.raises(InvalidInput, match="no file"):
        Archive(url, ca=tmp_path / "missing.pem")
    capfd.readouterr()  # of the server, whose caller has hung up


def test_client_certificate_is_shown_where_the_environment_names_one(stub, tmp_path, capfd, monkeypatch):
    with secured(stub, tmp_path, wants_certificate=True) as url:
        monkeypatch.setenv("MEDIMAGE_ARCHIVE_CA", str(tmp_path / "cert.pem"))
        both = tmp_path / "both.pem"
        both.write_text((tmp_path / "cert.pem").read_text() + (tmp_path / "key.pem").read_text())
        with pytest.raises(MedImageError):
            read_studies(f"dicomweb+{url}/studies/{uid(1)}")
        monkeypatch.setenv("MEDIMAGE_ARCHIVE_CERT", str(both))
        assert len(read_studies(f"dicomweb+{url}/studies/{uid(1)}").instances) == 2
    capfd.readouterr()


def test_certificates_of_the_system_are_trusted(stub, tmp_path, monkeypatch):
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    with secured(stub, tmp_path) as url:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        with Archive(url) as archive:
            assert archive.query({}) == [uid(1)]


def test_logs_hold_uids_at_debug_level_and_nothing_else_of_a_patient(archive, stub, caplog):
    caplog.set_level(logging.DEBUG)
    archive.query({"PatientName": "Doe*", "StudyDate": "20260102"})
    stub.faults = [("GET", Answer(503))]
    for one in archive.read(STUDY).instances:
        one.read()
    archive.store([radiograph(3, 1)])
    assert not re.search("Doe|Jane|4711|2026", caplog.text)
    assert {record.levelname for record in caplog.records if "1.2.826" in record.getMessage()} == {"DEBUG"}
    assert {record.name for record in caplog.records} <= {"medimage_client.archive.dicomweb", "pydicom"}


def test_other_callers_of_the_libraries_keep_their_logs(archive, caplog):
    from dicomweb_client import DICOMwebClient

    caplog.set_level(logging.DEBUG)
    DICOMwebClient(archive.url).search_for_studies()
    assert {"dicomweb_client.web", "urllib3.connectionpool"} <= {record.name for record in caplog.records}


def test_volume_of_an_archive_is_ordered_as_one_of_files(archive, stub):
    stub.objects = [ct_slice(z, n) for n, z in enumerate((5, 1, 3))]
    assert [one.depth for one in archive.read(Resource("", study=uid(2))).instances] == [1, 3, 5]
