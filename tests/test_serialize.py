import dataclasses
import math
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodel import devices, serialize, workloads
from costmodel.records import Config, Device, Kernel, Problem, TensorSpec, UserError, Variant

CPU = Device("box", "cpu", "Intel", "emerald-rapids", 2, 2300.0, (("f32", 0.2944), ("f64", 0.1472)), 50.0, 2 << 20,
             details=(("l1_bytes", 48 << 10), ("vector_bits", 512)))  # fmt: skip
MATMUL = Problem("matmul", (TensorSpec((512, 256), "f32"), TensorSpec((256, 128), "f32")),
                 (("M", 512), ("N", 128), ("K", 256)), 1 << 25, 4 * (512 * 256 + 256 * 128 + 512 * 128))  # fmt: skip
SCHEMA = (("TILE", (16, 32, 64)), ("MODE", ("row", "two words")))

CPP = """#include <cmath>
#define F(x) ((x) + 1)
#define G (x)
extern "C" void run(float* __restrict__ a, long n) {
#pragma omp parallel for num_threads(2)
  for (long i = 0; i < n; ++i) {
    a[i] = F(a[i]) * -1.0f - -2.0f;
    std::vector<std::vector<int>> v = {{'"', '\\''}};
    puts("// not a comment /* nor this */");
  }
}
"""
CUDA = """struct __align__(16) Four { float x[4]; };
__global__ void __launch_bounds__(256) scale(float* __restrict__ x, int n) {
  __shared__ float s[32];
#pragma unroll 4
  for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] *= 2.0f;
}
"""
TRITON = '''"""What the file does."""
import triton

@triton.jit
def add(x, y, BLOCK: tl.constexpr,):
    """Adds."""
    if x:  # a comment
        z = f"# {x}"; w = (1,)
    else:
        z = y
    return z + w[0]
'''


def kernel(source: str | None, language: str = "cpp", **fields: object) -> Kernel:
    return Kernel("k", language, source, SCHEMA, **fields)  # type: ignore[arg-type]


def canonical(source: str, language: str = "cpp") -> str:
    return serialize.canonical_source(kernel(source, language))


def test_cpp_text_is_canonical() -> None:
    assert canonical(CPP) == "\n".join([
        "#include <cmath>",
        "#define F(x) ((x)+1)",
        "#define G (x)",
        'extern "C" void run(float*__restrict__ a,long n){',
        "#pragma omp parallel for num_threads(2)",
        "for(long i=0;i<n;++i){",
        "a[i]=F(a[i])* -1.0f- -2.0f;",
        "std::vector<std::vector<int> >v={",
        "{",
        "'\"','\\''}",
        "};",
        'puts("// not a comment /* nor this */");',
        "}",
        "}",
    ])  # fmt: skip


def test_cuda_alignment_parses_and_stays_distinct() -> None:
    text = canonical(CUDA, "cuda")
    assert text.splitlines()[:2] == ["struct alignas(16)Four{", "float x[4];"]
    assert text != canonical(CUDA.replace("__align__(16)", "__align__(8)"), "cuda")
    assert "#pragma unroll 4" in text.splitlines()


def test_triton_text_loses_docstrings_comments_and_trailing_commas() -> None:
    assert canonical(TRITON, "triton") == "\n".join([
        "import triton",
        "@triton.jit",
        "def add(x,y,BLOCK:tl.constexpr):",
        " if x:",
        '  z=f"# {x}"',
        "  w=(1,)",
        " else:",
        "  z=y",
        " return z+w[0]",
    ])  # fmt: skip


@pytest.mark.parametrize("language", ["cpp", "triton"])
def test_a_string_in_the_body_is_not_a_docstring(language: str) -> None:
    text = 'def f():\n    x = 1\n    "kept"\n' if language == "triton" else 'int f(){"kept";}'
    assert "kept" in canonical(text, language)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["cpp", "cuda"]))
def test_layout_and_comments_never_change_c_text(chance: random.Random, language: str) -> None:
    text = CPP if language == "cpp" else CUDA
    fillers = [" ", "  ", "\t", " /* don't \" */ ", "\n", " // it's\n", "/**/", "\\\n"]

    def layout(line: str) -> str:
        if line.lstrip().startswith("#"):
            return re.sub(r"(?<=\S) (?=\S)", lambda m: chance.choice([" ", "   ", " /* c */ ", " \\\n "]), line) + "\n"
        if '"' in line or "'" in line:
            return chance.choice(["", "   ", "/* c */"]) + line + chance.choice(["\n", " // c\n", "\n\n"])
        return re.sub(r" ", lambda m: " " + chance.choice(fillers), line) + "\n"

    assert canonical("".join(map(layout, text.splitlines())), language) == canonical(text, language)


