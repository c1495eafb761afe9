"""A real archive: Orthanc with its DICOMweb plugin, filled with drawn studies, asked, read and reported.

Debian has both, `apt-get install orthanc orthanc-dicomweb`; where they are not, this is skipped.
"""

import json
import os
import shutil
import socket
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pydicom import dcmread

from medimage_client import Archive, Credentials, CXRReportGen, NotFound, ResponseError, Stored, read_studies
from medimage_client.archive.dicomweb import Resource
from medimage_client.cli.group import medimage
from medimage_client.images.encoding import encode_image
from tests.client.dicom_studies import ct_slice, file_of, radiograph, text_object, uid
from tests.client.fake_reports import MODEL, FakeReports, sent
from tests.client.fake_triton import FakeTriton
from tests.waiting import wait_until

PROGRAM = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
CREDENTIALS = Credentials(user="alice", password="drawn")
ENV = {"MEDIMAGE_ARCHIVE_USER": "alice", "MEDIMAGE_ARCHIVE_PASSWORD": "drawn"}

if PROGRAM is None or not PLUGIN.exists():
    pytest.skip("Debian's packages orthanc and orthanc-dicomweb are not installed", allow_module_level=True)

CHEST = [
    radiograph(1, 1, ViewPosition="PA", StudyDate="20260102"),
    radiograph(1, 2, ViewPosition="LL", StudyDate="20260102", lateral=True),
    radiograph(2, 1, ViewPosition="AP", StudyDate="20250102", seed=2),
    text_object(),
]
VOLUME = [ct_slice(z, n, study=3, value=n * 4096) for n, z in enumerate((9, 3, 6, 0, 12))]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """An Orthanc with the chest studies of one patient and a volume, on a port that was free."""
    folder = tmp_path_factory.mktemp("orthanc")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "Plugins": [str(PLUGIN)],
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {CREDENTIALS.user: CREDENTIALS.password},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        wait_until(lambda: listens(port) or process.poll() is not None, what="Orthanc")
        assert process.poll() is None, (folder / "log").read_text()
        url = f"http://127.0.0.1:{port}/dicom-web"
        with Archive(url, credentials=CREDENTIALS) as archive:
            archive.store(CHEST + VOLUME)
        yield url
    finally:
        process.terminate()
        process.wait()


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def archive(url):
    with Archive(url, credentials=CREDENTIALS) as archive:
        yield archive


def run(*args):
    return CliRunner().invoke(medimage, [str(arg) for arg in args], env=ENV)


def test_stored_objects_are_found_and_not_stored_again(archive):
    uids = tuple(ds.SOPInstanceUID for ds in CHEST)
    assert archive.store(CHEST) == Stored((), uids)
    assert archive.has(uid(1), uids[0])
    assert not archive.has(uid(1), "1.2.3") and not archive.has("1.2.3", uids[0])


def test_study_is_listed_with_what_its_headers_say(archive):
    found = archive.read(Resource("", study=uid(1)))
    assert [(one.sop_uid, one.view, one.modality) for one in found.instances] == [
        (uid(1, 1, 1), "PA", "CR"),
        (uid(1, 1, 2), "LL", "CR"),
    ]
    assert [line.rpartition(": ")[2] for line in found.left_out] == ["has no pixels (Basic Text SR Storage)"]
    with pytest.raises(NotFound):
        archive.read(Resource("", study="1.2.3"))


def test_object_comes_back_as_it_was_stored(archive):
    (frontal, _) = archive.read(Resource("", study=uid(1))).instances
    assert dcmread(BytesIO(frontal.read())) == CHEST[0]
    assert encode_image(frontal.read()) == encode_image(file_of(CHEST[0]))


@pytest.mark.parametrize(
    ("query", "studies"),
    [
        ({"ModalitiesInStudy": "CR"}, [1, 2]),
        ({"ModalitiesInStudy": "CR", "StudyDate": "20260101-20260131"}, [1]),
        ({"PatientName": "Doe*"}, [1, 2, 3]),
        ({"PatientID": "0815"}, []),
        ({"limit": "1"}, None),
    ],
)
def test_queries_find_what_they_say(archive, query, studies):
    found = archive.query(query)
    assert len(found) == 1 if studies is None else sorted(found) == [uid(n) for n in studies]


