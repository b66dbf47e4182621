"""The score read-out: recommending for many users (o), the top ten of a large catalogue (p), its loss in training (q).

o: users a second of `ILM.recommend_many`, against the constrained beam of the same model and SASRec's own top ten.
p: `top_items` for 256 queries, against one product and `topk`, and faiss where it is (`pip install faiss-cpu`).
q: the softmax over all items at 2,000 places, forward and backward, against PyTorch's cross entropy of all scores.

    python -m bench.serving    the curve of p over sizes of the catalogue and of a block
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel

from bench.harness import Row, at_least, in_turn, milliseconds, openp5_folder, peak_memory
from ilm_lib.baselines.sasrec import new_sasrec, sasrec_top_k
from ilm_lib.data import Dataset, load_openp5
from ilm_lib.data.templates import OUR_TEMPLATES
from ilm_lib.devices import device, use_bfloat16
from ilm_lib.model.backbone import new_backbone
from ilm_lib.model.encoders import MLPEncoder
from ilm_lib.model.history import HistoryPrompt
from ilm_lib.model.ilm import ILM
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.kernels import table_nll
from ilm_lib.model.prompts import Item, User
from ilm_lib.model.recommend import Recommendation
from ilm_lib.model.scoring import ScoreHead, top_items
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.sections import Readout, Score
from ilm_lib.settings import Backbone, SASRec
from ilm_lib.tasks.openp5 import RecommendationTasks

HISTORY = 20  # items of a history that are read
QUERIES, DIM, MILLION = 256, 64, 10**6
PLACES, BEAUTY = 2_000, 12_101  # of some 250 histories of Beauty; its items


def beauty() -> Dataset:
    """The real data where it is there, else sequences of as many users, items and interactions."""
    folder = openp5_folder() / "Beauty"
    return load_openp5(folder) if folder.is_dir() else synthetic(22_363, 12_101, 198_502)


def synthetic(users: int, items: int, interactions: int) -> Dataset:
    """Items by Zipf's law, lengths that vary about their mean."""
    rng = np.random.default_rng(0)
    length = 5 + rng.geometric(1 / (interactions / users - 4), users) - 1
    sequences = (rng.zipf(1.3, int(length.sum())) % items).astype(np.int32)
    return Dataset(
        "Synthetic", [f"u{u}" for u in range(users)], [f"i{i}" for i in range(items)], sequences,
        np.cumsum([0, *length]), np.arange(users) + 1, np.arange(items) + 1001,
        [{"title": f"Thing {i}"} for i in range(items)], {}, {},
    )  # fmt: skip


@dataclass(frozen=True)
class World:
    """Models of random weights over the same data, and who asks them."""

    data: Dataset
    ilm: ILM
    sasrec: GPT2LMHeadModel
    users: np.ndarray

    def ours(self, readout: Readout, users: int) -> list[list[Recommendation]]:
        asked = self.users[:users]
        histories = [[Item(int(i)) for i in self.data.history(u, "test")[-HISTORY:]] for u in asked]
        return self.ilm.recommend_many([User(int(u)) for u in asked], histories, readout=readout)

    def theirs(self) -> np.ndarray:
        return sasrec_top_k(self.sasrec, self.data, "test", 10, exclude=True, users=self.users)


def setting(
    data: Dataset | None = None, users: int = 1024, tokens: int = 4, layers: int = 3, width: int = 128
) -> World:
    """As profile beauty has it: an LLM of 3 layers x 128, SASRec of 2 layers x 64 and of as long histories."""
    data = data or beauty()
    tasks = RecommendationTasks(
        data, OUR_TEMPLATES, Indexing("Beauty", data.user_index, data.item_index), history_max=HISTORY
    )
    tokenizer = train_tokenizer(tasks.corpus(200), 1000)
    torch.manual_seed(0)
    llm = new_backbone(Backbone(layers=layers, width=width, heads=4), tokenizer, max_length=1024)
    encoder = MLPEncoder(64, width, tokens)
    cf = torch.randn(data.num_items + data.num_users, 64)
    sizes = Score()
    side = {"layers": sizes.side_layers, "heads": sizes.side_heads}
    shown = HistoryPrompt(history_max=HISTORY)
    head = ScoreHead(width, 64, data.num_items, states=layers + 1, side=side, dim=sizes.dim, prompt=shown)
    ilm = ILM(llm, tokenizer, encoder, cf, data.num_items, tasks.catalogue(), "slot", None, head).eval()
    sasrec = new_sasrec(data.num_items, SASRec(max_length=HISTORY)).eval()
    asked = np.random.default_rng(0).permutation(data.num_users)[:users]
    return World(data, ilm.to(device()), sasrec.to(device()), asked)


def run(items: int = MILLION, by_beam: int = 32, **sizes: Any) -> list[Row]:
    """Rows of o, p and q, with their side conditions."""
    return [*users_a_second(by_beam, **sizes), *catalogue(items), *training(min(items, BEAUTY))]


