"""The opponents learn what they can learn, and all keep the CostModel protocol."""

import dataclasses
import math

import numpy as np
import pytest
from contracts import CostModelContract
from test_search import CANDIDATES, DEVICE, SPACE, measurement, truth

from costmodel import baselines
from costmodel.features import launch_features, variant_features
from costmodel.gaussian import MaternProcess
from costmodel.records import Config, Device, Kernel, Problem, Variant
from costmodel.stats import spearman


def trained(model):
    model.update([measurement(v, truth(v)) for v in CANDIDATES[::2]])
    return model


class TestRoofline(CostModelContract):
    def make(self):
        return baselines.Roofline()

    def test_one_factor_is_learned_and_nothing_is_ranked(self):
        medians = [p.median_us for p in trained(baselines.Roofline()).predict(CANDIDATES, DEVICE)]
        assert max(medians) == pytest.approx(min(medians))
        assert medians[0] == pytest.approx(np.median([truth(v) for v in CANDIDATES[::2]]), rel=0.02)


class TestBoostedTrees(CostModelContract):
    def make(self):
        return baselines.BoostedTrees(seed=0, iterations=60)

    def test_held_out_configs_are_ranked(self):
        predictions = trained(baselines.BoostedTrees(seed=0)).predict(CANDIDATES[1::2], DEVICE)
        assert spearman([truth(v) for v in CANDIDATES[1::2]], [p.median_us for p in predictions]) > 0.7


class TestNearestNeighbour(CostModelContract):
    def make(self):
        return baselines.NearestNeighbour()

    def test_a_measured_variant_comes_back(self):
        model = baselines.NearestNeighbour(neighbours=1)
        model.update([measurement(v, truth(v)) for v in CANDIDATES])
        predicted = [p.median_us for p in model.predict(CANDIDATES, DEVICE)]
        assert predicted == pytest.approx([truth(v) for v in CANDIDATES], rel=0.01)


class TestGaussianProcess(CostModelContract):
    def make(self):
        return baselines.GaussianProcess()

    def test_held_out_configs_are_ranked_and_the_spread_is_honest(self):
        predictions = trained(baselines.GaussianProcess()).predict(CANDIDATES[1::2], DEVICE)
        true = [truth(v) for v in CANDIDATES[1::2]]
        assert spearman(true, [p.median_us for p in predictions]) > 0.9
        inside = [p.quantile_us(0.01) <= t <= p.quantile_us(0.99) for p, t in zip(predictions, true, strict=True)]
        assert np.mean(inside) > 0.8


class TestRandomForest(CostModelContract):
    def make(self):
        return baselines.RandomForest(seed=0, trees=20)

    def test_held_out_configs_are_ranked(self):
        predictions = trained(baselines.RandomForest(seed=0)).predict(CANDIDATES[1::2], DEVICE)
        assert spearman([truth(v) for v in CANDIDATES[1::2]], [p.median_us for p in predictions]) > 0.7


class TestNearestTable(CostModelContract):
    def make(self):
        return baselines.NearestTable()

    def test_the_nearest_device_is_asked(self):
        near, far = dataclasses.replace(DEVICE, name="near"), dataclasses.replace(DEVICE, name="far", vendor="other")
        model = baselines.NearestTable()
        model.update([elsewhere(near, v, truth(v)) for v in CANDIDATES])
        model.update([elsewhere(far, v, 1e4 / truth(v)) for v in CANDIDATES])
        told = [p.median_us for p in model.predict(CANDIDATES, DEVICE)]
        assert told == pytest.approx([truth(v) for v in CANDIDATES], rel=0.01)

    def test_what_failed_there_is_predicted_to_fail_and_what_is_missing_ranks_last(self):
        near = dataclasses.replace(DEVICE, name="near")
        model = baselines.NearestTable()
        model.update([elsewhere(near, v, truth(v)) for v in CANDIDATES[2:]] + [elsewhere(near, CANDIDATES[0], None)])
        failed, missing, *rest = model.predict(CANDIDATES, DEVICE)
        assert failed.p_fail > 0.5
        assert missing.p_fail == 0.0
        assert missing.median_us > max(p.median_us for p in rest)

    def test_each_other_device_speaks_nearest_first(self):
        near, far = dataclasses.replace(DEVICE, name="near"), dataclasses.replace(DEVICE, name="far", vendor="other")
        model = baselines.NearestTable()
        model.update([elsewhere(far, v, 1e4 / truth(v)) for v in CANDIDATES])
        model.update([elsewhere(near, v, truth(v)) for v in CANDIDATES])
        first, second = model.each(CANDIDATES, DEVICE)
        assert [p.median_us for p in first] == pytest.approx([truth(v) for v in CANDIDATES], rel=0.01)
        assert [p.median_us for p in second] == pytest.approx([1e4 / truth(v) for v in CANDIDATES], rel=0.01)
        assert model.each([], DEVICE) == []
        assert baselines.NearestTable().each(CANDIDATES, DEVICE) == []

    def test_the_order_of_parameters_does_not_matter(self):
        near = dataclasses.replace(DEVICE, name="near")
        model = baselines.NearestTable()
        turned = [Variant(v.kernel, v.problem, Config(tuple(reversed(v.config.params)))) for v in CANDIDATES]
        model.update([elsewhere(near, t, truth(t)) for t in turned])
        told = [p.median_us for p in model.predict(CANDIDATES, DEVICE)]
        assert told == pytest.approx([truth(v) for v in CANDIDATES], rel=0.01)


