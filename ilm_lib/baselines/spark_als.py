"""CF embeddings by Spark's ALS, where there are more interactions than one machine can factorise.

python -m ilm_lib.baselines.spark_als data/openp5/ML1M embeddings.safetensors --dim 64
python -m ilm_lib.baselines.spark_als DATA FILE --master yarn --shared hdfs:///tmp/ilm

Leaves the file that `embeddings.file` of a profile names. Needs the package pyspark and a Java; on a cluster `--shared`
is a folder that all its machines see, through which the interactions for training go.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from ilm_lib.arguments import BadArgument, Parser, whole
from ilm_lib.baselines.cf import CFEmbeddings
from ilm_lib.data import Dataset
from ilm_lib.data.openp5 import load_openp5
from ilm_lib.errors import Refusal


class NoSpark(Refusal, ImportError):
    """Spark is not at hand; the message says what to install."""


def spark_factors(
    data: Dataset, *, dim: int = 64, iterations: int = 15, regularization: float = 0.1, alpha: float = 10.0,
    seed: int = 0, master: str = "local[*]", shared: str | None = None,
) -> CFEmbeddings:  # fmt: skip
    """Implicit-feedback ALS of the training part (Hu, Koren and Volinsky 2008), in the rows of the dataset.

    Args:
        data: its dev and test items are left out.
        dim: numbers of a vector.
        regularization: as Spark has it, times how many interactions a row has.
        alpha: weight of an interaction beside what did not happen.
        master: Spark's, e.g. "local[2]" or "yarn".
        shared: folder that driver and workers see; None: a temporary one of this machine.

    Raises:
        NoSpark: pyspark or Java is missing.
    """
    try:
        from pyspark.ml.recommendation import ALS
        from pyspark.sql import SparkSession
    except ImportError:
        raise NoSpark("Spark's ALS needs the package pyspark: pip install pyspark") from None
    pairs = data.train_matrix().tocoo()
    try:
        builder = SparkSession.builder.master(master).appName("ilm").config("spark.ui.enabled", "false")
        spark = builder.getOrCreate()
    except Exception as error:  # py4j says in many ways that it found no Java
        why = str(error).splitlines()[0][:200]
        raise NoSpark(f"Spark did not start: {why}. Is there a Java, and the master?") from None
    try:
        with TemporaryDirectory() as own:
            place = f"{shared or Path(own).as_uri()}/interactions.parquet"
            pd.DataFrame({"user": pairs.row, "item": pairs.col, "rating": 1.0}).to_parquet(place)
            fitted = ALS(
                rank=dim, maxIter=iterations, regParam=regularization, alpha=alpha, implicitPrefs=True, seed=seed,
                userCol="user", itemCol="item", ratingCol="rating",
            ).fit(spark.read.parquet(place))  # fmt: skip
            tables = (fitted.userFactors.toPandas(), fitted.itemFactors.toPandas())
    finally:
        spark.stop()
    return CFEmbeddings(*(_in_rows(table, rows) for table, rows in zip(tables, pairs.shape)))


def _in_rows(factors: pd.DataFrame, rows: int) -> np.ndarray:
    """(rows, d); zeros where Spark met nothing."""
    found = np.stack(factors["features"].to_list()).astype(np.float32)
    table = np.zeros((rows, found.shape[1]), np.float32)
    table[factors["id"].to_numpy()] = found
    return table


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, 1 after a message on stderr, 2 where it is about the arguments."""
    parser = Parser(prog="python -m ilm_lib.baselines.spark_als", description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder in OpenP5's form")
    parser.add_argument("file", type=Path, metavar="FILE", help="what to write, .safetensors")
    parser.add_argument("--dim", type=whole(65_536), default=64, help="numbers of a vector (default: 64)")
    parser.add_argument("--iterations", type=whole(10_000), default=15, help="default: 15")
    parser.add_argument("--regularization", type=float, default=0.1, help="default: 0.1")
    parser.add_argument("--alpha", type=float, default=10.0, help="weight of an interaction (default: 10)")
    parser.add_argument("--master", default="local[*]", help="Spark's (default: local[*], the cores of this machine)")
    parser.add_argument("--shared", help="folder that all machines of a cluster see")
    try:
        given = vars(parser.parse_args(arguments))
        folder, file = given.pop("data"), given.pop("file")
        if file.suffix != ".safetensors":
            raise BadArgument(f"{file}: name a file that ends in .safetensors")
        with TemporaryDirectory() as cache:
            data = load_openp5(folder, name=folder.name, cache=Path(cache) / "dataset")
            found = spark_factors(data, **given)
        save_file({"user": found.user, "item": found.item}, file)
    except Refusal as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadArgument) else 1
    print(f"{file}: {len(found.user):,} users and {len(found.item):,} items, {found.item.shape[1]} numbers each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
