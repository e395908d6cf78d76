"""The training split of FactWorld's vocabulary. Nothing here occurs in the other two splits (tested)."""

from __future__ import annotations

from memr1.data.factworld_lexicon import Lexicon, Phrases

FIRST_NAMES = (
    "Mara Tom Alice Ben Clara David Emma Frank Grace Henry Irene Jack Karen Leo Mary Nathan Olivia Paul Rachel "
    "Simon Tina Victor Wendy Adam Bella Carl Diana Eric Fiona George Helen Ivan Julia Kevin Laura Martin Nora "
    "Oscar Peter Rosa"
)
SURNAMES = (
    "Baker Carter Cooper Fisher Foster Gardner Harper Hunter Mason Miller Parker Porter Potter Sawyer Taylor "
    "Turner Walker Weaver Wright Becker Lindqvist Archer Barber Brewer Butler Chandler Cook Draper Farmer "
    "Fletcher Glover Hooper"
)
POOLS = {
    "city": "Oslo Rome Paris Madrid Dublin Vienna Lisbon Prague Boston Chicago Denver Seattle Tokyo Cairo Lima "
    "Delhi Sydney Toronto Berlin Athens Warsaw Geneva Naples Bristol",
    "job": "nurse teacher plumber lawyer chef pilot dentist florist carpenter librarian journalist translator "
    "electrician photographer accountant vet architect zookeeper",
    "food": "lasagne sushi ramen pizza curry tacos paella risotto dumplings falafel goulash pancakes chili "
    "gnocchi kebab noodles",
    "drink": "coffee lemonade cocoa cider espresso cola milkshakes sangria punch eggnog",
    "car": "Volvo Ford Toyota Fiat Honda Audi Jeep Renault Mazda Kia",
    "instrument": "piano guitar violin flute trumpet harp drums cello",
    "language": "Spanish German Polish Greek Korean Arabic Swedish Dutch",
    "country": "Iceland Peru Kenya Japan Malta Cuba Nepal Chile Morocco Canada",
    "pet": "cat dog parrot hamster rabbit turtle goldfish pony canary gecko",
    "hobby": "hiking chess pottery knitting fishing painting cycling yoga baking sailing archery singing "
    "climbing photography",
}
ORGS = (
    "Acorn Foods",
    "Bluebird Books",
    "Cedar Bank",
    "Delta Airways",
    "Echo Radio",
    "Falcon Motors",
    "Granite Press",
    "Harbor Insurance",
    "Ivory Films",
    "Juniper Toys",
    "Kestrel Energy",
    "Lantern Games",
    "Maple Furniture",
    "Nimbus Software",
    "Orchard Hotels",
    "Pebble Phones",
    "Quartz Watches",
    "River Logistics",
)

