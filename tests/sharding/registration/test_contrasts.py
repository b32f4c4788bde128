"""Several contrasts are prepared together: each is brought to the target through the first one."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from cheap_preparation import CHEAP
from two_contrasts import moved

from sharding.registration.prepare import prepare_cohort
from sharding.simulation.phantom import phantom_volume
from sharding.simulation.simulate import SimulationConfig, simulate_source
from sharding.volumes.cohort import Specimen, read_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.contrasts import Contrast
from sharding.volumes.pair import prepare_pair
from sharding.volumes.volume import read_volume, write_volume

SHIFT_MM = 0.6
STEPS = ("correct", "scale", "rigid", "resample")
CONFIG = replace(
    CHEAP, steps=STEPS, register=replace(CHEAP.register, affine_shrink=(2, 1), affine_iterations=60)
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A specimen whose T2 lies three voxels away from its T1 and its target."""
    folder = tmp_path_factory.mktemp("raw")
    target = phantom_volume((40, 36, 32), seed=6)
    files = {name: folder / f"{name}.nii.gz" for name in ("target", "t1", "t2", "still")}
    write_volume(files["target"], target)
    clean = SimulationConfig(noise=0.01, factor=1, blur_voxels=0.4)
    for name, gamma in (("t1", 1.3), ("still", 0.7)):
        source, _ = simulate_source(target, replace(clean, gamma=gamma), name)
        write_volume(files[name], source)
    shift = np.eye(4)
    shift[:3, 3] = (SHIFT_MM, 0, 0)
    write_volume(files["t2"], replace(source, affine=shift @ source.affine))
    further = (Contrast("t2", files["t2"]),)
    return Specimen("a", files["target"], files["t1"], contrast="t1", further=further)


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "out"
    done = prepare_cohort([raw], out, CONFIG, workers=1)
    assert not done.failures
    return read_cohort(out)[0]


def test_a_contrast_that_lies_elsewhere_is_brought_to_the_first(raw, prepared):
    folder = prepared.target.parents[1]
    assert prepared.contrasts == ("t1", "t2")
    assert prepared.further[0].source == folder / "resample" / "source_t2.nii.gz"
    assert prepared.further[0].native_source == folder / "scale" / "source_t2.nii.gz"
    record = json.loads((folder / "resample" / "step.json").read_bytes())
    found = np.array(record["measured"]["contrasts"]["source_t2"]["affine"])
    np.testing.assert_allclose(found[:3, 3], (SHIFT_MM, 0, 0), atol=0.1)
    assert found[:3, :3] == pytest.approx(np.eye(3), abs=0.05)
    quality = json.loads((folder / "quality.json").read_bytes())["quality"]
    assert [step["step"] for step in quality["registration"]] == ["t2 to t1", "rigid"]
    assert quality["registration"][0]["kept"]
    page = (folder.parent / "quality.html").read_text(encoding="utf-8")
    assert "t2 to t1" in page
    pair = prepare_pair(prepared, PreprocessConfig())
    before = prepare_pair(raw, PreprocessConfig())
    fits = []
    for each in (before, pair):
        inside = each.mask
        fits.append(np.corrcoef(each.network_source[1][inside], each.target[inside])[0, 1])
    assert fits[1] > 0.85 > fits[0] + 0.15
    assert pair.further[0].native.shape == before.further[0].native.shape


def test_a_change_of_a_further_contrast_changes_what_depends_on_it(raw, prepared, tmp_path):
    still = replace(raw, further=(Contrast("t2", raw.target.with_name("still.nii.gz")),))
    out = tmp_path / "out"
    config = replace(CONFIG, steps=("scale", "resample"))
    first = prepare_cohort([raw], out, config, workers=1)
    record = out / "a" / "resample" / "step.json"
    key = json.loads(record.read_bytes())["key"]
    again = prepare_cohort([raw], out, config, workers=1)
    assert json.loads(record.read_bytes())["key"] == key
    other = prepare_cohort([still], out, config, workers=1)
    assert not (first.failures or again.failures or other.failures)
    assert json.loads(record.read_bytes())["key"] != key
    assert (
        (out / "cohort.csv")
        .read_text(encoding="utf-8")
        .startswith(
            "specimen,source_t1,source_t2,target,mask,native_source_t1,native_source_t2,split"
        )
    )
    del prepared


def test_a_contrast_that_covers_too_little_fails_the_specimen(raw, tmp_path):
    far = tmp_path / "far.nii.gz"
    write_volume(far, moved(read_volume(raw.further[0].source), 4.0))
    done = prepare_cohort(
        [replace(raw, further=(Contrast("t2", far),))],
        tmp_path / "out",
        replace(CONFIG, steps=("scale", "resample"), preprocess=PreprocessConfig(min_overlap=0.9)),
        workers=1,
    )
    assert "far.nii.gz" in done.failures["a"]
    assert "must overlap" in done.failures["a"]
