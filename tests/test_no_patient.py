"""No text of a scan's header reaches shards, runs, W&B's files, pages, exports or predictions."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from dicom_scans import PLANTED, PLANTED_DATE, PLANTED_UID, write_enhanced, write_slices
from small_study import run_study

from distsynth.inference.predictor import load_predictor
from distsynth.prediction.file import predict_file
from sharding.volumes.volume import Volume, read_volume, write_volume

pytestmark = pytest.mark.slow

COMMANDS = ("shard", "train", "predict", "evaluate", "report", "export")


def plant_nifti(path: Path, volume: Volume) -> Path:
    header = nib.Nifti1Header()
    for field in ("descrip", "aux_file", "db_name", "data_type", "intent_name"):
        header[field] = PLANTED.encode()
    for code in ("comment", "dicom"):
        text = f"{PLANTED}^JANE {PLANTED_DATE}".encode()
        header.extensions.append(nib.nifti1.Nifti1Extension(code, text))
    image = nib.Nifti1Image(volume.data, volume.affine, header)
    image.set_sform(volume.affine, 1)
    nib.save(image, path)
    return path


def plant_nrrd(path: Path, volume: Volume) -> Path:
    write_volume(path, volume)
    content = path.read_bytes()
    planted = f"content: {PLANTED}\n# {PLANTED}\nPatientName:={PLANTED}^JANE\n".encode()
    path.write_bytes(content.replace(b"encoding:", planted + b"encoding:", 1))
    return path


def plant_metaimage(path: Path, volume: Volume) -> Path:
    write_volume(path.with_suffix(".nrrd"), volume)
    image = sitk.ReadImage(path.with_suffix(".nrrd"))
    path.with_suffix(".nrrd").unlink()
    sitk.WriteImage(image, path)
    content = path.read_bytes()
    planted = f"Comment = {PLANTED}\nPatientName = {PLANTED}^JANE\nName = {PLANTED}\n".encode()
    path.write_bytes(content.replace(b"DimSize", planted + b"DimSize", 1))
    return path


def plant_mgh(path: Path, volume: Volume) -> Path:
    write_volume(path, volume)
    path.write_bytes(path.read_bytes() + f"recon-all -s {PLANTED}".encode())
    return path


def stored(volume: Volume) -> np.ndarray:
    """Intensities as 12-bit integers."""
    low, high = volume.data.min(), volume.data.max()
    return np.rint((volume.data - low) / (high - low) * 4000).astype(np.uint16)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose scans have planted text in every format."""
    folder = tmp_path_factory.mktemp("study")
    run_study(folder, ["phantom"])
    cohort = folder / "cohort"
    with (cohort / "cohort.csv").open() as file:
        rows = list(csv.DictReader(file))
    for record in cohort.glob("*.json"):
        record.unlink()
    for number, row in enumerate(rows):
        source, target = (read_volume(cohort / row[role]) for role in ("source", "target"))
        if number == 0:
            made = plant_nifti(cohort / row["source"], source)
        elif number == 1:
            write_slices(cohort / "slices", stored(source), source.affine)
            made = cohort / "slices"
        elif number == 2:
            made = plant_nrrd(cohort / "c.nrrd", source)
        else:
            made = plant_metaimage(cohort / "d.mha", source)
        row["source"] = made.name
        if number == 1:
            write_enhanced(cohort / "frames" / "IM1", stored(target), target.affine)
            row["target"] = "frames"
        elif number == 2:
            row["target"] = plant_mgh(cohort / "c.mgh", target).name
        else:
            plant_nifti(cohort / row["target"], target)
    with (cohort / "cohort.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    run_study(folder, COMMANDS)
    return folder


def holding(folder: Path, texts: tuple[str, ...]) -> list[str]:
    """Files below a folder that hold one of these texts, also in gzip or as UTF-16."""
    found = []
    for path in sorted(file for file in folder.rglob("*") if file.is_file()):
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content += gzip.decompress(content)
        forms = [form for text in texts for form in (text.encode(), text.encode("utf-16-le"))]
        if any(form in content for form in forms):
            found.append(path.relative_to(folder).as_posix())
    return found


def test_every_scan_holds_what_no_output_may(study):
    assert len({name.partition("/")[0] for name in holding(study / "cohort", (PLANTED,))}) == 8


def test_no_output_of_a_study_holds_text_of_a_scan(study):
    texts = (PLANTED, PLANTED_DATE, PLANTED_UID, "JANE")
    made = {path.name for path in study.iterdir()} - {"cohort"}
    assert made >= {"shards", "run", "evaluation", "report.html", "export"}
    found = [name for name in holding(study, texts) if not name.startswith("cohort/")]
    assert not found


def test_no_prediction_of_a_dicom_series_holds_its_text(study, tmp_path):
    predictor = load_predictor(study / "run", "cpu")
    for source in ("slices", "frames"):
        for ending in ("", ".nii.gz", ".mgz", ".nrrd"):
            predict_file(predictor, study / "cohort" / source, tmp_path / f"{source}-out{ending}")
    same = [read_volume(tmp_path / f"slices-out{ending}") for ending in ("", ".mgz", ".nrrd")]
    for other in same[1:]:
        np.testing.assert_allclose(other.affine, same[0].affine, atol=1e-4)
        np.testing.assert_allclose(other.data, same[0].data, atol=np.ptp(other.data) / 60_000)
    assert not holding(tmp_path, (PLANTED, PLANTED_DATE, PLANTED_UID, "JANE"))
