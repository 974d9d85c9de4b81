"""Each synthetic task can be solved from its inputs alone, and the answers are nowhere else."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from datamodules.synthetic.memorization import facts
from datamodules.synthetic.planted_routes import rules
from datamodules.task_windows import TaskWindows
from datamodules.tasks import Drawn, Sizes, rungs, tasks

SEED = 5
#: inputs and sizes to what is answered at each position, from the inputs up to it; −1 where it has no answer
Solver = Callable[[np.ndarray, Sizes], np.ndarray]


def recalled(inputs: np.ndarray, sizes: Sizes) -> np.ndarray:
    answers, value_of = np.full(len(inputs), -1), {}
    for place, key in enumerate(inputs.tolist()):
        answers[place] = value_of.get(key, -1)
        if place % 2:
            value_of[int(inputs[place - 1])] = key
    return answers


def copied(inputs: np.ndarray, sizes: Sizes) -> np.ndarray:
    blank, marker = sizes["vocab_size"] - 2, sizes["vocab_size"] - 1
    answers = np.full(len(inputs), -1)
    symbols = inputs[inputs < blank]
    answers[inputs == marker] = symbols[: (inputs == marker).sum()]
    return answers


def looked_up(inputs: np.ndarray, sizes: Sizes) -> np.ndarray:
    begin = 2 * sizes["n_pairs"]
    value_of = dict(zip(inputs[0:begin:2].tolist(), inputs[1:begin:2].tolist(), strict=True))
    return np.array([-1] * begin + [value_of.get(key, -1) for key in inputs[begin:].tolist()])


def calculated(inputs: np.ndarray, sizes: Sizes) -> np.ndarray:
    modulus = sizes["modulus"]
    answers, begin = np.full(len(inputs), -1), 0
    for place in np.flatnonzero(inputs == modulus + 3):
        numbers: list[int] = []
        for symbol in inputs[begin:place][::-1].tolist():  # of prefix notation, from behind, on a stack
            if symbol < modulus:
                numbers.append(symbol)
            else:
                a, b = numbers.pop(), numbers.pop()
                numbers.append((a + b, a - b, a * b)[symbol - modulus] % modulus)
        (answers[place],), begin = numbers, place + 1
    return answers


def of_regime(inputs: np.ndarray, sizes: Sizes) -> np.ndarray:
    n_symbols = sizes["vocab_size"] - sizes["n_regimes"]
    after = rules(SEED, n_symbols, sizes["n_regimes"])
    answers, regime = [], 0
    for symbol in inputs.tolist():
        regime = symbol - n_symbols if symbol >= n_symbols else regime
        answers.append(-1 if symbol >= n_symbols else int(after[regime, symbol]))
    return np.array(answers)


def recalled_words(inputs: np.ndarray, sizes: Sizes) -> np.ndarray:
    """A key is what stands between two values; its value's next symbol is that of the same key before."""
    half, answers = sizes["vocab_size"] // 2, np.full(len(inputs), -1)
    value_of: dict[tuple[int, ...], list[int]] = {}
    key: list[int] = []
    value: list[int] = []
    for place, symbol in enumerate(inputs.tolist()):
        if symbol < half:
            if value:
                value_of[tuple(key)], key, value = value, [], []
            key.append(symbol)
        else:
            value.append(symbol)
        known = value_of.get(tuple(key), [])
        answers[place] = known[len(value)] if len(value) < len(known) else -1
    return answers


def recalled_among_noise(inputs: np.ndarray, sizes: Sizes) -> np.ndarray:
    n_symbols = sizes["vocab_size"] - sizes["n_noise"]
    answers, value_of = np.full(len(inputs), -1), {}
    places = np.flatnonzero(inputs < n_symbols)
    for key, value in zip(places[::2], [*places[1::2], None], strict=False):
        answers[key] = value_of.get(int(inputs[key]), -1)
        if value is not None:
            value_of[int(inputs[key])] = int(inputs[value])
    return answers


def remembered(inputs: np.ndarray, sizes: Sizes) -> np.ndarray:
    return facts(SEED, sizes["n_facts"], sizes["vocab_size"])[inputs]


def looked_up_in_parts(inputs: np.ndarray, sizes: Sizes) -> np.ndarray:
    begin = 3 * sizes["n_pairs"]
    value_of = {tuple(inputs[i : i + 2].tolist()): int(inputs[i + 2]) for i in range(0, begin, 3)}
    answers = np.full(len(inputs), -1)
    for place in range(begin + 1, len(inputs)):
        answers[place] = value_of.get(tuple(inputs[place - 1 : place + 1].tolist()), -1)
    return answers


def hopped(inputs: np.ndarray, sizes: Sizes) -> np.ndarray:
    first_hop = sizes["vocab_size"] - sizes["max_hops"]
    begin = int(np.flatnonzero(inputs >= first_hop)[0])
    after = dict(zip(inputs[0:begin:2].tolist(), inputs[1:begin:2].tolist(), strict=True))
    answers = np.full(len(inputs), -1)
    for place in range(begin, len(inputs) - 1, 2):
        node = int(inputs[place + 1])
        for _ in range(int(inputs[place]) - first_hop + 1):
            node = after[node]
        answers[place + 1] = node
    return answers


