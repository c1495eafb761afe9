"""`medimage init`: what it writes, and that nothing is lost which it did not write."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from medimage_export.cli import export, init
from medimage_export.errors import RepositoryError
from medimage_export.initial_repository import init_repository, summary
from medimage_export.repository import put_in_place
from medimage_export.served_config import config_change, told
from medimage_install import places
from tests.paths import REPOSITORY

CONFIG = "image_encoder/config.pbtxt"


@pytest.fixture
def repository(tmp_path) -> Path:
    folder = tmp_path / "user" / "models"
    init_repository(folder)
    return folder


@pytest.fixture
def later(tmp_path, monkeypatch):
    """name -> new text: a later version, in which these files of the repository differ; None for one that it lacks."""
    shipped = tmp_path / "later"

    def later(**changed):
        init_repository(shipped)
        (shipped / places.STAMP).unlink()
        for name, text in changed.items():
            if text is None:
                (shipped / name).unlink()
            else:
                (shipped / name).parent.mkdir(parents=True, exist_ok=True)
                (shipped / name).write_text(text)
        monkeypatch.setattr("medimage_export.initial_repository.shipped_repository", lambda: shipped)
        monkeypatch.setattr("medimage_export.initial_repository.version", lambda name: "9.9.9")
        return shipped

    return later


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def with_comment(name: str = CONFIG) -> str:
    return f"# of a later version\n{(REPOSITORY / name).read_text()}"


def test_new_repository_is_what_git_has(repository):
    written = contents(repository)
    stamp = json.loads(written.pop(places.STAMP))
    kinds = ("*/config.pbtxt", "*/1/model.py", "*/1/.gitkeep", "*/warmup/*")
    committed = [path for kind in kinds for path in REPOSITORY.glob(kind)]
    assert sorted(written) == sorted(path.relative_to(REPOSITORY).as_posix() for path in committed)
    assert written["text_tokenizer/1/model.py"] == (REPOSITORY / "text_tokenizer/1/model.py").read_bytes()
    assert stamp["files"].keys() == written.keys()


def test_second_run_changes_nothing(repository):
    before = contents(repository)
    assert summary(repository, init_repository(repository))[0].startswith(f"model repository {repository}: nothing to ")
    assert contents(repository) == before


def test_later_version_replaces_what_was_written_and_says_so(repository, later):
    later(
        **{CONFIG: with_comment(), "text_tokenizer/1/model.py": None, "new_model/config.pbtxt": 'name: "new_model"\n'}
    )
    outcome = init_repository(repository)
    assert (outcome.added, outcome.updated, outcome.removed, outcome.kept) == (
        ["new_model/config.pbtxt"],
        [CONFIG],
        ["text_tokenizer/1/model.py"],
        {},
    )
    assert (repository / CONFIG).read_text() == with_comment()
    assert summary(repository, outcome)[-1].endswith(f"was of {outcome.before}, is now of 9.9.9")
    assert init_repository(repository).before == "9.9.9"


def test_what_the_user_edited_is_kept_also_by_versions_after_the_next(repository, later):
    mine = 'name: "image_encoder"  # mine\n'
    (repository / CONFIG).write_text(mine)
    shipped = later(**{CONFIG: with_comment()})
    for _ in range(2):
        outcome = init_repository(repository)
        assert outcome.kept == {CONFIG: "it was edited"}
        assert (repository / CONFIG).read_text() == mine
    assert f"kept {CONFIG}: it was edited; this version's is {shipped / CONFIG}" in summary(repository, outcome)


def test_edited_file_that_a_later_version_lacks_is_kept(repository, later):
    (repository / "text_tokenizer/1/model.py").write_text("# mine\n")
    later(**{"text_tokenizer/1/model.py": None})
    outcome = init_repository(repository)
    reason = f"it was edited, and {outcome.now} has it no more"
    assert outcome.kept == {"text_tokenizer/1/model.py": reason}
    assert f"kept text_tokenizer/1/model.py: {reason}" in summary(repository, outcome)
    assert (repository / "text_tokenizer/1/model.py").read_text() == "# mine\n"


def test_copy_that_was_made_by_hand_is_taken_over_file_by_file(repository, later):
    (repository / places.STAMP).unlink()
    (repository / CONFIG).write_text("# mine\n")
    assert init_repository(repository).kept == {CONFIG: "`medimage init` did not write it"}
    later(**{CONFIG: with_comment(), "text_encoder/config.pbtxt": with_comment("text_encoder/config.pbtxt")})
    assert init_repository(repository).updated == ["text_encoder/config.pbtxt"]
    assert (repository / CONFIG).read_text() == "# mine\n"


@pytest.mark.parametrize(
    ("written", "precision"),
    [("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "bf16"), ("onnx", "int8"), ("tensorrt", "fp16")],
)
def test_upgraded_config_serves_what_was_exported(repository, later, written, precision, tmp_path):
    """It is what an export into the later version's repository would have made of it."""
    answer = "medimageinsight_image"
    later(**{name: with_comment(name) for name in (CONFIG, f"{answer}/config.pbtxt")})
    fresh = tmp_path / "fresh"
    init_repository(fresh)
    for folder in (repository, fresh):
        changes = [
            config_change(folder, "image_encoder", written, precision=precision),
            told(folder, answer, {"precision": precision}),
        ]
        put_in_place(tmp_path / "nothing staged", folder, changes)
    (repository / "image_encoder/1/model.onnx").write_bytes(b"exported")
    assert init_repository(repository).updated == [CONFIG, f"{answer}/config.pbtxt"]
    for name in (CONFIG, f"{answer}/config.pbtxt"):
        assert (repository / name).read_bytes() == (fresh / name).read_bytes()
    assert (repository / "image_encoder/1/model.onnx").read_bytes() == b"exported"


