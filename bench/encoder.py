"""Item tokens into the prompt (a), every item encoded once (b), and a step of phase 1 (c)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from bench.harness import REPEATS, Row, compare, in_turn
from bench.peers import PeerQFormer, interleave_loop
from ilm_lib.devices import device
from ilm_lib.model.encoders import QFormerEncoder
from ilm_lib.model.kernels import interleave
from ilm_lib.model.qformer import QFormer
from ilm_lib.model.text_tower import QFormerForPhase1
from ilm_lib.settings import Phase1, QFormerParams
from ilm_lib.train import losses as o
from ilm_lib.train.phase1 import Losses

PAD, DEC = 0, 3


@dataclass(frozen=True)
class Sizes:
    """Of all three cases; `layers` x `width` and `bfloat16` are those of the Q-Former and of phase 1."""

    rows: int = 8
    positions: int = 512
    llm_width: int = 2048
    slots: int = 30
    history_rows: int = 32
    history: int = 20
    catalogue: int = 1000
    batch: int = 128
    queries: int = 8
    text: int = 32
    layers: int = 4
    width: int = 256
    vocab: int = 8000
    cf_dim: int = 64
    bfloat16: bool = False


GPU = Sizes(layers=8, width=768, bfloat16=True)


def run(sizes: Sizes | None = None, repeats: int = REPEATS) -> list[Row]:
    """Sizes of the targets; on a GPU the paper's Q-Former in bfloat16."""
    sizes = sizes or (GPU if torch.cuda.is_available() else Sizes())
    return [*tokens_into_prompt(sizes, repeats), *encode_once(sizes, repeats), *phase1_step(sizes, repeats)]


