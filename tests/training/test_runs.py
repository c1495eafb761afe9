"""Whole runs: what they leave, that a killed one goes on as if it had not been, and that two processes are as one."""

import json
import os
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medimage_client.errors import InvalidInput
from medimage_export.medimageinsight.checkpoint import find_checkpoint, load_model
from medimage_training import trainer
from medimage_training.config import read_fine_tuning
from medimage_training.images import ServedImages
from medimage_training.published import sha256
from medimage_training.run_state import STATE, read_log
from medimage_training.trainer import fine_tune, read_data
from tests.training.tiny import LABELS, write_config
from tests.waiting import wait_until


def weights_of(folder):
    return load_file(folder / "vision_model" / "medimageinsigt-v1.0.0.pt")


def start(workplace, output, *options, **environment):
    """A run in a process of its own."""
    command = [sys.executable, "-m", "medimage_training", "--config", workplace / "train.yaml", "--output", output]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    with (output.parent / f"{output.name}-{environment.get('RANK', 0)}.log").open("w") as log:
        return subprocess.Popen([*command, *options], env=os.environ | threads | environment, stdout=log, stderr=log)


def test_run_leaves_checkpoints_that_the_export_loads(workplace, finished):
    base, best, last = (
        load_model(find_checkpoint(folder))
        for folder in (workplace / "checkpoint", finished / "best", finished / "last")
    )
    assert best.config == last.config == base.config
    changed = [name for name, tensor in base.state_dict().items() if not torch.equal(tensor, last.state_dict()[name])]
    assert len(changed) == len(base.state_dict())


def test_manifest_names_the_base_the_data_and_the_configuration(workplace, finished):
    manifest = json.loads((finished / "last" / "finetuning.json").read_text())
    assert manifest["base"]["sha256"] == sha256(find_checkpoint(workplace / "checkpoint").weights)
    assert manifest["sha256"] == sha256(find_checkpoint(finished / "last").weights)
    assert manifest["data"]["labels"] == sorted(LABELS) and len(manifest["data"]["sha256"]) == 64
    assert manifest["configuration"]["learning_rate"] == 1e-3


def test_log_has_each_step_and_the_scores_of_each_set(finished):
    rows = read_log(finished)
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [bool(row["nearest_accuracy"]) for row in rows] == [False, False, False, True, False, True]


def test_report_has_each_set_before_and_after(finished):
    report = json.loads((finished / "report.json").read_text())
    first, best, last = list(report["prompts"])[1:]
    assert (first, last) == ("before", "last") and best in ("best (step 4)", "best (step 6)")
    assert np.sum(report["prompts"]["before"]["confusion"]) == len(LABELS)
    assert report["nearest"]["before"]["mauc"] is None
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_killed_run_goes_on_to_the_same_weights(workplace, finished, tmp_path):
    output = tmp_path / "killed"
    run = start(workplace, output)
    wait_until((output / STATE).exists, within=60.0, what="a saved step")
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and not (output / "last").exists()

    with pytest.raises(InvalidInput, match="give --resume to go on"):
        fine_tune(read_fine_tuning(workplace / "train.yaml", output=output))
    said: list[str] = []
    fine_tune(read_fine_tuning(workplace / "train.yaml", output=output, resume=True), say=said.append)
    assert any(line.startswith("resumed after step") for line in said)
    for folder in ("best", "last"):
        resumed, undisturbed = weights_of(output / folder), weights_of(finished / folder)
        assert [name for name, tensor in undisturbed.items() if not torch.equal(tensor, resumed[name])] == []
    assert [row["loss"] for row in read_log(output)] == [row["loss"] for row in read_log(finished)]


@pytest.mark.soak  # what three processes import takes longer than what they compute
def test_two_processes_train_as_one_with_the_same_batch(workplace, finished, tmp_path):
    config = write_config(
        workplace / "halves.yaml", workplace / "checkpoint", TRAIN={"BATCH_SIZE_TOTAL": 4, "BATCH_SIZE_PER_GPU": 2}
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    output = tmp_path / "two"
    runs = [start(workplace, output, "--config", config, RANK=str(i), LOCAL_RANK=str(i), **world) for i in range(2)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0], (tmp_path / "two-0.log").read_text()
    for two, one in zip(read_log(output), read_log(finished), strict=True):
        assert float(two["loss"]) == pytest.approx(float(one["loss"]), rel=1e-4)
    together, alone, base = (
        weights_of(output / "last"),
        weights_of(finished / "last"),
        weights_of(workplace / "checkpoint"),
    )
    moved = torch.cat([(alone[name] - base[name]).flatten() for name in base])
    apart = torch.cat([(together[name] - alone[name]).flatten() for name in base])
    assert apart.norm() < 1e-3 * moved.norm()


def test_state_of_another_run_is_refused(workplace, finished):
    config = write_config(workplace / "other.yaml", workplace / "checkpoint", START_LEARNING_RATE=2e-3)
    with pytest.raises(InvalidInput, match=r"state of another run: learning_rate differ"):
        fine_tune(read_fine_tuning(config, output=finished, resume=True), say=lambda line: None)
    more = {"EVAL_TABLE": "new.csv"}
    config = write_config(workplace / "others.yaml", workplace / "checkpoint", EVALDATASET_MORE=more)
    with pytest.raises(InvalidInput, match=r"resume with the same EVALDATASET_… blocks"):
        fine_tune(read_fine_tuning(config, output=finished, resume=True), say=lambda line: None)


def test_classifier_package_has_azures_layout_and_labels(finished):
    package = finished / "classifier"
    assert json.loads((package / "artifacts/checkpoints/config.json").read_text()) == {"labels": sorted(LABELS)}
    assert find_checkpoint(package).weights.read_bytes() == find_checkpoint(finished / "best").weights.read_bytes()
    prompts = (package / "artifacts/checkpoints/prompts.csv").read_text().splitlines()
    assert prompts[:2] == ["label,prompt", f"{sorted(LABELS)[0]},{sorted(LABELS)[0]}."]


def test_images_that_cannot_be_read_stop_the_run_or_are_left_out(workplace):
    (workplace / "broken.csv").write_text((workplace / "train.csv").read_text() + f"none.png,{LABELS[0]}\n")
    config = write_config(workplace / "broken.yaml", workplace / "checkpoint", INPUTS={"table": "broken.csv"})
    options = read_fine_tuning(config, inputs={"eval_table": workplace / "new.csv"}, output=workplace / "unused")
    said: list[str] = []
    place = f"{workplace / 'broken.csv'}, row 9: cannot read {workplace / 'none.png'}"
    with pytest.raises(InvalidInput, match=f"{place}: .*; 1 of 13 images cannot be used: .* --on-bad-image skip"):
        read_data(options, ServedImages((64, 64)), skip_bad_images=False, say=said.append)
    data = read_data(options, ServedImages((64, 64)), skip_bad_images=True, say=said.append)
    assert said[-1].startswith(f"left out: {place}") and len(data.training) == 8


def test_lack_of_memory_is_one_line_with_what_to_change(workplace, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "unicl_loss", lambda *_: torch.empty(2**50))  # the allocator's own error
    options = read_fine_tuning(
        write_config(workplace / "memory.yaml", workplace / "checkpoint", EVALDATASET_PROMPTS={}),
        output=tmp_path / "out",
    )
    with pytest.raises(InvalidInput, match=r"out of memory with 4 images at once: lower TRAIN.BATCH_SIZE_PER_GPU"):
        fine_tune(options, say=lambda line: None)