def test_layout_and_comments_never_change_python_text() -> None:
    other = (
        TRITON.replace("x, y", "x,  # c\n        y").replace(":  # a comment", ":\n\n").replace("; w", "\n        w")
    )
    other = other.replace("    return z +", "    # c\n    return z \\\n        +").replace('"""Adds."""', "'doc'")
    assert canonical(other, "triton") == canonical(TRITON, "triton")


@pytest.mark.parametrize(
    ("before", "after"),
    [("- -2.0f", "+ -2.0f"), ("F(x) ((x)", "F (x) ((x)"), ("long i", "int i"), ("num_threads(2)", "num_threads(1)")],
)
def test_what_the_compiler_sees_changes_the_text(before: str, after: str) -> None:
    assert before in CPP
    assert canonical(CPP.replace(before, after)) != canonical(CPP)


def test_text_that_does_not_parse_loses_its_comments_all_the_same() -> None:
    broken = "void f( {{{ int a /* c */ = 1 ; // d\n x +  + y \n#define A  (1)\n ) ]"
    assert canonical(broken) == "void f({\n{\n{\nint a=1;x+ +y\n#define A (1)\n)]"
    assert canonical("def f(:\n    x =  1  # c\n\n\n    y", "triton") == "def f(:\n    x=1\n    y"


@settings(max_examples=150, deadline=None)
@given(st.text(), st.sampled_from(["cpp", "cuda", "triton", "hip", "opencl", "hlo", "operator"]))
def test_no_text_fails_and_nothing_is_made_up(text: str, language: str) -> None:
    first = canonical(text, language)
    assert first == canonical(text, language)
    kept = set(re.sub(r"\s", "", first))
    assert kept <= set(text.encode(errors="replace").decode()) | set(" alignas")


def test_deeply_nested_text_does_not_exhaust_the_stack() -> None:
    assert canonical("int x = " + "(" * 5000 + "1" + ")" * 5000 + ";").count("(") == 5000
    assert canonical("x = " + "(" * 3000 + "1" + ")" * 3000, "triton").count("(") == 3000


@pytest.mark.parametrize("name", workloads.names())
def test_every_shipped_kernel_keeps_all_but_comments_and_layout(name: str) -> None:
    source = workloads.load(name).kernel.source
    assert source is not None
    squeeze = re.compile(r"[\s\\]")
    without = serialize._C_TOKEN.sub(lambda m: "" if m["comment"] else m[0], source)
    assert squeeze.sub("", canonical(source)) == squeeze.sub("", without)
    assert len(canonical(source)) < 0.9 * len(source)


def test_prompt_has_the_schema_first_and_the_values_in_its_order() -> None:
    variant = Variant(kernel(CPP), MATMUL, Config.of(MODE="two words", TILE=64))
    prompt = serialize.prompt(variant, CPU)
    assert prompt.source.splitlines()[:3] == ["param TILE: 16 32 64", "param MODE: row 'two words'", "#include <cmath>"]
    assert prompt.config == ("TILE=64", "MODE='two words'")
    assert prompt.device == (
        "device cpu Intel emerald-rapids units 2 clock_mhz 2300 f32 tflops 0.294 flops_per_unit_cycle 64 gb_per_s 50 "
        "flops_per_byte 5.89 l2_kib 2048 l1_kib 48 vector_bits 512"
    )
    # 2^25 flops, 917504 bytes; the floor is 2^25 / 294400 = 114.0 us = 2^6.8 us
    assert prompt.problem == (
        "problem matmul M=512 N=128 K=256 f32[512,256] f32[256,128] flops 2^25.0 bytes 2^19.8 "
        "floor_us 2^6.8 relative to floor"
    )


def test_prefix_is_shared_by_all_configs_and_by_reformatted_sources() -> None:
    one = serialize.prompt(Variant(kernel(CPP), MATMUL, Config.of(TILE=16, MODE="row")), CPU)
    two = serialize.prompt(Variant(kernel("// new\n" + CPP), MATMUL, Config.of(TILE=64, MODE="row")), CPU)
    assert dataclasses.replace(one, config=()) == dataclasses.replace(two, config=())
    assert one.config != two.config


