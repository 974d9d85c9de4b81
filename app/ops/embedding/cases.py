"""Token embeddings of a small and a large vocabulary, for measurements and checks."""

from app.ops.case import Arguments, Case, Draw, Size
from app.ops.embedding import embedding

CHARACTERS, WORDS = 97, 8192


def _arguments(size: Size, draw: Draw, n_rows: int) -> Arguments:
    idx = draw.bank(size._replace(N=n_rows, n_empty=n_rows // 8))
    return {"idx": idx, "weight": draw.weight(n_rows, size.D)}


def _flops(size: Size) -> int:
    return size.B * size.T * size.D


CASES = {
    "embedding.characters": Case(
        embedding, lambda size, draw: _arguments(size, draw, CHARACTERS), _flops, "BTD"
    ),
    "embedding.words": Case(embedding, lambda size, draw: _arguments(size, draw, WORDS), _flops, "BTD"),
}
