"""A generator of small loop nests: `generate(17)` is always the same kernel, its space, problems and NumPy reference.

So that a model must read, the words of a text (loop_nest_text.py) are drawn apart from what it computes
(loop_nest_plan.py), and no two numbers give the same text.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

from costmodel.records import Config, Device, Kernel, Problem, SearchSpace, TensorSpec, UserError, Workload
from costmodel.workloads import load_module

# Files here are loaded by path, so the neighbours are too.
_plan = load_module(Path(__file__).with_name("loop_nest_plan.py"))
_text = load_module(Path(__file__).with_name("loop_nest_text.py"))
Plan, Statement, Choices = _plan.Plan, _plan.Statement, _text.Choices

LONGEST_SUM = 1 << 22  # integers in one reduction: with the plan's INTEGER_BOUND below 2**31
POINTS = (2_000, 4_000_000)  # of an iteration space; the reference must stay quick
MOST_BYTES = 32 << 20  # of all arrays of a problem
TARGET_US = {"small": 500.0, "large": 1800.0, "odd": 700.0}
SLOW_NS = {"exp": 4.0, "sqrt": 0.5, "ratio": 0.5, "select": 0.5}  # a call for each exponential, as no header is read
TABLE_ROWS = {"small": 300, "large": 20_000, "odd": 4_001}
LONGEST_TEXT = 3000  # characters: a prompt has to hold it


# ---- what may be tuned ----


def starts_in_sum(plan: Plan, order: tuple[int, ...]) -> bool:
    """The outermost loop runs over a reduced dimension while others are kept: its turns cannot run in parallel."""
    return any(order[0] in statement.reduced and len(statement.reduced) < plan.depth for statement in plan.statements)


def may_use_simd(plan: Plan, statement: Statement, order: tuple[int, ...]) -> bool:
    """The innermost loop carries no dependence, or only through a scalar that a reduction clause names."""
    return order[-1] not in statement.reduced or _text.sums_in_scalar(plan, statement, order)


def draw_choices(rng: random.Random, plan: Plan) -> Choices:
    """4-40 configs that mean something for this plan: parameters are added in random order while they fit."""
    natural = tuple(range(plan.depth))
    permutations = [tuple(rng.sample(natural, plan.depth)) for _ in range(6)]
    orders = [natural if rng.random() < 0.65 else permutations[0]]
    if plan.depth > 1 and rng.random() < 0.6:
        orders += [order for order in dict.fromkeys([natural, *permutations]) if order not in orders][
            : rng.choice((1, 2))
        ]
    kept = [dim for dim in natural if not any(dim in statement.reduced for statement in plan.statements)]
    tiles = [dim for dim in kept if all(order[0] != dim for order in orders)]
    tile = rng.choice(tiles) if tiles and rng.random() < 0.4 else -1
    inner = [("UNROLL", rng.choice(((1, 2, 4, 8), (1, 4), (1, 8))))]
    if all(may_use_simd(plan, statement, order) for statement in plan.statements for order in orders):
        inner += [("SIMD", (0, 1))]
    lone = [s for s in plan.statements if len(s.reduced) == 1 and _text.sums_in_scalar(plan, s, orders[0])]
    if lone and len(orders) == 1 and plan.depth > 1:
        inner += [("ACC", rng.choice(((1, 4, 8), (1, 4), (1, 2, 4, 8))))]
    optional: list[tuple[str, tuple[int, ...]]] = [("OPT", (2, 3)), ("VECTOR_BITS", (256, 512)), rng.choice(inner)]
    if plan.dtype != "i32":
        optional.append(("FASTMATH", (0, 1)))
    if plan.depth == 1 and rng.random() < 0.5:  # one loop: in parallel or unrolled, the pragmas do not combine
        optional[2] = ("THREADS", (1, 2))
    elif plan.depth > 1 and (tile >= 0 or not all(starts_in_sum(plan, order) for order in orders)):
        optional.append(("THREADS", (1, 2)))
    if len(plan.statements) == 2 and plan.statements[0].reduced == plan.statements[1].reduced:
        optional.append(("FUSE", (0, 1)))
    rng.shuffle(optional)
    params = [("ORDER", tuple(range(len(orders))))] if len(orders) > 1 else []
    params += [("TILE", rng.choice(((16, 64, 256), (32, 128), (8, 64))))] if tile >= 0 else []
    for name, values in optional:
        if math.prod(len(known) for _, known in params) * len(values) <= 40:
            params.append((name, values))
    return Choices(tuple(params), tuple(orders), tile)


# ---- sizes and the Workload ----


def draw_problems(rng: random.Random, plan: Plan, choices: Choices, op: str) -> dict[str, Problem]:
    """Three contrasting sets of sizes, aimed at TARGET_US by a rough cost a point and kept under MOST_BYTES."""
    problems = {}
    for name, target_us in TARGET_US.items():
        points = min(max(target_us / point_us(plan, choices), POINTS[0]), POINTS[1])
        spread = 0.3 if name == "small" else 0.65
        shares = [rng.uniform(1 - spread, 1 + spread) for _ in range(plan.depth)]
        rows = [TABLE_ROWS[name]] if plan.has_table else []
        while True:
            sizes = [max(2, round(points ** (share / sum(shares)))) for share in shares]
            sizes = [size | 1 if name == "odd" else size // 8 * 8 if size >= 16 else size for size in sizes]
            problem = make_problem(plan, op, dict(zip(plan.sizes, [*sizes, *rows], strict=True)))
            if problem.bytes <= MOST_BYTES:
                break
            points, rows = points * 0.6, [max(1, row // 2) for row in rows]
        problems[name] = problem
    return problems


def point_us(plan: Plan, choices: Choices) -> float:
    """A rough cost of one point for a good variant: operations, bytes and strides of full-size arrays, chained sums."""
    trees = [statement.tree for statement in plan.statements]
    width = 8 if plan.dtype == "f64" else 4
    full = [array for array in plan.arrays if len(array.axes) == plan.depth]
    strided = min(sum(array.axes[-1].dim != order[-1] for array in full) for order in choices.orders)
    slow = sum(cost * _plan.node_names(tree).count(name) for tree in trees for name, cost in SLOW_NS.items())
    quick = sum(_plan.operations(tree) for tree in trees)
    regroups = plan.dtype == "i32" or any(choices.has(name) for name in ("FASTMATH", "SIMD", "ACC"))
    chained = 0 if regroups else sum(statement.how == "sum" for statement in plan.statements)
    cost_ns = 0.06 * len(trees) + 0.03 * quick + 0.05 * width * len(full) + slow + 1.5 * strided + 1.5 * chained
    return 1e-3 * max(cost_ns, 0.4)  # even a product of matrices is no faster in plain loops


def make_problem(plan: Plan, op: str, sizes: dict[str, int]) -> Problem:
    """Any sizes from 1 on; integer reductions of at most LONGEST_SUM, so that no sum overflows."""
    if set(sizes) != set(plan.sizes) or min(sizes.values()) < 1:
        raise UserError(f"got sizes {sizes}, expected positive {', '.join(plan.sizes)}; give each of them")
    points = math.prod(sizes[name] for name in plan.sizes[: plan.depth])
    longest = max(math.prod(sizes[plan.sizes[dim]] for dim in s.reduced) for s in plan.statements)
    if plan.dtype == "i32" and longest > LONGEST_SUM:
        raise UserError(f"got a reduction of {longest} integers, expected at most {LONGEST_SUM}; give fewer")
    specs = tuple(TensorSpec(_plan.shape_of(plan, array, sizes), array.dtype) for array in plan.arrays)
    width = {"f32": 4, "f64": 8, "i32": 4}
    return Problem(
        op=op,
        inputs=specs[: plan.num_inputs],
        params=tuple((name, sizes[name]) for name in plan.sizes),
        flops=points * sum(_plan.operations(s.tree) + bool(s.how) for s in plan.statements),
        bytes=sum(math.prod(spec.shape) * width[spec.dtype] for spec in specs),
    )


def is_valid(plan: Plan, choices: Choices, config: Config, device: Device) -> bool:
    """Threads have a core each, and only a loop whose turns are independent is shared among them."""
    if config.get("THREADS", 1) == 1:
        return True
    order = choices.orders[int(config.get("ORDER", 0))]
    return int(config["THREADS"]) <= device.num_units and (choices.tile >= 0 or not starts_in_sum(plan, order))


def generate(number: int) -> Workload:
    """The kernel of that number; `costmodel.workloads.load("loop_nest:17")` comes here."""
    name = f"loop_nest:{number}"
    rng = random.Random(name)
    source = ""
    while not source or len(source) > LONGEST_TEXT:
        plan = _plan.draw_plan(rng)
        choices = draw_choices(rng, plan)
        source = _text.Writer(plan, _text.draw_style(rng, plan), choices).text()
    problems = draw_problems(rng, plan, choices, name)

    def middle(key: str, values: tuple[int, ...]) -> int:
        return values[len(values) // 2] if key == "TILE" else values[0]

    return Workload(
        kernel=Kernel(name, "cpp", source, choices.params),
        space=SearchSpace(choices.params, lambda config, problem, device: is_valid(plan, choices, config, device)),
        default=Config(tuple((key, middle(key, values)) for key, values in choices.params)),
        problems=problems,
        make_problem=lambda **sizes: make_problem(plan, name, sizes),
        make_inputs=lambda problem, seed: _plan.make_inputs(plan, problem, seed),
        reference=lambda problem, inputs: _plan.reference(plan, problem, inputs),
        tolerance={"f32": 2e-4, "f64": 1e-9, "i32": 0.0}[plan.dtype],
        path=Path(f"{Path(__file__).resolve()}:{number}"),
    )
