import pickle
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.peers import PeerQFormer, weights
from ilm_lib.model.qformer import Layer, QFormer
from ilm_lib.model.text_codec import bert_folder
from ilm_lib.model.text_tower import QFormerForPhase1
from ilm_lib.settings import Phase1, QFormerParams
from ilm_lib.train.losses import hard_negatives, itm_loss
from ilm_lib.train.phase1 import Losses


@pytest.fixture
def model(new_qformer):
    torch.manual_seed(1)
    return away_from_the_start(new_qformer())


@pytest.fixture
def inputs():
    torch.manual_seed(2)
    ids = torch.randint(5, 50, (4, 9))
    mask = torch.arange(9) < torch.tensor([[9], [6], [3], [8]])
    return torch.randn(4, 6), ids.masked_fill(~mask, 0), mask


def test_cross_attention_to_one_vector_is_full_attention_with_one_key():
    torch.manual_seed(0)
    full = nn.MultiheadAttention(12, 3, batch_first=True)
    nn.init.normal_(full.in_proj_bias)
    nn.init.normal_(full.out_proj.bias)
    layer = Layer(12, 3, cross=True, inner=24)
    layer.cross_value.load_state_dict({"weight": full.in_proj_weight[24:], "bias": full.in_proj_bias[24:]})
    layer.cross_out.load_state_dict(full.out_proj.state_dict())
    queries, item = torch.randn(2, 5, 12), torch.randn(2, 1, 12)
    seen, weights = full(queries, item, item)
    assert torch.equal(weights, torch.ones_like(weights))
    torch.testing.assert_close(layer.cross_out(layer.cross_value(item)).expand_as(seen), seen)
    seen.square().sum().backward()
    assert full.in_proj_weight.grad[:24].abs().max() < 1e-6 < full.in_proj_weight.grad[24:].abs().max()

    x = torch.randn(2, 5, 12)  # the whole layer, written out with the full attention
    q, k, v = (t.view(2, 5, 3, 4).transpose(1, 2) for t in layer.qkv(x).chunk(3, -1))
    own = (q @ k.transpose(2, 3) / 2).softmax(-1) @ v
    h = layer.norm(x + layer.out(own.transpose(1, 2).reshape(2, 5, 12)))
    torch.testing.assert_close(layer.attend(x)[0], h)
    wanted = layer.query_ffn(layer.cross_norm(h + full(h, item, item)[0]))
    torch.testing.assert_close(layer.read_item(h, item), wanted)


def test_cross_attention_to_several_keys_is_full_attention():
    torch.manual_seed(0)
    full, layer = nn.MultiheadAttention(12, 3, batch_first=True), Layer(12, 3, cross=True, inner=24, keys=4)
    nn.init.normal_(full.in_proj_bias)
    parts = (layer.cross_query, layer.cross_key, layer.cross_value)
    for part, weight, bias in zip(parts, full.in_proj_weight.chunk(3), full.in_proj_bias.chunk(3)):
        part.load_state_dict({"weight": weight, "bias": bias})
    layer.cross_out.load_state_dict(full.out_proj.state_dict())
    x, item = torch.randn(1, 5, 12), torch.randn(2, 4, 12)  # queries that are still the same for all items
    both = x.expand(2, -1, -1)
    wanted = layer.query_ffn(layer.cross_norm(both + full(both, item, item)[0]))
    torch.testing.assert_close(layer.read_item(x, item), wanted)


def test_keys_of_an_item_are_chosen_by_queries(new_qformer, inputs):
    model, (cf, ids, mask) = away_from_the_start(new_qformer(cf_keys=3)), inputs
    torch.testing.assert_close(model.qformer.queries(cf)[1:2], model.qformer.queries(cf[1:2]))
    logits = model.match(cf, ids, mask).sum() + model.generate(cf, ids, mask).sum()
    gradients = torch.autograd.grad(
        logits, [model.qformer.layers[0].cross_query.weight, model.qformer.layers[0].cross_key.weight]
    )
    assert all(float(g.abs().max()) > 1e-6 for g in gradients)


