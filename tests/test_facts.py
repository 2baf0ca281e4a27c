"""What is read from compiled kernels, against kernels whose answer is known by hand and limits that are published."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodel import devices
from costmodel.measure import facts
from costmodel.measure.instructions import CLASSES, amd_class, nvidia_class
from costmodel.records import Device, UserError

# Two kernels: `shares` holds 2048 bytes of shared memory, `multiplies` does one tensor-core product and no more.
TWO_KERNELS = """
.version 8.0
.target sm_80
.address_size 64
.shared .align 4 .b8 tile[2048];
.visible .entry shares(.param .u64 p) {
    .reg .u64 %a, %b, %c; .reg .u32 %t, %u;
    ld.param.u64 %a, [p]; mov.u32 %t, %tid.x; mov.u64 %b, tile; mul.wide.u32 %c, %t, 4; add.u64 %b, %b, %c;
    st.shared.u32 [%b], %t; bar.sync 0; ld.shared.u32 %u, [tile+4]; st.global.u32 [%a], %u; ret;
}
.visible .entry multiplies(.param .u64 p) {
    .reg .u64 %a; .reg .b32 %x<4>, %y<2>; .reg .f32 %d<4>, %z;
    ld.param.u64 %a, [p]; mov.f32 %z, 0f00000000;
    ld.global.v4.b32 {%x0, %x1, %x2, %x3}, [%a]; ld.global.v2.b32 {%y0, %y1}, [%a+16];
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%d0, %d1, %d2, %d3}, {%x0, %x1, %x2, %x3}, {%y0, %y1},
        {%z, %z, %z, %z};
    st.global.v4.f32 [%a+32], {%d0, %d1, %d2, %d3}; ret;
}
"""

# An array of a thread's own that is indexed at run time: it cannot live in registers.
LOCAL = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry indexes(.param .u64 p) {
    .local .align 4 .b8 own[256];
    .reg .u64 %a, %b, %c; .reg .u32 %t, %u;
    ld.param.u64 %a, [p]; mov.u32 %t, %tid.x; mov.u64 %b, own; mul.wide.u32 %c, %t, 4; add.u64 %c, %b, %c;
    st.local.u32 [%b], %t; st.local.u32 [%c], %t; ld.global.u32 %u, [%a]; mul.wide.u32 %c, %u, 4; add.u64 %c, %b, %c;
    ld.local.u32 %u, [%c]; st.global.u32 [%a], %u; ret;
}
"""

AMDGCN = """
\tv_mfma_f32_32x32x8_f16 a[0:15], v[2:3], v[4:5], a[0:15]
\tbuffer_load_dwordx4 v[2:5], v1, s[8:11], 0 offen
\tbuffer_load_dword v1, s[8:11], 0 offen lds
\tscratch_store_dword off, v7, s33                ; 4-byte Folded Spill
\tbuffer_load_dword v7, off, s[0:3], s33          ; 4-byte Folded Reload
\ts_nop 0
\t.p2align 8
\ts_endpgm
    .group_segment_fixed_size: 512
    .private_segment_fixed_size: 64
    .sgpr_count:     20
    .sgpr_spill_count: 1
    .vgpr_count:     72
    .vgpr_spill_count: 3
"""


