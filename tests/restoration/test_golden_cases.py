"""The restoration golden file through its runner, and the runner's ability to fail."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[2].parent / "shared/golden/restoration_dev.json"
GROUPS = json.loads(GOLDEN.read_text())["keys"] if GOLDEN.is_file() else {}

# tests/core has a runner of the same name.
spec = importlib.util.spec_from_file_location("restoration_golden_cases", Path(__file__).with_name("golden_cases.py"))
runner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)


@pytest.mark.parametrize("name", GROUPS)
def test_every_number_of_a_group_is_reproduced(name):
    group = runner.Group(name, GROUPS[name], np.load(GOLDEN.with_suffix(".npz")))
    errors = runner.check(group)
    assert errors
    assert {k: e for k, e in errors.items() if not e <= 1} == {}


def altered(tmp_path, group, **arrays):
    """A golden file of one group, with some of its arrays replaced."""
    stored = np.load(GOLDEN.with_suffix(".npz"))
    kept = {k: stored[k] for k in stored.files if k.startswith(f"{group}/")}
    np.savez(tmp_path / "x.npz", **kept | {f"{group}/{k}": v for k, v in arrays.items()})
    (tmp_path / "x.json").write_text(json.dumps({"keys": {group: GROUPS[group]}}))
    return tmp_path / "x.json"


@pytest.mark.skipif(not GROUPS, reason="no golden vectors")
def test_the_runner_counts_wrong_unknown_and_misshapen_arrays(tmp_path, capsys):
    right = np.load(GOLDEN.with_suffix(".npz"))["rddm_T1000/betas2_cumsum"]
    assert runner.run(altered(tmp_path, "rddm_T1000")) == 0
    assert runner.run(altered(tmp_path, "rddm_T1000", betas2_cumsum=right * (1 + 1e-8))) == 1
    assert runner.run(altered(tmp_path, "rddm_T1000", betas2_cumsum=right[1:])) == 1
    assert runner.run(altered(tmp_path, "rddm_T1000", something_new=right)) == 1
    assert "rddm_T1000 10/11 inf" in capsys.readouterr().out


@pytest.mark.skipif(not GROUPS, reason="no golden vectors")
def test_colour_fixes_are_named_as_skipped(tmp_path, capsys):
    assert runner.run(altered(tmp_path, "image")) == 0
    out = capsys.readouterr().out
    assert "image/wavelet_fix: skipped" in out
    assert "image 11/11" in out