SIZES = [
    dict(layers=1),
    dict(layers=2),
    dict(layers=4),
    dict(layers=3, cross_attention_frequency=1),
    dict(contrast_dim=None),
]


def away_from_the_start(model):
    for p in model.parameters():  # zero biases and unit norms would hide a mistake
        p.data.add_(0.2 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("changes", SIZES, ids=str)
def test_every_pass_is_that_of_hugging_faces_qformer(new_qformer, inputs, changes):
    ours, (cf, ids, mask) = away_from_the_start(new_qformer(**changes)), inputs
    peer, close = PeerQFormer(ours).eval(), dict(atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(ours.qformer.queries(cf), peer.run(cf, None, None), **close)
        torch.testing.assert_close(ours.text(ids, mask)[mask], peer.run(None, ids, mask)[mask], **close)
        torch.testing.assert_close(ours.match(cf, ids, mask), peer.match_head(peer.run(cf, ids, mask)[:, 3]), **close)
        queries, told = peer.run(cf, ids, mask, causal=True).split([3, 9], 1)  # recomputes what ours keeps
        torch.testing.assert_close(ours.qformer.encode(cf)[0], queries, **close)
        logits = ours.generate(cf, ids, mask, ours.qformer.encode(cf)[1])
        torch.testing.assert_close(logits[mask], peer.logits(told)[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", SIZES, ids=str)
def test_losses_and_their_gradients_are_those_on_hugging_faces_qformer(new_qformer, inputs, changes):
    ours, (cf, ids, _) = away_from_the_start(new_qformer(**changes)), inputs
    peer, entity = PeerQFormer(ours).eval(), torch.tensor([4, 2, 9, 5])
    settings = Phase1(losses=("itc", "itg", "itm"), temperature_text=0.5, temperature_negatives=0.5)
    step = Losses(ours, settings, settings.losses, SimpleNamespace(pad=0, dec=3))
    torch.manual_seed(0)
    got = step({"cf": cf, "ids": ids, "entity": entity})
    torch.manual_seed(0)
    wanted = peer.losses(cf, ids, entity, dec=3, pad=0, temperature=0.5, draw=hard_negatives)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    sum(got.values()).backward()
    sum(wanted.values()).backward()
    known = {id(a) for a, _, _ in weights(ours, peer)}
    assert known == {id(p) for p in ours.parameters()}
    for a, rows, b in weights(ours, peer):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad[rows], b.grad, atol=1e-5, rtol=1e-4)


def test_equal_steps_of_matching_have_equal_gradients_on_two_threads():
    torch.manual_seed(0)
    params = QFormerParams(num_query_tokens=4, layers=2, width=64, heads=4, text_vocab=500)
    model = QFormerForPhase1(QFormer(params, 16), 500)
    cf, ids, row = torch.randn(48, 16), torch.randint(5, 500, (48, 40)), torch.arange(48)
    pairs = torch.cat([row, row, row * 7 % 48 // 8]), torch.cat([row, row * 5 % 48 // 8, row])  # some rows often
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        for _ in range(4):
            model.zero_grad()
            itm_loss(model.match(cf, ids, torch.ones_like(ids, dtype=torch.bool), pairs), 48).backward()
            found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], again) for again in found[1:])


def test_h_cls_alone_is_that_of_the_whole_text(model, inputs):
    _, ids, mask = inputs
    whole, alone = model.text(ids, mask)[:, 0], model.cls(ids, mask)
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=1e-5)
    leaves = [
        p
        for n, p in model.named_parameters()
        if n.startswith(("word", "position", "text_ffn", "qformer.norm", "qformer.layers"))
        and "cross" not in n
        and "query_ffn" not in n
    ]
    weight = torch.randn_like(whole)
    grads = [torch.autograd.grad((out * weight).sum(), leaves) for out in (alone, whole)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("at", [0, 3, 6])
def test_attention_at_one_position_is_that_of_all(at):
    torch.manual_seed(0)
    layer = away_from_the_start(Layer(12, 3, cross=False, inner=24))
    x, mask = torch.randn(4, 7, 12), torch.rand(4, 1, 1, 7) < 0.7
    mask[..., at] = True
    for see in (mask, None):
        torch.testing.assert_close(layer.attend_at(x, at, see), layer.attend(x, see)[0][:, at : at + 1])


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_matching_pairs_is_matching_their_rows(new_qformer, inputs, layers):
    model, (cf, ids, mask) = away_from_the_start(new_qformer(layers=layers)), inputs
    items, texts = torch.tensor([0, 1, 2, 3, 3, 0]), torch.tensor([0, 1, 2, 3, 1, 1])
    got = model.match(cf, ids, mask, (items, texts))
    torch.testing.assert_close(got, model.match(cf[items], ids[texts], mask[texts]))


def test_two_items_of_a_text_are_each_encoded_alone_and_read_together(new_qformer, inputs):
    """Against one sequence of both items' queries and the text, with the masks written out."""
    model, (cf, ids, mask) = away_from_the_start(new_qformer(layers=4)), inputs
    both = torch.stack([cf, cf.roll(1, 0)], 1)
    torch.testing.assert_close(
        model.qformer.queries(both), torch.cat([model.qformer.queries(both[:, i]) for i in (0, 1)], 1)
    )

    def joint(see):
        x = torch.cat([model.qformer.norm(model.qformer.query_tokens).repeat(4, 2, 1), model.embed(ids)], 1)
        for layer, ffn in zip(model.qformer.layers, model.text_ffn):
            first, second, text = layer.attend(x, see[:, None])[0].split([3, 3, 9], 1)
            keys = [model.qformer.item_in(both[:, i])[:, None] for i in (0, 1)]
            x = torch.cat([layer.read_item(first, keys[0]), layer.read_item(second, keys[1]), ffn(text)], 1)
        return x[:, 6:]

    all_of_it = torch.cat([torch.ones(4, 6, dtype=torch.bool), mask], 1)
    matched = joint(all_of_it[:, None].expand(4, 15, 15))
    torch.testing.assert_close(model.match(both, ids, mask), model.match_head(matched[:, 0]))
    see = all_of_it[:, None] & torch.ones(15, 15, dtype=torch.bool).tril()
    see[:, :6] = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3), torch.ones(9, 9))[:6].bool()
    told = F.linear(model.lm_norm(F.gelu(model.lm_transform(joint(see)))), model.word.weight, model.lm_bias)
    torch.testing.assert_close(model.generate(both, ids, mask)[mask], told[mask])


