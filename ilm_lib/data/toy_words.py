"""The word lists and sentence frames of the toy film catalogue: data only, read by `toy.py`.

Frames use these slots: {role} and {companion} (noun phrases with an article), {name}, {place} (a phrase with
its preposition), {goal} (a bare infinitive), {event} and {secret} (clauses), {adj}, {image}. Roles fit any name.
"""

# Per genre: roles, goals, events, secrets. Only the genre matters for viewing; which phrase is drawn does not.
GENRES: dict[str, dict[str, tuple[str, ...]]] = {
    "Comedy": {
        "roles": ("hopeless salesman", "retired clown", "nervous newlywed", "vain novelist", "clumsy waiter",
                  "failed magician", "pompous mayor", "penniless aristocrat"),
        "goals": ("impress a rich uncle", "win a foolish bet", "pass for an expert", "avoid a wedding",
                  "sell a worthless map", "hide a runaway goose", "host a perfect dinner", "outwit a landlady"),
        "events": ("a case of mistaken identity gets out of hand", "three sets of twins book the same room",
                   "the wrong letter is read aloud", "a small lie becomes the talk of the town",
                   "the guest of honour turns out to be an impostor", "a parrot repeats every secret it has heard"),
        "secrets": ("everyone has been pretending", "the fortune was never more than a rumour",
                    "the dreaded inspector is an old school friend", "the bet was fixed from the start",
                    "nobody had read the invitation", "the two rivals had been married all along"),
    },
    "Drama": {
        "roles": ("grieving teacher", "proud parent", "stubborn landowner", "young nurse", "disgraced preacher",
                  "struggling painter", "former champion", "tired judge"),
        "goals": ("make peace with an estranged son", "keep the family together", "pay off an old debt",
                  "care for a dying friend", "begin again after a long illness", "raise an orphaned niece",
                  "face the end of a career", "win back a lost reputation"),
        "events": ("a sudden death divides the household", "an unpaid loan falls due", "a daughter comes home in shame",
                   "a strike splits old friends", "the drought takes what little is left",
                   "a letter from the hospital arrives"),
        "secrets": ("forgiveness costs more than pride", "the quarrel began with a lie told in kindness",
                    "the family knew all along", "a sacrifice went unnoticed for years",
                    "the old house was already sold", "the favourite child had been paying the bills"),
    },
    "Romance": {
        "roles": ("shy librarian", "restless millionaire", "travelling musician", "lonely surgeon", "young tailor",
                  "bashful gardener", "divorced pilot", "charming translator"),
        "goals": ("forget a first love", "answer an unsigned love letter", "keep a promise made at a dance",
                  "choose between two suitors", "spend one last summer alone", "marry for money",
                  "find the stranger from the station", "learn to trust again"),
        "events": ("an old sweetheart steps out of the rain", "the engagement is announced too soon",
                   "a shared umbrella leads to a week of walks", "love letters go to the wrong address",
                   "the two of them are stranded for a night", "a jealous cousin hides a telegram"),
        "secrets": ("the letters were written by somebody else", "love had been waiting next door",
                    "the rival wants only to see them happy", "parting was never what either wanted",
                    "a kiss at midnight meant more than a vow", "the ring was bought ten years ago"),
    },
    "Horror": {
        "roles": ("sleepless caretaker", "young medium", "curious student", "haunted poet", "village doctor",
                  "frightened tutor", "lapsed exorcist", "night watchman"),
        "goals": ("lay a restless spirit", "survive until dawn", "explain the marks on the door",
                  "break an inherited curse", "bury what should stay buried", "find the missing children",
                  "keep the thing in the cellar asleep", "prove the legend false"),
        "events": ("footsteps are heard in a sealed room", "the graves are found empty",
                   "something begins to answer the prayers", "the mirrors show a second face",
                   "the animals refuse to come indoors", "each night another lamp goes out"),
        "secrets": ("the dead were never gone", "the family made a bargain with the dark",
                    "the monster wears a familiar face", "the house feeds on fear",
                    "the curse passes to whoever tells of it", "no one left the first night alive"),
    },
    "Thriller": {
        "roles": ("wanted courier", "burned-out agent", "blackmailed banker", "rookie detective", "escaped convict",
                  "hunted witness", "crooked lawyer", "army deserter"),
        "goals": ("deliver a stolen dossier", "clear a framed partner", "stay ahead of a hired killer",
                  "stop a bomb before midnight", "recover the ransom", "cross the border unseen",
                  "expose a corrupt minister", "pull off one last robbery"),
        "events": ("the getaway driver is found shot", "a phone call names the next target",
                   "the money vanishes from the vault", "a double agent breaks cover",
                   "the hostage refuses to be rescued", "every exit is watched by the police"),
        "secrets": ("the order came from inside", "the witness pulled the trigger",
                    "the chase was staged to hide a bigger crime", "the partner has sold them out",
                    "there was never any bomb", "the killer has been following the wrong name"),
    },
    "Sci-Fi": {
        "roles": ("stranded engineer", "rogue scientist", "cloned soldier", "last astronaut", "android nurse",
                  "time-lost historian", "colony inspector", "memory thief"),
        "goals": ("repair a dying reactor", "warn the past about the future", "decode a signal from deep space",
                  "teach a machine to dream", "shut down a thinking computer", "find a cure for a synthetic plague",
                  "smuggle humans past the robots", "bring home a lost expedition"),
        "events": ("the same day starts over", "a second moon appears in the sky", "the robots stop taking orders",
                   "an alien probe asks for a name", "gravity fails for eleven minutes",
                   "a copy of the crew arrives on schedule"),
        "secrets": ("the experiment succeeded years ago", "earth has been empty for a century",
                    "the machine is protecting them", "their memories were written by a program",
                    "the signal came from their own future", "one of the crew was never human"),
    },
    "Adventure": {
        "roles": ("daring explorer", "runaway apprentice", "treasure diver", "old mapmaker", "bush pilot",
                  "fearless smuggler", "young stowaway", "horse trader"),
        "goals": ("find a lost city", "win a race across the desert", "rescue a captured brother",
                  "follow a torn treasure map", "return a stolen idol", "outrun a band of raiders",
                  "chart an unknown river", "claim a hidden throne"),
        "events": ("a storm wrecks the expedition", "raiders burn the only bridge", "the guide disappears with the map",
                   "a rival crew reaches the pass first", "the river rises overnight", "the compass begins to spin"),
        "secrets": ("the treasure is guarded by its rightful heirs", "the map leads back to where it began",
                    "the rival is a long-lost sister", "the lost city was never lost",
                    "courage alone opens the gate", "the idol is worth less than the journey"),
    },
    "Mystery": {
        "roles": ("eccentric sleuth", "blind piano tuner", "provincial inspector", "amnesiac traveller",
                  "gossip columnist", "suspicious heir", "quiet archivist", "retired coroner"),
        "goals": ("solve a murder nobody reported", "trace a vanished bride", "read a coded diary",
                  "learn who sent the photographs", "unmask an anonymous poet", "reopen a forgotten case",
                  "identify a nameless body", "explain a locked room"),
        "events": ("a second victim is found holding the key", "the alibi of the butler falls apart",
                   "a portrait is slashed in the night", "the will names a stranger",
                   "a page is missing from the register", "the dead man is seen buying flowers"),
        "secrets": ("the victim planned it all", "all seven suspects told the truth", "the diary was a forgery",
                    "the murder happened a day earlier", "the detective knew the dead woman",
                    "the clue was in plain sight on the wall"),
    },
}

