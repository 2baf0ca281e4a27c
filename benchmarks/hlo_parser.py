"""The HLO parser on a corpus of JAX dumps: does it read all, does XLA read the same, how fast, how short.

    python benchmarks/hlo_parser.py            # needs jax; takes minutes
    python benchmarks/hlo_parser.py --quick    # without the dumps of every compiler pass

Each program of hlo_programs.py gives its text before optimization and after, and (--quick leaves them out) what XLA
dumps after each pass. Every module is parsed, printed, parsed again and compared; compared with XLA's own parser by
opcodes and operands; and with its canonical text. Tokens are those of a text tokenizer of 4,096 pieces trained on the
canonical texts of other programs (four folds). CPU seconds, best of three.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from costmodel.graph import Module, canonical_text, parse, to_text
from costmodel.records import UserError
from costmodel.tokens import TextTokenizer

VOCABULARY = 4096
FOLDS = 4
_OPCODE = re.compile(r"\s(?!b\()([a-z][\w\-]*)\(")  # b(...) is the shape of a buffer


def structure(module: Module) -> dict[str, list]:
    """Computation -> (opcode, positions of operands) of each instruction, in printed order."""
    found = {}
    for computation in module.computations:
        at = {i.name: n for n, i in enumerate(computation.instructions)}
        found[computation.name] = [
            (i.opcode, [at[operand] for operand in i.operands]) for i in computation.instructions
        ]
    return found


def structure_by_xla(text: str) -> dict[str, list]:
    """The same from XLA's parser."""
    from jaxlib import _hlo

    found = {}
    for computation in _hlo.hlo_module_from_text(text).computations():
        instructions = computation.instructions()
        at = {i.name: n for n, i in enumerate(instructions)}
        found[computation.name] = [
            (_OPCODE.search(i.to_string())[1], [at[operand.name] for operand in i.operands()]) for i in instructions
        ]
    return found


def dump(folder: Path) -> None:
    """Write the corpus: before and after for each program; XLA itself writes the passes where XLA_FLAGS ask for it."""
    import jax
    from hlo_programs import programs

    for name, (function, arguments) in programs().items():
        lowered = jax.jit(function).lower(*arguments)
        (folder / f"{name}.before.txt").write_text(lowered.as_text(dialect="hlo"))
        (folder / f"{name}.optimized.txt").write_text(lowered.compile().as_text())


def collected(folder: Path, passes: bool) -> dict[str, str]:
    """Name -> text of every module. Dumps of passes that are no HLO (buffer assignments, LLVM) are left out."""
    environment = dict(os.environ)
    if passes:
        flags = f"--xla_dump_to={folder / 'passes'} --xla_dump_hlo_as_text --xla_dump_hlo_pass_re=.*"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flags}".strip()
    subprocess.run([sys.executable, __file__, "--dump", folder], check=True, env=environment)
    texts = {path.stem: path.read_text() for path in sorted(folder.glob("*.txt"))}
    for path in sorted((folder / "passes").glob("*.txt")):
        text = path.read_text(errors="replace")
        if text.startswith("HloModule "):
            texts["passes/" + path.stem] = text
    return texts


def best_seconds(work) -> float:
    seconds = []
    for _ in range(3):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def tokens(texts: dict[str, str]) -> dict[str, int]:
    """Of each text by a tokenizer trained on the other programs."""
    groups = sorted({name.split(".")[0] for name in texts})
    counted = {}
    for fold in range(FOLDS):
        held = {group for n, group in enumerate(groups) if n % FOLDS == fold}
        trained = TextTokenizer.train(
            [text for name, text in texts.items() if name.split(".")[0] not in held], vocab_size=VOCABULARY
        )
        counted |= {name: len(trained.encode(t)) for name, t in texts.items() if name.split(".")[0] in held}
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dump", type=Path, help="only write the corpus into this folder")
    arguments = parser.parse_args()
    if arguments.dump:
        return dump(arguments.dump)
    with tempfile.TemporaryDirectory() as folder:
        texts = collected(Path(folder), passes=not arguments.quick)
    faults: list[str] = []
    modules, same_text, compared = {}, 0, 0
    for name, text in texts.items():
        try:
            modules[name] = module = parse(text)
            printed = to_text(module, percent="%" in text.split("ENTRY")[-1].split("{")[0])
            if parse(printed) != module:
                faults.append(f"{name}: printed and read it is another module")
            same_text += re.sub(r"\s+", " ", printed).strip() == re.sub(r"\s+", " ", text).strip()
            canonical_text(module)
        except UserError as error:
            faults.append(f"{name}: {error}")
            continue
        try:
            theirs = structure_by_xla(text)
        except Exception as error:  # dumps of late passes hold what XLA's own parser refuses
            print(f"{name}: XLA does not read its own text: {str(error).splitlines()[-1]}", file=sys.stderr)
            continue
        compared += 1
        if structure(module) != theirs:
            faults.append(f"{name}: XLA reads other instructions")
    ends = {name: module for name, module in modules.items() if not name.startswith("passes/")}
    canonical = {name: canonical_text(module) for name, module in ends.items()}
    counted = tokens(canonical)
    instructions = sum(module.num_instructions for module in modules.values())
    parse_seconds = best_seconds(lambda: [parse(text) for text in texts.values()])
    canonical_seconds = best_seconds(lambda: [canonical_text(module) for module in ends.values()])
    size = {name: module.num_instructions for name, module in ends.items()}
    large = {name: (size[name], counted[name]) for name in size if size[name] >= 1000}
    for name, (count, length) in large.items():
        print(f"{name:28} {count:6} instructions {length:6} tokens {length / count:.2f} each")
    opcodes = Counter(i.opcode for m in modules.values() for c in m.computations for i in c.instructions)
    result = {
        "modules": len(texts),
        "passes": len(texts) - len(ends),
        "instructions": instructions,
        "characters": sum(map(len, texts.values())),
        "opcodes": len(opcodes),
        "faults": len(faults),
        "equal_text": same_text,
        "compared_with_xla": compared,
        "instructions_per_s": round(instructions / parse_seconds),
        "mb_per_s": round(sum(map(len, texts.values())) / parse_seconds / 1e6, 1),
        "canonical_instructions_per_s": round(sum(size.values()) / canonical_seconds),
        "tokens_per_instruction": round(sum(counted.values()) / sum(size.values()), 2),
        "tokens_per_instruction_median": round(median(counted[name] / size[name] for name in size), 2),
        "longest": dict(sorted(large.items(), key=lambda pair: pair[1])),
    }
    print("\n".join(faults), file=sys.stderr)
    print(json.dumps(result))
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
