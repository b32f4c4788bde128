"""Steps: done once for a key, whole or not at all, and done again when anything is amiss."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sharding.io.atomic import atomic_folder, remove_leftovers
from sharding.io.records import json_text
from sharding.registration.step_cache import Step, file_sha256, finished, read_record, run_step

STEP = Step("scale", {"low": 0.1, "bins": (1, 2)}, {"numpy": "2.0"}, {"source": "ab"})


@pytest.fixture
def work():
    """Writes a file and counts its calls."""

    def write(folder):
        write.calls += 1
        (folder / "out.txt").write_text(f"call {write.calls}")
        return {"range": [0.0, 1.0]}

    write.calls = 0
    return write


@pytest.mark.parametrize(
    "change",
    [
        {"name": "affine"},
        {"parameters": {"low": 0.2, "bins": (1, 2)}},
        {"tools": {"numpy": "2.1"}},
        {"inputs": {"source": "ac"}},
        {"inputs": {"target": "ab"}},
    ],
)
def test_the_key_depends_on_everything(change):
    assert replace(STEP, **change).key != STEP.key


def test_the_key_does_not_depend_on_order_or_kind_of_sequence():
    assert replace(STEP, parameters={"bins": [1, 2], "low": 0.1}).key == STEP.key
    assert len(STEP.key) == 64


def test_a_step_is_done_once_and_again_for_another_key(tmp_path, work):
    first = run_step(tmp_path, STEP, ["correct", "scale"], work)
    assert run_step(tmp_path, STEP, ["correct", "scale"], work) == first
    assert work.calls == 1
    again = run_step(tmp_path, replace(STEP, tools={"numpy": "2.1"}), ["scale"], work)
    assert work.calls == 2
    assert again.key != first.key
    assert (tmp_path / "scale" / "out.txt").read_text() == "call 2"
    assert [path.name for path in tmp_path.iterdir()] == ["scale"]


def test_the_record_stands_beside_the_files(tmp_path, work):
    record = run_step(tmp_path, STEP, ["correct", "scale"], work)
    assert read_record(tmp_path / "scale") == record
    told = json.loads((tmp_path / "scale" / "step.json").read_text())
    assert told == {
        "step": "scale",
        "key": STEP.key,
        "order": ["correct", "scale"],
        "parameters": {"low": 0.1, "bins": [1, 2]},
        "tools": {"numpy": "2.0"},
        "inputs": {"source": "ab"},
        "measured": {"range": [0.0, 1.0]},
        "files": {"out.txt": file_sha256(tmp_path / "scale" / "out.txt")},
    }


def test_a_step_that_fails_leaves_what_was_there(tmp_path, work):
    run_step(tmp_path, STEP, ["scale"], work)

    def fail(folder):
        (folder / "out.txt").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_step(tmp_path, replace(STEP, inputs={}), ["scale"], fail)
    assert (tmp_path / "scale" / "out.txt").read_text() == "call 1"
    assert finished(tmp_path, STEP)


@pytest.mark.parametrize("damage", ["changed", "gone", "record cut", "record of old"])
def test_what_is_damaged_is_not_finished(tmp_path, work, damage):
    run_step(tmp_path, STEP, ["scale"], work)
    out, record = tmp_path / "scale" / "out.txt", tmp_path / "scale" / "step.json"
    if damage == "changed":
        out.write_text("call 0")
    elif damage == "gone":
        out.unlink()
    elif damage == "record cut":
        record.write_bytes(record.read_bytes()[:-5])
    else:
        record.write_text(json.dumps({**json.loads(record.read_text()), "seconds": 3}))
    assert finished(tmp_path, STEP) is None
    run_step(tmp_path, STEP, ["scale"], work)
    assert work.calls == 2


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"value": float("nan")})


def test_only_what_was_left_unfinished_is_swept_away(tmp_path):
    (tmp_path / ".prepare.lock").touch()
    (tmp_path / "kept").mkdir()
    with atomic_folder(tmp_path / "scale", "step.json", overwrite=True) as folder:
        (folder / "half").touch()
        left = folder.parent
        # As after a kill: nothing of it may be left but what is none of ours.
        remove_leftovers(tmp_path)
        assert not left.exists()
        folder.mkdir(parents=True)
    assert {path.name for path in tmp_path.iterdir()} == {".prepare.lock", "kept", "scale"}
