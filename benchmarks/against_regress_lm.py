"""regress-lm against this library: the same machine, one thread, the same texts and token ids, float32.

    PYTHONPATH=. python benchmarks/against_regress_lm.py            # about ten minutes on one quiet core
    PYTHONPATH=. python benchmarks/against_regress_lm.py --quick    # one round at 64 and 256 tokens, two minutes

The peer is github.com/google-deepmind/regress-lm and no dependency of this project. NOT `pip install regress-lm`: that
name on PyPI (0.0.1, another author) is an empty distribution, five files of metadata and no module, and ends in
`ModuleNotFoundError: No module named 'regress_lm'`. Install it from its repository:

    pip install "regress_lm[extras] @ git+https://github.com/google-deepmind/regress-lm"

The JSON states the commit that pip recorded, or the one given with --peer-commit where the files came another way.
Needed is a commit since its converter has `trim_padding` (it samples 128 strings on one shared encoding by then).

What is equal. Token ids: the peer gets a vocabulary object around our BPE, declared to have 32,100 entries, the size of
its own default (T5's). Numbers: P10 with 4 digits, 6 tokens, on both sides. Parameters: the peer's default (512 wide,
2 + 2 layers) against two Llamas of the same total within 2 %: "same width" (512, 4 layers) and "wide" (768, 2 layers),
which holds more of its parameters in the vocabulary table. They are not equal work: a decoder-only model runs each
input token through all its layers, the peer only through its encoder, so the shape decides the row. Both are
reported. Optimizer: one AdamW over all parameters on both sides; each library's own is a line of its own.

Rows. train: 16 distinct inputs, nothing shared but one <sep> that ours gets on top, and no padding on either side.
"shared prefix" is different work: 16 suffixes of 16 tokens on one prefix. 128 samples of the peer against: 128 samples
of our P10 head; its distribution by expanding the tree of strings, in which light siblings are merged (`tree`); and the
exact distribution of the log grid. One input, encoding included. The tree costs what the distribution needs, so it is
timed untrained (the flattest, dearest) and after a short fit to values that spread by 10 %; the peer's cost does not
depend on it. defaults: each with its own sizes and head, 64 tokens. In each round every contestant runs once, in turn,
after one round that is not counted. Ratios are of CPU seconds (wall seconds stand beside them in the JSON), peer / ours
within a round, median and min .. max over rounds; the last line is one JSON document.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import time
from pathlib import Path

# Large tensors would otherwise be mapped and unmapped at every step: 20 - 30 % of the time goes to page faults.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}
if __name__ == "__main__" and any(os.environ.get(name) != value for name, value in MALLOC.items()):
    os.environ.update(MALLOC)
    os.execv(sys.executable, [sys.executable, *sys.argv])

import torch  # noqa: E402
from torch import nn  # noqa: E402
from transformers import LlamaConfig  # noqa: E402

from costmodel.codecs.digits import P10  # noqa: E402
from costmodel.codecs.grids import LogGrid  # noqa: E402
from costmodel.model import decoder  # noqa: E402
from costmodel.model.digit_head import DigitHead  # noqa: E402
from costmodel.model.grid_head import GridHead  # noqa: E402
from costmodel.model.losses import Targets  # noqa: E402
from costmodel.tokens import TextTokenizer  # noqa: E402
from costmodel.train import TrainConfig, make_optimizers  # noqa: E402

try:
    from regress_lm import core, rlm, tokenizers, vocabs
    from regress_lm.pytorch import optimizers
except ImportError as error:
    sys.exit(
        f"got no regress_lm ({error}), expected the one of google-deepmind (PyPI's regress-lm 0.0.1 is empty); "
        'run: pip install "regress_lm[extras] @ git+https://github.com/google-deepmind/regress-lm"'
    )

KERNELS = Path(__file__).resolve().parents[1] / "kernels" / "cpp"
VOCAB, TRAINED_VOCAB, BATCH, SAMPLES, SUFFIX = 32100, 3072, 16, 128, 16
ROUNDS = {64: 5, 256: 3, 1024: 3}
SHAPES = {"same width": (512, 4, 1728, 8), "wide": (768, 2, 384, 12)}  # width, layers, MLP, heads


class OurVocab(vocabs.EncoderVocab):
    """Our BPE behind the peer's interface; `size` is the number of embeddings, of which the last are never used."""

    def __init__(self, tokenizer, size):
        self.tokenizer, self.size = tokenizer, size

    def to_token_ids(self, text):
        return list(self.tokenizer.encode(text))

    def __len__(self):
        return self.size

    @property
    def pad_id(self):
        return self.tokenizer.pad_id