class TestMeanRank(CostModelContract):
    def make(self):
        return baselines.MeanRank()

    def test_ranks_are_averaged_over_devices(self):
        first, second = (dataclasses.replace(DEVICE, name=name) for name in ("first", "second"))
        asked = CANDIDATES[:4]
        model = baselines.MeanRank()
        model.update([elsewhere(first, v, us) for v, us in zip(asked, (1.0, 2.0, 3.0, 4.0), strict=True)])
        model.update([elsewhere(second, v, us) for v, us in zip(asked, (300.0, 100.0, 200.0, None), strict=True)])
        told = model.predict(asked, DEVICE)  # ranks 0 1 2 3 and 2 0 1 failed
        assert np.argsort([p.median_us for p in told], kind="stable").tolist() == [1, 0, 2, 3]
        assert [p.p_fail > 0 for p in told] == [False, False, False, True]


def elsewhere(device, variant, latency_us):
    return dataclasses.replace(measurement(variant, latency_us), device=device)


SHEET = (("max_threads_per_unit", 2048), ("warp_size", 32), ("shared_bytes_per_unit", 167936))
GPU = Device("one", "gpu", "NVIDIA", "sm_80", 108, 1410.0, (("f32", 19.5),), 1555.0, 40 << 20, details=SHEET)
OTHER_GPU = dataclasses.replace(GPU, name="two", num_units=48, peak_gb_per_s=448.0)
RECORD = Kernel("published", "cuda", None, SPACE.params, "others")
UNSTATED = Problem("published", (), (("size_0", 4096),), 0, 0)
PUBLISHED = [Variant(RECORD, UNSTATED, v.config) for v in CANDIDATES]


@pytest.mark.parametrize(
    "make",
    [
        baselines.Roofline, lambda: baselines.BoostedTrees(seed=0, iterations=60),
        lambda: baselines.RandomForest(seed=0, trees=10), baselines.NearestNeighbour, baselines.NearestTable,
        baselines.MeanRank,
    ],
)  # fmt: skip
def test_without_a_floor_the_scale_is_unknown_until_the_space_was_measured(make):
    model = make()
    model.update([elsewhere(OTHER_GPU, v, 50 * truth(v)) for v in PUBLISHED])
    told = model.predict(PUBLISHED, GPU)
    assert not any(p.scale_known for p in told)
    if make is not baselines.Roofline:
        assert spearman([truth(v) for v in PUBLISHED], [p.median_us for p in told]) > 0.8
    model.update([elsewhere(GPU, v, truth(v)) for v in PUBLISHED[::4]])
    told = model.predict(PUBLISHED, GPU)
    assert all(p.scale_known for p in told)
    error = np.median(np.abs(np.log2([p.median_us / truth(v) for p, v in zip(told, PUBLISHED, strict=True)])))
    assert error < 1.5


