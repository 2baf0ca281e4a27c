"""Workloads whose problems have one size, N, and that nobody runs."""

from collections.abc import Callable

from costmodel.records import Config, Kernel, Problem, SearchSpace, Workload


def workload(
    kernel: Kernel, space: SearchSpace, default: Config, problem: Callable[[int], Problem], n: int
) -> Workload:
    """The listed problem is `problem(n)`."""
    return Workload(
        kernel=kernel, space=space, default=default, problems={"first": problem(n)},
        make_problem=lambda *, N: problem(N),
        make_inputs=lambda problem, seed: (), reference=lambda problem, inputs: (),
    )  # fmt: skip
