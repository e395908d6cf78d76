"""The test split of FactWorld's vocabulary. Nothing here occurs in the other two splits (tested)."""

from __future__ import annotations

from memr1.data.factworld_lexicon import Lexicon, Phrases

FIRST_NAMES = (
    "Amy Bruno Cora Derek Elena Fred Gwen Harriet Isaac Jane Kyle Lily Max Naomi Otto Penny Quentin Ruth "
    "Stefan Tessa Ulrich Vera Walter Yvonne Zoe Arthur Beth Chris Dora Ernest Faye Greg Holly Igor Judy Kurt "
    "Lena Miles Nancy Oliver"
)
SURNAMES = (
    "Abbott Barnes Craig Drake Emerson Frost Grant Holmes Ingram Joyce Kent Lowe Murray Nash Osborne Pierce "
    "Ramsey Stone Thorne Underwood Vaughn Wells Yates Burke Chase Cross Doyle Flynn Griffin Hardy Kirby Lane"
)
POOLS = {
    "city": "Stockholm Florence Marseille Barcelona Glasgow Salzburg Seville Brno Austin Detroit Portland "
    "Atlanta Kyoto Lagos Bogota Chennai Brisbane Ottawa Cologne Gdansk Basel Turin Oxford Tampa",
    "job": "doctor engineer mechanic barista detective musician sculptor chemist paramedic receptionist "
    "cashier dancer roofer locksmith professor programmer tutor beekeeper",
    "food": "spaghetti burgers pho tempura enchiladas fondue salmon crepes polenta biryani chowder nachos "
    "bibimbap strudel ceviche casserole",
    "drink": "cappuccino smoothies kefir horchata champagne chai mead sake vermouth rooibos",
    "car": "Tesla Saab Citroen Suzuki Dodge Jaguar Volkswagen Buick Mitsubishi Porsche",
    "instrument": "trombone bass recorder tuba harmonica bassoon lute xylophone",
    "language": "Italian Japanese Russian Norwegian Portuguese Welsh Thai Hungarian",
    "country": "Ireland Argentina Tanzania Thailand Greece Jamaica Bhutan Panama Tunisia Scotland",
    "pet": "lizard donkey hedgehog cockatoo chinchilla frog guppy goose alpaca rat",
    "hobby": "fencing woodworking badminton kayaking embroidery karate skating bowling stargazing rugby golf "
    "crochet boxing astronomy",
}
ORGS = (
    "Anchor Shipping",
    "Blossom Teas",
    "Cobalt Labs",
    "Daylight Pharma",
    "Elm Outfitters",
    "Flint Mining",
    "Gazelle Sports",
    "Hazel Catering",
    "Ivy Optics",
    "Jupiter Travel",
    "Kernel Systems",
    "Lagoon Resorts",
    "Marble Kitchens",
    "Noble Theatres",
    "Onyx Records",
    "Prairie Farms",
    "Quest Tours",
    "Ribbon Fashion",
)