PHRASES = {
    "city": Phrases(
        plain=(
            "{n} lives in {v}.",
            "{v} is where {n} lives.",
            "The home of {n} is in {v}.",
            "{n} is settled in {v}.",
            "{n} has a flat in {v}.",
        ),
        update=("{n} now lives in {v}.", "{n} has moved to {v}.", "The new home of {n} is in {v}."),
        revoke=(),
        said=(
            "{S} moved to {v} today and the flat is lovely.",
            "Boxes everywhere! {S} moved into a place in {v} today.",
        ),
        changed=(
            "{S} packed up again and moved to {v} today.",
            "Another move: {S} left the old flat and settled in {v} today.",
        ),
        ended=(),
        again=("Living in {v} still suits {O} nicely.", "{S} still enjoy{s} quiet evenings at home in {v}."),
        ask=("Where does {n} live?", "Which city does {n} live in?"),
        when=("When did {n} move to {v}?",),
        passing=(
            ("{S} took the train to {v} for a meeting, back by dinner.", "{n} is in {v} for a meeting today."),
            ("{S} changed trains in {v} today.", "{n} changed trains in {v}."),
        ),
    ),
    "employer": Phrases(
        plain=(
            "{n} works at {v}.",
            "{v} is where {n} works.",
            "The employer of {n} is {v}.",
            "{n} has a job at {v}.",
            "{n} is on the team at {v}.",
        ),
        update=("{n} now works at {v}.", "{n} has switched jobs to {v}.", "The new employer of {n} is {v}."),
        revoke=("{n} no longer works at {v}.", "{n} has left {v}.", "{n} stopped working at {v}."),
        said=("{S} started working at {v} today.", "First day done: {S} joined {v} today."),
        changed=(
            "{S} switched companies and started at {v} today.",
            "New badge, new desk: {S} changed jobs and joined {v} today.",
        ),
        ended=("{S} handed in the keys and left {v} today.", "It is over with {v}, {S} quit today."),
        again=("Things at {v} keep {O} busy at work.", "{S} still like{s} the people at work over at {v}."),
        ask=("Where does {n} work?", "Which company does {n} work at?"),
        when=("When did {n} start working at {v}?",),
        passing=(
            ("{S} walked past the {v} office this morning.", "{n} walked past the {v} office."),
            ("{S} read an article about {v} over breakfast.", "{n} read an article about {v}."),
        ),
        via="the company where {n} works",
    ),
    "job": Phrases(
        plain=(
            "{n} works as {av}.",
            "The job of {n} is {v}.",
            "{n} earns a living as {av}.",
            "{n} is {av}.",
            "{n} has the job of {av}.",
        ),
        update=("{n} now works as {av}.", "{n} has become {av}.", "The new job of {n} is {v}."),
        revoke=(),
        said=("{S} make{s} a living as {av}, in case you wondered.", "{P} job? Working as {av}."),
        changed=("{S} retrained and now work{s} as {av}.", "{P} old job is history, {S} became {av}."),
        ended=(),
        again=("Being {av} is tiring work for {O} lately.", "Some days as {av} are long, {S} said so before."),
        ask=("What is the job of {n}?", "What does {n} work as?"),
        passing=(
            ("{S} had a long chat with {av} on the bus.", "{n} chatted with {av} on the bus."),
            ("{S} asked {av} for directions today.", "{n} asked {av} for directions."),
        ),
    ),
    "food": Phrases(
        plain=(
            "{n}'s favourite food is {v}.",
            "{n} likes {v} more than any other food.",
            "The favourite dish of {n} is {v}.",
            "{n} prefers {v} to other food.",
            "For {n} the best food is {v}.",
        ),
        update=(
            "{n}'s favourite food is now {v}.",
            "{n} has come to like {v} best of all food.",
            "The new favourite food of {n} is {v}.",
        ),
        revoke=(),
        said=("{P} favourite food has to be {v}.", "If {S} could eat one dish forever, it would be {v}."),
        changed=(
            "{P} taste has changed, the favourite food is {v} now.",
            "Forget the old favourite, {S} prefer{s} {v} to any food now.",
        ),
        ended=(),
        again=("{v} again! It stays {p} favourite food.", "You know {O}, nothing beats a plate of {v}."),
        ask=("What is {n}'s favourite food?", "Which food does {n} like best?"),
        passing=(
            ("Lunch was {v} for {O}, nothing special.", "{n} had {v} for lunch today."),
            ("A stall gave {O} some {v} to try.", "{n} tried {v} at a market stall."),
        ),
    ),
    "drink": Phrases(
        plain=(
            "{n}'s favourite drink is {v}.",
            "{n} likes {v} more than any other drink.",
            "The drink {n} likes best is {v}.",
            "{n} prefers {v} to other drinks.",
            "For {n} the best drink is {v}.",
        ),
        update=(
            "{n}'s favourite drink is now {v}.",
            "{n} has come to like {v} best of all drinks.",
            "The new favourite drink of {n} is {v}.",
        ),
        revoke=(),
        said=("{P} favourite drink is {v}, by far.", "{v} is the drink {S} like{s} best."),
        changed=(
            "{P} favourite drink is {v} now, not the old one.",
            "{S} changed favourites: {v} is the best drink now.",
        ),
        ended=(),
        again=("Hand {O} {v} and the day is saved, still the best drink.", "Yes, {v} remains {p} favourite drink."),
        ask=("What is {n}'s favourite drink?", "Which drink does {n} like best?"),
        passing=(
            ("They only had {v} left, so {S} took it.", "{n} ordered {v} at a cafe today."),
            ("Someone spilled {v} on {p} coat today.", "{n} got {v} spilled on a coat."),
        ),
    ),
    "car": Phrases(
        plain=(
            "{n} drives {av}.",
            "The car of {n} is {av}.",
            "{n} gets around in {av}.",
            "{n} owns {av}, the car.",
            "{n} has {av} in the garage.",
        ),
        update=("{n} now drives {av}.", "{n} has swapped cars and drives {av}.", "The new car of {n} is {av}."),
        revoke=("{n} no longer drives {av}.", "{n} has sold the {v}.", "{n} got rid of the {v}."),
        said=("{S} bought {av} today.", "The car dealer was kind: {S} came home with {av} today."),
        changed=("{S} traded in the old car for {av} today.", "Car news: {S} swapped to {av} today."),
        ended=("{S} sold the {v} today, no car for now.", "The {v} is gone, {S} gave it away today."),
        again=("The {v} still starts every morning for {O}.", "{S} washed the {v} again, that car shines."),
        ask=("Which car does {n} drive?", "What make of car does {n} drive?"),
        when=("When did {n} buy the {v}?",),
        passing=(
            ("{S} got a lift in {av} this morning.", "{n} got a lift in {av}."),
            ("{S} parked beside {av} at the market.", "{n} parked beside {av}."),
        ),
    ),
    "instrument": Phrases(
        plain=(
            "{n} plays the {v}.",
            "The instrument of {n} is the {v}.",
            "The {v} is what {n} plays.",
            "{n} has taken up the {v} as an instrument.",
            "{n} makes music with the {v}.",
        ),
        update=("{n} now plays the {v}.", "{n} has switched to the {v}.", "The new instrument of {n} is the {v}."),
        revoke=("{n} no longer plays the {v}.", "{n} has given up the {v}.", "{n} stopped playing the {v}."),
        said=("{S} took up the {v} today.", "Sorry for the noise, {S} started playing the {v} today."),
        changed=("{S} put the old instrument away and took up the {v} today.", "{S} switched to the {v} today."),
        ended=("{S} gave up the {v} today.", "No more music, {S} stopped playing the {v} today."),
        again=("{S} practised the {v} again last night.", "The neighbours know {O} by the {v} by now."),
        ask=("Which instrument does {n} play?", "What does {n} play?"),
        when=("When did {n} take up the {v}?",),
        passing=(
            ("{S} heard a fine {v} solo on the street.", "{n} heard a street musician play the {v}."),
            ("{S} saw {av} in a shop window.", "{n} saw {av} in a shop window."),
        ),
    ),
    "language": Phrases(
        plain=(
            "{n} is learning {v}.",
            "{v} is the language {n} is learning.",
            "{n} takes lessons in {v}.",
            "{n} takes a course in {v}.",
            "{n} is working on {v}, the language.",
        ),
        update=("{n} is now learning {v}.", "{n} has switched to learning {v}.", "The new language of {n} is {v}."),
        revoke=("{n} is no longer learning {v}.", "{n} has given up the lessons in {v}.", "{n} stopped learning {v}."),
        said=("{S} started learning {v} today.", "First lesson done, {S} began with {v} today."),
        changed=(
            "{S} dropped the other language and began {v} today.",
            "New textbook: {S} switched to {v} lessons today.",
        ),
        ended=("{S} gave up on learning {v} today.", "No more {v} lessons, {S} stopped today."),
        again=("{P} {v} lessons are going fine.", "{S} repeated {v} words all evening."),
        ask=("Which language is {n} learning?", "What language is {n} learning?"),
        when=("When did {n} start learning {v}?",),
        passing=(
            ("{S} watched a film in {v} and understood nothing.", "{n} watched a film in {v}."),
            ("The people next to {O} on the train spoke {v}.", "{n} heard people speak {v} on the train."),
        ),
    ),
    "trip": Phrases(
        plain=(
            "{n} is planning a trip to {v}.",
            "{v} is where {n} will travel.",
            "{n} has a trip to {v} coming up.",
            "{n} means to travel to {v}.",
            "{n} has booked a trip to {v}.",
        ),
        update=(
            "{n} is now planning a trip to {v}.",
            "{n} has changed the destination to {v}.",
            "The new destination of {n} is {v}.",
        ),
        revoke=(
            "{n} is no longer planning a trip to {v}.",
            "{n} has cancelled the trip to {v}.",
            "The trip of {n} to {v} is off.",
        ),
        said=("{S} booked a trip to {v} today.", "Suitcase out! {S} booked flights to {v} today."),
        changed=(
            "{S} rebooked the holiday, {v} it is as of today.",
            "Change of plan: {S} booked {v} in its place today.",
        ),
        ended=("{S} cancelled the trip to {v} today.", "The {v} holiday is off, {S} cancelled today."),
        again=("{S} keep{s} reading guides for the {v} trip.", "The trip to {v} cannot come soon enough for {O}."),
        ask=("Where is {n} planning to travel?", "Which country is {n} planning to visit?"),
        when=("When did {n} book the trip to {v}?",),
        passing=(
            ("{S} saw a nice programme about {v} on television.", "{n} saw a programme about {v}."),
            ("{S} met a tourist from {v} this morning.", "{n} met a tourist from {v}."),
        ),
    ),
    "best_friend": Phrases(
        plain=(
            "{n}'s best friend is {v}.",
            "{n} has {v} as a best friend.",
            "The best friend of {n} is {v}.",
            "{n} calls {v} the best friend of all.",
            "{v} is the best friend of {n}.",
        ),
        update=(
            "{n}'s best friend is now {v}.",
            "{n} has found a new best friend in {v}.",
            "The new best friend of {n} is {v}.",
        ),
        revoke=(),
        said=("{P} best friend is {v}.", "The best friend {S} {have} is {v}."),
        changed=("{P} best friend these days is {v}.", "Friendships shift, {p} best friend is now {v}."),
        ended=(),
        again=("{P} best friend is still {v}, no doubt.", "{S} laughed all day with {p} best friend, {v}."),
        ask=("Who is {n}'s best friend?", "Who is the best friend of {n}?"),
        via="{n}'s best friend",
    ),
    "mentor": Phrases(
        plain=(
            "{n}'s mentor is {v}.",
            "{n} has {v} as a mentor.",
            "The mentor of {n} is {v}.",
            "{n} is mentored by {v}.",
            "{v} is the mentor of {n}.",
        ),
        update=("{n}'s mentor is now {v}.", "{n} has changed mentors and has {v}.", "The new mentor of {n} is {v}."),
        revoke=(
            "{n}'s mentor is no longer {v}.",
            "{n} has ended the mentoring with {v}.",
            "{v} stopped being the mentor of {n}.",
        ),
        said=("{P} mentor is {v}.", "The mentor who guides {O} is {v}."),
        changed=("{P} new mentor is {v}.", "{S} asked for another mentor and got {v}."),
        ended=("{P} mentor is not {v} any more.", "{S} ended the mentoring with {v}."),
        again=("{P} mentor is still {v}, luckily.", "{S} got good advice from {p} mentor, {v}."),
        ask=("Who is {n}'s mentor?", "Who is the mentor of {n}?"),
        via="{n}'s mentor",
    ),
    "coach": Phrases(
        plain=(
            "{n}'s fitness coach is {v}.",
            "{n} has {v} as a fitness coach.",
            "The fitness coach of {n} is {v}.",
            "{n} is coached by {v}.",
            "{v} is the fitness coach of {n}.",
        ),
        update=(
            "{n}'s fitness coach is now {v}.",
            "{n} has changed coaches and has {v}.",
            "The new fitness coach of {n} is {v}.",
        ),
        revoke=(
            "{n}'s fitness coach is no longer {v}.",
            "{n} has ended the coaching with {v}.",
            "{v} stopped being the coach of {n}.",
        ),
        said=("{P} fitness coach is {v}.", "{S} work{s} out with a coach, namely {v}."),
        changed=("{P} new fitness coach is {v}.", "{S} changed fitness coaches, this time it is {v}."),
        ended=("{P} fitness coach is not {v} any more.", "{S} ended the coaching with {v}."),
        again=("{P} fitness coach is still {v}.", "{S} sweated a lot with {p} coach, {v}."),
        ask=("Who is {n}'s fitness coach?", "Who is the fitness coach of {n}?"),
        via="{n}'s fitness coach",
    ),
    "pet": Phrases(
        plain=(
            "{n} owns {av}.",
            "{n} has {av} as a pet.",
            "There is {av} at {n}'s home.",
            "{n} is known to own {av}.",
            "One pet of {n} is {av}.",
        ),
        update=(),
        revoke=("{n} no longer owns {av}.", "{n} has given away the {v}.", "The {v} of {n} is gone."),
        said=("{S} brought home {av} today.", "Meet the new pet: {S} got {av} today."),
        changed=(),
        ended=("{S} gave the {v} to a new owner today.", "Sad day, {S} had to give away the {v} today."),
        again=("{P} {v} is asleep on the sofa again.", "{S} fed the {v} twice, spoiled pet."),
        ask=("Which pets does {n} own?",),
        when=("When did {n} get the {v}?",),
        count=("How many pets does {n} own?",),
        passing=(
            ("{S} stopped to pet {av} in the park.", "{n} saw {av} in the park today."),
            ("{S} watched a film about {av} last night.", "{n} watched a film about {av}."),
        ),
    ),
    "hobby": Phrases(
        plain=(
            "{n} does {v} as a hobby.",
            "{v} is a hobby of {n}.",
            "{n} spends free time on {v}.",
            "{n} enjoys {v} as a hobby.",
            "One hobby of {n} is {v}.",
        ),
        update=(),
        revoke=("{n} no longer does {v} as a hobby.", "{n} has given up {v}.", "{n} stopped {v} as a hobby."),
        said=("{S} took up {v} as a hobby today.", "A new hobby: {S} began with {v} today."),
        changed=(),
        ended=("{S} gave up {v} for good today.", "No more {v}, {S} dropped that hobby today."),
        again=("{S} spent the weekend on {v} again.", "That hobby, {v}, still calms {O} down."),
        ask=("Which hobbies does {n} have?",),
        when=("When did {n} take up {v}?",),
        count=("How many hobbies does {n} have?",),
        passing=(
            ("{S} leafed through a magazine about {v} at the station.", "{n} read a magazine about {v}."),
            ("{S} overheard a chat about {v} in the lift.", "{n} overheard a chat about {v}."),
        ),
    ),
    "org_base": Phrases(
        plain=(
            "{n} is based in {v}.",
            "The head office of {n} is in {v}.",
            "{v} is where {n} is based.",
            "{n} has its head office in {v}.",
            "{n} operates from {v}.",
        ),
        update=(
            "{n} is now based in {v}.",
            "{n} has moved its head office to {v}.",
            "The new head office of {n} is in {v}.",
        ),
        revoke=(),
        said=("{S} has its head office in {v}.", "The head office of {S} is in {v}."),
        changed=("{S} moved its head office to {v}.", "The head office of {S} went to {v}."),
        ended=(),
        again=("The head office of {S} in {v} was on the news.", "{S} still runs everything from the office in {v}."),
        ask=("Where is {n} based?", "In which city is {n} based?"),
    ),
}

