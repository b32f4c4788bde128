"""Pairs of specimens one after the other, the next one prepared while this one is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from distsynth.runs.data_record import DataRecord
from sharding.volumes.cohort import Specimen
from sharding.volumes.pair import Pair, prepare_pair
from sharding.volumes.slabs import Empty, Scratch, in_memory


def prepared_pairs(
    specimens: Sequence[Specimen], data: DataRecord, empty: Empty = in_memory
) -> Iterator[Pair]:
    """Yield the pair of each specimen, in order; two are in memory at a time.

    Reading, interpolation and scaling leave Python to other threads, so that a second core prepares
    the next pair. Pairs whose arrays lie on disk are prepared each at its turn.

    Args:
        specimens: Their files.
        data: How they are prepared.
        empty: Makes the arrays that are as large as a volume.

    Raises:
        DataError: When it is the turn of a specimen whose files are bad.
    """

    def prepare(specimen: Specimen) -> Pair:
        return prepare_pair(specimen, data.preprocess, data.standards, empty)

    with ThreadPoolExecutor(1, thread_name_prefix="pair") as ahead:
        coming: Future[Pair] | None = None
        for specimen, following in zip(specimens, [*specimens[1:], None], strict=False):
            pair = coming.result() if coming else prepare(specimen)
            coming = (
                ahead.submit(prepare, following) if following and not lies_on_disk(pair) else None
            )
            yield pair
            del pair


def lies_on_disk(pair: Pair) -> bool:
    """Whether the volumes of a pair lie on disk, because they are large."""
    empty = pair.empty
    return isinstance(empty, Scratch) and empty.on_disk(pair.target_scaled.nbytes)