PHRASES = {
    "city": Phrases(
        plain=("{n} resides in {v}.", "{n}'s address is in {v}.", "{v} is the place {n} calls home."),
        update=("{n} changed address and resides in {v}.",),
        revoke=(),
        said=(
            "As of this morning {S} can be found in {v}, with a new address.",
            "{S} settled down in {v} just today, the street is quiet.",
        ),
        changed=(
            "{P} address changed today, it is in {v} from now on.",
            "{S} could not stay in the old town and settled in {v} just today.",
        ),
        ended=(),
        again=("{P} street in {v} has the best bakery.", "{S} found a good dentist near {p} address in {v}."),
        ask=("In which city does {n} reside?", "Which city is {n}'s address in?"),
        when=("What was the date {n} settled in {v}?",),
        passing=(("{P} flight had a stopover in {v}, just two hours.", "{n} had a short stopover in {v}."),),
    ),
    "employer": Phrases(
        plain=("{n} has a post at {v}.", "{n} is on the payroll of {v}.", "{n} draws a salary from {v}."),
        update=("{n} took up a new post at {v}.",),
        revoke=("{n} gave up the post at {v}.",),
        said=("Just today {S} took up a post at {v}.", "{v} put {O} on the payroll just today."),
        changed=(
            "{S} took up another post just today, at {v}.",
            "A better salary lured {O} over to {v} just today.",
        ),
        ended=("{P} post at {v} came to an end just today.", "{S} cleared {p} desk at {v} just today, no post left."),
        again=("The salary from {v} arrived on time for {O}.", "{P} post at {v} comes with long lunches."),
        ask=("At which company does {n} have a post?", "Which company pays {n}'s salary?"),
        when=("What was the date {n} joined {v}?",),
        passing=(("{S} stood in a lift with people from {v}.", "{n} shared a lift with people from {v}."),),
        via="the firm paying {n}",
    ),
    "job": Phrases(
        plain=("{n}'s occupation is {v}.", "{n} is occupied as {av}.", "{n} has a career as {av}."),
        update=("{n} changed occupation to {v}.",),
        revoke=(),
        said=("On forms {S} write{s} {v} as occupation.", "{P} occupation is {v}, has been for ages."),
        changed=(
            "{P} occupation changed to {v} after the course.",
            "{S} gave up the former occupation to be {av}.",
        ),
        ended=(),
        again=("Everyone asks {O} for favours, such is the lot of {av}.", "{P} career as {av} goes well."),
        ask=("What occupation does {n} have?", "Which occupation is {n}'s?"),
        passing=(("{P} neighbour on the plane was {av}.", "{n} met {av} on a plane."),),
    ),
    "food": Phrases(
        plain=(
            "{n} would choose {v} over any dish.",
            "{n}'s preferred dish is {v}.",
            "Among dishes, {n} ranks {v} first.",
        ),
        update=("{n} changed preference and would choose {v}.",),
        revoke=(),
        said=("Offer {O} any dish and {S} would choose {v}.", "{P} preferred dish? {v}, without a second thought."),
        changed=(
            "{P} preferred dish changed, these days {v} wins.",
            "{S} would choose {v} over that earlier dish by now.",
        ),
        ended=(),
        again=("A good {v} recipe makes {p} week, the preferred dish.", "{S} ranked the dishes once more: {v} first."),
        ask=("Which dish would {n} choose?", "What is the preferred dish of {n}?"),
        passing=(("{P} host served {v}, one small portion.", "{n} was served {v} by a host."),),
    ),
    "drink": Phrases(
        plain=(
            "{n} would sip {v} over anything else.",
            "{n}'s preferred refreshment is {v}.",
            "Among refreshments, {n} ranks {v} first.",
        ),
        update=("{n} changed preference and would sip {v}.",),
        revoke=(),
        said=("To sip something good {S} would take {v}.", "{P} preferred refreshment? Always {v}."),
        changed=("{P} preferred refreshment changed to {v}.", "{S} would sip {v} by now, the former one is out."),
        ended=(),
        again=(
            "There goes {p} third {v} of the day, the preferred refreshment.",
            "{S} ranked refreshments: {v} first.",
        ),
        ask=("Which refreshment would {n} sip?", "What is the preferred refreshment of {n}?"),
        passing=(("The stall gave away {v}, so {S} had a sip.", "{n} had a sip of {v} at a stall."),),
    ),
    "car": Phrases(
        plain=("{n} travels by {v}.", "The {v} outside belongs to {n}.", "{n}'s set of wheels is {av}."),
        update=("{n} changed cars and travels by {v}.",),
        revoke=("{n} parted with the {v}.",),
        said=("{S} drove {av} off the lot just today.", "New wheels! {S} signed for {av} just today."),
        changed=(
            "{P} wheels changed just today, to {av}.",
            "{S} handed the former wheels back and took {av} just today.",
        ),
        ended=(
            "{S} handed the {v} over to a buyer just today.",
            "The {v} was towed off just today, no wheels for {O}.",
        ),
        again=("{P} {v} purrs along as ever.", "{S} filled up the {v} again, thirsty wheels."),
        ask=("Which car does {n} travel by?", "What wheels does {n} have?"),
        when=("What was the date {n} acquired the {v}?",),
        passing=(("{P} uncle let {O} sit in {av} for a minute.", "{n} sat in an uncle's {v}."),),
    ),
    "instrument": Phrases(
        plain=(
            "{n} is a practising {v} performer.",
            "{n}'s chosen instrument is the {v}.",
            "{n} rehearses on the {v}.",
        ),
        update=("{n} changed instrument to the {v}.",),
        revoke=("{n} quit the {v}.",),
        said=("{P} first rehearsal on the {v} was just today.", "{S} joined the band just today, on the {v}."),
        changed=(
            "The band moved {O} to the {v} just today.",
            "{S} exchanged the former instrument for the {v} just today.",
        ),
        ended=("{S} quit the {v} just today.", "{P} last rehearsal on the {v} was just today."),
        again=("{P} {v} rehearsal ran late once more.", "The band praised {p} {v} part."),
        ask=("Which instrument did {n} choose?", "What instrument does {n} rehearse on?"),
        when=("What was the date {n} started the {v}?",),
        passing=(("A shop window had {av} on sale, {S} looked.", "{n} looked at {av} in a shop window."),),
    ),
    "language": Phrases(
        plain=("{n} takes a class in {v}.", "{n}'s class is {v}.", "{n} is being taught {v}."),
        update=("{n} changed class to {v}.",),
        revoke=("{n} quit the class in {v}.",),
        said=("{P} class in {v} began just today.", "{S} sat in a {v} class for the first time just today."),
        changed=("{S} changed to the {v} class just today.", "The former class was full, so {v} it is, just today."),
        ended=("{S} quit the {v} class just today.", "{P} last {v} class was just today."),
        again=("{P} {v} class sang a song.", "{S} did the homework for the {v} class."),
        ask=("Which language is {n} being taught?", "What class does {n} take?"),
        when=("What was the date {n} began the {v} class?",),
        passing=(("The waiter hummed a song in {v} as {S} ate.", "{n} heard a song in {v}."),),
    ),
    "trip": Phrases(
        plain=("{n} intends to travel to {v}.", "{n}'s coming journey goes to {v}.", "{n}'s travel plans are for {v}."),
        update=("{n} changed travel plans to {v}.",),
        revoke=("{n} dropped the travel plans for {v}.",),
        said=("{S} reserved a journey to {v} just today.", "{P} journey to {v} was confirmed just today."),
        changed=(
            "{P} travel plans changed just today, to {v}.",
            "{S} reserved {v} just today, the former plan is off.",
        ),
        ended=("{S} dropped the {v} plans just today.", "{P} journey to {v} was called off just today."),
        again=("{P} suitcase for {v} is half packed.", "{S} counted the days to the {v} journey."),
        ask=("Which country does {n} intend to travel to?", "Where will {n}'s coming journey go?"),
        when=("What was the date {n} reserved the {v} journey?",),
        passing=(("{S} read an article on {v} in the waiting room.", "{n} read an article on {v}."),),
    ),
    "best_friend": Phrases(
        plain=(
            "{n}'s dearest friend is {v}.",
            "To {n}, the dearest friend is {v}.",
            "{n} holds dearest the friend {v}.",
        ),
        update=("{n} changed dearest friend to {v}.",),
        revoke=(),
        said=("{P} dearest friend, as you may know, is {v}.", "{S} hold{s} one friend dearest, {v}."),
        changed=("By now {p} dearest friend is {v}.", "{P} dearest friend changed, it became {v}."),
        ended=(),
        again=("{P} dearest friend is forever {v}.", "{S} baked a cake for {p} dearest friend, {v}."),
        ask=("Who is {n}'s dearest friend?", "Whom does {n} hold dearest as a friend?"),
        via="{n}'s dearest friend",
    ),
    "mentor": Phrases(
        plain=("{n} receives guidance from {v}.", "{n}'s guide is {v}.", "The one guiding {n} is {v}."),
        update=("{n} changed to guidance from {v}.",),
        revoke=("{n} gave up guidance from {v}.",),
        said=("{P} guide in all things is {v}.", "{S} receive{s} guidance from {v}."),
        changed=("{P} guide changed, it became {v}.", "By now {S} {have} guidance from {v}."),
        ended=("{S} gave up guidance from {v}.", "{P} guide until now was {v}, that stopped."),
        again=("{P} guide is forever {v}.", "{S} had a long walk with {p} guide, {v}."),
        ask=("Who is {n}'s guide?", "From whom does {n} receive guidance?"),
        via="{n}'s guide",
    ),
    "coach": Phrases(
        plain=(
            "{n} exercises under instructor {v}.",
            "{n}'s gym instructor is {v}.",
            "The gym instructor of {n} is {v}.",
        ),
        update=("{n} changed to instructor {v}.",),
        revoke=("{n} left the instructor {v}.",),
        said=("{P} gym instructor is {v}.", "At the gym {S} {have} an instructor, {v}."),
        changed=("{P} gym instructor changed, it became {v}.", "By now {p} gym instructor is {v}."),
        ended=("{S} left {p} gym instructor, {v}.", "{P} gym instructor until now was {v}, that stopped."),
        again=("{P} gym instructor is forever {v}.", "{S} stretched for an hour with {p} gym instructor, {v}."),
        ask=("Who is {n}'s gym instructor?", "Under which instructor does {n} exercise?"),
        via="{n}'s gym instructor",
    ),
    "pet": Phrases(
        plain=("{n} cares for {av}.", "{n} shares the house with {av}.", "One animal companion of {n} is {av}."),
        update=(),
        revoke=("{n} parted with the pet {v}.",),
        said=(
            "{S} welcomed {av} into the family just today.",
            "An animal companion at last, {S} chose {av} just today.",
        ),
        changed=(),
        ended=("{S} parted with the {v} just today.", "{P} {v} moved to a sanctuary just today."),
        again=("{P} {v} learned a trick, clever companion.", "Caring for the {v} is a joy to {O}."),
        ask=("Which animals does {n} care for?",),
        when=("What was the date {n} welcomed the {v}?",),
        count=("How many animals does {n} care for?",),
        passing=(("A child showed {O} a drawing of {av}.", "{n} was shown a drawing of {av}."),),
    ),
    "hobby": Phrases(
        plain=("{n} spends evenings with {v}.", "{n} devotes spare hours to {v}.", "{v} is one way {n} unwinds."),
        update=(),
        revoke=("{n} quit {v}.",),
        said=("{P} first evening of {v} was just today, and it stays.", "{S} joined a {v} club just today."),
        changed=(),
        ended=("{S} quit {v} just today.", "The {v} club lost {O} as a member just today."),
        again=("{P} {v} club had a fine evening.", "{S} unwound with {v} once more."),
        ask=("Which activities does {n} spend evenings with?",),
        when=("What was the date {n} joined the {v} club?",),
        count=("How many activities does {n} spend evenings with?",),
        passing=(("Some strangers argued about {v} while {S} queued.", "{n} overheard an argument about {v}."),),
    ),
    "org_base": Phrases(
        plain=("{n} operates out of {v}.", "{n}'s main seat is {v}.", "The main seat of {n} lies in {v}."),
        update=("{n} changed its seat and operates out of {v}.",),
        revoke=(),
        said=("The main seat of {S} lies in {v}.", "{S} operates out of {v}, I read."),
        changed=("The main seat of {S} changed to {v}.", "{S} took its main seat over to {v}."),
        ended=(),
        again=("{S} put a fountain at its main seat in {v}.", "I drove by the main seat of {S} in {v}."),
        ask=("Which city does {n} operate out of?", "In which city lies the seat of {n}?"),
    ),
}