def tokens_into_prompt(sizes: Sizes, repeats: int) -> list[Row]:
    """`interleave`, forward and backward, against the loop and against index_put with all it needs laid out."""
    torch.manual_seed(0)
    B, T, H, N, S = sizes.rows, sizes.positions, sizes.llm_width, sizes.queries, sizes.rows * sizes.slots
    if sizes.slots * N > T:
        raise ValueError(f"{sizes.slots} slots of {N} tokens do not fit into {T} positions")
    row = torch.arange(B).repeat_interleave(sizes.slots)
    start = (torch.arange(sizes.slots) * (T // sizes.slots)).repeat(B)
    text, tokens = (torch.randn(*shape, device=device(), requires_grad=True) for shape in ((B, T, H), (S, N, H)))
    row, start, entity = (t.to(device()) for t in (row, start, torch.arange(S)))
    grad = torch.randn_like(text)
    where = (row[:, None].expand(-1, N), start[:, None] + torch.arange(N, device=device()))
    slots = list(zip(row.tolist(), start.tolist(), range(S)))
    both = lambda out: torch.autograd.grad(out, (text, tokens), grad)
    ours = lambda: both(interleave(text, tokens, row, start, entity))
    loop = lambda: both(interleave_loop(text, tokens, slots))
    bare = lambda: both(text.index_put(where, tokens))
    for got, wanted in zip(ours(), loop()):
        same(got, wanted, 0)
    repeated = max(5 * repeats, 1)  # milliseconds each: a neighbour's burst must not decide
    mine, theirs = in_turn(ours, bare, repeated)
    return [
        compare("a interleave, forward and backward", ours, loop, target=20, repeats=repeats),
        Row("a, against a bare index_put", mine, theirs, "ms", 1.3 * theirs / mine, 1.0, main=False),
    ]


def encode_once(sizes: Sizes, repeats: int) -> list[Row]:
    """The encoder's part of a phase-2 step: distinct items once, against every slot."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    B, S, N, H = sizes.history_rows, sizes.history, sizes.queries, sizes.llm_width // 2
    popularity = 1 / np.arange(1, sizes.catalogue + 1)
    histories = np.concatenate(
        [rng.choice(sizes.catalogue, S, replace=False, p=popularity / popularity.sum()) for _ in range(B)]
    )
    distinct, slot = np.unique(histories, return_inverse=True)
    row, start = np.repeat(np.arange(B), S), np.tile(np.arange(S) * (N + 2), B)
    entities, entity, row, start = (torch.from_numpy(x).to(device()) for x in (distinct, slot, row, start))
    encoder = QFormerEncoder(qformer(sizes), H).to(device())
    cf = torch.randn(sizes.catalogue, sizes.cf_dim, device=device())
    text = torch.randn(B, S * (N + 2), H, device=device())
    trained, grad, every = list(encoder.parameters()), torch.randn_like(text), torch.arange(B * S, device=device())

    def part(items: Tensor, index: Tensor) -> tuple[Tensor, ...]:
        with autocast(sizes):
            out = interleave(text, encoder(cf[items]), row, start, index)
        return torch.autograd.grad(out, trained, grad)

    once, plain = lambda: part(entities, entity), lambda: part(entities[entity], every)
    if not sizes.bfloat16:
        for got, wanted in zip(once(), plain()):
            same(got, wanted, 1e-4 * float(wanted.abs().max()) + 1e-5)
    case = f"b encoder's part of a step, {len(distinct)} distinct items in {B * S} slots"
    return [compare(case, once, plain, target=2, repeats=repeats)]


def phase1_step(sizes: Sizes, repeats: int) -> list[Row]:
    """ITC, ITG and ITM with backward pass and optimiser, on one batch without padding.

    Raises:
        ValueError: the losses of the two sides differ by more than 1e-4 (in float32, with the same negatives).
    """
    torch.manual_seed(0)
    ours = QFormerForPhase1(qformer(sizes), sizes.vocab).to(device())
    peer = PeerQFormer(ours).to(device())
    ids = torch.randint(DEC + 1, sizes.vocab, (sizes.batch, sizes.text))
    targets = (ids[:, 1:] != PAD).flatten().nonzero()[:, 0]
    batch = {
        "cf": torch.randn(sizes.batch, sizes.cf_dim),
        "ids": ids,
        "entity": torch.arange(sizes.batch),
        "targets": targets,
    }
    batch = {k: v.to(device()) for k, v in batch.items()}
    settings = Phase1(
        losses=("itc", "itg", "itm"), temperature_text=0.07, temperature_negatives=0.07
    )  # as BLIP-2 has it
    step = Losses(ours, settings, settings.losses, SimpleNamespace(pad=PAD, dec=DEC))
    theirs = lambda draw=None: peer.losses(
        batch["cf"], batch["ids"], batch["entity"], dec=DEC, pad=PAD, temperature=settings.temperature_text, draw=draw
    )
    with torch.no_grad():
        torch.manual_seed(1)
        got = step(batch)
        torch.manual_seed(1)
        wanted = theirs(o.hard_negatives)
    for name in wanted:
        same(got[name], wanted[name], 1e-4)
    case = f"{sizes.batch} x {sizes.text} tokens, {sizes.layers} layers of {sizes.width}"
    rows = []
    for bfloat16 in (False, True):
        pair = [
            trainer(*side, bfloat16, fused)
            for *side, fused in ((step, lambda: step(batch), True), (peer, theirs, False))
        ]  # ours as `training.fit` has it
        rows.append(
            compare(
                f"c phase-1 step, {case}, {'bfloat16' if bfloat16 else 'float32'}",
                *pair,
                target=2,
                repeats=repeats,
                main=bfloat16 == sizes.bfloat16,
            )
        )
    return rows


def trainer(
    module: nn.Module, losses: Callable[[], dict[str, Tensor]], bfloat16: bool, fused: bool
) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=fused)

    def go() -> None:
        with torch.autocast(device(), torch.bfloat16, enabled=bfloat16):
            loss = sum(losses().values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return go


def qformer(sizes: Sizes) -> QFormer:
    params = QFormerParams(
        num_query_tokens=sizes.queries,
        layers=sizes.layers,
        width=sizes.width,
        heads=max(1, sizes.width // 64),
        max_text_tokens=max(5, sizes.text),
    )
    return QFormer(params, sizes.cf_dim)


def autocast(sizes: Sizes) -> torch.autocast:
    return torch.autocast(device(), torch.bfloat16, enabled=sizes.bfloat16)


def same(got: Tensor, wanted: Tensor, tolerance: float) -> None:
    difference = float((got - wanted).abs().max())
    if not difference <= tolerance:
        raise ValueError(f"the two sides of a comparison differ by {difference:.1e} (at most {tolerance:.0e} allowed)")


if __name__ == "__main__":
    for line in run():
        print(line)
