"""Helion's search, seeded by the model and led by its posterior; its kernels are written and never run."""

import math
import os
import statistics
import warnings
from unittest import mock

import pytest
from examples import example

from costmodel import devices
from costmodel.integrations import helion as integration
from costmodel.records import Prediction

helion = pytest.importorskip("helion")
torch = pytest.importorskip("torch")
hl = pytest.importorskip("helion.language")
autotuner = pytest.importorskip("helion.autotuner")
base_search = pytest.importorskip("helion.autotuner.base_search")
benchmark_provider = pytest.importorskip("helion.autotuner.benchmark_provider")

H200 = devices.find("H200")
X, Y = torch.zeros(512, 256, dtype=torch.float16), torch.zeros(256, 1024, dtype=torch.float16)
benchmarked, last_ms = [], []


@helion.kernel(static_shapes=True, autotune_log_level=0)
def matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    m, k = x.size()
    k, n = y.size()
    out = torch.empty([m, n], dtype=x.dtype, device=x.device)
    for tile_m, tile_n in hl.tile([m, n]):
        acc = hl.zeros([tile_m, tile_n], dtype=torch.float32)
        for tile_k in hl.tile(k):
            acc = torch.addmm(acc, x[tile_m, tile_k], y[tile_k, tile_n])
        out[tile_m, tile_n] = acc.to(x.dtype)
    return out


def latency_ms(config):
    """1 at best: blocks of 64, 4 warps, 3 stages, one program a block; large blocks with few warps fail."""
    given = config.config
    if max(given["block_sizes"]) > 256 and given["num_warps"] < 4:
        return math.inf
    away = sum(abs(math.log2(block) - 6) for block in given["block_sizes"]) + abs(math.log2(given["num_warps"]) - 2)
    return 1.0 + away + 0.3 * abs(given["num_stages"] - 3) + 0.5 * (given["pid_type"] != "flat")


class KnowsBlocks:
    """Right about the blocks, ignorant of the rest."""

    def predict(self, variants, device):
        blocks = [[variant.config[f"_BLOCK_SIZE_{i}"] for i in range(3)] for variant in variants]
        return [of(1e3 * (1.0 + sum(abs(math.log2(block) - 6) for block in row))) for row in blocks]


def of(us):
    return Prediction((0.8 * us, us, 1.2 * us), (0.25, 0.5, 0.25))


class Simulated(benchmark_provider.BenchmarkProvider):
    """What would be compiled and run is looked up."""

    mutated_arg_indices = ()

    def __init__(self, **given):
        pass

    def setup(self):
        pass

    def cleanup(self):
        pass

    def benchmark(self, configs, *, desc="", raise_if_no_viable_config=True):
        benchmarked.extend(configs)
        return [result(config, latency_ms(config)) for config in configs]


def result(config, ms):
    status = "ok" if math.isfinite(ms) else "error"
    made = base_search.BenchmarkResult
    return made(config=config, fn=lambda *args: last_ms.append(ms), perf=ms, status=status, compile_time=0.1)


def again(functions, *, repeat, desc=None):
    """Helion measures its favourites a second time."""
    for function in functions:
        function()
    return last_ms[-len(functions) :]


@pytest.fixture(scope="module")
def bound():
    kernel = matmul.bind((X, Y))
    kernel.settings.autotune_benchmark_fn = again
    return kernel


def tuned(search, bound, seed, generations=5):
    """The configs in the order in which they were benchmarked."""
    benchmarked.clear()
    bound.settings.autotune_random_seed = seed
    with mock.patch.object(base_search.BaseSearch.__init__, "__defaults__", (Simulated,)):
        search(bound, (X, Y), initial_population=30, copies=2, max_generations=generations).autotune()
    return list(benchmarked)


def evaluations_to_half_over(configs):
    """Until one takes at most 1.5 times as long as the optimum."""
    return next(i for i, config in enumerate(configs, 1) if latency_ms(config) <= 1.5)


