"""The words of seekers that speak by rules (`seekers.TemplateSeeker`): sentences with places for a fact or a film."""

from __future__ import annotations

DECADES = {
    1920: "silent era",
    1930: "thirties",
    1940: "forties",
    1950: "fifties",
    1960: "sixties",
    1970: "seventies",
    1980: "eighties",
    1990: "nineties",
    2000: "two thousands",
    2010: "last decade",
}
# By kind, how a fact stands in a sentence; the first that has no word of the title. One's own words never have one.
SAID = {
    "genre": ("a {} film", "{}"),
    "tag": ("something along the lines of {}", "a film with this: {}", "{}"),
    "plot": ("one whose story goes like this: {}", "a film in which this happens: {}", "{}"),
    "decade": ("something from the {}", "one from the {}", "{}"),
}
OPENINGS = (
    "Hi! I am looking for {fact}.",
    "Hello, can you recommend {fact}?",
    "I am in the mood for {fact} tonight.",
    "What should I watch? I would like {fact}.",
)
LIKED = (
    "I liked {film}.",
    "I really enjoyed {film}.",
    "Something like {film} would be great.",
    "My favourite is {film}.",
)
KNOWN = ("I have seen {film} already.", "{film} I know.", "{film} was fine, but I have seen it.")
NOT_THIS = ("{film} is not what I am after.", "No, not {film}.", "{film} is not for me tonight.")
MORE = ("I would rather have {fact}.", "It should be {fact}.", "Do you know {fact}?", "I was thinking of {fact}.")
LESS = ("{film} has too much {genre} for me.", "Less {genre} than {film}, please.")
OLDER = ("{film} is too new. Do you have something from the {decade}?", "{film}, no, rather one from the {decade}.")
ACCEPT = ("Yes, {film} is it, thank you!", "{film} sounds perfect.", "Great, I will watch {film}.")
NOTHING = ("Do you have anything else?", "Something else, please.", "What else is there?")
# Said where each of the others has a word of the title, "I" or "no" for instance.
SPARE = {
    OPENINGS: ("Hi, {fact}, please.", "{fact}?"),
    LIKED: ("{film} is like it.", "{film}!"),
    KNOWN: ("{film} is known here.", "{film}: seen."),
    NOT_THIS: ("Not {film}.", "Another than {film}."),
    MORE: ("Rather {fact}.", "{fact}!"),
    LESS: ("{film}: too much {genre}.", "{film}: {genre}!"),
    OLDER: ("{film}: too new, the {decade} please.", "{film}: the {decade}!"),
    ACCEPT: ("{film}!",),
    NOTHING: ("Others?", "Next!"),
}
#: How an LLM is shown to say a fact of a kind: as it is told, and in other words.
SHOTS = {
    "genre": (
        ("a comedy film", "Tonight I feel like a comedy."),
        ("a western film", "Is there a good western I could watch?"),
        ("a musical film", "I would love to see a musical."),
        ("an adventure film", "Could you find an adventure for me?"),
    ),
    "tag": (
        ("something along the lines of time travel", "I would love some time travel in it."),
        ("something along the lines of sad ending", "Is there one with a sad ending?"),
        ("something along the lines of road trip", "A road trip would be lovely."),
        ("something along the lines of based on a play", "Could it be based on a play?"),
    ),
    "plot": (
        ("two brothers inherit an old ship", "Do you know the one where two brothers inherit an old ship?"),
        ("a teacher hides a secret from his pupils", "I like it when a teacher hides a secret from his pupils."),
        ("has lost her memory after an accident", "I want to see someone who has lost her memory after an accident."),
        ("in a village far from the war", "It should happen in a village far from the war."),
    ),
    "decade": (
        ("something from the sixties", "I love what they made in the sixties."),
        ("something from the thirties", "Could it be from the thirties?"),
        ("something from the eighties", "A film of the eighties would be great."),
    ),
}
#: Words of these that belong to their facts: where they stand in a sentence about another fact, they were copied.
OF_SHOTS = (
    "comedy western musical adventure time travel sad ending road trip play brothers inherit ship teacher secret "
    "pupils memory accident village war"
)
