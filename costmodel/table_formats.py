"""Tables in the forms that other tuners read: Triton, Inductor's lookup table, vLLM's fused-MoE files, plain JSON.

Each writer takes a table and gives texts; a table whose kernel or parameters do not fit a form is a UserError.

Triton     a Python file: `CONFIGS` by the values of autotune's key, `config(...)` and `prune` for autotune
Inductor   `{key: [config]}` for `torch._inductor.config.lookup_table.table` (keys of `LookupTableChoices`, torch 2.13)
vLLM       `E=..,N=..,device_name=..[,dtype=..].json`, a file for each E and N; keys are numbers of tokens M
json       kernel, device, default, and a config for each problem
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from costmodel.records import DTYPES, Config, Problem, Scalar, TensorSpec, UserError
from costmodel.table import TunedEntry, TunedTable

TRITON_OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")
INDUCTOR_TEMPLATES = {"mm": "triton::mm", "addmm": "triton::mm", "bmm": "triton::bmm", "baddbmm": "triton::bmm"}
_TORCH_DTYPES = {short: name for name, short in DTYPES.items()}
# vLLM names the quantisation of activations and weights; 16-bit models have no name.
_VLLM_DTYPES = {"f16": "", "bf16": "", "f8_e4m3": "fp8_w8a8", "i8": "int8_w8a8"}
_VLLM_H200 = "NVIDIA_H200"  # vLLM reads this file for every card of the H200 family


# -------------------------------------------------------------------------------------------------------------- Triton


def triton(table: TunedTable) -> str:
    """A Python file that needs nothing but Triton."""
    if table.language != "triton":
        raise UserError(f"got {table.kernel}, a {table.language} kernel, expected a Triton one; give --to json")
    if not table.entries:
        raise UserError(f"got a table of {table.kernel} without entries; build it from measurements")
    key = tuple(name for name, _ in table.entries[0].problem.params)
    for name in (*key, *(name for name, _ in table.schema)):
        if not name.isidentifier():
            raise UserError(f"got the name {name!r} in {table.kernel}, expected a Python name; give --to json")
    lines = [f"    {tuple(value for _, value in e.problem.params)!r}: {_split(e.config)!r}," for e in table.entries]
    return _TRITON.format(
        kernel=table.kernel, device=table.device, digest=table.source_digest, created=table.created or "unknown",
        key=key, keywords=", ".join(f"{name}={name}" for name in key), configs="\n".join(lines),
        default=_split(table.default) if table.default else None,
    )  # fmt: skip


def _split(config: Config) -> tuple[dict[str, Scalar], dict[str, Scalar]]:
    """(constants, options) as `triton.Config(constants, **options)` takes them."""
    params = config.as_dict()
    options = {name: params.pop(name) for name in TRITON_OPTIONS if name in params}
    return params, options


# What a table says stands in it as literals only: a file of somebody else's must not become code.
_TRITON = '''"""Tuned configs of a Triton kernel, written by `costmodel table apply`. Two ways to use them:

    kernel[grid](..., **config({keywords}).all_kwargs())    # no autotuning
    @triton.autotune(configs=..., key=[...], prune_configs_by={{"early_config_prune": prune}})
