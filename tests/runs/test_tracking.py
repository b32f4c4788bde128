from __future__ import annotations

import getpass
import io
import json
import math
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import launch, losses, run, tiny_config
from wandb_offline import read_offline_run

from distsynth.config import RunConfig, dotted_fields, with_overrides
from distsynth.runs.folder import METRICS_FILE, picture_path
from distsynth.runs.rows import read_rows
from distsynth.runs.tracking import (
    LocalTracker,
    public_config,
    run_id,
    start_trackers,
)

REPOSITORY = Path(__file__).parents[2].resolve()


def test_rows_are_on_disk_at_once_in_order(tmp_path):
    tracker = LocalTracker(tmp_path, 0)
    tracker.log(1, {"train/recon": 0.5})
    assert read_rows(tmp_path / METRICS_FILE) == [{"step": 1, "train/recon": 0.5}]
    tracker.log(2, {"train/recon": 0.25, "epoch": 0})
    assert (tmp_path / METRICS_FILE).read_text().splitlines() == [
        '{"step": 1, "train/recon": 0.5}',
        '{"step": 2, "train/recon": 0.25, "epoch": 0}',
    ]
    tracker.finish()


def test_a_number_that_is_not_finite_is_null_and_comes_back_as_nan(tmp_path):
    tracker = LocalTracker(tmp_path, 0)
    tracker.log(1, {"val/seam_index": math.nan, "val/psnr": math.inf})
    tracker.finish()
    line = '{"step": 1, "val/seam_index": null, "val/psnr": null}\n'
    assert (tmp_path / METRICS_FILE).read_text() == line
    (row,) = read_rows(tmp_path / METRICS_FILE)
    assert math.isnan(row["val/seam_index"])
    LocalTracker(tmp_path, 1).finish()
    assert (tmp_path / METRICS_FILE).read_text() == line


def test_resuming_drops_later_rows_and_a_torn_line(tmp_path):
    rows = [{"step": step, "value": step / 10} for step in (2, 4, 4, 6, 8)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / METRICS_FILE).write_text(text + '{"step": 10, "val')
    assert read_rows(tmp_path / METRICS_FILE) == rows
    tracker = LocalTracker(tmp_path, 4)
    assert read_rows(tmp_path / METRICS_FILE) == rows[:3]
    tracker.log(6, {"value": 7.0})
    tracker.finish()
    assert read_rows(tmp_path / METRICS_FILE) == [*rows[:3], {"step": 6, "value": 7.0}]


@pytest.mark.parametrize(
    "line", ["{", "[1, 2]", '{"value": 1}', '{"step": 2.5}', '{"step": 2, "value": "high"}']
)
def test_a_line_in_the_middle_that_is_no_row_is_named(line, tmp_path, refused):
    path = tmp_path / METRICS_FILE
    path.write_text(f'{{"step": 1, "value": 1.0}}\n{line}\n{{"step": 3, "value": 1.0}}\n')
    with refused(f"{path}, line 2", "not a row of a run", "Restore the file"):
        read_rows(path)
    path.write_text("[" * 100_000 + '\n{"step": 3}\n')
    with refused(path, "nested too deeply", "write it again"):
        read_rows(path)


