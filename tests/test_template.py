"""What `costmodel new` writes is a kernel of the new name that loads, and whose answers are right."""

import pytest

from costmodel import devices, workloads
from costmodel.records import UserError
from costmodel.template import write_template

H200 = devices.find("H200")


@pytest.mark.parametrize(
    ("file", "written", "language"),
    [("scale.cpp", ["cpp", "py"], "cpp"), ("scale.cu", ["cu", "py"], "cuda"), ("scale.py", ["py"], "triton")],
)
def test_each_language_has_a_kernel_to_fill_in(tmp_path, file, written, language):
    if language == "triton":
        pytest.importorskip("triton")
    assert [path.name for path in write_template(tmp_path / file)] == [f"scale.{suffix}" for suffix in written]
    workload = workloads.load(tmp_path / file)
    assert workload.kernel.name == "scale"
    assert workload.kernel.language == language
    assert "axpy" not in workload.kernel.source
    for problem in workload.problems.values():
        configs = list(workload.space.configs(problem, devices.detect("cpu") if language == "cpp" else H200))
        assert workload.default in configs


def test_the_triton_template_is_right(tmp_path, interpret):
    pytest.importorskip("triton")
    (file,) = write_template(tmp_path / "scale.py")
    assert max(interpret(str(file), {"n": 1000}, {"BLOCK": 256, "STEPS": 2})) <= workloads.load(file).tolerance


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "scale.py").write_text("mine")
    for name in ("scale.py", "scale.cu"):
        with pytest.raises(UserError, match="exists already"):
            write_template(tmp_path / name)
    assert not (tmp_path / "scale.cu").exists()
    with pytest.raises(UserError, match=r"NAME\.cu or NAME\.py"):
        write_template(tmp_path / "scale.ptx")
