"""Frozen embeddings of prompts as features: hidden states of our own members, or of any Hugging Face model folder.

    features = embed(variants, device, "path/to/a/model")  # (N, D)
    model = EmbeddedModel(NeuralCostModel.from_pretrained(), kind="ridge")
    model.update(measurements)

Tang, Yang and Song, Understanding LLM Embeddings for Regression, 2024 (arXiv 2411.14708). A causal model encodes the
prefix of a space once for all its configs; an encoder, which reads both ways, reads every prompt whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import RidgeCV
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from costmodel.baselines import Measured, boosting
from costmodel.gaussian import MaternProcess
from costmodel.model.decoder import PrefixCache, all_states, encode_suffixes, extend, pad, prepare
from costmodel.predictor import BATCH, PREFIX_BUDGET, NeuralCostModel
from costmodel.records import Device, Measurement, Prediction, Prompt, UserError, Variant
from costmodel.serialize import prompt

Pooling = Literal["last", "mean"]
Kind = Literal["ridge", "trees", "gp"]
Array = NDArray[np.float32]
ENCODER_BATCH = 16  # whole prompts in one pass
GP_ROWS = 1000  # at most: a process costs their cube
HELD_BACK = 5  # one row in so many tells how far predictions are off


class Reader(Protocol):
    """Reads prompts. `truncated` counts the tokens of sources that did not fit, once a prefix, over all calls."""

    truncated: int

    def embed(self, variants: Sequence[Variant], device: Device) -> Array:
        """(N, D)"""
        ...


def embed(
    variants: Sequence[Variant], device: Device, model: NeuralCostModel | str | Path, *, pooling: Pooling | None = None
) -> Array:
    """(N, D) hidden states of the last layer of `model`, by rows of `variants`; see `reader`."""
    return reader(model, pooling=pooling).embed(variants, device)


def reader(
    model: NeuralCostModel | str | Path, *, pooling: Pooling | None = None, budget: int = PREFIX_BUDGET
) -> MemberReader | FolderReader:
    """Of our own members, whose states stand side by side, or of a folder of transformers' AutoModel and AutoTokenizer.

    pooling: the "last" token's state, which our members' heads read and which therefore says most (the default for
    them), or the "mean" over all tokens, which keeps what a model never learned to carry to the end (for a folder).
    budget: tokens of a prefix; what exceeds it, or the folder's longest position, is cut from the end of the source and
    counted.
    """
    pooling = pooling or ("last" if isinstance(model, NeuralCostModel) else "mean")
    if pooling not in get_args(Pooling):
        raise UserError(f"got pooling {pooling!r}, expected one of {', '.join(get_args(Pooling))}")
    if isinstance(model, NeuralCostModel):
        return MemberReader(model, pooling, budget)
    return FolderReader(Path(model), pooling, budget)


class MemberReader:
    """The members of a NeuralCostModel, (N, members * D); the device is told by its whole sheet."""

    def __init__(self, model: NeuralCostModel, pooling: Pooling, budget: int) -> None:
        self.truncated = 0
        self._model, self._pooling, self._budget = model, pooling, budget
        self._begun: tuple[tuple[int, ...], list[_Read]] | None = None  # the last source, by each member

    def embed(self, variants: Sequence[Variant], device: Device) -> Array:
        return _by_prefix(variants, device, self._read)

    def _read(self, prompts: Sequence[Prompt]) -> Tensor:
        prefix = self._model.tokenizer.encode_prefix(prompts[0], self._budget)
        self.truncated += prefix.truncated
        suffixes = [self._model.tokenizer.encode_suffix(one) for one in prompts]
        backbones = [member.backbone for member in self._model.members]
        if self._begun is None or self._begun[0] != prefix.source:
            self._begun = prefix.source, [_read(backbone, None, prefix.source) for backbone in backbones]
        begun = zip(backbones, self._begun[1], strict=True)
        pooled = [_shared(one, _read(one, source, prefix.context), suffixes, self._pooling) for one, source in begun]
        return torch.cat(pooled, -1)


class FolderReader:
    """A model folder of the Hugging Face form, causal or not; of an encoder-decoder the encoder reads."""

    def __init__(self, folder: Path, pooling: Pooling, budget: int) -> None:
        self.truncated = 0
        self._pooling, self._folder = pooling, folder
        if not (folder / "config.json").is_file():
            raise UserError(f"got {folder}, which holds no config.json, expected a folder that save_pretrained wrote")
        try:
            model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"got {folder}, expected a model and its tokenizer: {reason}") from error
        self._model: PreTrainedModel = model.get_encoder() if model.config.is_encoder_decoder else model
        self._causal = not model.config.is_encoder_decoder and _is_causal(self._model)
        if self._causal:
            prepare(self._model)
        self._budget = budget
        self._longest = getattr(self._model.config, "max_position_embeddings", None)
        self._start, self._end = self._frame()

    def embed(self, variants: Sequence[Variant], device: Device) -> Array:
        return _by_prefix(variants, device, self._read)

    def _read(self, prompts: Sequence[Prompt]) -> Tensor:
        source = self._ids(prompts[0].source)
        context = self._ids(f"\n{prompts[0].device}\n{prompts[0].problem}\n")
        suffixes = [[*self._ids(" ".join(one.config) or "-"), *self._end] for one in prompts]
        room = self._budget
        if self._longest:
            room = min(room, self._longest - max(map(len, suffixes)))
        room -= len(self._start) + len(context)
        if room < 0:
            raise UserError(f"got a budget {-room} tokens too small for a device and a problem; give a larger one")
        self.truncated += max(len(source) - room, 0)
        prefix = [*self._start, *source[:room], *context]
        if self._causal:
            return _shared(self._model, _read(self._model, None, prefix), suffixes, self._pooling)
        return _whole(self._model, prefix, suffixes, self._pooling)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _frame(self) -> tuple[list[int], list[int]]:
        """The special tokens that the model expects before and after a text."""
        bare, framed = self._ids("a"), list(self._tokenizer("a")["input_ids"])
        if not bare:
            raise UserError(f"got a tokenizer in {self._folder} that reads nothing, expected the model's own beside it")
        start = next(i for i in range(len(framed) + 1) if framed[i : i + len(bare)] == bare)
        return framed[:start], framed[start + len(bare) :]


@torch.inference_mode()
def _is_causal(model: PreTrainedModel) -> bool:
    """Whether a token's state is blind to what follows, and keys and values can be kept: tried, not believed."""
    one, other = (model(input_ids=torch.tensor([ids]), use_cache=True) for ids in ([0, 1], [0, 2]))
    blind = torch.allclose(one.last_hidden_state[0, 0], other.last_hidden_state[0, 0], atol=1e-6)
    return blind and hasattr(getattr(one, "past_key_values", None), "layers")


