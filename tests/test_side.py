import pytest
import torch

from ilm_lib.model.prompts import Batch
from ilm_lib.model.side import SideNetwork

WIDTH, STATES = 8, 6
OWN = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0))  # rows of the items of eight slots


def batch_of(prompt: list[int], row: list[int]) -> Batch:
    """A batch of which only the slots' prompts and rows count here."""
    slot_prompt, slot_row = (torch.tensor(numbers, dtype=torch.long) for numbers in (prompt, row))
    fields = dict.fromkeys(Batch.__dataclass_fields__)
    return Batch(**fields | {"slot_prompt": slot_prompt, "slot_row": slot_row, "packed": True})


@pytest.fixture
def side():
    torch.manual_seed(0)
    network = SideNetwork(STATES, WIDTH, layers=2, heads=2, places=5).eval()
    torch.nn.init.normal_(network.place.weight)
    return network


PACKED = [0, 0, 0, 1, 2, 2, 2, 2], [1, 1, 1, 0, 0, 0, 0, 0]  # the last two prompts share a row


def test_prompts_that_share_a_row_do_not_see_each_other(side):
    states = torch.randn(8, STATES)
    together = side(states, OWN, batch_of(*PACKED))
    for part in (slice(0, 3), slice(3, 4), slice(4, 8)):
        alone = side(states[part], OWN[part], batch_of([0] * (part.stop - part.start), [0] * (part.stop - part.start)))
        torch.testing.assert_close(together[part], alone)


def test_a_slot_sees_itself_and_what_came_before_and_its_place(side):
    states = torch.randn(8, STATES)
    before, batch = side(states, OWN, batch_of(*PACKED)), batch_of(*PACKED)
    for changed in (states, own := OWN.clone()):
        kept = changed[6].clone()
        changed[6, 0] += 1  # a norm would not see all of them rise
        moved = (side(states, own, batch) - before).abs().amax(1) > 1e-6
        assert moved.tolist() == [False] * 6 + [True] * 2
        changed[6] = kept
    same = side(states[:1].expand(8, -1), OWN[:1].expand(8, -1), batch)
    assert not torch.allclose(same[0], same[1]) and torch.allclose(same[0], same[3])


def test_its_layers_are_those_of_pytorch(side):
    states, length = torch.randn(4, STATES), 4
    own = torch.randn(length, WIDTH)
    x = (side.enter(states) + own * WIDTH**0.5 + side.place.weight[:length])[None]
    for ours in side.layers:
        theirs = torch.nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, 0.0, "gelu", norm_first=True, batch_first=True)
        names = {
            "self_attn.in_proj_weight": ours.qkv.weight, "self_attn.in_proj_bias": ours.qkv.bias,
            "self_attn.out_proj.weight": ours.out.weight, "self_attn.out_proj.bias": ours.out.bias,
            "linear1.weight": ours.up.weight, "linear1.bias": ours.up.bias,
            "linear2.weight": ours.down.weight, "linear2.bias": ours.down.bias,
            "norm1.weight": ours.norm.weight, "norm1.bias": ours.norm.bias,
            "norm2.weight": ours.norm_up.weight, "norm2.bias": ours.norm_up.bias,
        }  # fmt: skip
        theirs.load_state_dict(names)
        x = theirs(x, torch.nn.Transformer.generate_square_subsequent_mask(length), is_causal=True)
    torch.testing.assert_close(side(states, own, batch_of([0] * length, [0] * length)), side.norm(x[0]))


def test_gradients_reach_every_weight_and_no_slot_gives_no_row(side):
    side(torch.randn(8, STATES), OWN, batch_of(*PACKED)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in side.parameters())
    assert side(torch.zeros(0, STATES), torch.zeros(0, WIDTH), batch_of([], [])).shape == (0, WIDTH)