SOLVERS: dict[str, Solver] = {
    "in_context_recall": recalled,
    "selective_copy": copied,
    "mqar": looked_up,
    "mano": calculated,
    "planted_routes": of_regime,
    "fuzzy_recall": recalled_words,
    "noisy_recall": recalled_among_noise,
    "memorization": remembered,
    "mqar_forgetting": looked_up,  # of equal keys the last one stays in a dict
    "mqar_compositional": looked_up_in_parts,
    "depo": hopped,
}


def drawn(name: str, n: int = 40) -> Iterator[tuple[Drawn, Sizes]]:
    windows = TaskWindows(tasks()[name], SEED)
    for sizes in rungs(tasks()[name], {}):
        yield from ((windows.draw(number, sizes), sizes) for number in range(n))


def accuracies(name: str) -> tuple[float, float, int]:
    """Of the solver, of the solver against shuffled targets, and how many targets there are."""
    generator, answers, targets = np.random.default_rng(0), [], []
    for window, sizes in drawn(name):
        scored = window.targets >= 0
        answers.append(SOLVERS[name](window.inputs, sizes)[scored])
        targets.append(window.targets[scored])
    answer, target = np.concatenate(answers), np.concatenate(targets)
    return (
        float(np.mean(answer == target)),
        float(np.mean(answer == generator.permutation(target))),
        len(target),
    )


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_is_always_right_and_at_chance_on_shuffled_targets(name: str) -> None:
    right, shuffled, n = accuracies(name)
    assert right == 1
    target = np.concatenate([window.targets[window.targets >= 0] for window, _ in drawn(name)])
    chance = float(np.sum((np.unique(target, return_counts=True)[1] / n) ** 2))
    assert abs(shuffled - chance) < 4 * (chance / n) ** 0.5 + 2 / n


def test_strings_of_an_automaton_are_legal_and_no_more() -> None:
    """The oracle has the automaton: what is drawn follows its distribution, and a shuffled string does not."""
    generator, surprise, entropy, shuffled, n = np.random.default_rng(0), 0.0, 0.0, 0.0, 0
    for window, _ in drawn("regbench"):
        assert window.truth is not None
        scored = np.flatnonzero(window.targets >= 0)
        truth, targets = window.truth[scored], window.targets[scored]
        chances = truth[np.arange(len(scored)), targets]
        assert np.all(chances > 0)
        surprise += float(-np.log(chances).sum())
        entropy += float(-(truth * np.log(np.where(truth > 0, truth, 1))).sum())
        shuffled += float((truth[np.arange(len(scored)), generator.permutation(targets)] > 0).sum())
        n += len(scored)
    assert surprise / n == pytest.approx(entropy / n, abs=4 / n**0.5)
    assert shuffled / n < 0.6


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("in_context_recall", {"vocab_size": 4, "length": 4}),
        ("selective_copy", {"vocab_size": 3, "length": 4, "n_symbols": 2}),
        ("mqar", {"vocab_size": 8, "length": 16, "n_pairs": 4}),
        ("mano", {"vocab_size": 7, "length": 5, "modulus": 2, "max_operations": 1}),
        ("planted_routes", {"vocab_size": 4, "length": 4, "n_regimes": 2, "max_run": 2}),
        ("fuzzy_recall", {"vocab_size": 8, "length": 8, "n_keys": 1, "max_symbols": 1}),
        ("noisy_recall", {"vocab_size": 5, "length": 6, "n_noise": 1, "noise": 0.5}),
        ("memorization", {"vocab_size": 2, "length": 1, "n_facts": 1}),
        ("mqar_forgetting", {"vocab_size": 4, "length": 6, "n_pairs": 2, "writes_per_key": 2}),
        ("mqar_compositional", {"vocab_size": 6, "length": 12, "n_pairs": 2}),
        ("depo", {"vocab_size": 6, "length": 8, "max_nodes": 3, "max_hops": 3}),
    ],
)
def test_the_smallest_sizes(name: str, sizes: Sizes) -> None:
    windows = TaskWindows(tasks()[name], SEED)
    (all_sizes,) = rungs(tasks()[name], sizes)
    n_scored = 0
    for number in range(200):
        window = windows.draw(number, all_sizes)
        scored = window.targets >= 0
        assert np.array_equal(SOLVERS[name](window.inputs, all_sizes)[scored], window.targets[scored])
        n_scored += int(scored.sum())
    assert n_scored > 0


def test_an_answer_is_not_the_next_input_where_it_is_masked() -> None:
    """Where nothing but the task tells the answer, no input gives it away."""
    for name in ("selective_copy", "mano", "memorization", "depo"):
        for window, _ in drawn(name, 10):
            scored = np.flatnonzero(window.targets >= 0)[:-1]
            same = window.inputs[scored + 1] == window.targets[scored]
            assert same.mean() < 0.3


def test_a_compact_fill_holds_no_key() -> None:
    for window, sizes in drawn("mqar", 20):
        begin = 2 * sizes["n_pairs"]
        keys = window.inputs[0:begin:2]
        asked = np.isin(window.inputs[begin:], keys)
        assert asked.sum() == sizes["n_pairs"] == (window.targets >= 0).sum()