@pytest.fixture(scope="module")
def assemble(tmp_path_factory):
    """(PTX, arch) -> cubin, by the assembler in Triton's wheel."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("ptx")

    def build(text: str, arch: str) -> bytes:
        tool = facts.tool("ptxas-blackwell" if facts.capability(arch) >= 100 else "ptxas")
        (folder / "kernel.ptx").write_text(text)
        subprocess.run([tool, f"-arch={arch}", folder / "kernel.ptx", "-o", folder / "kernel.cubin"], check=True)
        return (folder / "kernel.cubin").read_bytes()

    return build


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_120"])
def test_shared_memory_is_what_the_kernel_asks_for_and_not_what_the_system_keeps(assemble, arch):
    cubin = assemble(TWO_KERNELS, arch)
    found = dict(facts.of_cubin(cubin, arch, entry="shares", threads=64, dynamic_shared_bytes=100, instructions=False))
    assert found["shared_bytes"] == 2148
    assert found["threads_per_block"] == 64
    assert found["stack_bytes"] == 0
    assert 4 <= found["registers"] <= 32
    assert "instructions" not in found


def test_each_kernel_of_a_cubin_has_its_own_facts(assemble):
    cubin = assemble(TWO_KERNELS, "sm_80")
    shares, multiplies = (
        dict(facts.of_cubin(cubin, "sm_80", entry=entry, threads=32)) for entry in ("shares", "multiplies")
    )
    assert (shares["tensor_ops"], multiplies["tensor_ops"]) == (0, 1)
    assert (shares["shared_loads"], shares["shared_stores"], shares["barriers"]) == (1, 1, 1)
    assert (multiplies["global_loads"], multiplies["global_stores"], multiplies["shared_bytes"]) == (2, 1, 0)
    for found in (shares, multiplies):
        assert sum(found[name] for name in CLASSES) == found["instructions"]
    with pytest.raises(ValueError, match="without kernel absent"):
        facts.of_cubin(cubin, "sm_80", entry="absent", threads=32)


def test_local_memory_is_counted(assemble):
    found = dict(facts.of_cubin(assemble(LOCAL, "sm_80"), "sm_80", threads=32))
    assert found["stack_bytes"] == 256
    assert found["local_stores"] >= 2
    assert found["local_loads"] == 1
    assert not facts.infeasible(tuple(found.items()), devices.find("A100-SXM4-80GB"))


def test_amd_assembly():
    found = dict(facts.of_amdgcn(AMDGCN, threads=256, shared_bytes=1000))
    assert (found["registers"], found["spilled_registers"]) == (72, 3)
    assert (found["scalar_registers"], found["spilled_scalar_registers"]) == (20, 1)
    assert (found["shared_bytes"], found["stack_bytes"]) == (1512, 64)
    counted = {name: found[name] for name in CLASSES if found[name]}
    assert counted == dict.fromkeys(
        ("tensor_ops", "global_loads", "async_copies", "local_stores", "local_loads", "branches"), 1
    )
    with pytest.raises(ValueError, match=r"without \.amdgpu_metadata"):
        facts.of_amdgcn("\ts_endpgm\n", threads=64)


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("HMMA.16816.F32", "tensor_ops"), ("HGMMA.64x128x16.F32", "tensor_ops"), ("QGMMA.64x64x32.F32", "tensor_ops"),
        ("UTCHMMA", "tensor_ops"), ("IMMA.16832.S8.S8", "tensor_ops"), ("HFMA2.MMA", "fp16_ops"),
        ("LDGSTS.E.BYPASS.128", "async_copies"), ("UTMALDG.2D", "async_copies"), ("LDG.E.128", "global_loads"),
        ("STG.E.64", "global_stores"), ("LDSM.16.M88.4", "shared_loads"), ("STS.128", "shared_stores"),
        ("LDL.LU", "local_loads"), ("STL", "local_stores"), ("LDTM.x32", "tensor_memory_moves"),
        ("RED.E.ADD.F32", "atomics"), ("BAR.SYNC.DEFER_BLOCKING", "barriers"), ("WARPGROUP.DEPBAR.LE", "barriers"),
        ("SHFL.BFLY", "warp_exchanges"), ("FFMA.FTZ", "fp32_ops"), ("FSEL", "fp32_ops"), ("DFMA", "fp64_ops"),
        ("FLO.U32", "int_ops"), ("IMAD.WIDE", "int_ops"), ("IMAD.MOV.U32", "other_instructions"), ("VIADD", "int_ops"),
        ("F2FP.BF16.F32.PACK_AB", "conversions"), ("I2FP.F32.S32", "conversions"), ("MUFU.EX2", "special_functions"),
        ("BRA", "branches"), ("EXIT", "branches"), ("MOV", "other_instructions"), ("NOP", ""),
    ],
)  # fmt: skip
def test_sass_opcodes(opcode, kind):
    assert nvidia_class(opcode) == kind


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("v_wmma_f32_16x16x16_f16 v[0:7], v[8:15], v[16:23], v[0:7]", "tensor_ops"),
        ("global_load_dwordx4 v[0:3], v[4:5], off", "global_loads"), ("ds_read_b128 v[0:3], v4", "shared_loads"),
        ("ds_store_b32 v0, v1", "shared_stores"), ("global_atomic_add_f32 v[0:1], v2, off", "atomics"),
        ("ds_bpermute_b32 v0, v1, v2", "warp_exchanges"), ("v_fma_f32 v0, v1, v2, v3", "fp32_ops"),
        ("v_pk_fma_f16 v0, v1, v2, v3", "fp16_ops"), ("v_add_f64 v[0:1], v[2:3], v[4:5]", "fp64_ops"),
        ("v_exp_f32_e32 v0, v1", "special_functions"), ("v_cvt_f16_f32_e32 v0, v1", "conversions"),
        ("s_waitcnt lgkmcnt(0)", "barriers"), ("s_cbranch_scc0 .LBB0_1", "branches"), ("s_nop 1", ""),
        ("v_mov_b32_e32 v0, v1", "other_instructions"), ("v_add_u32_e32 v0, v1, v2", "int_ops"),
    ],
)  # fmt: skip
def test_amd_mnemonics(line, kind):
    assert amd_class(line) == kind


def launch(registers=32, shared=0, threads=128, columns=0):
    return (
        ("registers", float(registers)), ("stack_bytes", 0.0), ("shared_bytes", float(shared)),
        ("threads_per_block", float(threads)), ("tensor_memory_columns", float(columns)), ("local_loads", 3.0),
    )  # fmt: skip


def test_launches_together():
    together = dict(facts.joined([launch(40, 100, 256), launch(80, 50, 128)]))
    assert (together["registers"], together["shared_bytes"], together["threads_per_block"]) == (80, 100, 256)
    assert (together["local_loads"], together["launches"]) == (6, 2)
    assert [name for name, _ in facts.joined([launch()])] == [*(name for name, _ in launch()), "launches"]


# CUDA programming guide, "Maximum amount of shared memory per thread block"; AMD's instruction set guides for LDS.
LIMITS = {
    "A100-SXM4-80GB": 163 << 10, "A30": 163 << 10, "RTX 3090": 99 << 10, "A10": 99 << 10, "L4": 99 << 10,
    "H200": 227 << 10, "B200": 227 << 10, "RTX 5090": 99 << 10, "Tesla T4": 64 << 10, "V100-SXM2-16GB": 96 << 10,
    "P100-PCIE-16GB": 48 << 10, "MI300X": 64 << 10, "MI355X": 160 << 10, "W7900": 64 << 10,
}  # fmt: skip


@pytest.mark.parametrize(("name", "limit"), LIMITS.items())
def test_a_block_may_have_the_published_shared_memory_and_not_a_byte_more(name, limit):
    device = devices.find(name)
    assert facts.infeasible(launch(shared=limit), device) == ""
    reason = facts.infeasible(launch(shared=limit + 1), device)
    assert f"{limit + 1} B of shared memory" in reason
    assert str(limit) in reason


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (launch(threads=1024, registers=64), ""),
        (launch(threads=1024, registers=65), "1024 threads of 65 registers"),  # 65 are given out as 72
        (launch(threads=256, registers=255), ""),
        (launch(threads=288, registers=255), "288 threads of 255 registers"),
        (launch(threads=1056), "1056 threads a block, the limit is 1024"),
        (launch(columns=512), ""),
        (launch(columns=1024), "1024 columns of tensor memory"),
    ],
)
def test_threads_registers_and_tensor_memory(given, reason):
    answer = facts.infeasible(given, devices.find("B200"))
    assert answer.startswith(reason)
    assert bool(answer) == bool(reason)


@pytest.mark.parametrize(
    ("name", "given", "blocks"),  # by the rules of CUDA's occupancy calculator, and by waves per SIMD on AMD
    [
        ("A100-SXM4-80GB", launch(32, 0, 128), 16),
        ("A100-SXM4-80GB", launch(64, 0, 256), 4),
        ("A100-SXM4-80GB", launch(255, 0, 256), 1),
        ("A100-SXM4-80GB", launch(168, 0, 128), 3),  # 12 warps of 5376 registers
        ("A100-SXM4-80GB", launch(32, 0, 32), 32),
        ("RTX 3090", launch(32, 0, 32), 16),
        ("RTX 4090", launch(32, 0, 32), 24),
        ("RTX 3090", launch(32, 48 << 10, 128), 2),
        ("RTX 3090", launch(32, 50 << 10, 128), 1),  # 50 KiB and the system's one, twice, are more than 100 KiB
        ("H200", launch(128, 98304, 256), 2),
        ("MI300X", launch(128, 0, 256), 4),
        ("MI300X", launch(64, 0, 256), 8),
        ("MI300X", launch(32, 40 << 10, 256), 1),
    ],
)
def test_blocks_on_a_unit(name, given, blocks):
    assert facts.blocks_per_unit(given, devices.find(name)) == blocks


GPUS = [
    device
    for device in devices.load_sheets().values()
    if device.arch.startswith("gfx") or (device.arch.startswith("sm_") and facts.capability(device.arch) >= 70)
]


@given(
    st.sampled_from(GPUS), st.integers(1, 255), st.integers(0, 300_000), st.integers(1, 32), st.integers(0, 64),
    st.integers(0, 4096),
)  # fmt: skip
def test_more_demands_never_fit_more_blocks_and_none_fits_just_when_it_is_infeasible(
    device, registers, shared, warps, more_registers, more_shared
):
    lanes = dict(device.details)["warp_size"]
    threads = min(1024, warps * lanes)
    blocks = facts.blocks_per_unit(launch(registers, shared, threads), device)
    assert bool(facts.infeasible(launch(registers, shared, threads), device)) == (blocks == 0)
    assert facts.blocks_per_unit(launch(registers + more_registers, shared, threads), device) <= blocks
    assert facts.blocks_per_unit(launch(registers, shared + more_shared, threads), device) <= blocks
    assert blocks * threads <= dict(device.details)["max_threads_per_unit"]


def test_a_sheet_without_the_numbers_is_a_users_error():
    bare = Device("bare", "gpu", "NVIDIA", "sm_90", 1, 1000.0, (), 1.0, 1)
    with pytest.raises(UserError, match="bare does not state shared_bytes_per_unit"):
        facts.infeasible(launch(), bare)