LEXICON = Lexicon(
    first_names=tuple(FIRST_NAMES.split()),
    surnames=tuple(SURNAMES.split()),
    pools={**{name: tuple(words.split()) for name, words in POOLS.items()}, "org": ORGS},
    phrases=PHRASES,
    greetings=(
        "Hi there, good to hear from you again!",
        "Hello! It has been a while, how are things?",
        "Good morning! Did you sleep well?",
        "Hey, finally a quiet moment to talk.",
        "Hello again, how was your week?",
    ),
    chatter=(
        "That sounds nice, I am happy to hear it.",
        "The weather is awful, it will not stop raining.",
        "Ha, I did not see that coming.",
        "Time flies, it is nearly evening.",
        "Let us talk more about it over lunch.",
        "My phone battery is almost empty, sorry.",
        "Really? You always have the best stories.",
        "I need a holiday, or at least a nap.",
    ),
    leads=("Guess what!", "Big news.", "Oh, before I forget.", "Listen to this.", "You will not believe it."),
    tails=("How about you?", "What do you say?", "Anyway, tell me more.", "Nice, right?"),
    passing=(
        ("{S} slept badly last night.", "{n} slept badly last night."),
        ("{S} missed the bus this morning.", "{n} missed the bus this morning."),
        ("{S} {am} a bit tired right now.", "{n} is a bit tired right now."),
        ("{S} lost an umbrella somewhere on the way.", "{n} lost an umbrella today."),
        ("{S} {have} a mild headache today.", "{n} has a mild headache today."),
        ("{S} burnt the toast at breakfast.", "{n} burnt the toast at breakfast."),
        ("{S} could not find the keys for an hour.", "{n} could not find the keys."),
        ("{S} got caught in the rain on the way here.", "{n} got caught in the rain."),
        ("The lift was out of order, so {S} took the stairs.", "{n} took the stairs today."),
        ("{S} bought stamps and an envelope.", "{n} bought stamps and an envelope."),
    ),
)
