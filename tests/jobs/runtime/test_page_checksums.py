"""Spark compares the checksums of the pages that Spark has written: a flipped bit is an error that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

FLIPS = 20


@pytest.mark.fault("A14", "loud", "a bit flipped in a page of a file that Spark wrote, 20 times")
def test_no_flipped_bit_of_a_file_of_sparks_becomes_a_value(spark: SparkSession, tmp_path: Path) -> None:
    rows = spark.range(0, 400, 1, 1).selectExpr("id", "rand(7) AS number", "cast(id AS string) AS text")
    rows.write.option("compression", "none").parquet(str(tmp_path / "t"))
    (file,) = (tmp_path / "t").glob("*.parquet")
    (tmp_path / "t" / f".{file.name}.crc").unlink(missing_ok=True)  # Hadoop's own, which no object store has
    whole, random = file.read_bytes(), np.random.default_rng(5)
    pages = len(whole) - int.from_bytes(whole[-8:-4], "little") - 8

    def read() -> list[tuple[object, ...]]:
        return sorted(map(tuple, spark.read.parquet(str(tmp_path / "t")).collect()))

    expected, said = read(), []
    for _ in range(FLIPS):
        damaged = bytearray(whole)
        damaged[random.integers(4, pages)] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        try:
            found = read()
        except Py4JJavaError as error:
            said.append(str(error))
        else:
            assert found == expected
    assert len(said) > FLIPS / 2
    assert all(file.name in text for text in said)
