"""What a model folder may hold before anything of it is allocated: weights and sizes, and nothing that runs.

transformers would run code for several keys of a config.json: `auto_map` names Python files, an attention or expert
implementation may be a kernel to download, a quantization method is a package to import. None of them is passed on; the
class of the model comes from transformers' own table of causal models, never from a name in the file. Every size is
compared with the tensors that are really there, so what is allocated is in proportion to the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from costmodel import reading
from costmodel.measure.worker import free_memory_bytes
from costmodel.records import UserError

Shapes = dict[str, tuple[int, ...]]

MOST_MEMBERS = 64
MOST_CONFIG_BYTES = 16 << 20
_MOST = {"layer": 1024, "expert": 1024, "": 1 << 27}  # of whole numbers in a config, by a part of their key
_MOST_IN_HEAD = 1024  # unless a tensor of the head is as wide
_DTYPES = ("F64", "F32", "F16", "BF16")
_NOT_OURS = (
    "auto_map", "custom_pipelines", "quantization_config", "compression_config", "attn_implementation",
    "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset", "experts_implementation",
    "_experts_implementation", "_experts_implementation_internal", "kernel_config", "use_kernels", "distributed_config",
    "dtype", "torch_dtype", "num_labels", "id2label", "label2id",
)  # fmt: skip


def config_of(folder: Path) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The backbone's config, and the whole document of config.json."""
    path = folder / "config.json"
    document = reading.json_object(path, expected="the config.json of a model folder", most_bytes=MOST_CONFIG_BYTES)
    kind = document.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(f"got {path} of model_type {str(kind)[:80]!r}, expected one that transformers knows")
    theirs = {key: value for key, value in document.items() if key != "costmodel"}
    for key, value in _whole_numbers(theirs):
        most = next(limit for part, limit in _MOST.items() if part in key)
        if not -most <= value <= most:
            raise UserError(f"got {path} with {key} = {value}, expected at most {most}; the file is damaged")
    try:
        config = CONFIG_MAPPING[kind].from_dict(_without_programs(theirs))
    except Exception as error:  # each class checks its keys in its own way
        raise UserError(f"got {path}, which is no config of a {kind} model ({reading.short(error)})") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"got {path} of model_type {kind!r}, expected a causal language model")
    return config, document


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of transformers for a config that `config_of` made."""
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return cast("type[PreTrainedModel]", found[0] if isinstance(found, tuple) else found)


def shapes_of(path: Path) -> Shapes:
    """The tensors of a safetensors file by name, from its header alone. UserError where they are no weights, or the
    machine has no room for them in float32."""
    reading.regular(path, expected="a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            kinds = {part.get_dtype() for part in slices.values()}
    except Exception as error:  # the library raises its own and OSError
        raise UserError(f"got {path}, expected a whole safetensors file: {reading.short(error)}") from error
    if strange := kinds.difference(_DTYPES):
        raise UserError(f"got {path} with tensors of {', '.join(sorted(strange))}, expected {', '.join(_DTYPES)}")
    wanted, there = 8 * sum(map(math.prod, shapes.values())), free_memory_bytes()  # float32, and once more to hand over
    if wanted > there:
        raise UserError(
            f"got {path}, which takes {wanted >> 20} MiB of memory, expected at most the {there >> 20} free"
        )
    return shapes


def check(folder: Path, config: PreTrainedConfig, ours: Any, shapes: Shapes) -> int:
    """The number of members. UserError where the config's sizes are not those of the tensors."""
    path = folder / "config.json"
    if not isinstance(ours, dict) or not {"format", "members", "head", "details"} <= ours.keys():
        raise UserError(f"got {path} without costmodel's own keys, expected a folder that costmodel saved")
    members, head, details = ours["members"], ours["head"], ours["details"]
    if not isinstance(members, int) or not 1 <= members <= MOST_MEMBERS:
        raise UserError(f"got {path} of {str(members)[:40]} members, expected 1 to {MOST_MEMBERS}")
    if not isinstance(head, dict) or not isinstance(details, dict) or not isinstance(ours["format"], int):
        raise UserError(f"got {path}, whose costmodel keys are not of their types; fetch the folder again")
    leading = {"ensemble.": members - 1, "heads.": members}
    for name, shape in shapes.items():
        for prefix, count in leading.items():
            if name.startswith(prefix) and shape[:1] != (count,):
                raise UserError(f"got {folder} with {name} of shape {list(shape)}, expected {count} in front")
    widest = max((size for name, shape in shapes.items() if name.startswith("heads.") for size in shape), default=0)
    for key, value in _whole_numbers(head):
        if abs(value) > max(_MOST_IN_HEAD, widest):
            raise UserError(f"got {path} with a head of {key} = {value}, expected at most {max(_MOST_IN_HEAD, widest)}")
    plain = {name: shape for name, shape in shapes.items() if not name.startswith(tuple(leading))}
    _check_backbone(path, config, plain)
    return members


def _check_backbone(path: Path, config: PreTrainedConfig, plain: Shapes) -> None:
    """UserError where the config's model has other shapes than the file. It is built without memory for them."""
    layers = getattr(config, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > len(plain):
        raise UserError(f"got {path} of {layers} layers beside {len(plain)} tensors; they are not of one model")
    try:
        with torch.device("meta"):
            model = model_class(config)(config)
    except Exception as error:  # whatever a model says of sizes that do not fit
        raise UserError(f"got {path}, of which no model can be made ({reading.short(error)})") from error
    for name, tensor in model.state_dict().items():
        if name in plain and plain[name] != tuple(tensor.shape):
            raise UserError(
                f"got {path}, by which {name} is {list(tensor.shape)}, expected {list(plain[name])} as in the weights"
            )
    wanted, there = sum(p.numel() for p in model.parameters()), sum(map(math.prod, plain.values()))
    if wanted > 2 * there:  # tied weights are stored once
        raise UserError(f"got {path} of {wanted} parameters, expected the {there} that the weights hold")


def check_shard_names(folder: Path) -> None:
    """UserError where an index of several weight files leads out of its folder, or to anything but safetensors."""
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        return
    named = reading.json_object(path, expected="an index of safetensors").get("weight_map")
    for name in named.values() if isinstance(named, dict) else [named]:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"got {path} that names {str(name)[:80]!r}, expected safetensors files of the same folder")


def _whole_numbers(document: dict[str, Any]) -> Iterator[tuple[str, int]]:
    left: list[tuple[str, Any]] = list(document.items())
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            left += value.items()
        elif isinstance(value, list):
            left += [(key, item) for item in value]
        elif isinstance(value, int):
            yield str(key), value


def _without_programs(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_programs(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_programs(item) for key, item in value.items() if key not in _NOT_OURS}
    return value
