"""Training steps with the taps of activations and with every one of them cut out of the code.

``python -m tests.models.bench_taps [ROUNDS]``: of small networks, steps that alternate in one process on one thread;
processor time, and whether losses and weights are equal. Nobody asks for an activation.
"""

import ast
import inspect
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType

import torch

from app.models import LanguageModel, activations
from app.models.crystal import CrystalGPT
from app.models.equilibrium import EquilibriumLM
from app.models.gpt import GPT
from app.models.local_gpt import LocalGPT
from app.models.tilelli import TilelliLM
from tests.models.paired import ratio, seconds

V, T, N_COMPARED = 96, 64, 20
#: functions that say whether somebody looks into the pass
ASKED = ("is_asked_for", "is_watched")
NETWORKS: dict[str, Callable[[], LanguageModel]] = {
    "GPT, 3 layers": lambda: GPT(V, T, 3, 4, 64),
    "Tilelli, 2 banks": lambda: TilelliLM(V, 48, 2, n_banks=2),
    "Equilibrium": lambda: EquilibriumLM(V, T, 48, 2, 2, 96),
    "LocalGPT": lambda: LocalGPT(vocab_size=V, block_size=T, n_layers=2, n_heads=2, d_model=64, dropout=0.0),
    "CrystalGPT": lambda: CrystalGPT(V, T, 2, 2, 64),
}


class _Cut(ast.NodeTransformer):
    """``tap(owner, name, x)`` becomes ``x``, and whether somebody asks becomes no."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "tap":
            return node.args[2]
        if isinstance(node.func, ast.Name) and node.func.id in ASKED:
            return ast.copy_location(ast.Constant(False), node)
        return node


def _codes(code: CodeType) -> Iterator[tuple[str, CodeType]]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant.co_qualname, constant
            yield from _codes(constant)


def tapped() -> list[tuple[FunctionType, CodeType, CodeType]]:
    """Functions of the networks that offer activations, their code, and the same without."""
    found = []
    for module in [module for name, module in sys.modules.items() if name.startswith("app.models.")]:
        offers = any(getattr(module, name, None) is getattr(activations, name) for name in ("tap", *ASKED))
        if not offers or module is activations:
            continue
        tree = ast.fix_missing_locations(_Cut().visit(ast.parse(inspect.getsource(module))))
        plain = dict(_codes(compile(tree, str(module.__file__), "exec")))
        owners = [
            module,
            *(x for x in vars(module).values() if isinstance(x, type) and x.__module__ == module.__name__),
        ]
        for function in (f for owner in owners for f in vars(owner).values() if isinstance(f, FunctionType)):
            cut = plain.get(function.__code__.co_qualname)
            if function.__module__ == module.__name__ and cut and cut.co_code != function.__code__.co_code:
                found.append((function, function.__code__, cut))
    return found


class Training:
    """Steps of one network on the same windows.

    Args:
        make: makes the network.
        functions: of :func:`tapped`.
    """

    def __init__(
        self, make: Callable[[], LanguageModel], functions: list[tuple[FunctionType, CodeType, CodeType]]
    ):
        torch.manual_seed(0)
        self.network = make().train()
        self.optimizer = torch.optim.AdamW(self.network.parameters())
        self.idx = torch.randint(0, V, (8, T + 1))
        self.functions = functions
        self.losses: list[float] = []

    def step(self, *, has_taps: bool) -> None:
        for function, whole, cut in self.functions:
            function.__code__ = whole if has_taps else cut
        torch.manual_seed(len(self.losses))  # dropout draws the same either way
        output = self.network(self.idx[:, :-1], self.idx[:, 1:])
        self.optimizer.zero_grad()
        (output.loss + output.aux_loss).backward()
        self.optimizer.step()
        self.losses.append(output.loss.item())


def are_equal(one: Training, other: Training) -> bool:
    """Whether losses and weights are, to the last bit."""
    states = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    return one.losses == other.losses and all(torch.equal(a, b) for a, b in states)


def main() -> None:
    """Prints a line per network."""
    n_rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    torch.set_num_threads(1)
    functions = tapped()
    assert functions
    print(f"{len(functions)} functions offer activations; 8 x {T} tokens a step, torch {torch.__version__}")
    for name, make in NETWORKS.items():
        one, other = Training(make, functions), Training(make, functions)
        for _ in range(N_COMPARED):
            one.step(has_taps=True)
            other.step(has_taps=False)
        verdict = "equal" if are_equal(one, other) else "NOT equal"
        # One network for both: two would lie in different places of memory, which is a difference of its own.
        both = {"with": partial(one.step, has_taps=True), "without": partial(one.step, has_taps=False)}
        times = seconds(both, n_rounds)
        print(
            f"{name:18} {1e3 * statistics.median(times['with']):6.1f} ms a step, with over without "
            f"{ratio(times['with'], times['without'])}; {N_COMPARED} steps are {verdict} to the last bit",
            flush=True,
        )


if __name__ == "__main__":
    main()
