"""Pairs of specimens one after the other, the next one prepared while this one is used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from distsynth.runs.data_record import DataRecord
from sharding.volumes.cohort import Specimen
from sharding.volumes.pair import Pair, prepare_pair


def prepared_pairs(specimens: Sequence[Specimen], data: DataRecord) -> Iterator[Pair]:
    """Yield the pair of each specimen, in order; two are in memory at a time.

    Reading, interpolation and scaling leave Python to other threads, so that a second core prepares
    the next pair.

    Args:
        specimens: Their files.
        data: How they are prepared.

    Raises:
        DataError: When it is the turn of a specimen whose files are bad.
    """

    def prepare(specimen: Specimen) -> Pair:
        return prepare_pair(specimen, data.preprocess, data.standards)

    with ThreadPoolExecutor(1, thread_name_prefix="pair") as ahead:
        coming = ahead.submit(prepare, specimens[0]) if specimens else None
        for following in [*specimens[1:], None]:
            if coming is None:
                return
            pair = coming.result()
            coming = ahead.submit(prepare, following) if following else None
            yield pair
