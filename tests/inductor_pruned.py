"""Templates of torch.compile pruned by the model, for a GPU that is not here: prints what happened as JSON."""

import json
import warnings

import torch
from torch._inductor import config, select_algorithm
from torch._inductor.lookup_table import LookupTableChoices
from torch._inductor.virtualized import V

from costmodel import devices, inductor_writer
from costmodel.integrations import inductor, inductor_table
from costmodel.records import Config, Kernel, Problem, TensorSpec, Variant

H200 = devices.find("H200")
PICK = Variant(
    Kernel("mm", "triton", None),
    Problem("mm", (TensorSpec((1024, 512), "f16"), TensorSpec((512, 2048), "f16")), (("K", 512),), flops=0, bytes=0),
    Config.of(BLOCK_M=256, BLOCK_N=64, BLOCK_K=32, GROUP_M=8, num_warps=4, num_stages=3),
)
written, offered = [], []
generate = select_algorithm.TritonTemplate.generate


def spied(template, *args, **settings):
    written.append({name: settings.get(name) for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps", "num_stages")})
    return generate(template, *args, **settings)


def compiled(m=1024):
    """What was generated for a product of matrices, and what was warned of. Nothing is benchmarked."""
    written.clear()
    offered.clear()
    inputs = torch.empty(m, 512, dtype=torch.float16), torch.empty(512, 2048, dtype=torch.float16)
    order = inductor_writer._traced(lambda x, y: (x @ y).relu(), inputs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code = inductor_writer._compile(*order, H200, True)["code"]
    told = [str(warning.message) for warning in caught if "costmodel" in str(warning.message)]
    return {"written": list(written), "offered": len(offered), "warnings": told, "fused": "fused_mm_relu" in code}


def main():
    select_algorithm.TritonTemplate.generate = spied
    select_algorithm.add_preprocessing_fn(lambda choices: offered.extend(choices) or choices)
    report = {"all": compiled()}
    pruning = inductor.install(top_k=4, device="H200")
    report["pruned"] = compiled()
    report["predicted_table"] = pruning.lookup_table()
    slowest_first = {choice: 1.0 / (1 + i) for i, choice in enumerate(offered)}
    saver = select_algorithm.get_algorithm_selector_cache().feedback_saver_fns[-1]
    saver(slowest_first, "mm", [], offered, None, {})
    report["measured_table"] = table = json.loads(json.dumps(pruning.lookup_table()))
    report["last_offered"] = offered[-1].annotations["ktc"].params.to_kwargs()
    inductor.install(top_k=4, device="H200", model="no-such-folder")
    report["missing"], report["missing_again"] = compiled(), compiled(m=2048)
    V.set_choices_handler(LookupTableChoices())
    config.lookup_table.table = table
    report["looked_up"] = compiled()
    config.lookup_table.table = inductor_table.lookup_table([("mm", PICK)])
    V.set_choices_handler(LookupTableChoices())
    report["stored"] = compiled()
    print(json.dumps(report, default=str))


if __name__ == "__main__":
    main()