def test_config_that_an_export_changed_in_a_way_that_no_longer_fits_is_kept(repository, later):
    put_in_place(repository / "x", repository, [config_change(repository, "image_encoder", "onnx", precision="int8")])
    before = (repository / CONFIG).read_text()
    later(**{CONFIG: (REPOSITORY / CONFIG).read_text().replace("KIND_AUTO", "KIND_GPU")})
    (reason,) = init_repository(repository).kept.values()
    assert reason.startswith("what was exported does not fit it (")
    assert (repository / CONFIG).read_text() == before


@pytest.mark.parametrize("what", ["folder with other things", "file", "checkout"])
def test_what_is_no_place_for_models_is_refused_untouched(tmp_path, what):
    place = tmp_path / "place"
    if what == "file":
        place.write_text("text")
    elif what == "checkout":
        place.symlink_to(REPOSITORY)
    else:
        place.mkdir()
        (place / "thesis.txt").write_text("text")
    done = CliRunner().invoke(init, ["--repository", str(place)])
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: {place} ") and done.output.count("\n") == 1
    assert not (place / places.STAMP).exists()


def test_stamp_that_cannot_be_read_is_named(repository):
    (repository / places.STAMP).write_text("{")
    with pytest.raises(RepositoryError, match=r"\.medimage\.json: not what `medimage init` writes; remove it"):
        init_repository(repository)


def test_default_is_the_checkouts_repository_else_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert places.default_repository() == tmp_path / "home/.local/share/medimage/model_repository"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert places.default_repository() == tmp_path / "data/medimage/model_repository"
    monkeypatch.chdir(REPOSITORY.parent)
    assert places.default_repository().samefile(REPOSITORY)


def test_export_makes_the_repository_that_is_not_there_yet(tmp_path, monkeypatch):
    """As `medimage init` does; after a failure, too, since it is what the next one needs."""
    monkeypatch.setenv("MEDIMAGE_REPOSITORY", str(tmp_path / "models"))
    done = CliRunner().invoke(export, ["medimageinsight", "--checkpoint", str(tmp_path / "absent")])
    assert done.exit_code == 1
    assert f"model repository {tmp_path}/models: " in done.output
    assert (tmp_path / "models/text_tokenizer/1/model.py").is_file()