LEXICON = Lexicon(
    first_names=tuple(FIRST_NAMES.split()),
    surnames=tuple(SURNAMES.split()),
    pools={**{name: tuple(words.split()) for name, words in POOLS.items()}, "org": ORGS},
    phrases=PHRASES,
    greetings=(
        "Look who is here! Come in.",
        "Greetings, my friend, it is cold out there.",
        "Finally we meet again, I missed our talks.",
        "Hey you, ready for some gossip?",
        "Glad you made it, traffic must be terrible.",
    ),
    chatter=(
        "Wonderful, that made my day.",
        "The sun is out at last, let us walk.",
        "Oh dear, who would have thought.",
        "My watch stopped, is it late already?",
        "I could listen to you for hours.",
        "Somebody left the window open, brr.",
        "This chair squeaks every time I move.",
        "Well said, I fully agree.",
    ),
    leads=("Hear me out.", "News from this side.", "Here is a thing.", "Almost forgot to mention.", "Surprise!"),
    tails=("Your turn.", "Can you imagine?", "So it goes.", "Now you know."),
    passing=(
        ("{S} dropped a plate in the kitchen.", "{n} dropped a plate in the kitchen."),
        ("{S} got stuck in traffic for an hour.", "{n} got stuck in traffic today."),
        ("{S} {am} in a hurry at the minute.", "{n} is in a hurry right now."),
        ("{S} mislaid {p} glasses and found them again.", "{n} mislaid a pair of glasses."),
        ("{S} {have} hiccups since breakfast.", "{n} has had hiccups since breakfast."),
    ),
)
