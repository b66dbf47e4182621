"""A training step of the score read-out on Beauty (r), against the way it is usually written.

Both take the same histories of 256 users and have the same loss, over all items at every place, and the same gradients.
Theirs pads a row a user, encodes every place's item anew, has the LLM's output layer run, and lays out all scores.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.harness import Row, in_turn, train_step
from bench.serving import setting
from ilm_lib.devices import device
from ilm_lib.model.ilm import ILM
from ilm_lib.sections import Score
from ilm_lib.tasks.scoring import NO_LOSS, Histories, ScoringTasks
from ilm_lib.train.score import score_loss

USERS = 256


def run(users: int = USERS, **sizes: int) -> list[Row]:
    """Row r in the precision of training, and what sampled rivals save beside it."""
    rows = []
    for tokens in (1, 4):
        world = setting(tokens=tokens, **sizes)
        ilm = world.ilm
        ilm.llm.requires_grad_(False)
        tasks = ScoringTasks(world.data, ilm.catalogue, ilm.cf.cpu(), ilm.head.prompt)
        histories = tasks.training_batches(ilm.prompts, users, seed=0)(0).to(device())
        whole, sampled = Score(sampled_above=2**31 - 1), Score()
        ours, theirs = partial(score_loss, ilm, histories, whole), partial(plain_loss, ilm, histories)
        check_equal(ilm, ours, theirs)
        a, b = in_turn(partial(train_step, ilm, ours), partial(train_step, ilm, theirs))
        words = f"{tokens} tokens an item" if tokens > 1 else "one token an item"
        rate = lambda spent: 1e3 * users / spent
        case = f"r training step of the read-out, Beauty, {users} users, {words}"
        rows.append(Row(case, rate(a), rate(b), "users/s", b / a, 1.5, main=tokens == 1))
        if world.data.num_items > sampled.sampled_above:
            a, b = in_turn(
                partial(train_step, ilm, partial(score_loss, ilm, histories, sampled)), partial(train_step, ilm, ours)
            )
            rows.append(
                Row(
                    f"r, {words}, sampled rivals against all items", rate(a), rate(b), "users/s", b / a, 1.0, main=False
                )
            )
    return rows


def check_equal(ilm: ILM, ours: partial[Tensor], theirs: partial[Tensor]) -> None:
    """Raises unless loss and gradients agree in float32."""
    found = []
    for loss in (ours, theirs):
        ilm.zero_grad(set_to_none=True)
        loss().backward()
        found.append(
            [p.grad.clone() for p in (*ilm.encoder.parameters(), *ilm.head.parameters()) if p.grad is not None]
        )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)


def plain_loss(ilm: ILM, histories: Histories) -> Tensor:
    """Mean negative log likelihood (nats) of what comes next, a padded row a user."""
    batch, head, N = histories.batch, ilm.head, ilm.prompts.num_query_tokens
    _, number = batch.slot_prompt.unique_consecutive(return_counts=True)
    B, T = len(number), int(number.max())
    inside = torch.arange(T, device=number.device)[None] < number[:, None]  # (B, T)
    item = number.new_zeros(B, T).masked_scatter(inside, batch.entities[batch.slot_entity])
    target = torch.full_like(item, NO_LOSS).masked_scatter(inside, histories.targets)

    vectors = head.learned(ilm.cf)
    tokens = ilm.encoder(vectors[item.flatten()]).view(B, T * N, -1)
    place = torch.arange(T, device=item.device).repeat_interleave(N).expand(B, -1)
    seen = inside.repeat_interleave(N, 1)
    if ilm.prompts.bos:  # before the first item
        start = ilm.llm.get_input_embeddings()(item.new_full((B, 1), ilm.prompts.bos[0]))
        tokens, place = torch.cat([start, tokens], 1), torch.cat([place[:, :1], place + 1], 1)
        seen = torch.cat([seen[:, :1], seen], 1)
    out = ilm.llm(
        inputs_embeds=tokens, attention_mask=seen.long(), position_ids=place, output_hidden_states=True, use_cache=False
    )
    states = torch.cat(out.hidden_states, -1)[:, -T * N :][:, N - 1 :: N]  # (B, T, K H), after the last of each item

    side = head.side
    states = head.norm(states.float().unflatten(-1, (head.states, -1))).flatten(-2)
    x = side.enter(states) + head.rows(vectors[item]) * head.query.out_features**0.5 + side.place.weight[:T]
    causal = torch.ones(T, T, dtype=torch.bool, device=item.device).tril() & inside[:, None, None]
    for layer in side.layers:
        x = layer(x, causal)
    table, bias = head.table(ilm.cf[: ilm.num_items])
    scores = torch.addmm(bias, head.queries(side.norm(x)).flatten(0, 1), table.T)  # (B T, I)
    return cross_entropy(scores.float(), target.flatten(), ignore_index=NO_LOSS)


if __name__ == "__main__":
    for row in run():
        print(f"{row.case}: {row.ours:.4g} / {row.theirs:.4g} {row.unit}, {row.ratio:.3f} (target {row.target})")