def test_generation_where_asked(model, inputs):
    cf, ids, mask = inputs
    at = torch.tensor([0, 5, 9, 35])
    wanted = model.generate(cf, ids, mask).flatten(0, 1)[at]
    torch.testing.assert_close(model.generate(cf, ids, mask, at=at), wanted)


def test_shapes(model, inputs):
    cf, ids, mask = inputs
    assert model.qformer.queries(cf).shape == (4, 3, 16) and model.text(ids, mask).shape == (4, 9, 16)
    assert model.generate(cf, ids, mask).shape == (4, 9, 50) and model.match(cf, ids, mask).shape == (4, 2)


def test_cross_attention_is_in_every_second_layer(new_qformer):
    assert [layer.cross for layer in new_qformer(layers=5).qformer.layers] == [True, False, True, False, True]
    assert [layer.cross for layer in new_qformer(layers=3, cross_attention_frequency=1).qformer.layers] == [True] * 3


def test_queries_depend_on_the_item_and_differ_from_each_other(model, inputs):
    out = model.qformer.queries(inputs[0])
    assert (out[0] - out[1]).abs().max() > 0.1 and (out[:, 0] - out[:, 1]).abs().min(1)[0].max() > 0
    torch.testing.assert_close(out[2:3], model.qformer.queries(inputs[0][2:3]))


def gradient(output, leaf):
    return torch.autograd.grad(output, leaf, allow_unused=True)[0]


def test_in_generation_text_sees_queries(model, inputs):
    cf, ids, mask = inputs
    logits = model.generate(cf, ids, mask)
    assert (model.generate(cf + 1, ids, mask) - logits).abs()[mask].amax(-1).min() > 1e-4
    torch.testing.assert_close(model.generate(cf + 1, ids, mask, model.qformer.encode(cf)[1]), logits)