def _by_prefix(variants: Sequence[Variant], device: Device, read: Callable[[Sequence[Prompt]], Tensor]) -> Array:
    """Asks for prompts that begin alike together; rows in the order of `variants`."""
    prompts = [prompt(variant, device) for variant in variants]
    alike: dict[tuple[str, str, str], list[int]] = {}
    for i, one in enumerate(prompts):
        alike.setdefault((one.source, one.device, one.problem), []).append(i)
    groups = [rows for _, rows in sorted(alike.items())]  # one source after the other
    parts = [read([prompts[i] for i in rows]).numpy().astype(np.float32) for rows in groups]
    order = np.array([i for rows in groups for i in rows], dtype=int)
    return np.concatenate(parts)[np.argsort(order)] if parts else np.zeros((0, 0), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What a causal model has read: keys and values, and the sum of the last layer's states (D,)."""

    cache: PrefixCache | None
    total: Tensor


@torch.inference_mode()
def _read(backbone: PreTrainedModel, after: _Read | None, ids: Sequence[int]) -> _Read:
    """Tokens read after others; a prefix language model reads them both ways, as in training."""
    before = after or _Read(None, torch.zeros(()))
    if not ids:
        return before
    embeddings = backbone.get_input_embeddings()(torch.tensor(ids))
    cache, states = extend(backbone, before.cache, embeddings, reads=len(ids), prompt=True)
    return _Read(cache, before.total + states.sum(0))


@torch.inference_mode()
def _shared(backbone: PreTrainedModel, prefix: _Read, suffixes: Sequence[Sequence[int]], pooling: Pooling) -> Tensor:
    """(M, D) of M prompts that begin alike, by a causal model that has read the beginning once."""
    if prefix.cache is None:
        raise UserError("got prompts without a beginning, expected a source, a device or a problem")
    pooled = [
        _suffixes(backbone, prefix.cache, prefix.total, *pad(suffixes[start : start + BATCH]), pooling)
        for start in range(0, len(suffixes), BATCH)
    ]
    return torch.cat(pooled)


def _suffixes(
    backbone: PreTrainedModel, cache: PrefixCache, total: Tensor, ids: Tensor, lengths: Tensor, pooling: Pooling
) -> Tensor:
    if pooling == "last":
        return encode_suffixes(backbone, cache, ids, lengths)
    own = all_states(backbone, cache, ids)
    real = (torch.arange(ids.shape[1]) < lengths[:, None])[..., None]
    return (total + (own * real).sum(1)) / (cache.length + lengths[:, None])


@torch.inference_mode()
def _whole(
    model: PreTrainedModel, prefix: Sequence[int], suffixes: Sequence[Sequence[int]], pooling: Pooling
) -> Tensor:
    """(M, D) of M prompts, each read from its first token to its last."""
    pooled = []
    for start in range(0, len(suffixes), ENCODER_BATCH):
        ids, lengths = pad([[*prefix, *suffix] for suffix in suffixes[start : start + ENCODER_BATCH]])
        real = torch.arange(ids.shape[1]) < lengths[:, None]
        states = model(input_ids=ids, attention_mask=real.long()).last_hidden_state
        if pooling == "last":
            pooled.append(states[torch.arange(len(ids)), lengths - 1])
        else:
            pooled.append((states * real[..., None]).sum(1) / lengths[:, None])
    return torch.cat(pooled)


# ---- regressors ----


class EmbeddedModel(Measured):
    """A CostModel: log2 slowdowns regressed on embeddings, fitted anew on everything at each update.

    kind: "ridge" (penalty by leave-one-out), "trees" (those of `baselines.BoostedTrees`) or "gp" (a Matern process on
    GP_ROWS rows drawn at random). The spread is the error on rows held back from a first fit; of "gp" its own.
    """

    def __init__(
        self,
        model: NeuralCostModel | str | Path,
        *,
        kind: Kind = "ridge",
        pooling: Pooling | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kind not in get_args(Kind):
            raise UserError(f"got regressor {kind!r}, expected one of {', '.join(get_args(Kind))}")
        self.reader = reader(model, pooling=pooling)
        self._kind, self._seed, self._sd = kind, seed, 1.0
        self._features: list[Array] = []
        self._fitted: _Pipeline | _Process | None = None

    def update(self, measurements: Sequence[Measurement]) -> None:
        new = self._take(measurements)
        if not new:
            return
        features = np.zeros((len(new), 0), np.float32)
        for device in dict.fromkeys(m.device for m in new):
            rows = [i for i, m in enumerate(new) if m.device == device]
            told = self.reader.embed([new[i].variant for i in rows], device)
            features = features if features.shape[1] else np.zeros((len(new), told.shape[1]), np.float32)
            features[rows] = told
        self._features.append(features)
        self._fit(np.concatenate(self._features), self._references.slowdowns(self._ok))

    def predict(self, variants: Sequence[Variant], device: Device) -> list[Prediction]:
        if self._fitted is None or not variants:
            return self._nothing_known(variants, device)
        z, sd = self._fitted.told(self.reader.embed(variants, device))
        return self._references.predictions(variants, device, z.tolist(), np.maximum(sd, 0.05).tolist())

    def _fit(self, features: Array, target: NDArray[np.float64]) -> None:
        rng = np.random.default_rng(self._seed)
        if self._kind == "gp":
            rows = rng.permutation(len(target))[:GP_ROWS]
            self._fitted = _Process(features[rows], target[rows])
            return
        back = rng.permutation(len(target)) % HELD_BACK == 0
        sd = 1.0
        if 2 <= back.sum() < len(target) - 2:
            first = _Pipeline(self._kind, self._seed, features[~back], target[~back], 0.0)
            sd = float((first.told(features[back])[0] - target[back]).std())
        self._fitted = _Pipeline(self._kind, self._seed, features, target, sd)


class _Pipeline:
    """Standardised features and a regressor of scikit-learn, with one spread for all."""

    def __init__(self, kind: Kind, seed: int, features: Array, target: NDArray[np.float64], sd: float) -> None:
        regressor = boosting(seed=seed) if kind == "trees" else RidgeCV(np.logspace(-3, 5, 17))
        self._pipeline = make_pipeline(StandardScaler(), regressor).fit(features.astype(np.float64), target)
        self._sd = sd

    def told(self, features: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of the slowdown, each (n,)."""
        return self._pipeline.predict(features.astype(np.float64)), np.full(len(features), self._sd)


class _Process:
    """A Gaussian process on standardised features."""

    def __init__(self, features: Array, target: NDArray[np.float64]) -> None:
        self._scaler = StandardScaler().fit(features.astype(np.float64))
        self._mean, self._process = float(target.mean()), MaternProcess()
        self._process.fit(self._scaler.transform(features.astype(np.float64)), target - self._mean)

    def told(self, features: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mean, sd = self._process.predict(self._scaler.transform(features.astype(np.float64)))
        return mean + self._mean, sd


def lipschitz_factors(embeddings: ArrayLike, values: ArrayLike) -> NDArray[np.float64]:
    """(N,) |y - y'| / |x - x'| of each row and its nearest neighbour in embedding space: small where the embedding is a
    smooth map to the values, so that a regressor on it can interpolate (Tang et al. 2024, section 4).

    embeddings (N, D) are centred and scaled to a norm of 1 on average, so models of different D compare; values (N,).
    Rows that coincide with their neighbour have no factor but 0 or infinity, by whether their values are equal.
    """
    x, y = np.asarray(embeddings, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or y.shape != (len(x),) or len(x) < 2:
        raise UserError(
            f"got embeddings of shape {x.shape} and values of shape {y.shape}, expected (N, D) and (N,), N > 1"
        )
    x = x - x.mean(axis=0)
    x = x / max(float(np.linalg.norm(x, axis=1).mean()), 1e-300)
    near = NearestNeighbors(n_neighbors=2).fit(x).kneighbors(x, return_distance=False)
    others = np.where(near[:, 0] == np.arange(len(x)), near[:, 1], near[:, 0])
    distance = np.linalg.norm(x - x[others], axis=1)
    gap = np.abs(y - y[others])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap == 0, 0.0, gap / distance)