# Motif: tag, then places. Viewers are each fond of one; 40 of them are too fine for a low-rank co-watching model.
MOTIFS: tuple[tuple[str, str, str, str], ...] = (
    ("lighthouse", "at a lighthouse on the cape", "in the tower of a light keeper", "beneath a lonely coastal beacon"),
    ("circus", "in a travelling circus", "under a patched big top", "among acrobats and lion tamers"),
    ("railway", "aboard a night train", "at a remote railway junction", "in the dining car of an express"),
    ("chess", "at a world chess tournament", "in a club of chess masters", "in the entourage of a grandmaster"),
    ("monastery", "in a mountain monastery", "among silent monks", "behind the walls of an abbey"),
    ("vineyard", "on a failing vineyard", "among the grape pickers", "in the cellars of a wine estate"),
    ("boxing", "in a run-down boxing gym", "at the edge of a prize ring", "among ageing prizefighters"),
    ("submarine", "aboard a damaged submarine", "deep below the waves in a steel hull", "among a submarine crew"),
    ("newspaper", "in the newsroom of a daily paper", "among weary reporters", "at a small-town printing press"),
    ("courtroom", "in a crowded courtroom", "on a hung jury", "among barristers at the assizes"),
    ("hospital", "on the night ward of a hospital", "in a field clinic", "among overworked surgeons"),
    ("ballet", "in a famous ballet company", "at a strict dance academy", "backstage at the swan ballet"),
    ("arctic", "at an arctic weather station", "on the polar ice", "in a hut beyond the last glacier"),
    ("desert", "with a desert caravan", "at an oasis among the dunes", "in a fort on the edge of the sands"),
    ("casino", "at the tables of a casino", "among card sharps and croupiers", "in a gambling palace"),
    ("bakery", "in a corner bakery", "beside the ovens of a pastry shop", "among rival bakers"),
    ("radio", "at a late-night radio station", "behind a studio microphone", "in the booth of a disc jockey"),
    ("mountaineering", "at a climbers' base camp", "on the north face of a great peak", "with a party of alpinists"),
    ("farm", "on a lonely wheat farm", "among hired harvest hands", "in a barn on the prairie"),
    ("university", "at an old university", "in the halls of a college", "among quarrelling professors"),
    ("theatre", "in a shabby repertory theatre", "backstage at a playhouse", "with a troupe of strolling players"),
    ("prison", "on the long corridor of a prison", "in a cell on death row", "among convicts on an island"),
    ("auction", "at a grand auction house", "among bidders for a rare painting", "in the saleroom of a dealer in art"),
    ("orchestra", "in a city orchestra", "under a tyrannical conductor", "in the second violins of a symphony"),
    ("beekeeping", "among the hives of a beekeeper", "in a valley famous for honey", "at a school for beekeepers"),
    ("motor-racing", "in the pits of a racing team", "on a grand prix circuit", "among reckless racing drivers"),
    ("whaling", "aboard a whaling ship", "in a port of whalers and harpooners", "on the trail of a white whale"),
    ("mine", "in a coal-mining village", "a mile down a flooded mine", "among miners at the pithead"),
    ("hotel", "in a faded grand hotel", "at the front desk of a seaside inn", "on the top floor of a winter hotel"),
    ("fashion", "in a Paris fashion house", "among models and dressmakers", "among the fitters of a couture show"),
    ("jazz", "in a basement jazz club", "on the road with a swing band", "beside a gifted trumpet player"),
    ("falconry", "at a school of falconry", "among hawks and their trainers", "in the mews of a royal falconer"),
    ("jungle", "deep in the rainforest", "on a slow river through the jungle", "in a rubber camp"),
    ("telephone", "at a telephone exchange", "among switchboard operators", "in a tangle of telephone cables"),
    ("zoo", "in a city zoo after hours", "among elephants and their keepers", "beside the cage of an ageing tiger"),
    ("cinema", "on the set of a doomed film", "in the projection box of a picture house", "among silent film stars"),
    ("carnival", "in a city at carnival time", "among masked revellers", "behind a parade of painted floats"),
    ("space-station", "aboard an orbiting station", "in a capsule above the clouds", "at mission control"),
    ("clockmaking", "in the workshop of a clockmaker", "among a thousand ticking clocks", "inside the town clock"),
    ("ferry", "on a river ferry", "among the deckhands of a channel crossing", "at the ferry landing in the fog"),
)

