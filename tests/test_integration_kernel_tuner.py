"""Our search as a strategy of Kernel Tuner, replayed through its own package on a cache of our making."""

import itertools
import json
import warnings

import pytest
from examples import example

from costmodel import devices
from costmodel.baselines import NearestTable
from costmodel.integrations import kernel_tuner as integration
from costmodel.integrations.kernel_tuner import strategy
from costmodel.published.export import write_spaces
from costmodel.records import Config, Kernel, Measurement, Problem, Timing, UserError, Variant

kernel_tuner = pytest.importorskip("kernel_tuner")

A100 = devices.find("A100-PCIE-40GB")
PARAMS = {"block_size_x": [16, 32, 64, 128, 256], "tile": [1, 2, 4, 8], "unroll": [1, 2, 4], "use_shared": [0, 1]}
KERNEL = Kernel("stencil", "cuda", None, tuple((n, tuple(v)) for n, v in PARAMS.items()), "kernel_tuner")
PROBLEM = Problem("stencil", (), (("size_0", 4096),), flops=0, bytes=0)


def latency_us(config, best=64):
    """Fastest at block_size_x=best, tile=4, unroll=2, with shared memory; None where the block is too large."""
    if config["block_size_x"] * config["tile"] > 1024:
        return None
    away = abs(config["block_size_x"].bit_length() - best.bit_length()) + abs(config["tile"].bit_length() - 3)
    return 100.0 * 1.3**away * (1.0 if config["unroll"] == 2 else 1.1) * (1.0 if config["use_shared"] else 1.5)


def recorded(device, best=64):
    rows = []
    for values in itertools.product(*PARAMS.values()):
        variant = Variant(KERNEL, PROBLEM, Config(tuple(zip(PARAMS, values, strict=True))))
        us = latency_us(variant.config, best)
        status, samples = ("ok", (us,)) if us else ("launch_error", ())
        rows.append(Measurement(variant, device, Timing(), (), status, samples))
    return rows


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    write_spaces(recorded(A100), folder, form="kernel-tuner")
    (path,) = folder.glob("*.json")
    return path


def replay(cache, chosen, evaluations=16, **options):
    results, _ = kernel_tuner.tune_kernel(
        "stencil", "__global__ void stencil() {}", 4096, [], PARAMS, lang="CUDA", quiet=True, cache=str(cache),
        simulation_mode=True, strategy=chosen, strategy_options={"max_fevals": evaluations}, **options,
    )  # fmt: skip
    return results


def test_a_prior_that_knows_finds_the_best_at_once(cache):
    table = NearestTable()
    table.update(recorded(devices.find("RTX A6000"), best=64))
    results = replay(cache, strategy(priors=[table], device="A100-PCIE-40GB"))
    assert len(results) == 16
    times = [result["time"] for result in results]
    assert min(t for t in times[:8] if isinstance(t, float)) == pytest.approx(0.1, rel=0.06)
    assert len({tuple(result[name] for name in PARAMS) for result in results}) == 16


def test_a_search_from_scratch_learns_and_failures_cost_an_evaluation(cache):
    results = replay(cache, strategy(priors=[], device="A100-PCIE-40GB"), evaluations=40)
    assert len(results) == 40
    numbers = [result["time"] for result in results if isinstance(result["time"], float)]
    assert min(numbers) == pytest.approx(0.1)


def test_the_shipped_model_and_the_device_of_the_cache(cache):
    assert json.loads(cache.read_text())["device_name"] == "NVIDIA A100-PCIE-40GB"
    assert len(replay(cache, strategy(), evaluations=8)) == 8


class Broken:
    def predict(self, variants, device):
        raise ArithmeticError("the weights are not finite")


@pytest.mark.parametrize(
    ("options", "reason"), [({"model": "no-such-folder"}, "no-such-folder"), ({"priors": [Broken()]}, "not finite")]
)
def test_a_model_that_is_missing_or_broken_costs_one_warning(cache, options, reason):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = replay(cache, strategy(device="A100-PCIE-40GB", **options), evaluations=40)
    (told,) = [str(warning.message) for warning in caught if "costmodel" in str(warning.message)]
    assert "the search learns from its benchmarks alone" in told
    assert reason in told
    alone = replay(cache, strategy(priors=[], device="A100-PCIE-40GB"), evaluations=40)
    assert [[result[name] for name in PARAMS] for result in results] == [
        [result[name] for name in PARAMS] for result in alone
    ]


def test_other_objectives_are_refused(cache):
    with pytest.raises(UserError, match="expected 'time'"):
        replay(
            cache,
            strategy(priors=[], device="A100-PCIE-40GB"),
            objective="compile_time",
            objective_higher_is_better=False,
        )


def test_the_example(cache, monkeypatch):
    cache.rename(cache.with_name("stencil.json"))
    monkeypatch.chdir(cache.parent)
    scope = {"source": "__global__ void stencil() {}", "size": 4096, "arguments": [], "tune_params": PARAMS}
    exec(example(integration), scope)
    assert len(scope["results"]) == 40
    assert scope["environment"]["device_name"] == "NVIDIA A100-PCIE-40GB"