def test_the_best_of_a_pool_are_benchmarked_first(bound):
    configs = tuned(
        integration.register(device=H200, model=KnowsBlocks(), pool=256, seeds=5), bound, seed=1, generations=0
    )
    default = bound.config_spec.default_config()
    assert configs[0] == default

    def off(config):
        return sum(abs(math.log2(block) - 6) for block in config.config["block_sizes"])

    by_chance = [off(config) for config in configs[6:30]]
    assert max(off(config) for config in configs[1:6]) <= min(by_chance) + 1
    assert statistics.mean(off(config) for config in configs[1:6]) < statistics.mean(by_chance) / 2


def test_fewer_benchmarks_than_helion_by_itself(bound):
    seeds = range(2)
    ours = integration.register(device=H200, model=KnowsBlocks())
    alone = [evaluations_to_half_over(tuned(autotuner.LFBOTreeSearch, bound, seed)) for seed in seeds]
    led = [evaluations_to_half_over(tuned(ours, bound, seed)) for seed in seeds]
    assert statistics.geometric_mean(led) < 0.9 * statistics.geometric_mean(alone)


@pytest.mark.parametrize("model", ["no-such-folder", object()], ids=["missing", "broken"])
def test_whatever_is_wrong_helion_searches_by_itself_and_one_warning_says_why(bound, model):
    search = integration.register(device=H200, model=model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        configs = tuned(search, bound, seed=2, generations=1)
    (told,) = [str(warning.message) for warning in caught if "costmodel" in str(warning.message)]
    assert "Helion searches by itself" in told
    assert min(map(latency_ms, configs)) <= 1.05


def test_what_the_model_reads(bound):
    generation = bound.config_spec.create_config_generation()
    configs = [generation.random_config() for _ in range(40)]
    found = integration.variants(bound, (X, Y, 3), configs)
    kernel, problem = found[0].kernel, found[0].problem
    assert kernel.name == "matmul"
    assert kernel.source.startswith("@triton.jit\ndef _helion_matmul(")
    assert "tl.dot" in kernel.source
    assert "tl.constexpr(" not in kernel.source
    assert [spec.dtype for spec in problem.inputs] == ["f16", "f16"]
    assert str(problem) == "arg_2=3"
    asked = {name for name, _ in integration.read(found[0]).config.params}
    assert {"_BLOCK_SIZE_0", "_BLOCK_SIZE_1", "_BLOCK_SIZE_2", "num_warps", "num_stages", "pid_type"} <= asked
    assert not any(name.startswith(("indexing", "range_")) for name in asked)
    for config, variant in zip(configs, found, strict=True):
        assert [variant.config[f"_BLOCK_SIZE_{i}"] for i in range(3)] == config.config["block_sizes"]
        assert variant.config["num_warps"] == config.config["num_warps"]
        assert all(
            value in values for (_, value), (_, values) in zip(variant.config.params, kernel.schema, strict=True)
        )


def test_the_example_with_the_shipped_model():
    """A kernel that is not Helion's has no text; its parameters and their values are what is read."""
    powers = autotuner.PowerOfTwoFragment
    scope = {"tunables": {"BLOCK": powers(32, 1024, 128), "num_warps": powers(1, 8, 4)}}
    scope |= {"compile_fn": lambda config: torch.clone, "args": (torch.zeros(8),)}
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(Simulated, "benchmark", simulated_blocks),
        mock.patch.object(base_search.BaseSearch.__init__, "__defaults__", (Simulated,)),
        mock.patch.object(base_search.PopulationBasedSearch, "rebenchmark"),
        mock.patch.object(base_search.PopulationBasedSearch, "final_rebenchmark_best", side_effect=lambda best: best),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("error", UserWarning)
        exec(example(integration), scope)
        assert os.environ["HELION_AUTOTUNER"] in autotuner.search_algorithms
    assert scope["best"].config["BLOCK"] == 256


def simulated_blocks(self, configs, **options):
    return [result(config, 1.0 + abs(config["BLOCK"] - 256) / 256) for config in configs]
