# mypy: allow-untyped-defs
"""Kernels of the banked sparse attention; see README.md.

``projected`` has queries and keys of all banks, ``(S, 2, N, d)``: row t, bank n has its query at ``n·d`` and its key at
``(N + n)·d``. An entry is one kept position of one query, number ``t·k + i``; ``source`` holds the row that it reads.
"""

import triton
import triton.language as tl

# Scores are compared as integers of the same order. Below all of them, −inf included, is an empty place; above all of
# them a score that is no number, as for ``argmax``.
EMPTY = tl.constexpr(-(2**31))
HIGHEST = tl.constexpr(2**31 - 1)
# Above all positions, with room for the number of a place in the list.
NOWHERE = tl.constexpr(2**30)


@triton.jit
def _in_order(score):
    """fp32 as int32 that compare alike; −0 equals +0."""
    score = tl.where(score == 0.0, 0.0, score)
    bits = score.to(tl.int32, bitcast=True)
    # IEEE 754 orders positive numbers like integers and negative ones the other way round.
    return tl.where(score == score, bits ^ ((bits >> 31) & 0x7FFFFFFF), HIGHEST)


@triton.jit
def _score_of(order):
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def attend(
    h,
    projected,
    bank,
    source,
    weight,
    mixed,
    n_steps,
    width,
    d_head,
    n_banks,
    n_kept,
    scale,
    KEPT: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of queries: scores against their past, the best positions, their softmax and the mean of their rows."""
    # Late queries, which have the longest past, begin first.
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    window = tl.program_id(0).to(tl.int64) * n_steps
    t = tile * QUERIES + tl.arange(0, QUERIES)
    is_query = t < n_steps
    own = tl.load(bank + window + t, mask=is_query, other=0).to(tl.int32)
    column = tl.arange(0, HEAD)
    row_width = 2 * n_banks * d_head
    q = tl.load(
        projected + (window + t)[:, None] * row_width + (own * d_head)[:, None] + column[None, :],
        mask=is_query[:, None] & (column < d_head)[None, :],
        other=0.0,
    )

    place = tl.arange(0, KEPT)[None, :]
    # Places beyond k are full of what nothing replaces. Each empty place differs from the others by its position.
    best = tl.full((QUERIES, KEPT), 0, tl.int32) + tl.where(place < n_kept, EMPTY, HIGHEST)
    position = tl.full((QUERIES, KEPT), 0, tl.int32) + NOWHERE + place
    none = tl.full((QUERIES, HEAD), 0.0, q.dtype)
    for start in range(0, tl.minimum(n_steps, (tile + 1) * QUERIES), KEYS):
        s = start + tl.arange(0, KEYS)
        is_key = s < n_steps
        keys = projected + (window + s)[None, :] * row_width + column[:, None]
        score = tl.full((QUERIES, KEYS), 0.0, tl.float32)
        for n in range(n_banks):
            key = tl.load(
                keys + (n_banks + n) * d_head, mask=(column < d_head)[:, None] & is_key[None, :], other=0.0
            )
            # A query meets its own bank's keys, and zeros the others'.
            score = tl.dot(tl.where((own == n)[:, None], q, none), key, score, input_precision=PRECISION)
        may_see = (s[None, :] <= t[:, None]) & is_query[:, None]
        order = tl.where(may_see, _in_order(score * scale), EMPTY)
        # The largest of the tile enters while it beats the worst of the list. Positions rise from tile to tile, so an
        # equal one came first and stays.
        largest, worst = tl.max(order, 1), tl.min(best, 1)
        n_to_enter = tl.sum((largest > worst).to(tl.int32), 0)
        while n_to_enter > 0:
            first = tl.min(tl.where(order == largest[:, None], s[None, :], NOWHERE), 1)
            is_worst = best == worst[:, None]
            last = tl.max(tl.where(is_worst, position, -1), 1)  # of equals the highest position goes
            enters = (largest > worst)[:, None] & is_worst & (position == last[:, None])
            best = tl.where(enters, largest[:, None], best)
            position = tl.where(enters, first[:, None], position)
            order = tl.where(s[None, :] == first[:, None], EMPTY, order)
            largest, worst = tl.max(order, 1), tl.min(best, 1)
            n_to_enter = tl.sum((largest > worst).to(tl.int32), 0)

    is_kept = (place < n_kept) & (best != EMPTY)
    kept_score = tl.where(is_kept, _score_of(best), float("-inf"))
    exponential = tl.where(is_kept, tl.exp(kept_score - tl.max(kept_score, 1)[:, None]), 0.0)
    share = exponential / tl.sum(exponential, 1)[:, None]
    # Padding weighs nothing, but 0 · inf of another row would still carry a fault to this one.
    position = tl.where(is_kept, position, t[:, None])
    entry = (window + t)[:, None] * n_kept + place
    is_entry = is_query[:, None] & (place < n_kept)
    tl.store(source + entry, (window + position).to(tl.int32), mask=is_entry)
    tl.store(weight + entry, share, mask=is_entry)

    for first_column in range(0, width, WIDTH):
        c = first_column + tl.arange(0, WIDTH)
        is_element = is_query[:, None] & (c < width)[None, :]
        total = tl.full((QUERIES, WIDTH), 0.0, tl.float32)
        for i in range(n_kept):
            row = tl.sum(tl.where(place == i, position, 0), 1)
            x = tl.load(h + (window + row)[:, None] * width + c[None, :], mask=is_element, other=0.0)
            total += tl.sum(tl.where(place == i, share, 0.0), 1)[:, None] * x
        at = mixed + (window + t)[:, None] * width + c[None, :]
        tl.store(at, total.to(mixed.dtype.element_ty), mask=is_element)


@triton.jit
def query_backward(
    h,
    projected,
    bank,
    source,
    weight,
    d_mixed,
    d_score,
    d_projected,
    key_row,
    n_tokens,
    width,
    d_head,
    n_banks,
    n_kept,
    scale,
    KEPT: tl.constexpr,
    QUERIES: tl.constexpr,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Gradients of the scores and queries of a few tokens, from their k rows each."""
    first = tl.program_id(0) * QUERIES
    number = tl.arange(0, QUERIES * KEPT)
    token, place = first + number // KEPT, number % KEPT
    is_entry = (token < n_tokens) & (place < n_kept)
    entry = token.to(tl.int64) * n_kept + place
    row = tl.load(source + entry, mask=is_entry, other=0).to(tl.int64)
    own = tl.load(bank + token, mask=is_entry, other=0)
    tl.store(key_row + entry, (row * n_banks + own).to(key_row.dtype.element_ty), mask=is_entry)

    d_weight = tl.full((QUERIES * KEPT,), 0.0, tl.float32)
    for first_column in range(0, width, WIDTH):
        c = first_column + tl.arange(0, WIDTH)
        is_element = is_entry[:, None] & (c < width)[None, :]
        x = tl.load(h + row[:, None] * width + c[None, :], mask=is_element, other=0.0).to(tl.float32)
        g = tl.load(d_mixed + token.to(tl.int64)[:, None] * width + c[None, :], mask=is_element, other=0.0)
        d_weight += tl.sum(x * g.to(tl.float32), 1)

    share = tl.load(weight + entry, mask=is_entry, other=0.0)
    through = tl.reshape(share * d_weight, (QUERIES, KEPT))
    mean = tl.broadcast_to(tl.sum(through, 1)[:, None], (QUERIES, KEPT))
    d_entry = share * (d_weight - tl.reshape(mean, (QUERIES * KEPT,))) * scale
    tl.store(d_score + entry, d_entry, mask=is_entry)

    column = tl.arange(0, HEAD)
    row_width = 2 * n_banks * d_head
    key = tl.load(
        projected + (row * row_width + (n_banks + own) * d_head)[:, None] + column[None, :],
        mask=is_entry[:, None] & (column < d_head)[None, :],
        other=0.0,
    )
    d_query = tl.sum(tl.reshape(d_entry[:, None] * key.to(tl.float32), (QUERIES, KEPT, HEAD)), 1)
    query = first + tl.arange(0, QUERIES)
    is_query = query < n_tokens
    bank_of_query = tl.load(bank + query, mask=is_query, other=0)
    at = d_projected + query.to(tl.int64)[:, None] * row_width + column[None, :]
    is_element = is_query[:, None] & (column < d_head)[None, :]
    for n in range(n_banks):
        of_bank = tl.where((bank_of_query == n)[:, None], d_query, 0.0)
        tl.store(at + n * d_head, of_bank.to(d_projected.dtype.element_ty), mask=is_element)


@triton.jit
def key_backward(
    projected,
    d_score,
    d_projected,
    entry,
    starts,
    n_keys,
    d_head,
    n_banks,
    n_kept,
    KEYS: tl.constexpr,
    READERS: tl.constexpr,
    CROWD: tl.constexpr,
    HEAD: tl.constexpr,
):
    """Gradients of a few keys, each of one position by one bank: of the queries that kept it, in their order.

    Keys with few readers are taken together, a few readers of each at a time; where one of them has many, each is taken
    alone, a crowd of readers at a time.
    """
    key = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    is_key = key < n_keys
    begin = tl.load(starts + key, mask=is_key, other=0)
    end = tl.load(starts + key + 1, mask=is_key, other=0)
    row, n = (key // n_banks).to(tl.int64), key % n_banks
    column = tl.arange(0, HEAD)
    is_column = (column < d_head)[None, :]
    row_width = 2 * n_banks * d_head
    total = tl.full((KEYS, HEAD), 0.0, tl.float32)
    longest = tl.max(end - begin, 0)
    has_crowd = longest > CROWD // 2
    for first in range(0, tl.where(has_crowd, 0, longest), READERS):
        reader = begin[:, None] + first + tl.arange(0, READERS)[None, :]
        is_reader = reader < end[:, None]
        number = tl.load(entry + reader, mask=is_reader, other=0)
        d_entry = tl.load(d_score + number, mask=is_reader, other=0.0)
        query = tl.load(
            projected
            + ((number // n_kept) * row_width + (n * d_head)[:, None])[:, :, None]
            + column[None, None, :],
            mask=is_reader[:, :, None] & is_column[None, :, :],
            other=0.0,
        )
        total += tl.sum(d_entry[:, :, None] * query.to(tl.float32), 1)
    for k in range(tl.where(has_crowd, KEYS, 0)):
        is_own = tl.arange(0, KEYS) == k
        first, last = tl.sum(tl.where(is_own, begin, 0), 0), tl.sum(tl.where(is_own, end, 0), 0)
        queries = projected + tl.sum(tl.where(is_own, n, 0), 0) * d_head + column[None, :]
        crowd = tl.full((CROWD, HEAD), 0.0, tl.float32)
        for start in range(first, last, CROWD):
            reader = start + tl.arange(0, CROWD)
            number = tl.load(entry + reader, mask=reader < last, other=0)
            d_entry = tl.load(d_score + number, mask=reader < last, other=0.0)
            inside = (reader < last)[:, None] & is_column
            query = tl.load(queries + ((number // n_kept) * row_width)[:, None], mask=inside, other=0.0)
            crowd += d_entry[:, None] * query.to(tl.float32)
        total = tl.where(is_own[:, None], tl.sum(crowd, 0)[None, :], total)
    at = d_projected + (row * row_width + (n_banks + n) * d_head)[:, None] + column[None, :]
    tl.store(at, total.to(d_projected.dtype.element_ty), mask=is_key[:, None] & is_column)


@triton.jit
def row_backward(
    d_mixed,
    weight,
    d_h_of_projection,
    d_h,
    entry,
    starts,
    n_rows,
    width,
    n_banks,
    n_kept,
    ROWS: tl.constexpr,
    READERS: tl.constexpr,
    CROWD: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Gradients of a few rows of h: of the queries that kept them, in their order, and of their own query and keys.

    A row with many readers is taken alone, as the keys are.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = row < n_rows
    c = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_column = (c < width)[None, :]
    begin = tl.load(starts + row * n_banks, mask=is_row, other=0)
    end = tl.load(starts + (row + 1) * n_banks, mask=is_row, other=0)
    at = row.to(tl.int64)[:, None] * width + c[None, :]
    is_element = is_row[:, None] & is_column
    total = tl.load(d_h_of_projection + at, mask=is_element, other=0.0).to(tl.float32)
    longest = tl.max(end - begin, 0)
    has_crowd = longest > CROWD // 2
    for first in range(0, tl.where(has_crowd, 0, longest), READERS):
        reader = begin[:, None] + first + tl.arange(0, READERS)[None, :]
        is_reader = reader < end[:, None]
        number = tl.load(entry + reader, mask=is_reader, other=0)
        share = tl.load(weight + number, mask=is_reader, other=0.0)
        g = tl.load(
            d_mixed + ((number // n_kept) * width)[:, :, None] + c[None, None, :],
            mask=is_reader[:, :, None] & is_column[None, :, :],
            other=0.0,
        )
        total += tl.sum(share[:, :, None] * g.to(tl.float32), 1)
    for r in range(tl.where(has_crowd, ROWS, 0)):
        is_own = tl.arange(0, ROWS) == r
        first, last = tl.sum(tl.where(is_own, begin, 0), 0), tl.sum(tl.where(is_own, end, 0), 0)
        crowd = tl.full((CROWD, WIDTH), 0.0, tl.float32)
        for start in range(first, last, CROWD):
            reader = start + tl.arange(0, CROWD)
            number = tl.load(entry + reader, mask=reader < last, other=0)
            share = tl.load(weight + number, mask=reader < last, other=0.0)
            inside = (reader < last)[:, None] & is_column
            g = tl.load(d_mixed + ((number // n_kept) * width)[:, None] + c[None, :], mask=inside, other=0.0)
            crowd += share[:, None] * g.to(tl.float32)
        total += tl.where(is_own[:, None], tl.sum(crowd, 0)[None, :], 0.0)
    tl.store(d_h + at, total.to(d_h.dtype.element_ty), mask=is_element)