def test_generation_is_causal(model, inputs):
    cf, ids, mask = inputs
    changed = ids.clone()
    changed[0, 5] = 5 + (ids[0, 5] - 4) % 45
    before, after = model.generate(cf, ids, mask)[0], model.generate(cf, changed, mask)[0]
    torch.testing.assert_close(before[:5], after[:5])
    assert ((before - after).abs().amax(-1)[5:] > 1e-4).all()


def test_matching_sees_text_both_ways(model, inputs):
    cf, ids, mask = inputs
    changed = ids.clone()
    changed[0, 8] = 5 + (ids[0, 8] - 4) % 45
    assert (model.match(cf, ids, mask) - model.match(cf, changed, mask))[0].abs().max() > 1e-4
    assert (model.match(cf, ids, mask) - model.match(cf + 1, ids, mask)).abs().amax(1).min() > 1e-4


def test_text_does_not_depend_on_item_or_queries(model, inputs):
    _cf, ids, mask = inputs
    out = model.text(ids, mask)
    with torch.no_grad():
        model.qformer.query_tokens.add_(1), model.qformer.item_in.weight.add_(1)
        for layer in model.qformer.layers:
            layer.query_ffn.up.weight.add_(1)
    assert torch.equal(model.text(ids, mask), out)
    assert gradient(model.text(ids, mask).sum(), model.qformer.query_tokens) is None


@pytest.mark.parametrize("tower", ["text", "generate", "match"])
def test_padding_changes_nothing(model, inputs, tower):
    cf, ids, mask = inputs
    run = (lambda c, i, m: model.text(i, m)) if tower == "text" else getattr(model, tower)
    out = run(cf, ids, mask)
    padded = run(cf, ids.masked_fill(~mask, 7), mask)  # whatever the padding's ids are
    torch.testing.assert_close(padded if tower == "match" else padded[mask], out if tower == "match" else out[mask])
    for b in range(4):
        n = int(mask[b].sum())
        alone = run(cf[b : b + 1], ids[b : b + 1, :n], mask[b : b + 1, :n])[0]
        torch.testing.assert_close(out[b] if tower == "match" else out[b, :n], alone, atol=1e-5, rtol=1e-4)


BERT = dict(width=384, heads=12, max_text_tokens=32)


@pytest.fixture(scope="module")
def no_pickle():
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
            patch.setattr(module, name, lambda *a, **k: pytest.fail("a checkpoint was unpickled"))
        yield


@pytest.mark.parametrize("layers", [2, 6])
def test_the_text_tower_starts_as_the_checkpoint(no_pickle, layers):
    from transformers import AutoTokenizer, BertModel

    folder = bert_folder("minilm")
    bert = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    text = AutoTokenizer.from_pretrained(folder)(
        ["a space film", "Amélie, a romance in Montmartre with a garden gnome"], padding=True, return_tensors="pt"
    )
    model = QFormerForPhase1(QFormer(QFormerParams(**BERT, layers=layers), 8), bert.config.vocab_size).eval()
    model.load_bert(folder)
    with torch.no_grad():
        wanted = bert(**text, output_hidden_states=True).hidden_states[layers]
        got = model.text(text["input_ids"], text["attention_mask"])
    kept = text["attention_mask"].bool()
    torch.testing.assert_close(got[kept], wanted[kept], atol=1e-4, rtol=0)
    first, text_ffn = model.qformer.layers[0], model.text_ffn[0]
    assert torch.equal(first.query_ffn.up.weight, text_ffn.up.weight)
    assert first.query_ffn.up.weight.data_ptr() != text_ffn.up.weight.data_ptr()


@pytest.mark.parametrize(
    "changes, message",
    [(dict(width=48), r"\(30522, 384\).*\(30522, 48\).*qformer.width to 384"), (dict(layers=7), "6 layers")],
)
def test_a_checkpoint_that_does_not_fit_is_refused(no_pickle, changes, message):
    model = QFormerForPhase1(QFormer(QFormerParams(**{**BERT, "layers": 1, **changes}), 8), 30522)
    with pytest.raises(ValueError, match=message):
        model.load_bert(bert_folder("minilm"))
