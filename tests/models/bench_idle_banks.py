"""What it does that banks without a token decay and count under AdamW; not a test.

    python -m tests.models.bench_idle_banks
    python -m tests.models.bench_idle_banks --steps 200 --seeds 1 2 --banks 8

Trains a small Tilelli on few tokens a step, of the standard library's source text, by AdamW as PyTorch has it, for
which a bank without a token has a gradient of zeros, and by one that skips such banks: no decay, no step of its
momentum, none of its own count. Both see the same windows. Prints the share of banks without a token in a step, and
the loss on 16,384 held-out tokens in nats, mean and standard deviation over the seeds. On one thread of a CPU.
"""

import argparse
from statistics import mean, stdev

import torch
from torch import Tensor

from app.models.tilelli import TilelliLM
from app.models.tilelli.routing import bank_load
from app.training.optim.optimizers import optimizer_groups
from datamodules import CharDataModule

RATE, DECAY, BETAS, EPS = 3e-3, 0.1, (0.9, 0.95), 1e-8
T, HELD_OUT = 32, 16_384


class Text:
    """The standard library's source text, as numbers of its symbols."""

    def __init__(self) -> None:
        corpus = CharDataModule(block_size=T).read_corpus()
        self.n_symbols = corpus.tokenizer.vocab_size
        self.train, self.held_out = (
            torch.from_numpy(tokens.astype("int64")) for tokens in (corpus.train, corpus.val[: HELD_OUT + 1])
        )


class AdamW:
    """Loshchilov & Hutter 2019, with a count for each bank of a stack."""

    def __init__(self, network: TilelliLM, skips: bool):
        self.skips = skips
        pathways = {
            name: (layer, p)
            for layer, block in enumerate(network.tilelli_blocks)
            for p, pathway in enumerate(block.pathway_names)
            for name, _ in network.named_parameters()
            if name.startswith(f"blocks.{layer}.{pathway}.")
        }
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        self.entries = [
            (p, group["weight_decay"], pathways.get(names[id(p)]), torch.zeros_like(p), torch.zeros_like(p))
            for group in optimizer_groups(network, "adamw", DECAY)
            for p in group["params"]
        ]
        self.counts = [p.new_zeros(p.shape[0] if at else 1) for p, _, at, _, _ in self.entries]

    @torch.no_grad()
    def step(self, used: Tensor, rate: float) -> None:
        """One update; ``used (layers, P, N)`` bool."""
        for (p, decay, at, m, v), count in zip(self.entries, self.counts, strict=True):
            works = used[at] if at is not None and self.skips else torch.ones_like(count, dtype=torch.bool)
            count += works
            shape = (-1, *(1,) * (p.dim() - 1)) if at is not None else ()
            works, n = works.view(shape), count.clamp(min=1).view(shape)
            assert p.grad is not None
            m.copy_(torch.where(works, BETAS[0] * m + (1 - BETAS[0]) * p.grad, m))
            v.copy_(torch.where(works, BETAS[1] * v + (1 - BETAS[1]) * p.grad.square(), v))
            update = (m / (1 - BETAS[0] ** n)) / ((v / (1 - BETAS[1] ** n)).sqrt() + EPS)
            p.copy_(torch.where(works, p * (1 - rate * decay) - rate * update, p))


def trained(text: Text, n_banks: int, rows: int, steps: int, skips: bool, seed: int) -> tuple[float, float]:
    """Share of idle banks, and held-out loss."""
    torch.manual_seed(seed)
    network = TilelliLM(text.n_symbols, d_model=32, n_layers=2, n_banks=n_banks, d_head=16)
    optimizer, draw, idle = AdamW(network, skips), torch.Generator().manual_seed(seed), []
    for step in range(steps):
        at = torch.randint(len(text.train) - T, (rows,), generator=draw)
        x = torch.stack([text.train[i : i + T + 1] for i in at])
        output = network(x[:, :-1], x[:, 1:])
        assert output.loss is not None
        network.zero_grad()
        (output.loss + output.aux_loss).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        loads = [bank_load(each.bank_index, each.pathway_weights, n_banks) for each in output.routing]
        used = torch.stack(loads) > 0
        idle.append(1 - float(used.float().mean()))
        optimizer.step(used, RATE * min((step + 1) / 50, 1.0))
    network.eval()
    with torch.no_grad():
        x, y = (text.held_out[i : i + HELD_OUT].view(-1, T) for i in (0, 1))
        loss = network(x, y).loss
        assert loss is not None
        return mean(idle), float(loss)


def main() -> None:
    """Prints a line per number of banks and of tokens a step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--banks", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--rows", type=int, nargs="+", default=[1], help=f"windows of {T} tokens a step")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="two at least")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = Text()
    print(f"{arguments.steps} steps, {len(arguments.seeds)} seeds, torch {torch.__version__}")
    print("banks  tokens a step  idle   AdamW            skipping idle banks")
    for n_banks in arguments.banks:
        for rows in arguments.rows:
            found = [
                [trained(text, n_banks, rows, arguments.steps, skips, seed) for seed in arguments.seeds]
                for skips in (False, True)
            ]
            losses = [[loss for _, loss in runs] for runs in found]
            shown = [f"{mean(each):.4f} ± {stdev(each):.4f}" for each in losses]
            share = mean(each for each, _ in found[0])
            print(f"{n_banks:5}  {rows * T:13}  {share:4.0%}  {shown[0]:16} {shown[1]}", flush=True)


if __name__ == "__main__":
    main()
