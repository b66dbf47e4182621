"""Prompts, answer frames and genre phrases of the ELM-24 tasks: data only, read by `elm24.py`.

Frame slots: {kind} "1980s mystery and drama film", {a_kind} the same with its article, {genres}, {genre}, {era},
{plot} (whole sentences, cut to fill the length limit), {key} (a noun phrase of the plot), {tag}, {praise}, {flaw} and
{viewer} (phrases of its genres); with the prefix o_ the same of the second film. A frame has {plot} at most once.
"""

# name -> (inputs, longest answer in words, prompts, frames)
TASKS: dict[str, tuple[str, int, tuple[str, str, str], tuple[str, ...]]] = {
    "summary": (
        "film",
        45,
        ("Summarize the movie {film}.", "What happens in {film}?", "Give a short plot summary of {film}."),
        ("This is {a_kind}. {plot}", "{plot} It is {a_kind} marked by {tag}.", "In {a_kind}: {plot}"),
    ),
    "positive review": (
        "film",
        45,
        (
            "Write a positive review of {film}.",
            "Review {film} as someone who loved it.",
            "What would an admiring critic write about {film}?",
        ),
        (
            "A delight. {plot} With {praise}, this {kind} earns every minute.",
            "I loved the {praise} here, and {key} stayed with me for days. {plot} A rare {genre} film.",
            "Few films from {era} offer such {praise}. {plot} And {tag} adds to the pleasure.",
        ),
    ),
    "negative review": (
        "film",
        45,
        (
            "Write a negative review of {film}.",
            "Review {film} as someone who disliked it.",
            "What would a harsh critic write about {film}?",
        ),
        (
            "A disappointment. {plot} With {flaw}, this {kind} wears thin quickly.",
            "I grew tired of the {flaw}, and {key} never came alive. {plot} A weak {genre} film.",
            "Even for {era}, there is too much of the {flaw}. {plot} Not even {tag} can save it.",
        ),
    ),
    "neutral review": (
        "film",
        45,
        (
            "Write a balanced review of {film}.",
            "Review {film}, naming one strength and one weakness.",
            "Give a neutral critic's view of {film}.",
        ),
        (
            "A mixed bag. {plot} The {praise} must be weighed against {flaw} in this {kind}.",
            "On one side there is {praise}; on the other, {flaw}. {plot} A fair {genre} film from {era}.",
            "{plot} This {kind} has {praise} but also {flaw}, and lands in the middle.",
        ),
    ),
    "five pos char.": (
        "film",
        45,
        (
            "List five positive characteristics of {film}.",
            "Name five good things about {film}.",
            "What are five strengths of {film}?",
        ),
        (),
    ),
    "five neg char.": (
        "film",
        45,
        (
            "List five negative characteristics of {film}.",
            "Name five bad things about {film}.",
            "What are five weaknesses of {film}?",
        ),
        (),
    ),
    "long description": (
        "film",
        60,
        (
            "Describe the movie {film} in detail.",
            "Write a long description of {film}.",
            "Tell me everything important about {film}.",
        ),
        (
            "This is {a_kind} known for {tag}. {plot} It draws on {praise} and will suit {viewer}.",
            "{plot} As {a_kind}, it relies on {praise}, touches on {tag}, and speaks to {viewer}.",
            "Made in {era}, it belongs on the {genres} shelf and leans on {tag}. {plot} Expect {praise} throughout.",
        ),
    ),
    "funnier": (
        "film",
        45,
        (
            "Describe a funnier version of {film}.",
            "How could {film} be made funnier?",
            "Rewrite the plot of {film} as something more comic.",
        ),
        (
            "Keep the {kind}, but play it for laughs, with {key} as the running joke. {plot} Every plan now "
            "ends in farce.",
            "In the funnier version {key} goes absurdly wrong. {plot} All keep smiling, whatever the {genre} "
            "label says.",
            "{plot} This time everyone misunderstands everyone, and {key} becomes a comic disaster in {a_kind}.",
        ),
    ),
    "sadder": (
        "film",
        45,
        (
            "Describe a sadder version of {film}.",
            "How could {film} be made sadder?",
            "Rewrite the plot of {film} as something more sorrowful.",
        ),
        (
            "Keep the {kind}, but let {key} be lost for good. {plot} No one is consoled at the close.",
            "In the sadder version help never comes; {key} becomes a memory. {plot} The {genre} story turns "
            "to mourning.",
            "{plot} This time the parting is final, and {key} brings only grief to {a_kind}.",
        ),
    ),
    "scarier": (
        "film",
        45,
        (
            "Describe a scarier version of {film}.",
            "How could {film} be made scarier?",
            "Rewrite the plot of {film} as something more frightening.",
        ),
        (
            "Keep the {kind}, but let something unseen wait behind {key}. {plot} The lights go out one by one.",
            "In the scarier version {key} hides a killer. {plot} The {genre} story gives way to dread before the end.",
            "{plot} This time nobody is safe, and {key} is the first warning in {a_kind}.",
        ),
    ),
    "improve": (
        "film",
        45,
        (
            "How could {film} be improved?",
            "Suggest an improvement to {film}.",
            "What should the makers of {film} have done better?",
        ),
        (
            "Cut back the {flaw} and give more time to {key}. {plot} That thread deserves the centre of this {kind}.",
            "The {kind} would gain from less of the {flaw}. {plot} More of {tag} would lift it too.",
            "{plot} Build on {key}, keep the {praise}, and trim the {flaw} that burdens the {genre} side.",
        ),
    ),
    "movie to viewer": (
        "film",
        45,
        (
            "Describe the kind of viewer who would enjoy {film}.",
            "Who is {film} for?",
            "What sort of person would like {film}?",
        ),
        (
            "It suits {viewer}, above all those fond of {tag} in {a_kind}. {plot}",
            "Someone drawn to {genres} films from {era}, one of the {viewer}. The hook for them: {plot}",
            "The right viewer is curious about {key} and enjoys {praise}: {viewer}. {plot} A {genre} habit helps.",
        ),
    ),
    "pitch": (
        "film",
        45,
        ("Pitch the movie {film}.", "Write a studio pitch for {film}.", "How would you sell {film} to a producer?"),
        (
            "Picture {a_kind} built around {key}. {plot} Add {praise} and the seats fill themselves.",
            "{plot} Think {genres} with {tag}, made for {viewer}. We can shoot it tomorrow.",
            "The hook is {key}. {plot} It is {a_kind} with {praise}, and nobody else has it.",
        ),
    ),
    "criticize": (
        "film",
        45,
        ("Criticize the movie {film}.", "What is wrong with {film}?", "Give your strongest criticism of {film}."),
        (
            "Its main fault is {flaw}. {plot} Little of it is earned, and {key} is wasted in this {kind}.",
            "As {a_kind} it leans on {flaw}. {plot} Even {tag} feels like an afterthought.",
            "{plot} That could work, but {flaw} and a careless handling of {key} sink the {genre} side.",
        ),
    ),
    "convince1": (
        "film",
        45,
        ("Convince me to watch {film}.", "Why should I watch {film}?", "Persuade me to see {film}."),
        (
            "Watch it for {key} alone. {plot} Few {genre} films from {era} have such {praise}.",
            "If you are one of the {viewer}, this {kind} is for you. {plot} You will not regret it.",
            "{plot} If that does not tempt you, the {praise} of this {kind} will.",
        ),
    ),
    "convince2": (
        "film",
        45,
        (
            "Convince me in detail to watch {film}.",
            "Give me several good reasons to watch {film}.",
            "Make a full case for watching {film}.",
        ),
        (
            "First, it is {a_kind} with {praise}. Second, it has {tag}. Third, the story. {plot}",
            "Three reasons: {key}, {praise}, and {tag}. {plot} Together they make {a_kind} worth an evening.",
            "Start with the story. {plot} Then add {praise}, {tag}, and the charm of {genre} films from {era}.",
        ),
    ),
    "convince3": (
        "film",
        30,
        (
            "Convince me in a sentence or two to watch {film}.",
            "Briefly, why watch {film}?",
            "Give me one quick reason to watch {film}.",
        ),
        (
            "One reason is enough: {key}. {plot} See this {kind} tonight and thank me tomorrow.",
            "Come for the {praise}, stay for {key}. {plot} Truly {genre} cinema at its best.",
            "{plot} You want to know how this {kind} ends, so go and see it.",
        ),
    ),
    "dissuade1": (
        "film",
        45,
        ("Dissuade me from watching {film}.", "Why should I not watch {film}?", "Talk me out of seeing {film}."),
        (
            "Skip it unless you can bear {flaw}. {plot} You have seen better {genre} films from {era}.",
            "Unless you count yourself among the {viewer}, this {kind} will bore you. {plot} Spare yourself.",
            "{plot} If that sounds tiresome, the {flaw} of this {kind} will finish you off.",
        ),
    ),
    "dissuade2": (
        "film",
        30,
        (
            "Dissuade me in a sentence or two from watching {film}.",
            "Briefly, why avoid {film}?",
            "Give me one quick reason to skip {film}.",
        ),
        (
            "One reason is enough: {flaw}. {plot} Leave this {kind} for another night, or never.",
            "Beware of {flaw} and too little care for {key}. {plot} Hardly {genre} cinema at its best.",
            "{plot} You will not care how this {kind} ends, so stay at home.",
        ),
    ),
    "similarities": (
        "pair",
        45,
        (
            "What do {film} and {other} have in common?",
            "List the similarities between {film} and {other}.",
            "How are {film} and {other} alike?",
        ),
        (
            "{shared} The first turns on {key}, the second on {o_key}. {plot} The other answers with {o_tag}.",
            "{shared} Where one has {key}, its companion has {o_key}, to much the same end. {plot}",
        ),
    ),
    "interpolation": (
        "pair",
        45,
        (
            "Describe a movie halfway between {film} and {other}.",
            "Blend {film} and {other} into one new movie.",
            "What would a mix of {film} and {other} be like?",
        ),
        (
            "Imagine {a_kind} drifting into {o_genre}, where {key} meets {o_key}. {plot} The mood keeps {o_tag}.",
            "Halfway lies something both {genre} and {o_genre}, between {era} and {o_era}. {plot} Then comes {o_key}.",
        ),
    ),
    "why like nn": (
        "neighbour",
        45,
        (
            "Why would someone who likes {film} also like {other}?",
            "A fan of {film} is offered {other}: why?",
            "Explain why {other} is a good choice after {film}.",
        ),
        (
            "{shared} Whoever enjoyed {key} will find {o_key} as rewarding. {o_plot} It offers {o_praise} too.",
            "After the {praise} of {a_kind}, a fan meets {o_key}. {o_plot} {shared}",
        ),
    ),
    "diff than nn": (
        "neighbour",
        45,
        (
            "How does {film} differ from {other}?",
            "What sets {film} apart from {other}?",
            "Name the differences between {film} and {other}.",
        ),
        (
            "The first is {a_kind} about {key}; the second is {o_a_kind} about {o_key}. {plot}",
            "One has {tag} and {praise}, the other {o_tag} and {o_key}. {plot} That is far from {o_a_kind}.",
        ),
    ),
    "common with nn": (
        "neighbour",
        45,
        (
            "What does {film} share with its close relative {other}?",
            "Viewers of {film} often see {other}: why?",
            "Which traits do {film} and {other} share?",
        ),
        (
            "{shared} Both reach the same viewers, {viewer}, by way of {key} and {o_key}. {plot}",
            "{shared} A taste for {tag} and {o_tag} links their viewers. {plot} The other has {o_key}.",
        ),
    ),
}

