"""P10: a finished kernel carries a measured certificate of its accuracy."""

import numpy as np
import pytest

import entk
from bounds import PLANTED_RATIO, SAMPLING, U, rms_ratio
from cases import every_leaf, mlp
from entk import _accuracy, _stored


@pytest.mark.parametrize("suffix", ["npy", "zarr"])
@pytest.mark.parametrize("accumulate", ["float32", "float64"])
def test_p10_the_certificate_is_that_of_all_entries(rng, tmp_path, suffix, accumulate):
    factors = mlp(rng, 90, widths=((300, 40), (40, 30)))
    kernel = entk.assemble(factors, out=tmp_path / f"K.{suffix}", tile=40, accumulate=accumulate)
    found = kernel.info["certificate"]
    whole = rms_ratio(np.asarray(kernel), factors, U["float32"])
    assert whole / SAMPLING <= found["rho_rms"] <= whole * SAMPLING
    assert found["rho_rms"] <= found["rho_max"]
    assert found["entries"] > 1000
    if accumulate == "float64":
        assert found["rho_max"] <= 1
    mean = float(np.mean(np.diag(np.asarray(kernel, np.float64))))
    floor = 2 * found["rho_rms"] * U["float32"] * np.sqrt(90) * mean
    assert floor / SAMPLING <= found["lambda_floor"] <= floor * SAMPLING


@pytest.mark.parametrize("outputs", ["full", "diagonal", "trace", 1])
def test_every_outputs_and_cross_kernels_have_one(rng, tmp_path, outputs):
    factors = every_leaf(rng, 20, rows=3)
    for name, other in (("S", None), ("C", factors.take(slice(0, 7)))):
        path = tmp_path / f"{name}.zarr"
        kernel = entk.assemble(factors, other, out=path, tile=9, outputs=outputs)
        assert 0 < kernel.info["certificate"]["rho_rms"] < kernel.info["certificate"]["entries"]
        assert kernel.info["certificate"]["rho_max"] < 1 / np.sqrt(U["float32"])


def test_float64_and_empty_kernels_have_none(rng, tmp_path):
    factors = mlp(rng, 6)
    wide = entk.assemble(factors, out=tmp_path / "A.npy", dtype="float64")
    empty = entk.assemble(factors.take(slice(0, 0)), out=tmp_path / "B.npy")
    assert wide.info["certificate"] is None
    assert empty.info["certificate"] is None


def test_p10_a_planted_error_shows(rng, tmp_path, monkeypatch):
    factors = mlp(rng, 60)
    compute = _stored.Tiles.compute

    def wrong(self, unit, *room):
        tile = compute(self, unit, *room)
        dice = np.random.default_rng(unit.index)
        tile[dice.random(tile.shape) < 0.01] *= 1.001
        return tile

    monkeypatch.setattr(_stored.Tiles, "compute", wrong)
    for seed in range(5):
        monkeypatch.setattr(_accuracy, "_SEED", seed)
        kernel = entk.assemble(factors, out=tmp_path / "K.zarr", tile=30, overwrite=True)
        assert kernel.info["certificate"]["rho_max"] > PLANTED_RATIO
