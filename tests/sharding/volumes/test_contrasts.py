"""Several contrasts of a source: the columns of a cohort, and the pair that is made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from two_contrasts import moved, write_two_contrasts

from sharding.volumes.cohort import Specimen, read_cohort, read_sources, write_cohort
from sharding.volumes.config import PreprocessConfig
from sharding.volumes.contrasts import Contrast, common_contrasts, in_order
from sharding.volumes.landmarks import Standards
from sharding.volumes.pair import prepare_pair
from sharding.volumes.volume import read_volume, write_volume


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_two_contrasts(tmp_path_factory.mktemp("contrasts"), specimens=2, factor=2)


def test_a_cohort_is_read_as_it_was_written(cohort):
    text = cohort.read_text(encoding="utf-8").splitlines()
    assert text[0] == "specimen,source_t1,source_t2,target,split"
    assert text[1] == "s0,s0_t1.nii.gz,s0_t2.nii.gz,s0_target.nii.gz,"
    folder = cohort.parent
    found = read_cohort(cohort)
    assert found[0] == Specimen(
        "s0",
        folder / "s0_target.nii.gz",
        folder / "s0_t1.nii.gz",
        contrast="t1",
        further=(Contrast("t2", folder / "s0_t2.nii.gz"),),
    )
    assert found[0].contrasts == common_contrasts(found) == ("t1", "t2")
    assert found[0].sources == (folder / "s0_t1.nii.gz", folder / "s0_t2.nii.gz")
    assert read_sources(cohort)["s1"] == {
        "t1": folder / "s1_t1.nii.gz",
        "t2": folder / "s1_t2.nii.gz",
    }


def test_prepared_specimens_keep_the_native_scans_of_every_contrast(cohort, tmp_path):
    (first, *_) = read_cohort(cohort)
    native = cohort.parent / "s1_t2.nii.gz"
    prepared = replace(
        first,
        native_source=cohort.parent / "s1_t1.nii.gz",
        further=(replace(first.further[0], native_source=native),),
    )
    write_cohort(tmp_path / "cohort.csv", [prepared])
    (line, *_) = (tmp_path / "cohort.csv").read_text(encoding="utf-8").splitlines()
    assert line == ("specimen,source_t1,source_t2,target,native_source_t1,native_source_t2,split")
    assert read_cohort(tmp_path / "cohort.csv") == [prepared]
    assert read_sources(tmp_path)["s0"]["t2"] == native


ROW = "specimen,{},target\ns0,{},s0_target.nii.gz\n"


@pytest.mark.parametrize(
    ("columns", "fields", "rule", "remedy"),
    [
        ("source_t1,source_t2", "s0_t1.nii.gz,", "field source_t2 is empty", "Fill it"),
        ("source,source_t2", "s0_t1.nii.gz,s0_t2.nii.gz", "source stands beside source_t2", "each"),
        ("source_t2", "s0_t2.nii.gz", "source_t2 is the only column of a contrast", "Name it"),
        (
            "source_t1,source_t2,native_source_t3",
            "s0_t1.nii.gz,s0_t2.nii.gz,",
            "native_source_t3 needs the column source_t3",
            "Add it",
        ),
        (
            "source_t1,source_t2,native_source",
            "s0_t1.nii.gz,s0_t2.nii.gz,",
            "native_source belongs to one source",
            "native_source_t1",
        ),
        (
            "source_t1,source_t2,native_source_t1",
            "s0_t1.nii.gz,s0_t2.nii.gz,s1_t1.nii.gz",
            "native_source_t1 and native_source_t2 belong together",
            "Fill in both",
        ),
        (
            "source_t1,source_t2",
            "s0_t1.nii.gz,s0_t1.nii.gz",
            "volumes of s0 must be different files",
            "a file for each",
        ),
        ("source_t1,source_t2", "s0_t1.nii.gz,none.nii", "file of s0 does not exist", "path"),
        ("source_t1,source_", "s0_t1.nii.gz,s0_t2.nii.gz", "'source_' is not known", "Rename"),
    ],
)
def test_what_is_wrong_with_the_columns_is_named(cohort, columns, fields, rule, remedy, refused):
    file = cohort.parent / "bad.csv"
    file.write_text(ROW.format(columns, fields), encoding="utf-8")
    where = "none.nii" if "none" in fields else "s0_target" if "different" in rule else "bad.csv"
    with refused(where, rule, remedy):
        read_cohort(file)


def test_all_specimens_have_the_same_contrasts(cohort, refused):
    first, second = read_cohort(cohort)
    other = replace(second, further=(replace(second.further[0], name="pd"),))
    with refused("s1", "s0 has the contrasts t1, t2, this one the contrasts t1, pd", "same"):
        common_contrasts([first, other])


def test_contrasts_are_brought_into_the_order_of_a_model(cohort, refused):
    first = read_cohort(cohort)[0]
    turned = in_order(first, ("t2", "t1"))
    assert turned.contrasts == ("t2", "t1")
    assert turned.sources == first.sources[::-1]
    assert in_order(turned, ("t1", "t2")) == first
    with refused("s0", "trained on one source, and here is the contrasts t1, t2", "same"):
        in_order(first, ())
    registered = replace(first, native_source=first.target, transform=cohort.parent)
    with refused("s0", "must have t2 first, to which its transform belongs", "order"):
        in_order(registered, ("t2", "t1"))


def test_a_pair_holds_every_contrast_on_the_grid_of_the_target(cohort):
    specimen = read_cohort(cohort)[0]
    pair = prepare_pair(specimen, PreprocessConfig())
    assert pair.network_source.shape == (2, *pair.grid.shape)
    for index, path in enumerate(specimen.sources):
        single = replace(specimen, source=path, contrast="", further=())
        alone = prepare_pair(single, PreprocessConfig())
        np.testing.assert_array_equal(pair.network_source[index], alone.source)
        assert alone.network_source.shape == pair.grid.shape
    second = pair.further[0]
    assert second.native.shape == tuple(side // 2 for side in pair.grid.shape)
    assert second.transform != pair.source_transform


def test_each_contrast_has_landmarks_of_its_own(cohort):
    config = PreprocessConfig(intensities="landmarks")
    plain = prepare_pair(read_cohort(cohort)[0], config)
    own, other = plain.source_transform.landmarks, plain.further[0].transform.landmarks
    assert own and other and own != other
    standards = Standards(own, plain.target_transform.landmarks, (own,))
    standard = prepare_pair(read_cohort(cohort)[0], config, standards)
    np.testing.assert_allclose(standard.network_source[0], plain.network_source[0], atol=1e-5)
    assert np.abs(standard.network_source[1] - plain.network_source[1]).max() > 0.01


def test_the_mask_lies_within_every_contrast(cohort, tmp_path, refused):
    specimen = read_cohort(cohort)[0]
    whole = prepare_pair(specimen, PreprocessConfig()).mask
    t2 = read_volume(specimen.sources[1])
    aside = tmp_path / "aside.nii.gz"
    write_volume(aside, moved(t2, 1.0))
    shifted = replace(specimen, further=(Contrast("t2", aside),))
    pair = prepare_pair(shifted, PreprocessConfig(min_overlap=0.1))
    assert 0 < pair.mask.sum() < whole.sum()
    assert not (pair.mask & ~whole).any()
    write_volume(aside, moved(t2, 100.0))
    with refused(
        aside, "must overlap: it covers 0% .* together with the contrasts before", "affine"
    ):
        prepare_pair(shifted, PreprocessConfig())


def test_a_second_contrast_finer_than_the_target_is_refused(cohort, tmp_path, refused):
    specimen = read_cohort(cohort)[0]
    t2, fine = read_volume(specimen.sources[0]), tmp_path / "fine.nii.gz"
    write_volume(fine, replace(t2, affine=t2.affine @ np.diag([0.5, 0.5, 0.5, 1])))
    with refused(fine, "the source is finer than the target", "Swap"):
        prepare_pair(replace(specimen, further=(Contrast("t2", fine),)), PreprocessConfig())
