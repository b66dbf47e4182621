"""What an LLM knows and can do apart from items: 50 facts, 16 instructions, texts; asked before and after a training.

Appendix A of the paper claims that a frozen LLM keeps what it knew. That is so by construction; what it is worth shows
beside an LLM that was trained along.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ilm_lib.model.chat import ChatTemplate
from ilm_lib.model.prompts import PromptEncoder

#: The beginning of a sentence, how it ends, and three endings that are wrong and of its kind.
FACTS: tuple[tuple[str, str, tuple[str, str, str]], ...] = (
    ("The capital of France is", " Paris", (" Rome", " Madrid", " Berlin")),
    ("The capital of Japan is", " Tokyo", (" Beijing", " Seoul", " Bangkok")),
    ("The capital of Italy is", " Rome", (" Paris", " Athens", " Vienna")),
    ("The capital of Egypt is", " Cairo", (" Tunis", " Nairobi", " Lagos")),
    ("The capital of Germany is", " Berlin", (" Munich", " Vienna", " Paris")),
    ("The capital of Russia is", " Moscow", (" Kiev", " Warsaw", " Prague")),
    ("The Eiffel Tower stands in", " Paris", (" London", " New York", " Rome")),
    ("The Great Wall was built in", " China", (" India", " Mexico", " Greece")),
    ("The pyramids of Giza are in", " Egypt", (" Peru", " Iraq", " Spain")),
    ("The longest river of South America is the", " Amazon", (" Nile", " Danube", " Ganges")),
    ("Mount Everest is the highest mountain in the", " world", (" sea", " city", " desert")),
    ("The largest ocean on Earth is the", " Pacific", (" Atlantic", " Indian", " Arctic")),
    ("The planet closest to the Sun is", " Mercury", (" Neptune", " Saturn", " Jupiter")),
    ("The largest planet of the solar system is", " Jupiter", (" Mars", " Venus", " Mercury")),
    ("The planet known for its rings is", " Saturn", (" Mars", " Venus", " Earth")),
    ("The Earth goes around the", " Sun", (" Moon", " stars", " clouds")),
    ("The Moon goes around the", " Earth", (" Sun", " stars", " clouds")),
    ("Water is made of hydrogen and", " oxygen", (" iron", " carbon", " helium")),
    ("The chemical symbol of gold is", " Au", (" Fe", " Ag", " Na")),
    ("Water freezes at zero degrees", " Celsius", (" Fahrenheit", " east", " north")),
    ("Plants make sugar from light by", " photosynthesis", (" digestion", " evaporation", " gravity")),
    ("The force that pulls things to the ground is", " gravity", (" magnetism", " friction", " light")),
    ("The heart pumps", " blood", (" air", " food", " bone")),
    ("We breathe with our", " lungs", (" hands", " ears", " bones")),
    ("Bees make", " honey", (" milk", " silk", " bread")),
    ("A spider has eight", " legs", (" wings", " tails", " noses")),
    ("Cows give", " milk", (" honey", " eggs", " silk")),
    ("A baby dog is called a", " puppy", (" kitten", " calf", " lamb")),
    ("A baby cat is called a", " kitten", (" puppy", " foal", " cub")),
    ("Penguins are birds that cannot", " fly", (" swim", " eat", " see")),
    ("The opposite of hot is", " cold", (" tall", " fast", " loud")),
    ("The opposite of up is", " down", (" left", " over", " blue")),
    ("A week has seven", " days", (" months", " hours", " years")),
    ("A year has twelve", " months", (" weeks", " days", " hours")),
    ("Two plus two is", " four", (" five", " nine", " one")),
    ("Three times three is", " nine", (" six", " two", " ten")),
    ("A triangle has three", " sides", (" wheels", " leaves", " colors")),
    ("The day after Monday is", " Tuesday", (" Friday", " Sunday", " Thursday")),
    ("The month after March is", " April", (" June", " October", " January")),
    ("Romeo and Juliet was written by William", " Shakespeare", (" Wordsworth", " Faulkner", " Blake")),
    ("The theory of relativity is by Albert", " Einstein", (" Newton", " Camus", " Schweitzer")),
    ("The first man on the Moon was Neil", " Armstrong", (" Young", " Diamond", " Simon")),
    ("The Mona Lisa was painted by Leonardo da", " Vinci", (" Milano", " Roma", " Gama")),
    ("The first president of the United States was George", " Washington", (" Bush", " Lincoln", " Adams")),
    ("The theory of evolution is by Charles", " Darwin", (" Dickens", " Chaplin", " Bronson")),
    ("The language spoken in Brazil is", " Portuguese", (" German", " Russian", " Greek")),
    ("People in Mexico speak", " Spanish", (" Dutch", " Polish", " Turkish")),
    ("The currency of Japan is the", " yen", (" dollar", " pound", " franc")),
    ("The sky on a clear day is", " blue", (" green", " brown", " pink")),
    ("Grass is", " green", (" purple", " orange", " black")),
)  # fmt: skip

_COLORS, _NUMBERS = ("red", "blue", "green", "yellow", "purple", "orange"), ("one", "two", "three", "four", "five")
_SEA = ("whale", "fish", "shark", "dolphin", "octopus", "seal", "turtle", "crab")
_FRUITS = ("apple", "banana", "orange", "grape", "mango", "berr", "pear", "peach", "kiwi", "melon", "lemon", "cherr")


def _says(*words: str, least: int = 1) -> Callable[[str], bool]:
    """Whether an answer has so many of the words, whatever their case."""
    return lambda answer: sum(word in answer.lower() for word in words) >= least


#: What is asked, and whether an answer does it.
INSTRUCTIONS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("What is the capital of France?", _says("paris")),
    ("What is two plus two?", _says("4", "four")),
    ("Name a color.", _says(*_COLORS)),
    ("Name an animal that lives in the sea.", _says(*_SEA)),
    ("Write one sentence about the sun.", _says("sun")),
    ("Write one sentence that has the word 'river' in it.", _says("river")),
    ("Translate 'good morning' to French.", _says("bonjour")),
    ("Translate 'thank you' to Spanish.", _says("gracias")),
    ("Give me a list of three fruits.", _says(*_FRUITS, least=3)),
    ("Count from one to five.", lambda answer: _says(*_NUMBERS, least=5)(answer) or _says(*"12345", least=5)(answer)),
    ("Say hello to Maria.", _says("maria")),
    ("Write a short poem about the sea.", _says("sea", "ocean", "wave")),
    ("What is the opposite of hot?", _says("cold")),
    ("How many days are in a week?", _says("7", "seven")),
    ("Who wrote Romeo and Juliet?", _says("shakespeare")),
    ("Write a haiku about snow.", _says("snow", "winter")),
)


@torch.no_grad()
def battery(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, batch_size: int = 8
) -> pd.DataFrame:
    """What an LLM gets right, and how surprised it is by texts.

    Args:
        texts: that it has not been trained on.

    Returns:
        columns measure ("perplexity", "facts", "instructions"), value, n: exp of the mean nats a token; the share of
        facts whose right ending has the highest likelihood a token (chance .25); the share of instructions followed.
        `attrs["digest"]` is the SHA-256 of the logits of all texts: equal if and only if not one number changed.
    """
    encoder, digest, nll, tokens = PromptEncoder(tokenizer, 0, 0), hashlib.sha256(), 0.0, 0
    for start in range(0, len(texts), batch_size):
        each, count = _likelihood(llm, encoder, [("", t) for t in texts[start : start + batch_size]], digest)
        nll, tokens = nll + float(each.sum()), tokens + int(count.sum())
    right = 0
    for begin, ending, wrong in FACTS:
        each, count = _likelihood(llm, encoder, [(begin, end) for end in (ending, *wrong)])
        right += int((each / count).argmin() == 0)
    followed = [check(answer) for (_, check), answer in zip(INSTRUCTIONS, _answers(llm, encoder))]
    rows = [
        ("perplexity", float(torch.tensor(nll / max(1, tokens)).exp()), tokens),
        ("facts", right / len(FACTS), len(FACTS)),
        ("instructions", sum(followed) / len(followed), len(followed)),
    ]
    table = pd.DataFrame(rows, columns=["measure", "value", "n"])
    table.attrs["digest"] = digest.hexdigest()
    return table


def _likelihood(llm, encoder: PromptEncoder, pairs: Sequence[tuple[str, str]], digest=None):
    """(B,) summed nats and number of tokens of what follows each beginning; of a text alone, of all but its first."""
    first = [encoder.bos + list(encoder.text_ids(begin)) if begin else encoder.bos for begin, _ in pairs]
    rows = [[*begin, *encoder.text_ids(end)] for begin, (_, end) in zip(first, pairs)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [encoder.pad_id] * (width - len(row)) for row in rows], device=llm.device)
    place = torch.arange(width, device=llm.device)
    real = place < torch.tensor([[len(row)] for row in rows], device=llm.device)
    logits = llm(input_ids=ids, attention_mask=real.long()).logits.float()
    if digest is not None:
        digest.update(logits[real].cpu().numpy().tobytes())
    nats = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    asked = real[:, 1:] & (place[1:] >= torch.tensor([[max(1, len(begin))] for begin in first], device=llm.device))
    return (nats * asked).sum(1), asked.sum(1)


def _answers(llm: PreTrainedModel, encoder: PromptEncoder, length: int = 48) -> list[str]:
    """Greedy answers to the instructions, in the LLM's chat template."""
    template = ChatTemplate(encoder.tokenizer)
    prompts = [template.prompt([{"role": "user", "content": asked}]) for asked, _ in INSTRUCTIONS]
    batch = encoder.batch(prompts, side="left").to(llm.device)
    out = llm.generate(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=length, do_sample=False,
        pad_token_id=encoder.pad_id, eos_token_id=template.stops,
    )  # fmt: skip
    return encoder.tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