# Mood: adjectives, closing images, tags.
MOODS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "warm": (("tender", "generous", "gentle", "hopeful"),
             ("a shared meal", "a long-awaited embrace", "a light in the window", "a song everyone knows"),
             ("feel-good", "heartfelt", "uplifting")),
    "bleak": (("grim", "unforgiving", "mournful", "stark"),
              ("an empty chair", "a door left open to the snow", "a name struck from a list", "a silent walk home"),
              ("bleak", "downbeat", "sombre")),
    "playful": (("mischievous", "breezy", "sly", "giddy"),
                ("a wink at the camera", "a pie in the wrong face", "a chase through the laundry", "one more prank"),
                ("quirky", "light-hearted", "witty")),
    "tense": (("taut", "breathless", "nerve-racking", "relentless"),
              ("a ticking watch", "a hand on the trigger", "a held breath", "a car that will not start"),
              ("suspenseful", "gripping", "edge-of-seat")),
    "dreamy": (("hazy", "dreamlike", "hypnotic", "melancholy"),
               ("a street that leads nowhere", "a half-remembered waltz", "rain falling upward", "a boat without oars"),
               ("dreamlike", "surreal", "atmospheric")),
}

# "|" separates sentences. Every setup gives the name, which later sentences use.
SETUPS = (
    "{Role} named {name} finds work {place} and sets out to {goal}.",
    "{name}, {role}, spends a winter {place} and means to {goal}.",
    "Trapped {place}, {role} named {name} has one week to {goal}.",
    "Living {place} under a false name, {name} plans to {goal}.|Few suspect that the newcomer is {role}.",
    "All that {role} named {name} wants is to {goal}.|The trouble starts {place}.",
    "{name} was once {role}.|Now, {place}, the task is to {goal}.",
)
CONFLICTS = (
    "When {event}, {name} turns to {companion} for help.",
    "Then {event}, and only {companion} believes it.",
    "After {event}, {companion} offers {name} a way out.",
    "Everything changes once {event} and {companion} takes the blame.",
    "But {event}, and {name} must rely on {companion}.",
)
TURNS = (
    "Too late, {name} learns that {secret}.",
    "It is {the_companion} who discovers that {secret}.",
    "In the end {name} understands that {secret}.",
    "Nobody is ready to hear that {secret}.",
)
CLOSINGS = (
    "The {adj} finale turns on {image}.",
    "It is {adj_a} film that closes on {image}.",
    "The tone stays {adj} up to the last image, {image}.",
    "What remains is {adj} and full of feeling, down to {image}.",
)