"""

import triton

KERNEL = {kernel!r}
SOURCE = {digest!r}  # of the kernel's text
DEVICE = {device!r}
MEASURED = {created!r}
KEY = {key!r}
DEFAULT = {default!r}
# values of KEY -> (constants, options)
CONFIGS = {{
{configs}
}}


def config(**sizes):
    """The tuned triton.Config for these values of KEY, the default where none is known; None where that is not."""
    found = CONFIGS.get(tuple(sizes[name] for name in KEY), DEFAULT)
    return None if found is None else triton.Config(dict(found[0]), **found[1])


def prune(configs, named_args, **launch):
    """For autotune: the tuned config alone where one is known (Triton 3.9 benchmarks nothing), else all."""
    known = {{**named_args, **launch}}
    if tuple(known.get(name) for name in KEY) not in CONFIGS:
        return configs
    return [config(**{{name: known[name] for name in KEY}})]
'''


# ------------------------------------------------------------------------------------------------------------ Inductor


def inductor(table: TunedTable) -> str:
    """Inductor's lookup table of matrix products, for this device alone: JSON of {key: [config]}.

    import json, torch._inductor.config as config
    config.lookup_table.table = json.load(open(FILE))
    config.inductor_choices_class = torch._inductor.lookup_table.choices.LookupTableChoices
    """
    if table.device_vendor != "NVIDIA":
        raise UserError(f"got {table.device}, expected an NVIDIA GPU: Inductor's key of others is not on their sheet")
    found = {}
    for entry in table.entries:
        op, inputs = inductor_inputs(entry.problem)
        config = _renamed(table, entry, _INDUCTOR_NAMES, "Inductor's mm and bmm templates")
        key = inductor_key(op, inputs, device=table.device)
        found[key] = [inductor_entry(op, config, int(entry.problem["K"]))]
    return json.dumps(found, indent=1) + "\n"


_INDUCTOR_NAMES = {"BLOCK_M": True, "BLOCK_N": True, "BLOCK_K": True, "GROUP_M": False}
Layout = tuple[str, tuple[int, ...], tuple[int, ...]]  # element type, shape, strides


def inductor_entry(op: str, config: Mapping[str, Scalar], depth: int) -> dict[str, Scalar]:
    """One config of the table; depth: the problem's K. Inductor takes what is not stated from its own first config,
    whose blocks of K may divide K where these do not."""
    if op not in INDUCTOR_TEMPLATES:
        raise UserError(f"got operation {op!r}, expected one of {', '.join(INDUCTOR_TEMPLATES)}")
    return {"template_id": INDUCTOR_TEMPLATES[op], **config, "EVEN_K": depth % int(config["BLOCK_K"]) == 0}


def inductor_key(op: str, inputs: Sequence[Layout], *, device: str = "") -> str:
    """The key of `LookupTableChoices.make_lookup_key`: [device+](dtype, shape, strides of each input)+op."""
    nodes = ", ".join(f"(torch.{_torch(dtype)}, {list(shape)}, {list(strides)})" for dtype, shape, strides in inputs)
    return "+".join([*([device] if device else []), f"({nodes})", op])


def _torch(dtype: str) -> str:
    if dtype not in _TORCH_DTYPES:
        raise UserError(f"got inputs of {dtype}, expected an element type of torch: {', '.join(_TORCH_DTYPES)}")
    return _TORCH_DTYPES[dtype]


def inductor_inputs(problem: Problem) -> tuple[str, tuple[Layout, ...]]:
    """(op, inputs) of a product of two row-major matrices; B kept as [N, K] is a transposed view, as in Inductor."""
    sizes = dict(problem.params)
    missing = [name for name in "MNK" if not isinstance(sizes.get(name), int)]
    if missing or len(problem.inputs) != 2:
        raise UserError(f"got {problem.op}, expected a matrix product of two inputs that states M, N and K")
    batch = [int(sizes["B"])] if "B" in sizes else []
    m, n, k = (int(sizes[name]) for name in "MNK")
    a, b = problem.inputs
    transposed = sizes["layout"] == "nt" if "layout" in sizes else b.shape != (*batch, k, n)
    if a.shape != (*batch, m, k) or b.shape != ((*batch, n, k) if transposed else (*batch, k, n)):
        raise UserError(f"got inputs {a.shape} and {b.shape}, expected [M, K] and [K, N] or [N, K]")
    second = _transposed(b) if transposed else dense(b)
    return ("bmm" if batch else "mm"), (dense(a), second)


def dense(spec: TensorSpec) -> Layout:
    """A row-major tensor without gaps."""
    strides = [1]
    for size in reversed(spec.shape[1:]):
        strides.insert(0, strides[0] * size)
    return spec.dtype, spec.shape, tuple(strides)


def _transposed(spec: TensorSpec) -> Layout:
    dtype, shape, strides = dense(spec)
    return dtype, (*shape[:-2], shape[-1], shape[-2]), (*strides[:-2], strides[-1], strides[-2])


def _renamed(table: TunedTable, entry: TunedEntry, wanted: Mapping[str, bool], form: str) -> dict[str, int]:
    """The config under a form's names (BLOCK_M and BLOCK_SIZE_M are one); wanted: name -> whether it must be there."""
    params = {_plain(name): value for name, value in entry.config.params}
    names = {**wanted, "num_warps": True, "num_stages": True}
    lacking = [name for name, needed in names.items() if needed and _plain(name) not in params]
    further = sorted(set(params) - {_plain(name) for name in names})
    if lacking or further:
        wrong = f"without {', '.join(lacking)}" if lacking else f"with {', '.join(further)}"
        raise UserError(f"got {table.kernel} {wrong}, expected {', '.join(names)} and no more: {form}; give --to json")
    return {name: int(params[_plain(name)]) for name in names if _plain(name) in params}


