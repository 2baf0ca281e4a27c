"""Frozen embeddings: of the shipped model's members, and of tiny model folders of any shape."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from contracts import CostModelContract
from test_search import CANDIDATES, DEVICE, PROBLEM, measurement, truth
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5Model,
)

from costmodel.embeddings import EmbeddedModel, embed, lipschitz_factors, reader
from costmodel.predictor import NeuralCostModel
from costmodel.records import Kernel, Problem, UserError
from costmodel.serialize import prompt
from costmodel.stats import spearman

SHAPES = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=512, n_embd=24, n_layer=2, n_head=2)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(vocab_size=400, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    ),
    "t5": lambda: T5Model(T5Config(vocab_size=400, d_model=24, d_kv=12, d_ff=48, num_layers=2, num_heads=2)),
    "bert": lambda: BertModel(
        BertConfig(vocab_size=400, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    ),
}
SOURCE = "void run(float* a, long n) {\n  for (long i = 0; i < n; i += A) a[i] += B * C;\n}\n"
TEXT = Kernel("toy", "cpp", SOURCE, CANDIDATES[0].kernel.schema)
VARIANTS = [dataclasses.replace(v, kernel=TEXT) for v in CANDIDATES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> a folder with a model of that shape (random weights) and a tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["[PAD]", "[CLS]", "[SEP]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([SOURCE, prompt(VARIANTS[0], DEVICE).device], trainer)
    root, found = tmp_path_factory.mktemp("models"), {}
    for name, make in SHAPES.items():
        if name == "bert":
            tokenizer.post_processor = processors.TemplateProcessing(
                single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
            )
        found[name] = root / name
        torch.manual_seed(0)
        make().eval().save_pretrained(found[name])
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(found[name])
    return found


@pytest.fixture(scope="module")
def shipped():
    return NeuralCostModel.from_pretrained()


def one_by_one(variants, model, pooling):
    return np.concatenate([embed([v], DEVICE, model, pooling=pooling) for v in variants])


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("shape", SHAPES)
def test_any_folder_embeds_a_batch_as_it_does_one_prompt(folders, shape, pooling):
    asked = [*VARIANTS[:9], VARIANTS[0]]
    together = embed(asked, DEVICE, folders[shape], pooling=pooling)
    assert together.shape == (10, 24)
    assert together.dtype == np.float32
    assert together == pytest.approx(one_by_one(asked, folders[shape], pooling), abs=1e-5)
    assert together[0] == pytest.approx(together[9], abs=1e-6)
    assert np.linalg.norm(together[0] - together[1]) > 1e-4


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_reads_what_transformers_reads(folders, shape, pooling):
    """The same prompt as one row of tokens through the model itself, without caches, batches or padding."""
    read = reader(folders[shape], pooling=pooling)
    one = prompt(VARIANTS[3], DEVICE)
    texts = one.source, f"\n{one.device}\n{one.problem}\n", " ".join(one.config)
    ids = [token for text in texts for token in read._tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids = [1, *ids, 2] if shape == "bert" else ids
    torch.manual_seed(0)
    model = SHAPES[shape]().eval()
    body = model.get_encoder() if shape == "t5" else model.base_model
    with torch.inference_mode():
        states = body(input_ids=torch.tensor([ids])).last_hidden_state[0]
    expected = states[-1] if pooling == "last" else states.mean(0)
    assert read.embed([VARIANTS[3]], DEVICE)[0] == pytest.approx(expected.numpy(), abs=1e-5)
    assert read._causal == (shape in ("gpt2", "llama"))


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_members_share_a_prefix_without_a_difference(shipped, pooling):
    """Against each member reading prefix and suffix as one row of tokens."""
    asked = VARIANTS[:5]
    together = embed(asked, DEVICE, shipped, pooling=pooling)
    rows = []
    for variant in asked:
        one = prompt(variant, DEVICE)
        ids = [*shipped.tokenizer.encode_prefix(one).ids, *shipped.tokenizer.encode_suffix(one)]
        with torch.inference_mode():
            states = [
                m.backbone.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0] for m in shipped.members
            ]
        rows.append(torch.cat([s[-1] if pooling == "last" else s.mean(0) for s in states]).numpy())
    assert together == pytest.approx(np.stack(rows), abs=1e-5)
    assert together.shape == (5, 4 * 64)


def test_rows_keep_their_order_over_problems(shipped):
    other = Problem("toy", PROBLEM.inputs, (("n", 128),), 2 * 10**6, 2 * 10**6)
    mixed = [dataclasses.replace(v, problem=other) if i % 2 else v for i, v in enumerate(VARIANTS[:8])]
    assert embed(mixed, DEVICE, shipped) == pytest.approx(one_by_one(mixed, shipped, "last"), abs=1e-5)
    assert embed([], DEVICE, shipped).shape[0] == 0


def test_what_does_not_fit_is_cut_from_the_source_and_counted(folders):
    """GPT-2's 512 positions; device, problem and config stay whole."""
    long = dataclasses.replace(TEXT, source=SOURCE * 40)
    read = reader(folders["gpt2"])
    read.embed([dataclasses.replace(VARIANTS[0], kernel=TEXT)], DEVICE)
    assert read.truncated == 0
    first, second = read.embed([dataclasses.replace(v, kernel=long) for v in VARIANTS[:2]], DEVICE)
    assert read.truncated > 500
    assert np.linalg.norm(first - second) > 1e-4
    with pytest.raises(UserError, match="tokens too small"):
        reader(folders["gpt2"], budget=10).embed(VARIANTS[:1], DEVICE)