def test_devices_are_near_by_vendor_then_architecture_then_numbers():
    same_arch = dataclasses.replace(GPU, name="a", num_units=54)
    other_arch = dataclasses.replace(GPU, name="b", arch="sm_90")
    other_vendor = dataclasses.replace(GPU, name="c", vendor="AMD")
    distances = [baselines.sheet_distance(GPU, other) for other in (GPU, same_arch, other_arch, other_vendor)]
    assert distances == sorted(distances)
    assert len(set(distances)) == 4


def test_a_launch_is_read_off_the_names():
    problem = Problem("conv", (), (("size_0", 4096), ("size_1", 4096)), 0, 0)
    config = {
        "block_size_x": [32, 48], "block_size_y": [8, 1], "tile_size_x": [2, 1], "tile_size_y": [4, 1],
        "filter_width": [15, 15], "filter_height": [15, 15], "use_shmem": [1, 0], "use_padding": [0, 0],
    }  # fmt: skip
    told = launch_features({name: np.array(values, float) for name, values in config.items()}, problem, GPU)
    assert 2 ** told["launch_threads"] == pytest.approx([256, 48])
    assert 2 ** told["launch_elements"] == pytest.approx([64 * 32, 48])
    assert told["launch_warp_share"] == pytest.approx([1.0, 0.75])
    assert 2 ** told["launch_shared_bytes"] - 1 == pytest.approx([4 * (64 + 14) * (32 + 14), 0])
    assert told["launch_occupancy"] == pytest.approx([1.0, 32 * 64 / 2048])
    assert 2 ** told["launch_blocks"] == pytest.approx([64 * 128, 86 * 4096])
    assert 2 ** told["launch_waves"] == pytest.approx([64 * 128 / (108 * 8), 86 * 4096 / (108 * 32)])
    assert launch_features({"alpha": np.array([1.0])}, problem, GPU) == {}


def test_launches_of_matrix_products_are_read_too():
    problem = Problem("gemm", (), (("size_0", 1024), ("size_1", 1024)), 0, 0)
    clblast = {"MWG": 64, "NWG": 32, "KWG": 32, "MDIMC": 16, "NDIMC": 8, "SA": 1, "SB": 0}
    told = launch_features({name: np.array([float(value)]) for name, value in clblast.items()}, problem, GPU)
    assert (2 ** told["launch_threads"][0], 2 ** told["launch_elements"][0]) == (128, 64 * 32)
    assert 2 ** told["launch_shared_bytes"][0] - 1 == pytest.approx(4 * 32 * 64)
    triton = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3}
    told = launch_features({name: np.array([float(value)]) for name, value in triton.items()}, problem, GPU)
    assert (2 ** told["launch_threads"][0], 2 ** told["launch_elements"][0]) == (256, 128 * 64)
    assert 2 ** told["launch_shared_bytes"][0] - 1 == pytest.approx(2 * 32 * (128 + 64) * 3)


def test_features_keep_the_order_of_the_variants_whatever_is_mixed():
    mixed = [PUBLISHED[0], CANDIDATES[5], PUBLISHED[7], CANDIDATES[0]]
    table = variant_features(mixed, GPU)
    for i, variant in enumerate(mixed):
        alone = variant_features([variant], GPU).iloc[0]
        assert table.iloc[i][alone.index].to_numpy(float) == pytest.approx(alone.to_numpy(float), nan_ok=True)
    assert table["log2_floor_us"].isna().tolist() == [True, False, True, False]


def test_the_process_interpolates_a_smooth_function():
    x = np.linspace(-1.5, 1.5, 25)[:, None]
    process = MaternProcess()
    process.fit(x[::2], np.sin(2 * x[::2, 0]))
    mean, sd = process.predict(x[1::2])
    assert np.abs(mean - np.sin(2 * x[1::2, 0])).max() < 0.05
    far, far_sd = process.predict(np.array([[40.0]]))
    assert abs(far[0]) < 0.01
    assert far_sd[0] > 5 * sd.max()


def test_joint_draws_have_the_stated_spread():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 2))
    process = MaternProcess()
    process.fit(x, x[:, 0])
    asked = rng.standard_normal((5, 2))
    mean, sd = process.predict(asked)
    draws = process.sample(asked, 4000, rng)
    assert draws.mean(axis=0) == pytest.approx(mean, abs=4 * sd.max() / math.sqrt(4000) + 1e-3)
    assert draws.std(axis=0) == pytest.approx(sd, rel=0.1, abs=5e-3)