def test_a_row_or_a_picture_that_finds_no_room_is_named(tmp_path, refused):
    tracker = LocalTracker(tmp_path, 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        tracker.log(1, {"train/recon": 0.5})
        with refused(tmp_path / METRICS_FILE, "cannot be read or written", "permissions"):
            tracker.log(2, {f"train/{name}": 0.5 for name in "abcdefgh"})
        image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
        with refused(picture_path(tmp_path, "a", 2), "cannot be read or written", "permissions"):
            tracker.picture(2, "a", image)
        tracker.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read_rows(tmp_path / METRICS_FILE) == [{"step": 1, "train/recon": 0.5}]


def test_starting_afresh_drops_all_rows(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 1}\n')
    LocalTracker(tmp_path, 0).finish()
    assert read_rows(tmp_path / METRICS_FILE) == []
    assert read_rows(tmp_path / "none.jsonl") == []


def test_numbers_survive_as_they_are(tmp_path):
    tracker = LocalTracker(tmp_path, 0)
    tracker.log(1, {"tiny": 1e-300, "third": 1 / 3})
    tracker.finish()
    expected = {"step": 1, "tiny": 1e-300, "third": 1 / 3}
    assert read_rows(tmp_path / METRICS_FILE) == [expected]


def test_pictures_are_png_files_named_by_step(tmp_path):
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    tracker = LocalTracker(tmp_path, 0)
    tracker.picture(12, "samples", image)
    tracker.finish()
    with Image.open(tmp_path / "samples" / "samples-0000012.png") as found:
        assert np.array_equal(np.asarray(found), image)


def test_public_config_holds_every_field_but_paths():
    config = with_overrides(
        RunConfig(),
        {
            "data.shards": "/home/me/shards",
            "loss.vgg_weights": "/home/me/vgg.pt",
            "train.start_from": "/home/me/run",
        },
    )
    values = public_config(config)
    assert "/home/me" not in json.dumps(values)
    found = {f"{section}.{name}" for section, part in values.items() for name in part}
    everything = {name for name, _ in dotted_fields(config)}
    assert everything - found == {"data.shards", "train.start_from", "loss.vgg_weights"}


def test_run_id_is_kept(tmp_path):
    first = run_id(tmp_path)
    assert first == run_id(tmp_path)
    assert first.isalnum()
    (tmp_path / "other").mkdir()
    assert run_id(tmp_path / "other") != first


TRACKS = """
import sys
from pathlib import Path
from distsynth.config import RunConfig
from distsynth.runs.tracking import start_trackers
folder = Path(sys.argv[1])
folder.mkdir()
trackers = start_trackers(folder, RunConfig(), "sha", 0, resumed=False)
trackers.log(1, {"value": 1.0})
trackers.finish()
"""
TRACKS_BESIDE = f"""
import os, subprocess, sys, wandb
wandb.setup()  # Its service keeps the folder that it was started in.
assert "WANDB_SERVICE" in os.environ
os.chdir(sys.argv[2])
subprocess.run([sys.executable, "-c", {TRACKS!r}, "child"], check=True)
{TRACKS}
"""


@pytest.mark.slow
def test_a_service_of_wandb_in_another_folder_does_not_lose_the_run(tmp_path):
    """As where a notebook tracks something of its own, or starts a program."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    words = [sys.executable, "-c", TRACKS_BESIDE, "parent", str(second)]
    subprocess.run(words, cwd=first, check=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    assert not list(first.rglob("*.wandb"))
    for name in ("child", "parent"):
        (found,) = (second / name).rglob("*.wandb")
        assert [row["value"] for row in read_offline_run(found).rows] == [1.0]


def test_disabled_tracking_never_loads_wandb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = with_overrides(RunConfig(), {"tracking.mode": "disabled"})
    trackers = start_trackers(tmp_path, config, "sha", 0, resumed=False)
    trackers.log(1, {"value": 1.0})
    trackers.finish()
    assert read_rows(tmp_path / METRICS_FILE) == [{"step": 1, "value": 1.0}]


@pytest.fixture(scope="module")
def tracked(shard_folder, tmp_path_factory):
    """A run tracked by W&B offline and then, with one epoch more, resumed."""
    run_dir = tmp_path_factory.mktemp("tracked") / "first run"
    options = {
        "tracking.mode": "offline",
        "tracking.samples": 2,
        "tracking.group": "phantoms",
        "tracking.project": "tests",
        "loss.vgg_weights": "/nowhere/vgg.pt",
    }
    for epochs in (2, 3):
        config = tiny_config(shard_folder, options, {"train.epochs": epochs})
        log = run_dir.parent / f"log-{epochs}"
        assert launch(run, config, run_dir, epochs == 3, log=log) == [0], log
    return run_dir


def offline_runs(run_dir):
    files = sorted(
        run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime
    )
    return [read_offline_run(path) for path in files]


@pytest.mark.slow
def test_wandb_has_the_rows_under_their_steps(tracked):
    # One part: that of the resumed run repeats the rows of the first and has taken its place.
    (found,) = offline_runs(tracked)
    assert_every_row(found, tracked, range(5, 16, 5))


def assert_every_row(found, run_dir, ends):
    """The rows of metrics.jsonl, with validation at the ends of these epochs."""
    by_step: dict[int, dict] = {}
    for row in found.rows:
        by_step.setdefault(row["_step"], {}).update(row)
    expected: dict[int, dict] = {}
    for row in losses(run_dir):
        expected.setdefault(row["step"], {}).update(row)
    assert [step for step, row in expected.items() if "val/psnr" in row] == list(ends)
    assert by_step.keys() == expected.keys()
    for step, row in expected.items():
        del row["step"]
        assert {name: by_step[step][name] for name in row} == row


def start_again(run_dir):
    """Begin, in a process of its own, what a run that is resumed begins."""
    config = with_overrides(RunConfig(), {"tracking.mode": "offline"})
    return start_trackers(run_dir, config, "sha", 1, resumed=True)


def ended(run_dir, failed):
    trackers = start_again(run_dir)
    trackers.log(2, {"value": 2.0})
    trackers.finish(failed)


def killed(run_dir):
    start_again(run_dir)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_the_first_part_goes_only_when_another_is_whole(tmp_path):
    tracker = LocalTracker(tmp_path, 0)
    tracker.log(1, {"value": 1.0})
    tracker.finish()
    assert launch(ended, tmp_path, True, log=tmp_path / "log") == [0]
    (first,) = tmp_path.glob("wandb/offline-run-*")
    assert launch(killed, tmp_path, log=tmp_path / "log") == [-signal.SIGKILL]
    (second,) = set(tmp_path.glob("wandb/offline-run-*")) - {first}
    # As W&B names a start within the same second as another.
    second.rename(f"{second}-1")
    assert launch(ended, tmp_path, True, log=tmp_path / "log") == [0]
    assert first.exists()
    assert launch(ended, tmp_path, False, log=tmp_path / "log") == [0]
    (found,) = offline_runs(tmp_path)
    assert [(row["_step"], row["value"]) for row in found.rows] == [(1, 1.0), (2, 2.0)]
    assert not first.exists()


ON_A_FULL_DISK = """
import contextlib, logging, sys
from pathlib import Path
import numpy as np
from distsynth.config import RunConfig, with_overrides
from distsynth.runs import wandb_file
from distsynth.runs.tracking import start_trackers
logging.basicConfig(format="%(message)s")
config = with_overrides(RunConfig(), {"tracking.mode": "offline"})
run, fill = Path(sys.argv[1]), Path(sys.argv[1], "wandb", "fill")
trackers = start_trackers(run, config, "sha", 1, resumed=False)
with contextlib.suppress(OSError), fill.open("wb", buffering=0) as file:
    while True:
        file.write(bytes(4096))
for step in range(1, 41):
    trackers.log(step, {f"value/{number}": 0.1 for number in range(40)})
try:
    trackers.picture(41, "samples", np.zeros((99, 99, 3), np.uint8))
except OSError as error:
    print(error.filename2)
wandb_file.FLUSH_SECONDS = 2
print(trackers.finish())
wandb_file.FLUSH_SECONDS = 60
fill.unlink()
trackers = start_trackers(run, config, "sha", 40, resumed=True)
print(trackers.finish())
"""


@pytest.mark.slow
def test_a_record_of_wandb_that_finds_no_room_is_named_and_written_again(tmp_path):
    (tmp_path / "wandb").mkdir()
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    script = 'mount -t tmpfs -o size=400k none "$2/wandb" && exec "$0" -c "$@"'
    command = ["unshare", "-rm", "sh", "-c", script, sys.executable, ON_A_FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    picture, first, second = done.stdout.splitlines()
    assert re.search(r"/wandb/offline-run-\S+/samples_\d+_\w+\.png$", picture)
    assert (first, second) == ("False", "True")
    # One line, and no traceback of W&B's own logs.
    (warning,) = done.stderr.splitlines()
    file, _, said = warning.partition(": ")
    assert re.search(r"/wandb/offline-run-\S+/run-\w+\.wandb$", file)
    assert "could not record the whole run: is its disk full?" in said
    assert "Free some space and resume the run" in said


def test_wandb_has_the_images(tracked):
    (folder,) = tracked.glob("wandb/offline-run-*")
    (found,) = offline_runs(tracked)
    images = {row["_step"]: row["samples"] for row in found.rows if "samples" in row}
    assert sorted(images) == [5, 10, 15]
    for step, image in images.items():
        assert image["_type"] == "image-file"
        local = tracked / "samples" / f"samples-{step:07d}.png"
        with Image.open(folder / "files" / image["path"]) as one, Image.open(local) as other:
            assert np.array_equal(np.asarray(one.convert("RGB")), np.asarray(other))


def test_wandb_has_the_configuration_and_a_clean_end(tracked):
    (found,) = offline_runs(tracked)
    assert found.config["train"]["epochs"] == 3
    assert "shards" not in found.config["data"]
    assert len(found.config["data_sha256"]) == 64
    assert found.config["training_sources"]["scans"] == 3
    assert found.config["training_sources"]["orientations"] == ["RAS"]
    assert (found.name, found.project, found.group) == ("first run", "tests", "phantoms")
    assert found.exit_code == 0


def test_a_resumed_run_keeps_its_wandb_id(tracked):
    """The fixture has checked that the first part had it too, or it would still be there."""
    (found,) = offline_runs(tracked)
    assert found.id == run_id(tracked)


def test_wandb_gets_no_path_host_user_or_program(tracked):
    """Whatever W&B leaves: records that would be uploaded, other files, and where links lead."""
    names = {socket.gethostname(), socket.getfqdn(), getpass.getuser()}
    places = {
        str(Path.home()),
        str(tracked.parent),
        str(REPOSITORY),
        "tiny_runs",
        "pytest",
        "/tmp/",
        "/nowhere",
        sys.executable,
    }
    contents = {"records": b"".join(found.content for found in offline_runs(tracked))}
    for path in tracked.glob("wandb/**/*"):
        if path.is_symlink():
            contents[path.name] = str(path.readlink()).encode()
        elif path.is_file() and path.suffix != ".png":
            contents[path.name] = path.read_bytes()
    for name, content in contents.items():
        for place in places:
            assert place.encode() not in content, (name, place)
        for word in names:
            # Whole words only: W&B's random ids may hold the few letters of "vm" or "root".
            pattern = rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])"
            assert not re.search(pattern.encode(), content), (name, word)
    assert all(found.host == "" for found in offline_runs(tracked))
    assert b"requirements.txt" not in contents["records"]
    assert "wandb-metadata.json" not in contents


def test_wandb_files_hold_pictures_only_of_ours(tracked):
    for path in tracked.glob("wandb/offline-run-*/files/media/images/*.png"):
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert not image.info