# Facts that no viewer cares about: who the people are, and the production tags.
NAMES = ("Anna", "Marek", "Ines", "Tobias", "Clara", "Henrik", "Rosa", "Emil", "Judith", "Pavel", "Mina", "Oscar",
         "Greta", "Luca", "Nora", "Victor", "Salome", "Arthur", "Ruth", "Jonas", "Edith", "Omar", "Vera", "Felix")
COMPANIONS = ("a one-eyed sailor", "a talkative child", "an old rival", "a deaf piano teacher", "a homesick cook",
              "a runaway nun", "a gentle giant", "a cynical reporter", "a twin sister", "a disbarred lawyer",
              "a street thief", "an ageing actress", "a stray dog", "a young mechanic", "a foreign diplomat",
              "a village gossip", "a distant cousin", "a card player", "a taxi driver", "a mute fisherman")
PRODUCTION_TAGS = ("ensemble-cast", "based-on-a-novel", "voice-over", "black-and-white", "long-takes", "debut-feature",
                   "shot-on-location", "episodic", "flashbacks", "cult-favourite")

TITLE_ADJECTIVES = (
    "Silent", "Crooked", "Golden", "Distant", "Broken", "Seventh", "Hidden", "Paper", "Winter", "Burning", "Second",
    "Hollow", "Scarlet", "Wandering", "Patient", "Northern", "Borrowed", "Unquiet", "Glass", "Little", "Final",
    "Blue", "Velvet", "Iron", "Early", "Forgotten", "Salt", "Lucky",
)
TITLE_NOUNS = (
    "Harbour", "Garden", "Letter", "Crossing", "Summer", "Mirror", "Stranger", "Orchard", "Bridge", "Promise",
    "Shadow", "Season", "Road", "Window", "Feast", "Island", "Sparrow", "Visitor", "Hour", "Signal", "Inheritance",
    "Masquerade", "Lantern", "Tide", "Compass", "Daughter", "Witness", "Kingdom",
)
# One title in five takes its noun from here: a weak hint of the genre, no more.
GENRE_NOUNS = {"Comedy": "Honeymoon", "Drama": "Sorrow", "Romance": "Valentine", "Horror": "Crypt", "Thriller": "Alibi",
               "Sci-Fi": "Orbit", "Adventure": "Voyage", "Mystery": "Riddle"}