def test_pages_end_where_the_studies_do(archive, monkeypatch):
    monkeypatch.setattr("medimage_client.archive.dicomweb.ARCHIVE_PAGE", 2)
    assert sorted(archive.query({})) == [uid(1), uid(2), uid(3)]
    assert [one.depth for one in archive.read(Resource("", study=uid(3))).instances] == [0, 3, 6, 9, 12]


def test_wrong_password_is_told(url):
    with Archive(url, credentials=Credentials(user="alice", password="x")) as archive:
        with pytest.raises(ResponseError, match="the archive refuses the credentials") as caught:
            archive.query({})
        assert caught.value.status == 401


def test_commands_take_the_archive_in_place_of_a_path(url, tmp_path, monkeypatch):
    triton, reports = FakeTriton(), FakeReports()
    monkeypatch.setattr("medimage_client.wire.triton.Endpoint.connect", lambda endpoint, *, shared_memory: triton)
    listed = run("studies", f"dicomweb+{url}/studies?ModalitiesInStudy=CR")
    assert listed.exit_code == 0
    assert listed.stdout.count("\nstudy ") + 1 == 2
    output = tmp_path / "out.npz"
    done = run("embed", f"dicomweb+{url}/studies/{uid(3)}", "--slices", "centre=1", "--output", output)
    assert (done.exit_code, done.output) == (0, "")
    with np.load(output) as arrays:
        assert arrays["vectors"].argmax(axis=1).tolist() == [16, 32, 0]  # grey of the slices at 3, 6 and 9 mm
        assert arrays["position"][:, 2].tolist() == [3, 6, 9]
        assert arrays["sop_uid"].tolist() == [uid(3, 1, n) for n in (1, 2, 0)]
    assert run("classify", f"dicomweb+{url}/studies/{uid(3)}/series/{uid(3, 1)}", "--label", "a").exit_code == 0

    monkeypatch.setattr("medimage_client.wire.triton.Endpoint.connect", lambda endpoint, *, shared_memory: reports)
    result = run("report", f"dicomweb+{url}/studies?ModalitiesInStudy=CR")
    assert (result.exit_code, result.stdout[:12]) == (0, "1. Heart is ")
    names = [line.partition(" (")[0] for line in result.stderr.splitlines()]
    assert names == [f"{view}: image {n} of series 1" for view, n in (("frontal", 1), ("lateral", 2), ("prior", 1))]
    images = {"frontal_image": CHEST[0], "lateral_image": CHEST[1], "prior_image": CHEST[2]}
    assert {name: sent(reports.calls[0])[name] for name in images} == {
        name: encode_image(file_of(ds)) for name, ds in images.items()
    }


def test_client_reads_the_archive_with_the_credentials_of_the_environment(url, monkeypatch):
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    assert len(read_studies(f"dicomweb+{url}/studies/{uid(1)}").instances) == 2
    with CXRReportGen("grpc://unused", transport=FakeReports()) as client:
        report = client.report(study=f"dicomweb+{url}/studies/{uid(1)}", prior=f"dicomweb+{url}/studies/{uid(2)}")
    assert [one.sop_uid for one in report.choice.images] == [uid(1, 1, 1), uid(1, 1, 2), uid(2, 1, 1)]


def test_report_is_found_in_the_archive_once_beside_its_images(url, archive, tmp_path, monkeypatch):
    reports = FakeReports(model=MODEL)
    monkeypatch.setattr("medimage_client.wire.triton.Endpoint.connect", lambda endpoint, *, shared_memory: reports)
    command = ("report", f"dicomweb+{url}/studies/{uid(1)}", "--store", "--sr", tmp_path / "report.dcm")
    done = run(*command, "--secondary-capture", tmp_path / "picture.dcm")
    assert done.exit_code == 0, done.stderr
    written = {name: dcmread(tmp_path / f"{name}.dcm") for name in ("report", "picture")}
    for name, modality in (("report", "SR"), ("picture", "OT")):
        (found,) = archive.query({"ModalitiesInStudy": modality})
        assert (found, written[name].Modality) == (uid(1), modality)
        result = written[name]
        stored = dcmread(BytesIO(archive.retrieve(uid(1), result.SeriesInstanceUID, result.SOPInstanceUID)))
        assert stored == result
    assert "already; --again stores another" in run(*command).stderr
    assert "Stored the structured report" in run(*command, "--again").stderr
    # what was stored is none of the images that the next report takes
    assert {len(sent(call).keys() & {"frontal_image", "lateral_image", "prior_image"}) for call in reports.calls} == {2}
