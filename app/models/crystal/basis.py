"""The directions that attention residuals lie in, from their second moments.

Shape suffixes: L layers, H heads, N residuals, d head width.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

#: largest deviation of PᵀP from the identity that passes for rounding
ORTHONORMAL = 1e-3


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256, hex, of names, types and values of everything in a network's state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(dtype=torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class ResidualBasis:
    """Orthonormal modes of the residuals of each layer and head, those of most energy first.

    For residuals stacked into E (N, d), uncentred, the modes are the right singular vectors of E.

    Attributes:
        layers: indices of the L attention layers, in the order of the first axis below.
        modes: ``(L, H, d, d)`` fp32, modes in columns; of each, the component of largest size is positive.
        spectrum: ``(L, H, d)`` fp32, share of the squared singular values up to each mode, ascending to 1.
        n_tokens: N, residuals per layer and head; 0 where unknown.
        fingerprints: plain values that tell the model and the text it was made with.
    """

    layers: tuple[int, ...]
    modes: Tensor
    spectrum: Tensor
    n_tokens: int = 0
    fingerprints: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_second_moments(
        cls,
        moments: Tensor,
        layers: Sequence[int] | None = None,
        n_tokens: int = 0,
        fingerprints: Mapping[str, Any] | None = None,
    ) -> "ResidualBasis":
        """The basis of residuals of which only ``EᵀE`` is left: its eigenvectors are E's right singular vectors.

        Args:
            moments: ``(L, H, d, d)`` EᵀE; in fp64, since eigenvalues are squared singular values.
            layers: indices of the layers; 0 … L − 1 by default.
            n_tokens: number of residuals in each sum.
            fingerprints: plain values to keep beside the basis.
        """
        energy, modes = torch.linalg.eigh(moments.double())
        modes = modes.flip(-1)
        largest = modes.abs().argmax(-2, keepdim=True)
        modes = modes * modes.gather(-2, largest).sign()
        spectrum = _shares(energy)
        return cls(
            tuple(range(len(moments)) if layers is None else layers),
            modes.float().contiguous(),
            spectrum.float().contiguous(),
            n_tokens,
            dict(fingerprints or {}),
        )

    def effective_dimension(self, share: float = 0.9) -> Tensor:
        """r90 for the default share: ``1 + #{r: share_r < 0.9}``, ``(L, H)`` int64 in 1 … d."""
        return _modes_below(self.spectrum, share)

    def of_layer(self, layer: int) -> Tensor:
        """Modes ``(H, d, d)`` of one attention layer.

        Raises:
            ValueError: the basis does not hold this layer.
        """
        if layer not in self.layers:
            held = ", ".join(map(str, self.layers))
            raise ValueError(f"layer = {layer}: the basis holds layers {held} only")
        return self.modes[self.layers.index(layer)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file; the old one or the new one is there whenever the process is killed."""
        target = Path(path)
        staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        about = {
            "layers": list(self.layers),
            "n_tokens": self.n_tokens,
            "fingerprints": dict(self.fingerprints),
        }
        tensors = {"modes": self.modes.contiguous(), "spectrum": self.spectrum.contiguous()}
        # As bytes, because the library's own writer keeps everybody else from reading the file.
        content = save(tensors, {"residual_basis": json.dumps(about, allow_nan=False)})
        try:
            with open(staging, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(staging, target)
        finally:
            staging.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ResidualBasis":
        """Reads what :meth:`save` has written.

        Raises:
            ValueError: the file is missing, damaged or holds something else, or its modes are not orthonormal.
        """
        try:
            if not Path(path).is_file():  # a named pipe would be waited for
                raise FileNotFoundError(errno.ENOENT, "no such file")
            with safe_open(os.fspath(path), "pt") as file:
                about = json.loads((file.metadata() or {})["residual_basis"])
                modes, spectrum = file.get_tensor("modes"), file.get_tensor("spectrum")
            layers, n_tokens = tuple(map(int, about["layers"])), int(about["n_tokens"])
            fingerprints = dict(about["fingerprints"])
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror or 'no such file'})") from error
        except (SafetensorError, KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}: holds no residual basis; app crystallize writes one") from error
        if {modes.dtype, spectrum.dtype} != {torch.float32}:
            raise ValueError(f"{path}: its modes are not in single precision; app crystallize writes a basis")
        if modes.dim() != 4 or modes.shape[:3] != spectrum.shape or len(modes) != len(layers):
            raise ValueError(
                f"{path}: holds modes {tuple(modes.shape)} and shares {tuple(spectrum.shape)} of {len(layers)} layers, "
                "which do not belong together; app crystallize writes a basis"
            )
        if not _are_orthonormal(modes):
            raise ValueError(f"{path}: its modes are not orthonormal; make it again with app crystallize")
        return cls(layers, modes, spectrum, n_tokens, fingerprints)


def _are_orthonormal(modes: Tensor) -> bool:
    """Whether the columns of ``(…, d, r)`` fp32 are orthonormal; takes as much memory again, and no more."""
    if modes.shape[-1] > modes.shape[-2]:
        return False
    apart = modes.mT @ modes
    apart.diagonal(dim1=-2, dim2=-1).sub_(1)
    return bool((apart.abs_() <= ORTHONORMAL).all())  # false for NaN


def effective_dimension(moments: Tensor, share: float = 0.9) -> Tensor:
    """r90 for the default share, as of a :class:`ResidualBasis`, at a fifth of the cost of one.

    Args:
        moments: ``(..., d, d)`` EᵀE, fp64.
        share: of the energy, in (0, 1].

    Returns:
        ``(...)`` int64 in 1 … d.
    """
    return _modes_below(_shares(torch.linalg.eigvalsh(moments)).float(), share)


def _shares(energy: Tensor) -> Tensor:
    """Cumulative shares of ascending energies ``(..., d)``, the largest first."""
    energy = energy.flip(-1).clamp(min=0)
    total = energy.sum(-1, keepdim=True)
    # A head that always copies its top key has no residual at all: nothing is left to explain.
    return torch.where(total > 0, energy.cumsum(-1) / total, 1.0).clamp(max=1.0)


def _modes_below(spectrum: Tensor, share: float) -> Tensor:
    return 1 + (spectrum < share).sum(-1).clamp(max=spectrum.shape[-1] - 1)


class ResidualMoments:
    """Sums ``EᵀE`` over residuals as they come by; memory does not grow with their number.

    Args:
        shapes: number and width of the heads of each layer that will come; all ranks that are added up must know
            the same ones, also one that no residual comes by. None takes each layer as it comes.
        device: where the sums of ``shapes`` are.

    Attributes:
        sums: ``(H, d, d)`` fp64 per layer.
        counts: ``()`` int64 per layer, residuals in each sum.
    """

    def __init__(
        self, shapes: Mapping[int, tuple[int, int]] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, Tensor] = {}
        for layer, (n_heads, d_head) in (shapes or {}).items():
            self._allocate(layer, n_heads, d_head, torch.device(device))

    def _allocate(self, layer: int, n_heads: int, d_head: int, device: torch.device) -> None:
        place = "cpu" if device.type == "mps" else device  # which has no fp64
        self.sums[layer] = torch.zeros(n_heads, d_head, d_head, dtype=torch.float64, device=place)
        self.counts[layer] = torch.zeros((), dtype=torch.int64, device=place)

    def add(self, layer: int, residual: Tensor, counted: Tensor | None = None) -> None:
        """Adds the residuals of a batch.

        Args:
            layer: index of the attention layer.
            residual: ``(B, H, T, d)``.
            counted: ``(B, T)`` bool, False where there is padding; None counts every position.
        """
        if residual.device.type == "mps":
            residual = residual.cpu()
        B, H, T, d = residual.shape
        wide = residual.detach().double()
        if counted is None:
            number = torch.full((), B * T, device=wide.device)
        else:
            counted = counted.to(wide.device)
            wide = wide.where(counted[:, None, :, None], 0.0)
            number = counted.sum()
        flat = wide.transpose(0, 1).reshape(H, B * T, d)
        if layer not in self.sums:
            self._allocate(layer, H, d, wide.device)
        self.sums[layer] += flat.mT @ flat
        self.counts[layer] += number

    def all_reduce(self) -> None:
        """Adds up the sums of all ranks, if there are several; every rank then holds those of the whole text."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            layers = sorted(self.sums)
            # fp64 holds every count exactly, so that all of it fits into one message.
            parts = [x for layer in layers for x in (self.sums[layer], self.counts[layer].double())]
            whole = torch.cat([part.flatten() for part in parts])
            dist.all_reduce(whole)
            summed = whole.split([part.numel() for part in parts])
            for i, layer in enumerate(layers):
                self.sums[layer].copy_(summed[2 * i].view_as(self.sums[layer]))
                self.counts[layer].copy_(summed[2 * i + 1].view(()))

    def basis(self, fingerprints: Mapping[str, Any] | None = None) -> ResidualBasis:
        """The basis of everything added so far.

        Raises:
            ValueError: fewer residuals than a head is wide, so that some modes would be arbitrary.
        """
        layers = sorted(self.sums)
        n_tokens = int(min(self.counts[layer] for layer in layers)) if layers else 0
        d_head = self.sums[layers[0]].shape[-1] if layers else 1
        if n_tokens < d_head:
            raise ValueError(
                f"calibration tokens = {n_tokens}: must be at least the head width, {d_head}, padding not counted; "
                "give more calibration text"
            )
        stacked = torch.stack([self.sums[layer] for layer in layers]).cpu()
        return ResidualBasis.from_second_moments(stacked, layers, n_tokens, fingerprints)