class TestRidge(CostModelContract):
    kind = "ridge"

    def make(self):
        return EmbeddedModel(NeuralCostModel.from_pretrained(), kind=self.kind)


class TestProcess(TestRidge):
    kind = "gp"


class TestTrees(TestRidge):
    kind = "trees"


@pytest.mark.parametrize(("kind", "least"), [("ridge", 0.9), ("gp", 0.9), ("trees", 0.6)])
def test_regressors_rank_a_space_from_half_of_it(shipped, kind, least):
    """53 rows of 256 numbers, of a kernel whose settings the members never saw; trees need more."""
    model = EmbeddedModel(shipped, kind=kind, pooling="mean")
    chosen = np.random.default_rng(0).permutation(len(VARIANTS))
    seen, unseen = ([VARIANTS[i] for i in rows] for rows in np.array_split(chosen, 2))
    model.update([measurement(v, truth(v)) for v in seen])
    told = model.predict(unseen, DEVICE)
    assert spearman([truth(v) for v in unseen], [p.median_us for p in told]) > least
    inside = [p.quantile_us(0.02) <= truth(v) <= p.quantile_us(0.98) for p, v in zip(told, unseen, strict=True)]
    assert np.mean(inside) > 0.6


@pytest.mark.parametrize("shape", ["gpt2", "llama", "bert"])
def test_a_folder_with_random_weights_is_a_feature_map_too(folders, shape):
    model = EmbeddedModel(folders[shape], kind="ridge")
    chosen = np.random.default_rng(0).permutation(len(VARIANTS))
    seen, unseen = ([VARIANTS[i] for i in rows] for rows in (chosen[:80], chosen[80:]))
    model.update([measurement(v, truth(v)) for v in seen])
    told = model.predict(unseen, DEVICE)
    assert spearman([truth(v) for v in unseen], [p.median_us for p in told]) > 0.5


def test_lipschitz_factors_by_hand_and_by_smoothness():
    """Points 0, 1, 3, 10 on a line: centred and scaled to mean norm 1 they lie 1 / 3.25 apart."""
    found = lipschitz_factors([[0.0], [1.0], [3.0], [10.0]], [0.0, 2.0, 2.0, 2.0])
    assert found == pytest.approx([2 * 3.25, 2 * 3.25, 0.0, 0.0])
    x = np.random.default_rng(0).standard_normal((400, 3))
    smooth, rough = x[:, 0] + x[:, 1] ** 2, np.random.default_rng(1).permutation(x[:, 0] + x[:, 1] ** 2)
    assert np.median(lipschitz_factors(x, smooth)) < 0.5 * np.median(lipschitz_factors(x, rough))
    assert lipschitz_factors(100 * x, smooth) == pytest.approx(lipschitz_factors(x, smooth))
    assert math.isinf(lipschitz_factors([[1.0], [1.0], [2.0]], [0.0, 1.0, 1.0])[0])


@pytest.mark.parametrize(
    ("ask", "match"),
    [
        (lambda model, path: EmbeddedModel(model, kind="forest"), "ridge, trees, gp"),
        (lambda model, path: reader(model, pooling="max"), "last, mean"),
        (lambda model, path: reader(path), "no config.json"),
        (lambda model, path: lipschitz_factors([[1.0]], [1.0]), r"shape \(1, 1\)"),
    ],
)
def test_mistakes_are_named(shipped, tmp_path, ask, match):
    with pytest.raises(UserError, match=match):
        ask(shipped, tmp_path)


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path):
    SHAPES["gpt2"]().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"a tokenizer in .* that reads nothing") as caught:
        reader(tmp_path)
    assert "\n" not in str(caught.value)