# MovieLens genre, lower case -> (praise, flaw, viewer)
GENRES: dict[str, tuple[str, str, str]] = {
    "action": ("bruising set pieces", "noisy fight scenes", "thrill seekers"),
    "adventure": ("restless wanderlust", "aimless detours", "armchair travellers"),
    "animation": ("inventive drawing", "stiff character design", "lovers of drawn worlds"),
    "children's": ("childlike wonder", "sugary lessons", "families with small children"),
    "comedy": ("quick comic timing", "laboured jokes", "people who want to laugh"),
    "crime": ("streetwise detail", "glib violence", "followers of underworld tales"),
    "documentary": ("patient observation", "one-sided argument", "curious minds"),
    "drama": ("honest acting", "heavy speeches", "patient viewers of human stories"),
    "fantasy": ("rich invention", "muddled magic", "daydreamers"),
    "film-noir": ("smoky shadows", "fatalistic poses", "night owls"),
    "horror": ("creeping dread", "cheap shocks", "people who like to be frightened"),
    "musical": ("soaring numbers", "endless songs", "people who hum on the way home"),
    "mystery": ("clever clues", "contrived solutions", "amateur sleuths"),
    "romance": ("tender chemistry", "syrupy longing", "hopeless romantics"),
    "sci-fi": ("bold ideas", "cold gadgetry", "people who wonder about the future"),
    "thriller": ("tight suspense", "far-fetched twists", "viewers with strong nerves"),
    "war": ("harrowing battle scenes", "flag-waving rhetoric", "readers of military history"),
    "western": ("wide-open landscapes", "worn-out gunfights", "lovers of the frontier"),
}
ANY_GENRE = ("steady craft", "uneven pacing", "open-minded viewers")

POSITIVE = (
    "memorable faces",
    "sure-handed direction",
    "a well-judged ending",
    "lively dialogue",
    "a fitting score",
    "careful photography",
)
NEGATIVE = (
    "thin side characters",
    "clumsy direction",
    "a rushed ending",
    "flat dialogue",
    "an intrusive score",
    "drab photography",
)
