"""Equilibrium written out token by token, straight from its description; slow, and in the order of the text."""

import math
from typing import Any

import torch
from torch import Tensor

DEFAULTS: dict[str, Any] = dict(
    use_attention_residual=True, use_plastic=True, use_branches=True, n_branches=2, use_verifier=True,
    warmup_steps=50, max_budget_per_token=4, total_budget_ratio=2.0, statistics="current", standardize=False,
    soft="centres", shared_router=True, enforce_budget=False, budget_order="deviation", reprocess_context=False,
    quantile="sort", capacity_factor=None, signal_momentum=0.1, init_thresholds=None,
    target_fractions=(0.55, 0.25, 0.15, 0.05), threshold_momentum=0.2, temperature=8.0, offset_scale=0.2,
    verifier_weights=(0.4, 0.4, 0.2), verifier_sharpness=4.0, diversity_target=0.08, diversity_weight=0.1,
    fraction_weight=0.01, plastic_rate=1e-4, plastic_mask=0.15, plastic_noise=0.05, plastic_penalty=0.01,
    plastic_decay=0.99,
)  # fmt: skip


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean()
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean() + 1e-5) * weight + bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def shares(fractions: Any) -> Tensor:
    """Target fractions, normalised."""
    given = torch.tensor(fractions, dtype=torch.float64)
    return given / given.sum()


def quantiles(
    values: list[float], target: Tensor, by_histogram: bool, value_range: tuple[float, float]
) -> Tensor:
    """Linear between neighbours; with a histogram, of values that are spread evenly inside their bins."""
    values = sorted(values)
    if by_histogram:
        low, high = value_range
        width = (high - low) / 4096
        bins = [min(max(math.floor((value - low) / width), 0), 4095) for value in values]
        values = [low + width * (b + (i - bins.index(b) + 0.5) / bins.count(b)) for i, b in enumerate(bins)]
    return torch.quantile(torch.tensor(values, dtype=torch.float64), target.cumsum(0)[:3])