def _plain(name: str) -> str:
    return name.upper().replace("_SIZE_", "_")


# ---------------------------------------------------------------------------------------------------------------- vLLM


def vllm(table: TunedTable) -> dict[str, str]:
    """vLLM's files by name. The problem states E (experts), N (as vLLM counts it: of one rank) and M (tokens)."""
    wanted = {"BLOCK_SIZE_M": True, "BLOCK_SIZE_N": True, "BLOCK_SIZE_K": True, "GROUP_SIZE_M": True}
    files: dict[str, dict[int, dict[str, int]]] = {}
    for entry in table.entries:
        sizes = dict(entry.problem.params)
        if missing := [name for name in "ENM" if not isinstance(sizes.get(name), int)]:
            stated = ", ".join(sizes)
            raise UserError(
                f"got {table.kernel} that states {stated} and no {missing[0]}, expected E experts, N of a rank and "
                "M tokens for vLLM; give --to json"
            )
        name = vllm_file(int(sizes["E"]), int(sizes["N"]), table.device, entry.problem.dtype)
        config = _renamed(table, entry, wanted, "vLLM's fused MoE kernel")
        files.setdefault(name, {})[int(sizes["M"])] = config
    return {name: json.dumps(dict(sorted(configs.items())), indent=4) + "\n" for name, configs in files.items()}


def vllm_file(experts: int, columns: int, device: str, dtype: str) -> str:
    """The name under which vLLM looks for a table: `get_config_file_name` of its fused_moe.py."""
    if dtype not in _VLLM_DTYPES:
        raise UserError(f"got inputs of {dtype}, expected one of {', '.join(_VLLM_DTYPES)} for vLLM")
    name = device.replace(" ", "_")
    name = _VLLM_H200 if "H200" in name.split("_") else name
    told = f",dtype={_VLLM_DTYPES[dtype]}" if _VLLM_DTYPES[dtype] else ""
    return f"E={experts},N={columns},device_name={name}{told}.json"


# ---------------------------------------------------------------------------------------------------------------- JSON


def plain_json(table: TunedTable) -> str:
    """Kernel, device and a config for each problem, for programs that know no costmodel."""
    document = {
        "kernel": table.kernel, "source": table.source_digest, "device": table.device,
        "default": table.default.as_dict() if table.default else None,
        "configs": [{"problem": dict(e.problem.params), "config": e.config.as_dict()} for e in table.entries],
    }  # fmt: skip
    return json.dumps(document, indent=1) + "\n"


WRITERS: dict[str, Callable[[TunedTable], str | dict[str, str]]] = {
    "triton": triton, "inductor": inductor, "vllm": vllm, "json": plain_json
}  # fmt: skip
