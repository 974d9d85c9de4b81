"""What each rule of balance does to banks, pathways and loss, trained on real text: mean ± sd over seeds.

``python -m tests.models.balance_table --device cuda`` (``--steps 600 --seeds 1 2 3 --bank_gate bank``).

Each row is a rule for banks, with and without the balance of pathways; all rows see the same windows of the
standard library's source text. Loads and shares are those of the validation windows, after training: ``max/mean
load`` over the banks of a pathway (1 is even), ``dead banks`` without a token, of all layers, ``share spread``
largest minus smallest share of a pathway; means over layers and pathways. Loss in nats per character.
"""

import argparse
import itertools
import statistics
import time
from typing import NamedTuple

import torch
from torch import Tensor

from app.models.tilelli import TilelliLM
from datamodules import CharDataModule

RULES = ("none", "original", "switch", "bias")
EVALUATION_BATCHES = 20


class Result(NamedTuple):
    """Figures of one run, in the order of the table."""

    max_over_mean_load: float
    dead_banks: float
    share_spread: float
    validation_loss: float


class Text:
    """Windows of a text on a device.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace):
        corpus = CharDataModule(block_size=arguments.block_size, val_fraction=0.05).read_corpus()
        self.n_symbols = corpus.tokenizer.vocab_size
        self.train, self.validation = (
            torch.from_numpy(tokens.astype("int64")).to(arguments.device)
            for tokens in (corpus.train, corpus.val)
        )
        self.offsets = torch.arange(arguments.block_size + 1, device=arguments.device)

    def draw(self, tokens: Tensor, n_windows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Windows at random places, and the tokens that follow."""
        starts = torch.randint(len(tokens) - len(self.offsets), (n_windows, 1), generator=generator)
        windows = tokens[starts.to(tokens.device) + self.offsets]
        return windows[:, :-1], windows[:, 1:]


def train(
    text: Text, arguments: argparse.Namespace, balance: str, pathway_balance: float, seed: int
) -> TilelliLM:
    """A network after all steps: AdamW, linear warm-up over a tenth, cosine to a twentieth."""
    torch.manual_seed(seed)
    network = TilelliLM(
        text.n_symbols,
        arguments.d_model,
        arguments.n_layers,
        n_banks=arguments.n_banks,
        balance=balance,  # type: ignore[arg-type]
        bank_gate=arguments.bank_gate,
        pathway_balance=pathway_balance,
    ).to(arguments.device)
    groups = [
        {"params": group["params"], "weight_decay": 0.1 if group["decay"] else 0.0}
        for group in network.parameter_groups()
    ]
    optimizer = torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=(0.9, 0.95))
    warmup = max(1, arguments.steps // 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(
                optimizer, max(1, arguments.steps - warmup), eta_min=arguments.learning_rate / 20
            ),
        ],
        [warmup],
    )
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, arguments.steps + 1):
        output = network(*text.draw(text.train, arguments.batch_size, generator))
        assert output.loss is not None
        (output.loss + output.aux_loss).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        with torch.no_grad():
            network.after_optimizer_step(step)
            for total in network.step_sums():
                total.zero_()
    return network


@torch.no_grad()
def evaluate(text: Text, arguments: argparse.Namespace, network: TilelliLM) -> Result:
    """Figures on the same validation windows for every run."""
    network.eval()
    generator = torch.Generator().manual_seed(0)
    loads, shares, losses = [], [], []
    for _ in range(EVALUATION_BATCHES):
        output = network(*text.draw(text.validation, arguments.batch_size, generator))
        measures = network.measures(output)
        loads.append(measures["bank_load"].values)
        shares.append(measures["pathway_share"].values)
        losses.append(output.loss)
    load_LPN, share_LP = torch.stack(loads).sum(0).double(), torch.stack(shares).mean(0)
    ratio = load_LPN.amax(-1) / load_LPN.mean(-1).clamp(min=1)
    return Result(
        ratio.mean().item(),
        (load_LPN == 0).sum().item(),
        (share_LP.amax(-1) - share_LP.amin(-1)).mean().item(),
        torch.stack(losses).mean().item(),
    )


def spread(values: list[float], digits: int) -> str:
    """Mean ± sample standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--pathway_balance", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--bank_gate", choices=["sum", "bank"], default="sum")
    parser.add_argument("--d_model", type=int, default=96)
    parser.add_argument("--n_layers", type=int, default=3)
    parser.add_argument("--n_banks", type=int, default=4)
    parser.add_argument("--block_size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=4e-3)
    arguments = parser.parse_args()

    text = Text(arguments)
    is_gpu = torch.device(arguments.device).type == "cuda"
    device = torch.cuda.get_device_name() if is_gpu else f"CPU, {torch.get_num_threads()} threads"
    n_entries = arguments.n_layers * 5 * arguments.n_banks
    print(f"{device}, torch {torch.__version__}, fp32; {text.n_symbols} symbols")
    print(
        f"{arguments.n_layers} layers × {arguments.d_model}, N={arguments.n_banks}, bank_gate={arguments.bank_gate}, "
        f"{arguments.steps} steps of {arguments.batch_size} × {arguments.block_size} tokens, "
        f"rate {arguments.learning_rate}, seeds {arguments.seeds}\n"
    )
    print(
        f"| balance | pathway_balance | max/mean load | dead banks of {n_entries} | share spread | val loss |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    started = time.perf_counter()
    for balance, pathway_balance in itertools.product(arguments.rules, arguments.pathway_balance):
        runs = [
            evaluate(text, arguments, train(text, arguments, balance, pathway_balance, seed))
            for seed in arguments.seeds
        ]
        columns = zip(*runs, strict=True)
        cells = [spread(list(column), digits) for column, digits in zip(columns, (2, 1, 3, 4), strict=True)]
        print(f"| {balance} | {pathway_balance:g} | {' | '.join(cells)} |", flush=True)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
