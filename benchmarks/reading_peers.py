"""How others read pairs of patches: the peers of benchmarks.reading, as their manuals use them.

Each peer is given what suits it best: volumes that are standardised already and held in memory,
and of MONAI's options those that copy and track least.
"""

# The peers are no needs of the project: they may be absent where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from distsynth.data.loader import Batch
from distsynth.data.standardiser import Standardiser
from sharding.volumes.volume import Volume, write_volume

BATCH = 32
SHUFFLED = 1000
"""Patches that WebDataset and TorchIO mix."""
Pairs = Iterator[tuple[Tensor, Tensor]]
Arrays = tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.int32]]
Volumes = list[dict[str, str]]


def write_tars(folder: Path, patches: Arrays) -> list[str]:
    """One record a patch by WebDataset's own writer."""
    from webdataset.writer import ShardWriter

    with ShardWriter(str(folder / "%06d.tar"), maxsize=64e6, verbose=0) as writer:
        for number, (source, target, where) in enumerate(zip(*patches, strict=True)):
            arrays = {"source.npy": source, "target.npy": target, "where.npy": where}
            writer.write({"__key__": f"{number:06d}", **arrays})
    return sorted(str(path) for path in folder.glob("*.tar"))


def webdataset(tars: list[str], standardise: Standardiser, workers: int) -> Callable[[], Pairs]:
    """Its pipeline: shards in another order each epoch, a shuffle buffer, batches."""
    import webdataset as wds

    pipeline = wds.WebDataset(  # type: ignore[attr-defined]
        tars, shardshuffle=len(tars), empty_check=False
    )
    batches = (
        pipeline.shuffle(SHUFFLED)
        .decode()
        .to_tuple("source.npy", "target.npy", "where.npy")
        .batched(BATCH, partial=False)
    )
    loader = DataLoader(batches, None, num_workers=workers, persistent_workers=workers > 0)

    def epoch() -> Pairs:
        for arrays in loader:
            yield standardise(Batch(*map(torch.as_tensor, arrays)))

    return epoch


def write_volumes(folder: Path, pairs: dict[str, dict[str, NDArray[np.float32]]]) -> Volumes:
    """Standardised volumes of each specimen as NIfTI files."""
    rows = []
    for name, volumes in pairs.items():
        row = {role: str(folder / f"{name}_{role}.nii") for role in volumes}
        for role, volume in volumes.items():
            write_volume(Path(row[role]), Volume(volume, np.eye(4)))
        rows.append(row)
    return rows


def torchio(
    volumes: Volumes, size: int, device: torch.device, batches: int, workers: int
) -> Callable[[], Pairs]:
    """A Queue of uniformly sampled patches from subjects in memory."""
    import torchio as tio

    subjects = [
        tio.Subject(**{role: tio.ScalarImage(path) for role, path in row.items()})
        for row in volumes
    ]
    for subject in subjects:
        subject.load()
    most = SHUFFLED // len(subjects)
    turns = -(-batches * BATCH // (most * len(subjects)))
    queue = tio.Queue(
        tio.SubjectsDataset(subjects * turns),
        max_length=SHUFFLED,
        samples_per_volume=most,
        sampler=tio.UniformSampler((size, size, 1)),
        num_workers=workers,
    )
    loader = tio.SubjectsLoader(queue, batch_size=BATCH, drop_last=True)

    def epoch() -> Pairs:
        for batch in loader:
            source, target = (batch[role]["data"].to(device) for role in ("source", "target"))
            yield source[..., 0], target[..., 0]

    return epoch


def monai(
    volumes: Volumes, size: int, device: torch.device, batches: int, crops: int, workers: int
) -> Callable[[], Pairs]:
    """A CacheDataset and random crops, `crops` of each volume that is drawn."""
    from monai.data.dataloader import DataLoader as MonaiLoader
    from monai.data.dataset import CacheDataset
    from monai.transforms.compose import Compose
    from monai.transforms.croppad.dictionary import RandSpatialCropd, RandSpatialCropSamplesd
    from monai.transforms.io.dictionary import LoadImaged
    from monai.transforms.utility.dictionary import EnsureChannelFirstd, EnsureTyped

    roles, roi = ["source", "target"], (size, size, 1)
    crop: Any = RandSpatialCropd(roles, roi, random_size=False)
    if crops > 1:
        crop = RandSpatialCropSamplesd(roles, roi, crops, random_size=False)
    loaded = [LoadImaged(roles), EnsureChannelFirstd(roles), EnsureTyped(roles, track_meta=False)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = CacheDataset(volumes, Compose([*loaded, crop]), progress=False, copy_cache=False)
    drawn = BATCH // crops
    loader = MonaiLoader(
        dataset,
        batch_size=drawn,
        sampler=RandomSampler(dataset, replacement=True, num_samples=batches * drawn),
        num_workers=workers,
        persistent_workers=workers > 0,
    )

    def epoch() -> Pairs:
        for batch in loader:
            source, target = (batch[role].to(device) for role in roles)
            yield source[..., 0], target[..., 0]

    return epoch