class Reference:
    """The network as a function of its state dict.

    Args:
        state: of an ``EquilibriumLM`` in double precision; parameters are taken as leaves with gradients.
        n_heads: attention heads.
        n_layers: blocks.
        options: as of the network, defaults included.
    """

    def __init__(self, state: dict[str, Tensor], n_heads: int, n_layers: int, **options: Any):
        self.n_heads, self.n_layers = n_heads, n_layers
        self.o = DEFAULTS | options
        self.target = shares(self.o["target_fractions"])
        moving = ("running", "deviation_", "num_batches", "target_cdf")
        self.p = {
            name: value.clone().requires_grad_()
            for name, value in state.items()
            if not any(word in name for word in moving)
        }
        D = state["tok_emb.weight"].shape[1]
        self.D = D
        layers = range(n_layers)
        self.mean = [state[f"signals.{i}.running_mean"].clone() for i in layers]
        self.var = [state[f"signals.{i}.running_var"].clone() for i in layers]
        self.tracked = [int(state[f"signals.{i}.num_batches_tracked"]) for i in layers]
        ours = self.o["standardize"]
        self.deviation_mean = [
            state[f"signals.{i}.deviation_mean"].clone() if ours else torch.ones(()) for i in layers
        ]
        self.deviation_var = [
            state[f"signals.{i}.deviation_var"].clone() if ours else torch.ones(()) for i in layers
        ]
        routers = range(1 if self.o["shared_router"] else n_layers)
        self.theta = [state[f"routers.{r}.running_thresholds"].clone() for r in routers]
        self.theta_tracked = [int(state[f"routers.{r}.num_batches_tracked"]) for r in routers]
        self.range = (-8.0, 8.0) if self.o["standardize"] else (0.0, 4.0)
        self.forget()

    def forget(self) -> None:
        self.seen_x: list[list[Tensor]] = [[] for _ in range(self.n_layers)]
        self.seen_deviation: list[list[Tensor]] = [[] for _ in range(self.n_layers)]
        self.seen_score: list[list[list[float]]] = [[] for _ in self.theta]

    def towards(self, old: Tensor, new: Tensor) -> Tensor:
        m = self.o["signal_momentum"]
        return (1 - m) * old + m * new

    def moved(self, theta: Tensor, own: Tensor) -> Tensor:
        m = self.o["threshold_momentum"]
        return (1 - m) * theta + m * own

    # -- parts ------------------------------------------------------------------------------------------

    def norm(self, name: str, x: Tensor) -> Tensor:
        return layer_norm(x, self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def project(self, name: str, x: Tensor) -> Tensor:
        y = self.p[f"{name}.weight"] @ x
        return y + self.p[f"{name}.bias"] if f"{name}.bias" in self.p else y

    def attend(self, i: int, query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """One token's attention over the given keys and values."""
        width = self.D // self.n_heads
        heads = []
        for h in range(self.n_heads):
            part = slice(h * width, (h + 1) * width)
            scores = torch.stack([query[part] @ key[part] for key in keys]) / math.sqrt(width)
            weights = scores.softmax(0)
            heads.append(sum(w * v[part] for w, v in zip(weights, values, strict=True)))
        return self.project(f"blocks.{i}.attn.o_proj", torch.cat(heads))

    def rest_of_block(self, i: int, x: Tensor, z: Tensor, history: list[Tensor]) -> Tensor:
        name = f"blocks.{i}"
        if self.o["use_attention_residual"]:
            query = self.project(f"{name}.residual.query", z)
            scores = [query @ self.project(f"{name}.residual.key", h) / math.sqrt(self.D) for h in history]
            alpha = torch.stack(scores).softmax(0)
            mixed = z + sum(a * h for a, h in zip(alpha, history, strict=True))
            mixed = self.norm(f"{name}.residual.norm", mixed)
        else:
            mixed = self.norm(f"{name}.residual", x + z)
        inner = gelu(self.project(f"{name}.ff.0", self.norm(f"{name}.ln2", mixed)))
        return mixed + self.project(f"{name}.ff.3", inner)

    # -- signal and routing -----------------------------------------------------------------------------

    def signal(
        self, i: int, rows: list[list[Tensor]], training: bool
    ) -> tuple[list[list[Tensor]], list[list[Tensor]], bool]:
        """Deviations, what is routed on, and whether the layer is warming up."""
        flat = torch.stack([x for row in rows for x in row]).detach()
        moves = training and self.o["statistics"] == "current"
        if moves:
            self.mean[i] = self.towards(self.mean[i], flat.mean(0))
            self.var[i] = self.towards(self.var[i], flat.var(0))
            self.tracked[i] += 1
        spread = torch.sqrt(self.var[i]) + 1e-8
        deviation = [[((x - self.mean[i]) / spread).norm() / math.sqrt(self.D) for x in row] for row in rows]
        all_deviations = torch.stack([d for row in deviation for d in row]).detach()
        if moves:
            self.deviation_mean[i] = self.towards(self.deviation_mean[i], all_deviations.mean())
            self.deviation_var[i] = self.towards(self.deviation_var[i], all_deviations.var())
        if training:
            self.seen_x[i].append(flat)
            self.seen_deviation[i].append(all_deviations)
        score = deviation
        if self.o["standardize"]:
            unit = torch.sqrt(self.deviation_var[i] + 1e-8)
            score = [[(d - self.deviation_mean[i]) / unit for d in row] for row in deviation]
        return deviation, score, self.tracked[i] < self.o["warmup_steps"]

    def thresholds(self, i: int, score: list[list[Tensor]], training: bool) -> Tensor:
        router = 0 if self.o["shared_router"] else i
        values = [float(s.detach()) for row in score for s in row]
        if training:
            self.seen_score[router].append(values)
        theta = self.theta[router]
        if self.o["statistics"] == "current":
            own = quantiles(values, self.target, self.o["quantile"] == "histogram", self.range)
            if training:
                theta = self.theta[router] = self.moved(theta, own)
                self.theta_tracked[router] += 1
            elif self.theta_tracked[router] == 0:
                theta = own
        t = theta + self.o["offset_scale"] * torch.tanh(self.p[f"routers.{router}.threshold_offsets"])
        t1 = t[0]
        t2 = t[1] if t[1] > t1 + 1e-3 else t1 + 1e-3
        t3 = t[2] if t[2] > t2 + 1e-3 else t2 + 1e-3
        return torch.stack([t1, t2, t3])

    def probabilities(self, score: Tensor, t: Tensor) -> Tensor:
        if self.o["soft"] == "ordinal":
            above = [
                torch.ones(()).double(),
                *(torch.sigmoid(self.o["temperature"] * (score - each)) for each in t),
                torch.zeros(()),
            ]
            return torch.stack([above[k] - above[k + 1] for k in range(4)])
        left, right = torch.clamp(t[1] - t[0], min=1e-3), torch.clamp(t[2] - t[1], min=1e-3)
        centres = [t[0] - left, (t[0] + t[1]) / 2, (t[1] + t[2]) / 2, t[2] + right]
        distances = torch.stack([(score - centre).abs() for centre in centres])
        return (-self.o["temperature"] * distances).softmax(0)

    def enforced(self, routes: list[int], deviation: list[Tensor]) -> list[int]:
        T, ratio = len(routes), self.o["total_budget_ratio"]
        granted = [0] * T
        if self.o["budget_order"] == "causal":
            spent = 0
            for t in range(T):
                if spent + routes[t] + 1 <= math.floor((t + 1) * ratio):
                    granted[t] = routes[t]
                spent += granted[t] + 1
            return granted
        left = math.floor(T * ratio) - T
        for t in sorted(range(T), key=lambda t: -float(deviation[t].detach())):
            if routes[t] <= left:
                granted[t] = routes[t]
                left -= routes[t]
        return granted

    def estimated(self, probabilities: list[Tensor]) -> list[int]:
        cost = [float(sum((k + 1) * p[k].detach() for k in range(4))) for p in probabilities]
        total = math.floor(len(cost) * self.o["total_budget_ratio"])
        scale = min(1.0, total / (sum(cost) + 1e-8))
        return [round(min(max(c * scale, 1), self.o["max_budget_per_token"])) for c in cost]

    def with_room(self, i: int, routes: list[int]) -> list[int]:
        if self.o["capacity_factor"] is None:
            return routes
        works = {1: i == self.n_layers - 1 and self.o["use_branches"], 2: i > 0, 3: self.o["use_plastic"]}
        taken, kept = [0] * 4, []
        for route in routes:
            room = math.ceil(self.o["capacity_factor"] * float(self.target[route]) * len(routes))
            taken[route] += 1
            kept.append(0 if works.get(route) and taken[route] > room else route)
        return kept

    # -- the network ------------------------------------------------------------------------------------

    def forward(self, idx: Tensor, targets: Tensor, training: bool) -> dict[str, Any]:
        B, T = idx.shape
        x = [
            [self.p["tok_emb.weight"][idx[b, t]] + self.p["pos_emb.weight"][t] for t in range(T)]
            for b in range(B)
        ]
        history = [x]
        first_keys: list[Any] = []
        first_values: list[Any] = []
        routes_of_layers, budgets, last_probabilities, warming_up = [], [], [], True
        for i in range(self.n_layers):
            name = f"blocks.{i}.attn"
            normed = [[self.norm(f"blocks.{i}.ln1", each) for each in row] for row in x]
            keys = [[self.project(f"{name}.k_proj", each) for each in row] for row in normed]
            values = [[self.project(f"{name}.v_proj", each) for each in row] for row in normed]
            out = []
            for b in range(B):
                row = []
                for t in range(T):
                    query = self.project(f"{name}.q_proj", normed[b][t])
                    z = self.attend(i, query, keys[b][: t + 1], values[b][: t + 1])
                    row.append(self.rest_of_block(i, x[b][t], z, [h[b][t] for h in history]))
                out.append(row)
            deviation, score, warming_up = self.signal(i, out, training)
            t_i = self.thresholds(i, score, training)
            last_probabilities = [[self.probabilities(s, t_i) for s in row] for row in score]
            routes, budget = [], []
            for b in range(B):
                wanted = [0 if warming_up else sum(int(s > each) for each in t_i) for s in score[b]]
                if self.o["enforce_budget"]:
                    wanted = self.with_room(i, self.enforced(wanted, deviation[b]))
                    budget.append([route + 1 for route in wanted])
                else:
                    wanted = self.with_room(i, wanted)
                    budget.append(self.estimated(last_probabilities[b]))
                routes.append(wanted)
            x = []
            for b in range(B):
                row = []
                for t in range(T):
                    token = out[b][t]
                    if routes[b][t] == 2 and i > 0:
                        token = self.again(i - 1, b, t, token, history[:i], first_keys, first_values)
                    elif routes[b][t] == 3 and self.o["use_plastic"]:
                        token = token + self.project("plastic.up", gelu(self.project("plastic.down", token)))
                    row.append(token)
                x.append(row)
            history.append(x)
            first_keys.append(keys)
            first_values.append(values)
            routes_of_layers.append(routes)
            budgets.append(budget)
        logits, diversity = self.logits(x, routes_of_layers[-1])
        mean_probabilities = torch.stack([p for row in last_probabilities for p in row]).mean(0)
        distance = ((mean_probabilities - self.target) ** 2).mean()
        aux = self.o["diversity_weight"] * diversity + self.o["fraction_weight"] * distance
        loss = -sum(logits[b, t].log_softmax(0)[targets[b, t]] for b in range(B) for t in range(T)) / (B * T)
        return {
            "logits": logits,
            "loss": loss,
            "aux_loss": 0 * aux if warming_up else aux,
            "routes": torch.tensor(routes_of_layers),
            "budgets": torch.tensor(budgets),
        }

    def again(
        self,
        i: int,
        b: int,
        t: int,
        token: Tensor,
        history: list[Any],
        first_keys: list[Any],
        first_values: list[Any],
    ) -> Tensor:
        """A token through block i once more."""
        name = f"blocks.{i}.attn"
        normed = self.norm(f"blocks.{i}.ln1", token)
        query, key, value = (self.project(f"{name}.{each}_proj", normed) for each in "qkv")
        keys, values = [key], [value]
        if self.o["reprocess_context"]:
            keys = [*first_keys[i][b][:t], key]
            values = [*first_values[i][b][:t], value]
        return self.rest_of_block(i, token, self.attend(i, query, keys, values), [h[b][t] for h in history])

    def logits(self, x: list[list[Tensor]], routes: list[list[int]]) -> tuple[Tensor, Tensor]:
        n = self.o["n_branches"]
        rows, divergences = [], []
        for row, row_routes in zip(x, routes, strict=True):
            tokens = []
            for token, route in zip(row, row_routes, strict=True):
                h = self.norm("norm_f", token)
                logits = self.p["head.weight"] @ h
                if self.o["use_branches"]:
                    offsets, heads = self.p["branches.offsets"], self.p["branches.heads"]
                    tau = [0.8 + 0.4 * k / (n - 1) if n > 1 else 1.0 for k in range(n)]
                    branches = [heads[k] @ (h + offsets[k]) / tau[k] for k in range(n)]
                    p = [each.softmax(0) for each in branches]
                    divergences.append(
                        [self.divergence(p[j], p[k]) for j in range(n) for k in range(j + 1, n)]
                    )
                    if route == 1:
                        logits = self.verified(branches, p) if self.o["use_verifier"] else sum(branches) / n
                tokens.append(logits)
            rows.append(torch.stack(tokens))
        diversity = torch.zeros(()).double()
        if divergences and divergences[0]:
            means = [sum(each) / len(divergences) for each in zip(*divergences, strict=True)]
            diversity = sum(torch.relu(self.o["diversity_target"] - mean) for mean in means) / len(means)
        return torch.stack(rows), diversity

    @staticmethod
    def divergence(p: Tensor, q: Tensor) -> Tensor:
        def log(each: Tensor) -> Tensor:
            return torch.log(torch.clamp(each, min=1e-8))

        m = (p + q) / 2
        return 0.5 * (p * (log(p) - log(m))).sum() + 0.5 * (q * (log(q) - log(m))).sum()

    def verified(self, branches: list[Tensor], p: list[Tensor]) -> Tensor:
        w1, w2, w3 = self.o["verifier_weights"]
        entropy = [-(each * torch.log(torch.clamp(each, min=1e-8))).sum() for each in p]
        largest = max(entropy)
        mean = sum(p) / len(p)
        scores = []
        for each, h in zip(p, entropy, strict=True):
            top = each.sort(descending=True).values
            agreement = (each @ mean) / (each.norm() * mean.norm())
            scores.append(w1 * (1 - h / largest) + w2 * agreement + w3 * (top[0] - top[1]))
        weights = (self.o["verifier_sharpness"] * torch.stack(scores)).softmax(0)
        return sum(w * each for w, each in zip(weights, branches, strict=True))

    def after_step(self) -> None:
        """With lagged statistics, everything moves by the batch of the whole optimizer step."""
        if self.o["statistics"] == "lagged":
            for i in range(self.n_layers):
                x, deviation = torch.cat(self.seen_x[i]), torch.cat(self.seen_deviation[i])
                self.mean[i] = self.towards(self.mean[i], x.mean(0))
                self.var[i] = self.towards(self.var[i], x.var(0))
                self.deviation_mean[i] = self.towards(self.deviation_mean[i], deviation.mean())
                self.deviation_var[i] = self.towards(self.deviation_var[i], deviation.var())
                self.tracked[i] += 1
            for router, scores in enumerate(self.seen_score):
                together = [value for values in scores for value in values]
                own = quantiles(together, self.target, self.o["quantile"] == "histogram", self.range)
                self.theta[router] = self.moved(self.theta[router], own)
                self.theta_tracked[router] += 1
        self.forget()
