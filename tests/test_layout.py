"""The shape of the repository: layers, folders that must stay plain, and a package that never breaks its neighbours."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "costmodel"

# A module imports only modules of an earlier row, or of its own.
LAYERS = [
    ("records", "notebook"),
    ("workloads", "devices", "stats", "conformal", "uncertainty", "graph", "footer", "reading", "tensors"),
    (
        "ops",
        "floor",
        "published",
        "inductor_code",
        "inductor_writer",
        "graph_floor",
        "graph_lines",
        "tpugraphs",
        "aten",
    ),
    (
        "measure",
        "store",
        "dataset",
        "sittings",
        "serialize",
        "tokens",
        "codecs",
        "features",
        "gaussian",
        "familiarity",
        "joint",
        "picking",
        "correction",
        "graph_rows",
    ),
    ("model", "architectures", "batches", "parallel", "train", "shards", "recipe"),
    (
        "baselines",
        "operator_trees",
        "predictor",
        "embeddings",
        "examples",
        "tabular",
        "graph_reader",
        "graph_model",
        "graph_baselines",
        "graph_network",
        "graph_picture",
    ),
    (
        "search",
        "evaluate",
        "ablation",
        "replay",
        "strategies",
        "gate",
        "report",
        "template",
        "table",
        "table_building",
        "table_files",
        "table_formats",
        "explain",
    ),
    ("integrations", "pytest_plugin", "present", "cli"),
]
TORCH_FREE = (
    "records",
    "notebook",
    "report",
    "workloads",
    "devices",
    "floor",
    "stats",
    "conformal",
    "uncertainty",
    "measure",
    "store",
    "features",
    "baselines",
    "operator_trees",
    "search",
    "replay",
    "strategies",
    "table_building",
    "table_files",
    "table_formats",
    "explain",
    "graph",
    "graph_floor",
    "graph_lines",
    "graph_rows",
    "graph_baselines",
    "graph_picture",
    "tpugraphs",
    "gate.verdicts",
    "gate.changes",
    "gate.telling",
    "pytest_plugin",
)


def modules():
    plain = ("_data", "templates")  # no modules of the package: what a wheel carries, and what `costmodel new` copies
    found = (path for path in PACKAGE.rglob("*.py") if not set(plain) & set(path.parts))
    return sorted(path for path in found if path.name != "__init__.py")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "costmodel":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("costmodel.")}
    return found - {"__version__"}


def test_every_module_has_a_layer():
    known = {name for row in LAYERS for name in row}
    assert {room(path) for path in modules()} <= known


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_point_down(path):
    level = {name: i for i, row in enumerate(LAYERS) for name in row}
    own = level[room(path)]
    above = {name for name in imported_rooms(path) if level[name] > own}
    assert not above, f"{path.name} imports {above} from above"


@pytest.mark.parametrize("name", TORCH_FREE)
def test_the_floor_needs_no_torch(name):
    code = f"import costmodel.{name}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_data_folders_are_no_packages():
    for folder in ("collectors", "kernels", "datasets"):
        assert (ROOT / folder).is_dir()
        assert not list((ROOT / folder).rglob("__init__.py"))


def test_transformers_works_from_the_repository_root(tmp_path):
    """With the root on the import path, folders called `kernels` and `datasets` must not break transformers."""
    code = textwrap.dedent(f"""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                             num_attention_heads=2)
        model = LlamaForCausalLM(config)
        model.save_pretrained({str(tmp_path)!r})
        again = LlamaForCausalLM.from_pretrained({str(tmp_path)!r})
        ids = torch.arange(8)[None]
        assert torch.equal(model(ids).logits, again(ids).logits)
    """)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom costmodel.cli import app\n"
        "import typer.main; typer.main.get_command(app)\n"
        "heavy = {'torch', 'triton', 'transformers', 'pandas', 'sklearn', 'scipy', 'matplotlib', 'numpy'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