def users_a_second(by_beam: int, **sizes: Any) -> list[Row]:
    """Rows of o, with four tokens an item and with one; a few users are enough to time the beam by."""
    rows = []
    for tokens, words in ((4, "4 tokens an item"), (1, "one token an item")):
        world = setting(tokens=tokens, **sizes)
        users, score = len(world.users), partial(world.ours, "score", len(world.users))
        spent, sasrec = in_turn(score, world.theirs)
        rate = 1e3 * users / spent
        if tokens == 4:
            rows.append(at_least(f"o score read-out, Beauty, {words}", rate, 500, "users/s"))
            again, beam = in_turn(score, partial(world.ours, "beam", by_beam), 3)
            rates = 1e3 * users / again, 1e3 * by_beam / beam
            rows.append(Row(f"o, {words}, against the beam", *rates, "users/s", rates[0] / rates[1], 5.0, main=False))
        rows.append(Row(f"o, {words}, against SASRec", rate, 1e3 * users / sasrec, "users/s", sasrec / spent, 0.25,
                        main=False))  # fmt: skip
    return rows


def queries_and_table(items: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(*shape, device=device()) for shape in ((QUERIES, DIM), (items, DIM), (items,)))


def at_once(queries: Tensor, table: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """What `top_items` gives, from one matrix of scores."""
    scores = torch.addmm(bias, queries, table.T)
    best, items = scores.topk(10)
    return items, best - scores.logsumexp(1)[:, None]


def faiss_search(queries: Tensor, table: Tensor, bias: Tensor) -> Any:
    """A function that has faiss look through all items; the bias is one number more of each."""
    faiss: Any = importlib.import_module("faiss")  # not among what the project installs
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(DIM + 1)
    index.add(torch.cat([table, bias[:, None]], 1).cpu().numpy())
    asked = torch.cat([queries, torch.ones(len(queries), 1, device=queries.device)], 1).cpu().numpy()
    return partial(index.search, asked, 10)


def catalogue(items: int) -> list[Row]:
    """Rows of p; all sides find the same items."""
    given = queries_and_table(items)
    ours, theirs = partial(top_items, *given, 10), partial(at_once, *given)
    same(ours()[0], theirs()[0])
    a, b = in_turn(ours, theirs, 3)
    rows = [Row("p top ten of a million items", a, b, "ms", b / a, 1.0)]
    if importlib.util.find_spec("faiss"):
        search = faiss_search(*given)
        same(ours()[0], torch.from_numpy(search()[1]))
        a, b = in_turn(ours, search, 3)
        rows.append(Row("p, against faiss, flat", a, b, "ms", b / a, 1.0, main=False))
    if items == MILLION:
        a, b, table = (peak_memory(f"bench.serving:once_{side}") for side in ("ours", "at_once", "table"))
        rows.append(Row("p, peak memory beside the table", a - table, b - table, "MiB", (b - table) / (a - table), 4.0,
                        main=False))  # fmt: skip
    return rows


def places_and_table(items: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, table and biases that learn, in the precision of training, and targets."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if use_bfloat16("auto") else torch.float32
    learn = lambda *shape: (torch.randn(*shape, device=device()) / DIM**0.5).to(dtype).requires_grad_()
    return learn(PLACES, DIM), learn(items, DIM), learn(items), torch.randint(items, (PLACES,), device=device())


def blocked_loss(queries: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return gradient(table_nll(queries, table, bias, targets), table)


def whole_loss(queries: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    return gradient(cross_entropy(torch.addmm(bias, queries, table.T).float(), targets), table)


def gradient(loss: Tensor, table: Tensor) -> Tensor:
    table.grad = None
    loss.backward()
    assert table.grad is not None
    return table.grad


def training(items: int) -> list[Row]:
    """Rows of q; both sides find the same gradient."""
    given = places_and_table(items)
    ours, theirs = partial(blocked_loss, *given), partial(whole_loss, *given)
    torch.testing.assert_close(ours().clone(), theirs(), rtol=0.05, atol=0.02 / PLACES)
    a, b = in_turn(ours, theirs)
    rows = [Row("q loss over all items of Beauty, 2,000 places", a, b, "ms", b / a, 1.5)]
    if items == BEAUTY:
        a, b, given = (peak_memory(f"bench.serving:once_{side}") for side in ("blocked", "whole", "places"))
        rows.append(Row("q, peak memory beside the table", a - given, b - given, "MiB", (b - given) / (a - given), 4.0,
                        main=False))  # fmt: skip
    return rows


def same(a: Tensor, b: Tensor) -> None:
    """Raises unless nearly all items agree; those whose scores are equal but for rounding may change places."""
    if (share := (a.cpu() == b.cpu()).float().mean().item()) < 0.999:
        raise AssertionError(f"only {share:.1%} of the items found are the same")


def once_ours() -> None:
    top_items(*queries_and_table(MILLION), 10)


def once_blocked() -> None:
    blocked_loss(*places_and_table(BEAUTY))


def once_whole() -> None:
    whole_loss(*places_and_table(BEAUTY))


def once_places() -> None:
    places_and_table(BEAUTY)


def once_at_once() -> None:
    at_once(*queries_and_table(MILLION))


def once_table() -> None:
    queries_and_table(MILLION)


def curve() -> None:
    """Print milliseconds over sizes."""
    for items in (10**4, 10**5, 10**6):
        given = queries_and_table(items)
        sides = {"default": partial(top_items, *given, 10), "at once": partial(at_once, *given)}
        sides |= {f"block {1 << e}": partial(top_items, *given, 10, block=1 << e) for e in range(10, 18)}
        if importlib.util.find_spec("faiss"):
            sides["faiss"] = faiss_search(*given)
        for call in sides.values():
            call()
        times = {name: min(milliseconds(call) for _ in range(3)) for name, call in sides.items()}
        print(items, {name: round(spent, 1) for name, spent in times.items()}, flush=True)


if __name__ == "__main__":
    curve()
