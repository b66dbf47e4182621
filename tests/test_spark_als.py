"""CF embeddings by Spark's ALS, in local mode where pyspark and a Java are at hand."""

import shutil
import sys

import numpy as np
import pytest

from ilm_lib.baselines.cf import load_cf
from ilm_lib.baselines.spark_als import main
from ilm_lib.data.openp5 import load_openp5
from ilm_lib.data.toy import make_toy_world


@pytest.fixture
def world(tmp_path):
    make_toy_world(tmp_path / "Toy", num_items=80, num_users=70, seed=0)
    return tmp_path / "Toy"


@pytest.mark.slow
def test_the_file_is_one_that_a_profile_can_name(world, tmp_path, capsys):
    pytest.importorskip("pyspark", reason="pip install pyspark")
    if shutil.which("java") is None:
        pytest.skip("there is no Java")
    file = tmp_path / "embeddings.safetensors"
    assert main([str(world), str(file), "--dim", "8", "--iterations", "5", "--master", "local[1]"]) == 0
    assert "70 users and 80 items, 8 numbers each" in capsys.readouterr().out
    data = load_openp5(world, name="Toy", cache=tmp_path / "dataset")
    found = load_cf(file, num_users=70, num_items=80)
    had, scores = data.train_matrix().toarray() > 0, found.user @ found.item.T
    above = np.mean([scores[u][had[u]].mean() > scores[u][~had[u]].mean() for u in range(70)])
    assert above > 0.95, "who had an item is nearer to it, row by row"


def test_what_is_missing_is_said_in_one_line(world, tmp_path, monkeypatch, capsys):
    assert main([str(world), str(tmp_path / "x.npy")]) == 2
    monkeypatch.setitem(sys.modules, "pyspark.ml.recommendation", None)
    monkeypatch.setitem(sys.modules, "pyspark", None)
    assert main([str(world), str(tmp_path / "x.safetensors")]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("error: ") and ".safetensors" in said[0]
    assert said[1:] == ["error: Spark's ALS needs the package pyspark: pip install pyspark"]
