"""Checkpoints: safetensors and JSON, never pickle.

A model folder has the Hugging Face form:
  config.json        the backbone's, with one more key, "costmodel": {"format", "members", "head", ...}
  model.safetensors  member 0's backbone under its own names, so transformers loads it as it stands; `ensemble.NAME`
                     (members - 1, ...) stacks the same tensor of the others; `heads.NAME` (members, ...) the heads
  tokenizer.json     that of the text

A training checkpoint is one safetensors file, replaced atomically, whose metadata holds the JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from costmodel.model import foreign
from costmodel.model.decoder import prepare
from costmodel.model.heads import Head, from_spec
from costmodel.records import UserError
from costmodel.tokens import TextTokenizer

FORMAT = 1  # 1: the first
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One seed of an ensemble."""

    backbone: PreTrainedModel
    head: Head


def save(
    folder: str | Path, members: Sequence[Member], tokenizer: TextTokenizer, *, details: dict[str, Any] | None = None
) -> None:
    """Writes a model folder in bfloat16. `details` (JSON-able) is returned by `load` as it was given."""
    if not members:
        raise UserError("got no members to save, expected at least one")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backbones = [_backbone_tensors(member.backbone) for member in members]
    heads = [member.head.state_dict() for member in members]
    tensors = dict(backbones[0])
    if len(members) > 1:
        tensors |= {f"ensemble.{name}": torch.stack([b[name] for b in backbones[1:]]) for name in backbones[0]}
    tensors |= {f"heads.{name}": torch.stack([h[name] for h in heads]) for name in heads[0]}
    tensors = {name: x.detach().to(torch.bfloat16).contiguous() for name, x in tensors.items()}
    backbone = members[0].backbone
    config = json.loads(backbone.config.to_json_string())
    config |= {"architectures": [type(backbone).__name__], "dtype": "bfloat16"}
    config["costmodel"] = {
        "format": FORMAT, "members": len(members), "head": members[0].head.spec(), "details": details or {},
    }  # fmt: skip
    _replace(folder / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    tokenizer.save(folder)
    _replace(folder / "config.json", lambda path: path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n"))


def load(folder: str | Path) -> tuple[list[Member], TextTokenizer, dict[str, Any]]:
    """A model folder -> its members in float32, its tokenizer and the details it was saved with."""
    folder = Path(folder)
    config, document = foreign.config_of(folder)
    ours: Any = document.get("costmodel")
    path = folder / "model.safetensors"
    if isinstance(ours, dict) and isinstance(ours.get("format"), int) and ours["format"] > FORMAT:
        raise UserError(f"got {folder} in format {ours['format']}, expected at most {FORMAT}; update costmodel")
    members = foreign.check(folder, config, ours, foreign.shapes_of(path))
    tokenizer = TextTokenizer.load(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"got {folder}, whose tokenizer has {tokenizer.vocab_size} tokens, expected {config.vocab_size}"
        )
    try:
        tensors = {name: x.float() for name, x in load_file(path).items()}
        plain = {name: x for name, x in tensors.items() if not name.startswith(("ensemble.", "heads."))}
        made = []
        for i in range(members):
            own = plain if i == 0 else {name: tensors[f"ensemble.{name}"][i - 1] for name in plain}
            head = from_spec(config.hidden_size, ours["head"])
            head.load_state_dict({name: tensors[f"heads.{name}"][i] for name in head.state_dict()})
            made.append(Member(_backbone(config, own), head.eval()))
    except (UserError, MemoryError):
        raise
    except Exception as error:  # safetensors, torch and transformers each raise their own
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"got {folder}, whose files are not of one model ({reason}); fetch it again") from error
    return made, tokenizer, ours["details"]


def save_training(path: Path, tensors: Tensors, state: dict[str, Any]) -> None:
    """One file, complete or absent: a kill in mid-write leaves the one before it. `state` is JSON-able."""
    tensors = {name: x.detach().contiguous() for name, x in tensors.items()}
    _replace(path, lambda temporary: save_file(tensors, temporary, metadata={"state": json.dumps(state)}))


def load_training(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The inverse of `save_training`."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["state"])  # noqa: SIM118
    except Exception as error:  # the library raises its own and OSError
        raise UserError(f"got {path}, expected a training checkpoint: {error}; remove it to start anew") from error


def optimizer_tensors(optimizers: Sequence[torch.optim.Optimizer]) -> Tensors:
    """The state of optimizers whose state is all tensors, by optimizer, parameter and name."""
    return {
        f"optimizer.{i}.{p}.{name}": value
        for i, optimizer in enumerate(optimizers)
        for p, slots in optimizer.state_dict()["state"].items()
        for name, value in slots.items()
    }


def restore_optimizers(optimizers: Sequence[torch.optim.Optimizer], tensors: Tensors) -> None:
    """The inverse of `optimizer_tensors`; learning rates and the like stay as they are."""
    for i, optimizer in enumerate(optimizers):
        slots: dict[int, Tensors] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer.{i}."):
                _, _, p, name = key.split(".", 3)
                slots.setdefault(int(p), {})[name] = value
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def _backbone_tensors(backbone: PreTrainedModel) -> Tensors:
    """What transformers itself would save: its names, tied weights once."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        backbone.save_pretrained(folder, max_shard_size="1000GB")
        return load_file(Path(folder) / "model.safetensors")


def _backbone(config: PreTrainedConfig, tensors: Tensors) -> PreTrainedModel:
    """UserError where a weight is missing: transformers would draw it at random."""
    cls: Any = foreign.model_class(config)
    with _quiet():
        model, told = cls.from_pretrained(
            None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
        )
    if wrong := [*told["missing_keys"], *told["unexpected_keys"]]:
        raise UserError(f"got weights that do not fit their config.json, first {wrong[0]}; fetch the folder again")
    return prepare(model).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(path.name + ".part")
    write(temporary)
    temporary.chmod(0o644)  # safetensors writes for its owner only
    os.replace(temporary, path)