def test_the_device_line_follows_the_dtype_and_not_the_name() -> None:
    doubles = dataclasses.replace(MATMUL, inputs=(TensorSpec((512, 256), "f64"),))
    config = Config.of(TILE=16, MODE="row")
    renamed = dataclasses.replace(CPU, name="another")
    assert "f64 tflops 0.147" in serialize.prompt(Variant(kernel(CPP), doubles, config), CPU).device
    assert serialize.prompt(Variant(kernel(CPP), MATMUL, config), renamed) == serialize.prompt(
        Variant(kernel(CPP), MATMUL, config), CPU
    )


def test_every_published_sheet_has_a_distinct_finite_line() -> None:
    variant = Variant(kernel(CPP), MATMUL, Config.of(TILE=16, MODE="row"))
    for device in devices.load_sheets().values():
        line = serialize.prompt(variant, device).device
        assert "nan" not in line
        assert "inf" not in line


def test_a_problem_without_flops_and_bytes_is_relative_to_the_median() -> None:
    variant = Variant(kernel(CPP), MATMUL, Config.of(TILE=16, MODE="row"))
    assert serialize.reference_us(variant, CPU) == pytest.approx(2**25 / 294400.0)
    unstated = dataclasses.replace(variant, problem=dataclasses.replace(MATMUL, flops=0, bytes=0))
    assert serialize.reference_us(unstated, CPU) is None
    problem = serialize.prompt(unstated, CPU).problem
    assert problem == "problem matmul M=512 N=128 K=256 f32[512,256] f32[256,128] relative to median"


def test_an_operator_tells_its_sizes_in_the_suffix() -> None:
    """2^31 flops and 3 x 2^22 bytes on an H100 SXM: 3.8 us of memory against an expected time of some 40."""
    h100 = devices.find("H100 SXM")
    operator = Kernel("bmm", "operator", None, (), origin="torch")
    sizes = (("B", 1), ("M", 1024), ("N", 1024), ("K", 1024))
    inputs = (TensorSpec((1, 1024, 1024), "f32"), TensorSpec((1, 1024, 1024), "f32"))
    problem = Problem("bmm", inputs, sizes, 2**31, 3 * 2**22)
    variant = Variant(operator, problem, Config(()))
    prompt, expected_us = serialize.prompt(variant, h100), serialize.reference_us(variant, h100)
    assert expected_us is not None
    assert expected_us > 2**31 / 66.9e6
    assert prompt.source == "kernel torch bmm"
    assert prompt.problem == "operator f32 relative to estimate"
    assert prompt.config[:4] == ("B~0", "M~10", "N~10", "K~10")
    told = dict(setting.split("~") for setting in prompt.config)
    assert told["aligned"] == "nyyy"
    assert float(told["expected_us"]) == pytest.approx(math.log2(expected_us), abs=0.25)
    assert math.log2(3 * 2**22 / 3.35e6 / expected_us) < -4  # bounded at four doublings
    assert told["memory/expected"] == "-4"
    assert -1.5 < float(told["tile/expected"]) <= 0
    assert not {"power", "rows_over_l2"} & {name.partition("/")[0] for name in told}  # they would name the device


def test_a_parameter_with_one_value_is_left_to_the_schema() -> None:
    fixed = dataclasses.replace(kernel(CPP), schema=(("TILE", (16, 32)), ("WIDTH", (15,))))
    prompt = serialize.prompt(Variant(fixed, MATMUL, Config.of(TILE=16, WIDTH=15)), CPU)
    assert prompt.config == ("TILE=16",)
    assert "param WIDTH: 15" in prompt.source


def test_a_sheet_without_numbers_keeps_the_vendor_and_says_unknown() -> None:
    told = serialize.device_text(serialize.vendor_only(CPU), "f32")
    assert told.startswith("device cpu Intel ? units ? clock_mhz ? f32 tflops ?")
    assert not re.search(r"\d", told.replace("f32", "").replace("l2_kib", "").replace("l1_kib", ""))


def test_a_kernel_without_text_or_schema_has_a_prompt() -> None:
    imported = Kernel("gemm", "opencl", None, (), origin="tables/2080")
    prompt = serialize.prompt(Variant(imported, MATMUL, Config.of(MWG=64, VW=1.5)), CPU)
    assert prompt.source == "kernel tables/2080 gemm"
    assert prompt.config == ("MWG=64", "VW=1.5")


@pytest.mark.parametrize("config", [Config.of(TILE=16), Config.of(TILE=16, MODE="row", EXTRA=1)])
def test_a_config_off_the_schema_is_the_users_mistake(config: Config) -> None:
    with pytest.raises(UserError, match="expected values for TILE, MODE and no others"):
        serialize.prompt(Variant(kernel(CPP), MATMUL, config), CPU)