class Peer:
    def __init__(self, tokenizer, texts, z, **options):
        vocab = OurVocab(tokenizer, VOCAB)
        self.model = rlm.RegressLM.from_scratch(encoder_vocab=vocab, **options)
        self.network = self.model.model
        # what its fine_tune() makes by default, which keeps it to itself
        self.own = optimizers.muon_adamw(list(self.network.named_parameters()), lr=1e-6)
        self.examples = [core.Example(x=text, y=2.0**value) for text, value in zip(texts, z.tolist(), strict=True)]
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-6)

    def forward_backward(self):
        self.network.train()
        self.network.zero_grad()
        converter = self.network.converter
        batch = converter.trim_padding(converter.convert_examples(self.examples))  # as its fine_tune() does
        self.network.compute_losses_and_metrics(batch)[0].mean().backward()

    def sample(self, count):
        self.network.eval()
        values = self.model.sample([core.ExampleInput(x=self.examples[0].x)], count)[0]
        assert values.size == count

    def own_optimizer_step(self):
        self.own.step()


class Ours:
    def __init__(self, config, make_head, tokenizer):
        self.backbone = decoder.build(config, seed=0)
        torch.manual_seed(0)
        self.head = make_head(config.hidden_size)
        self.tokenizer = tokenizer
        self.network = nn.ModuleDict({"backbone": self.backbone, "head": self.head})
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-6)
        self.own = make_optimizers(self.network, TrainConfig(muon_lr=1e-6, adamw_lr=1e-6))

    def rows(self, texts):
        return decoder.pad([self.tokenizer.encode(text) for text in texts])

    def start(self):
        return decoder.encode_prefix(self.backbone, torch.tensor([self.tokenizer.sep_id]))

    def batched(self, texts, z):
        self.network.zero_grad()
        self.head.loss(self.backbone, self.start(), *self.rows(texts), targets(z))[0].backward()

    def shared(self, texts, z):
        self.network.zero_grad()
        ids = self.rows(texts)[0]
        prefix = decoder.encode_prefix(self.backbone, ids[0, :-SUFFIX])
        lengths = torch.full((len(ids),), SUFFIX)
        self.head.loss(self.backbone, prefix, ids[:, -SUFFIX:], lengths, targets(z))[0].backward()

    @torch.inference_mode()
    def sample(self, text):
        uniforms = torch.rand(1, SAMPLES, dtype=torch.float64)
        values = self.head.sample(self.backbone, self.start(), *self.rows([text]), uniforms)
        assert values.shape == (1, SAMPLES)

    @torch.inference_mode()
    def exact(self, text, head=None):
        distribution = (head or self.head).distribution(self.backbone, self.start(), *self.rows([text]))
        assert abs(distribution.weights.sum().item() - 1) < 1e-6

    def own_optimizer_step(self):
        for optimizer in self.own:
            optimizer.step()

    def fit(self, texts, steps):
        """Towards values that spread by 10 %, whatever the input: the first digits become sure, the later do not."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
        for _ in range(steps):
            self.batched(texts, 1.0 + 0.14 * torch.randn(len(texts)))
            optimizer.step()


def targets(z):
    nothing = torch.zeros(len(z), dtype=torch.bool)
    return Targets(z, nothing, nothing)


def llama(shape):
    width, layers, mlp, heads = SHAPES[shape]
    return LlamaConfig(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def texts_of(tokenizer, sources, tokens, count):
    """`count` distinct pieces of the sources, each of which encodes to exactly so many tokens."""
    stream = tokenizer.encode("\n".join(sources))
    found = {}
    for start in range(0, len(stream) - tokens, 37):
        text = tokenizer.decode(stream[start : start + tokens])
        if len(tokenizer.encode(text)) == tokens:
            found[text] = None
        if len(found) == count:
            return list(found)
    sys.exit(f"got {len(found)} texts of {tokens} tokens from {KERNELS}, expected {count}")


def run(contestants, rounds):
    """Each once a round, in turn, the order reversed every other round -> name -> [(cpu seconds, wall seconds)].

    A round before the first is not counted: the heap grows in it, which costs the first large contestant twofold.
    """
    for contestant in contestants.values():
        contestant()
    taken = {name: [] for name in contestants}
    for number in range(rounds):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            cpu, wall = time.process_time(), time.perf_counter()
            contestants[name]()
            taken[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return taken


def compare(what, tokens, peer, ours, *, items=(1, 1), target=None):
    """peer, ours: [(cpu, wall)] by round, of `items` examples each. A ratio above 1 says that ours is quicker."""
    ratios = [(p[0] / items[0]) / (o[0] / items[1]) for p, o in zip(peer, ours, strict=True)]
    row = {"what": what, "tokens": tokens, "ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    for name, seconds, count in (("peer", peer, items[0]), ("ours", ours, items[1])):
        for clock, column in (("cpu", 0), ("wall", 1)):
            row[f"{name}_{clock}_s"] = statistics.median(s[column] for s in seconds) / count
    goal = "" if target is None else f"  target {target:g}x {'met' if row['ratio'] >= target else 'MISSED'}"
    print(
        f"{what:<58} {tokens:>5} {row['peer_cpu_s']:>9.4f} {row['ours_cpu_s']:>9.4f} {row['ratio']:>7.2f}x "
        f"({row['min']:.2f} .. {row['max']:.2f}){goal}", flush=True,
    )  # fmt: skip
    return {**row, "rounds": len(ratios), "target": target}


def added(first, second):
    return [(a[0] + b[0], a[1] + b[1]) for a, b in zip(first, second, strict=True)]


def training(tokens, tokenizer, texts, z, models, rounds):
    peer = peer_of(tokenizer, texts, z, tokens)
    contestants = {"peer": peer.forward_backward}
    for shape, model in models.items():
        contestants[shape] = lambda model=model: model.batched(texts, z)
        contestants[f"{shape}, shared prefix"] = lambda model=model: model.shared(texts, z)
    for name, model in {"peer": peer, **models}.items():
        contestants[f"{name} AdamW"] = model.optimizer.step
        contestants[f"{name} own"] = model.own_optimizer_step
    took = run(contestants, rounds)
    base, results = added(took["peer"], took["peer AdamW"]), []
    each = {"items": (BATCH, BATCH)}
    for shape in models:
        step = f"{shape} AdamW"
        name = f"train, {shape}"
        results.append(compare(name, tokens, base, added(took[shape], took[step]), target=1, **each))
        results.append(compare(f"{name}, without optimizer", tokens, took["peer"], took[shape], **each))
        own = added(took["peer"], took["peer own"]), added(took[shape], took[f"{shape} own"])
        results.append(compare(f"{name}, each its own optimizer", tokens, *own, **each))
        shared = added(took[f"{shape}, shared prefix"], took[step])
        results.append(compare(f"{name}, shared prefix (different work)", tokens, base, shared, **each))
    return results


def peer_of(tokenizer, texts, z, tokens):
    numbers = vocabs.DecoderVocab(tokenizers.P10Tokenizer())
    peer = Peer(tokenizer, texts, z, decoder_vocab=numbers, max_input_len=tokens)
    ids = peer.network.converter.convert_examples(peer.examples)["encoder_input"]
    expected = torch.tensor([tokenizer.encode(text) for text in texts])
    if not torch.equal(ids, expected):
        sys.exit("got other token ids in the peer, expected ours, unpadded")
    return peer


def predicting(tokens, tokenizer, texts, z, models, fitted, rounds):
    peer = peer_of(tokenizer, texts, z, tokens)
    contestants, rows = {"peer": lambda: peer.sample(SAMPLES)}, {}
    for shape, model in models.items():
        grid = GridHead(model.backbone.config.hidden_size, LogGrid())
        for state, net in ((", untrained", model), (", fitted", fitted[shape])):
            rows[f"{SAMPLES} samples, {shape}{state}"] = 5, lambda net=net: net.sample(texts[0])
            rows[f"{SAMPLES} samples / tree, {shape}{state}"] = 10, lambda net=net: net.exact(texts[0])
        rows[f"{SAMPLES} samples / grid, {shape}"] = 10, lambda model=model, grid=grid: model.exact(texts[0], grid)
    took = run(contestants | {name: contestant for name, (_, contestant) in rows.items()}, rounds)
    return [compare(name, tokens, took["peer"], took[name], target=goal) for name, (goal, _) in rows.items()]


def defaults(tokenizer, texts, z, rounds):
    peer = Peer(tokenizer, texts, z)
    ours = Ours(decoder.small_config(tokenizer.vocab_size), lambda width: GridHead(width, LogGrid()), tokenizer)
    took = run(
        {
            "peer": peer.forward_backward, "peer own": peer.own_optimizer_step,
            "ours": lambda: ours.batched(texts, z), "shared": lambda: ours.shared(texts, z),
            "ours own": ours.own_optimizer_step,
            "peer sample": lambda: peer.sample(SAMPLES), "exact": lambda: ours.exact(texts[0]),
        },
        rounds,
    )  # fmt: skip
    base, items = added(took["peer"], took["peer own"]), {"items": (BATCH, BATCH)}
    tokens = len(tokenizer.encode(texts[0]))
    return [
        compare("defaults: train", tokens, base, added(took["ours"], took["ours own"]), **items),
        compare(
            "defaults: train, shared prefix (different work)", tokens, base, added(took["shared"], took["ours own"]),
            **items,
        ),
        compare(f"defaults: predict, {SAMPLES} samples / exact", tokens, took["peer sample"], took["exact"]),
    ]  # fmt: skip


def peer_commit():
    try:
        recorded = importlib.metadata.distribution("regress-lm").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        recorded = None
    return json.loads(recorded).get("vcs_info", {}).get("commit_id") if recorded else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, 64 and 256 tokens only")
    parser.add_argument("--peer-commit", help="of the peer's files, where pip has recorded none")
    arguments = parser.parse_args()
    quick, commit = arguments.quick, peer_commit() or arguments.peer_commit
    torch.set_num_threads(1)
    sources = [path.read_text() for path in sorted(KERNELS.glob("*.cpp"))]
    tokenizer = TextTokenizer.train(sources, vocab_size=TRAINED_VOCAB)
    z = torch.linspace(-2.0, 6.0, BATCH)
    models = {name: Ours(llama(name), lambda width: DigitHead(width, P10()), tokenizer) for name in SHAPES}
    fitted = {name: Ours(llama(name), lambda width: DigitHead(width, P10()), tokenizer) for name in SHAPES}
    texts = {tokens: texts_of(tokenizer, sources, tokens, BATCH) for tokens in ROUNDS}
    for model in fitted.values():
        model.fit(texts[64], 15 if quick else 30)
    peer = peer_of(tokenizer, texts[64], z, 64)
    counts = {"peer": parameters(peer.network), **{name: parameters(model.network) for name, model in models.items()}}
    for name, count in counts.items():
        if abs(count / counts["peer"] - 1) > 0.02:
            sys.exit(f"got {count} parameters ({name}), expected the peer's {counts['peer']} within 2 %")
    print(
        f"parameters {counts}; peer commit {commit or 'UNKNOWN: not installed by pip from its repository'}", flush=True
    )
    print(f"{'CPU seconds per example or input':<58} {'tokens':>5} {'peer':>8} {'ours':>9}   peer / ours (min .. max)")
    results = defaults(tokenizer, texts[64], z, 1 if quick else 5)
    for tokens, rounds in {64: 1, 256: 1}.items() if quick else ROUNDS.items():
        case = (tokens, tokenizer, texts[tokens], z)
        results += training(*case, models, rounds)
        results += predicting(*case, models, fitted, rounds)
    setting = {"threads": 1, "dtype": "float32", "batch": BATCH, "quick": quick, "torch": torch.__version__}
    print(json.dumps({**setting, "peer_commit": commit, "parameters": counts, "results": results}))


if __name__ == "__main__":
    main()
