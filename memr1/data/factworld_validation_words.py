"""The validation split of FactWorld's vocabulary. Nothing here occurs in the other two splits (tested)."""

from __future__ import annotations

from memr1.data.factworld_lexicon import Lexicon, Phrases

FIRST_NAMES = (
    "Anna Brian Cathy Dennis Eva Felix Gloria Hugo Iris James Kate Lucas Megan Neil Ophelia Philip Sabrina "
    "Robert Sara Theo Ursula Vincent Willa Andrew Betty Colin Daisy Edward Flora Gordon Hannah Ian Joan Keith "
    "Linda Marcus Nina Owen Patricia Ralph"
)
SURNAMES = (
    "Adams Brooks Collins Dixon Edwards Fields Gibson Hayes Jenkins Knox Lawson Morris Nelson Owens Perkins "
    "Quinn Reynolds Stevens Tucker Watson Bishop Bryant Coleman Dawson Ellis Franklin Graham Hudson Jarvis "
    "Lambert Marsh Norton"
)
POOLS = {
    "city": "London Milan Munich Budapest Helsinki Brussels Porto Dallas Houston Miami Phoenix Osaka Nairobi "
    "Quito Mumbai Perth Montreal Hamburg Krakow Zurich Venice Leeds Cork Lyon",
    "job": "surgeon tailor welder judge waiter actor painter geologist optician pharmacist banker editor "
    "joiner sailor firefighter economist biologist jeweller",
    "food": "pasta burritos moussaka couscous omelette meatloaf waffles ravioli steak pierogi satay hummus "
    "quiche porridge stew schnitzel",
    "drink": "lager kombucha latte matcha sherry soda buttermilk absinthe ouzo tonic",
    "car": "Skoda Nissan Peugeot Subaru Chevrolet Opel Hyundai Lexus Mini Dacia",
    "instrument": "saxophone clarinet banjo oboe organ viola accordion mandolin",
    "language": "French Czech Hindi Turkish Finnish Hebrew Swahili Danish",
    "country": "Norway Brazil India Cyprus Oman Vietnam Ghana Mexico Croatia Fiji",
    "pet": "ferret mouse tortoise chicken snake budgie llama iguana goat duck",
    "hobby": "swimming origami running gardening judo surfing calligraphy juggling dancing tennis skiing "
    "birdwatching rowing sewing",
}
ORGS = (
    "Amber Bakeries",
    "Beacon Media",
    "Copper Tools",
    "Dolphin Cruises",
    "Ember Stoves",
    "Fern Cosmetics",
    "Glacier Water",
    "Heron Publishing",
    "Indigo Paints",
    "Jasmine Perfumes",
    "Kite Telecom",
    "Lotus Clinics",
    "Meadow Dairies",
    "Nectar Sweets",
    "Opal Jewels",
    "Pioneer Trucks",
    "Quill Pens",
    "Raven Security",
)

PHRASES = {
    "city": Phrases(
        plain=("{n} has a home in {v}.", "{n} is a resident of {v}.", "{n}'s house is in {v}."),
        update=("{n} has relocated and has a home in {v}.",),
        revoke=(),
        said=(
            "{S} relocated to {v} this very day, keys and all.",
            "The movers just left, {p} new home is in {v} since today.",
        ),
        changed=(
            "{S} relocated once more today, {p} home is in {v} now.",
            "Goodbye to the old house, {S} got the keys in {v} today.",
        ),
        ended=(),
        again=("{P} home in {v} grows cosier by the week.", "The view from {p} house in {v} never gets old."),
        ask=("What city is home to {n}?", "In what city does {n} have a home?"),
        when=("On what date did {n} relocate to {v}?",),
        passing=(("{S} visited an aunt in {v} and came straight back.", "{n} visited an aunt in {v} for a day."),),
    ),
    "employer": Phrases(
        plain=("{n} is employed by {v}.", "{v} employs {n}.", "{n} is on the staff of {v}."),
        update=("{n} is employed by {v} these days.",),
        revoke=("{n} is not employed by {v} any more.",),
        said=("Contract signed, {S} got hired by {v} today.", "{S} got a position with {v} today."),
        changed=("{S} got hired away by {v} today.", "Different boss for {O}: {v} took {O} on today."),
        ended=("{S} resigned from {v} today.", "{v} and {S} parted ways today."),
        again=("{v} gave {O} a nice office chair, one of the staff perks.", "{P} colleagues at {v} threw a party."),
        ask=("What company employs {n}?", "Who is {n}'s employer?"),
        when=("On what date did {v} hire {n}?",),
        passing=(("{S} got a leaflet from {v} in the mail.", "{n} got a leaflet from {v}."),),
        via="{n}'s employer",
    ),
    "job": Phrases(
        plain=("{n} is {av} by profession.", "{n}'s profession is {v}.", "{n} practises the profession of {v}."),
        update=("{n} is {av} by profession after a career change.",),
        revoke=(),
        said=("By profession {S} {am} {av}.", "{P} profession? I thought you knew, {av}."),
        changed=(
            "After a career change {S} {am} {av} by profession.",
            "{P} career took a turn, the profession is {v} now.",
        ),
        ended=(),
        again=("The life of {av} keeps {O} on the move.", "Once {av}, always {av}, that goes for {O}."),
        ask=("What is {n}'s profession?", "What profession does {n} have?"),
        passing=(("{S} sat next to {av} at a dinner.", "{n} sat next to {av} at a dinner."),),
    ),
    "food": Phrases(
        plain=(
            "The meal {n} loves most is {v}.",
            "{n} loves {v} above all other meals.",
            "{v} is the meal {n} adores.",
        ),
        update=("The meal {n} loves most has become {v}.",),
        revoke=(),
        said=("The meal {S} love{s} most is {v}.", "Of all meals {v} makes {O} happiest."),
        changed=(
            "{S} fell for another meal, {v} is the most loved one now.",
            "No contest any more: {v} has become the meal for {O}.",
        ),
        ended=(),
        again=("Another bowl of {v} for {O}, the most loved meal.", "{S} could cook {v} daily, still the top meal."),
        ask=("What meal does {n} love most?", "Which meal is the one {n} loves most?"),
        passing=(("The canteen had {v}, so {S} had some.", "{n} had {v} at the canteen."),),
    ),
    "drink": Phrases(
        plain=(
            "The beverage {n} loves most is {v}.",
            "{n} loves {v} above all other beverages.",
            "{v} is the beverage {n} adores.",
        ),
        update=("The beverage {n} loves most has become {v}.",),
        revoke=(),
        said=("The beverage {S} love{s} most is {v}.", "Pour {O} a glass of {v}, the most loved beverage."),
        changed=("{S} fell for another beverage, {v} tops them all now.", "{P} most loved beverage has become {v}."),
        ended=(),
        again=("One more {v} for {O}, as ever the top beverage.", "{S} never tire{s} of {v}, that beverage again."),
        ask=("What beverage does {n} love most?", "Which beverage is the one {n} loves most?"),
        passing=(("Somebody handed {O} a glass of {v} at the reception.", "{n} was handed {v} at a reception."),),
    ),
    "car": Phrases(
        plain=("{n} has {av} as a vehicle.", "{n}'s vehicle is {av}.", "{n} is the owner of {av}."),
        update=("{n} has replaced the vehicle with {av}.",),
        revoke=("{n} does not have the {v} any more.",),
        said=("{S} picked up {p} new vehicle today, {av}.", "There is {av} in the driveway, {p} vehicle since today."),
        changed=(
            "{S} replaced the vehicle, it is {av} since today.",
            "The old vehicle went, {S} picked up {av} today.",
        ),
        ended=(
            "{S} scrapped the {v} today, so no vehicle from here on.",
            "The {v} found a buyer today, so no vehicle.",
        ),
        again=("{P} {v} needs new tyres, what a vehicle.", "{P} vehicle, the {v}, got a fresh coat of wax."),
        ask=("What vehicle does {n} have?", "What make is {n}'s vehicle?"),
        when=("On what date did {n} pick up the {v}?",),
        passing=(("{P} taxi was {av}, quite roomy.", "{n} took a taxi, {av}."),),
    ),
    "instrument": Phrases(
        plain=("{n} makes music on the {v}.", "{n} is a musician on the {v}.", "{n} performs on the {v}."),
        update=("{n} has changed over to making music on the {v}.",),
        revoke=("{n} does not make music on the {v} any more.",),
        said=("{S} had a very first lesson on the {v} today.", "Rented one today: {S} make{s} music on the {v}."),
        changed=(
            "{S} changed over to the {v} today, a better sound.",
            "Other music for {O}: lessons on the {v} since today.",
        ),
        ended=("{S} returned the {v} today, no more music.", "{P} time with the {v} ended today."),
        again=("{P} scales on the {v} sound better each week.", "{S} played a little concert on the {v}."),
        ask=("On what instrument does {n} make music?", "What instrument is {n}'s own?"),
        when=("On what date did {n} begin with the {v}?",),
        passing=(("The radio played a {v} piece while {S} cooked.", "{n} heard a {v} piece on the radio."),),
    ),
    "language": Phrases(
        plain=("{n} studies {v}.", "{n} is a student of {v}.", "{n} attends a course in {v}."),
        update=("{n} has changed over to studying {v}.",),
        revoke=("{n} does not study {v} any more.",),
        said=("{S} enrolled in a {v} course today.", "{P} evenings are taken, a {v} class began today."),
        changed=("{S} changed over to a {v} course today.", "Wrong course before, {S} enrolled in {v} today."),
        ended=("{S} dropped out of the {v} course today.", "{P} {v} course is finished for good since today."),
        again=("{P} {v} course had a test on verbs.", "The {v} grammar from that course gives {O} trouble."),
        ask=("What language does {n} study?", "Which language course does {n} attend?"),
        when=("On what date did {n} enrol in {v}?",),
        passing=(("A tourist asked {O} something in {v}.", "{n} met a tourist who spoke {v}."),),
    ),
    "trip": Phrases(
        plain=(
            "{n} will go on holiday to {v}.",
            "{n}'s next holiday is in {v}.",
            "{n} holds a holiday ticket for {v}.",
        ),
        update=("{n} will go on holiday to {v} after all.",),
        revoke=("{n} will not go on holiday to {v} any more.",),
        said=("{S} bought holiday tickets for {v} today.", "Holiday sorted: {S} got a ticket for {v} today."),
        changed=(
            "{S} exchanged the holiday tickets for {v} today.",
            "A different holiday after all, {S} got tickets for {v} today.",
        ),
        ended=("{S} returned the holiday tickets for {v} today.", "No {v} holiday, {S} got a refund today."),
        again=("Only weeks until {p} holiday in {v}.", "{S} bought a hat for that holiday in {v}."),
        ask=("What country will {n} holiday in?", "Which country is on {n}'s holiday ticket?"),
        when=("On what date did {n} buy tickets for {v}?",),
        passing=(("{S} got a postcard from {v} this week.", "{n} got a postcard from {v}."),),
    ),
    "best_friend": Phrases(
        plain=(
            "{n}'s closest friend is {v}.",
            "No friend is closer to {n} than {v}.",
            "{n} is closest to a friend named {v}.",
        ),
        update=("{n}'s closest friend has come to be {v}.",),
        revoke=(),
        said=("{P} closest friend is {v}.", "Nobody is a closer friend to {O} than {v}."),
        changed=("Things changed and {p} closest friend is {v} today.", "{P} closest friend has come to be {v}."),
        ended=(),
        again=("{P} closest friend remains {v}.", "{S} phoned {p} closest friend, {v}."),
        ask=("Who is {n}'s closest friend?", "Which friend is closest to {n}?"),
        via="{n}'s closest friend",
    ),
    "mentor": Phrases(
        plain=("{n}'s adviser is {v}.", "{n} is advised by {v}.", "{n} turns for guidance to {v}."),
        update=("{n}'s adviser has come to be {v}.",),
        revoke=("{n} is not advised by {v} any more.",),
        said=("{P} adviser is {v}.", "For guidance {S} {have} an adviser, {v}."),
        changed=("{P} adviser has come to be {v}.", "{S} sought other advice and chose as adviser {v}."),
        ended=("{P} time of advice from {v} has ended.", "{P} former adviser is {v}, that is done."),
        again=("{P} adviser remains {v}.", "{S} wrote a note to {p} adviser, {v}."),
        ask=("Who is {n}'s adviser?", "Who advises {n}?"),
        via="{n}'s adviser",
    ),
    "coach": Phrases(
        plain=("{n}'s personal trainer is {v}.", "{n} is trained by {v}.", "{n} does workouts under {v}."),
        update=("{n}'s personal trainer has come to be {v}.",),
        revoke=("{n} is not trained by {v} any more.",),
        said=("{P} personal trainer is {v}.", "{S} {have} a personal trainer, {v}."),
        changed=("{P} personal trainer has come to be {v}.", "{S} hired another personal trainer, {v}."),
        ended=("{P} former personal trainer is {v}, that is done.", "{P} time with the trainer ended, that was {v}."),
        again=("{P} personal trainer remains {v}.", "{S} ran ten laps for {p} personal trainer, {v}."),
        ask=("Who is {n}'s personal trainer?", "Who trains {n}?"),
        via="{n}'s personal trainer",
    ),
    "pet": Phrases(
        plain=("{n} keeps {av} at home.", "{n}'s household includes {av}.", "{n} looks after {av} in the house."),
        update=(),
        revoke=("{n} does not keep {av} at home any more.",),
        said=("{S} adopted {av} today.", "The shelter called, {S} came home with {av} today."),
        changed=(),
        ended=("{P} {v} went to live on a farm today.", "{S} found another family for the {v} today."),
        again=("{P} {v} made a mess in the kitchen at home.", "The {v} at home keeps {O} company."),
        ask=("What animals does {n} keep at home?",),
        when=("On what date did {n} adopt the {v}?",),
        count=("What number of animals does {n} keep at home?",),
        passing=(("{S} spotted {av} on the way to the shop.", "{n} spotted {av} on the way to the shop."),),
    ),
    "hobby": Phrases(
        plain=("{n} practises {v} for leisure.", "{n}'s pastimes include {v}.", "{v} is a pastime of {n}."),
        update=(),
        revoke=("{n} does not practise {v} for leisure any more.",),
        said=(
            "{S} signed up for {v} today, a bit of leisure.",
            "A fresh pastime: {S} tried {v} today and will keep at it.",
        ),
        changed=(),
        ended=(
            "{S} signed off from {v} today, that pastime is over.",
            "{v} is a pastime of the past since today for {O}.",
        ),
        again=("{P} pastime, {v}, filled all of Sunday.", "{S} met the {v} crowd again for some leisure."),
        ask=("What pastimes does {n} practise?",),
        when=("On what date did {n} sign up for {v}?",),
        count=("What number of pastimes does {n} practise?",),
        passing=(("There was a poster about {v} where {S} had lunch.", "{n} saw a poster about {v}."),),
    ),
    "org_base": Phrases(
        plain=(
            "{n} has its headquarters in {v}.",
            "{n} is headquartered in {v}.",
            "The headquarters of {n} stand in {v}.",
        ),
        update=("{n} has transferred its headquarters to {v}.",),
        revoke=(),
        said=("The headquarters of {S} stand in {v}.", "{S} has its headquarters in {v}, a glass tower."),
        changed=("{S} transferred its headquarters to {v}.", "The headquarters of {S} left for {v}."),
        ended=(),
        again=("Those headquarters of {S} in {v} are huge.", "{S} repainted its headquarters in {v}."),
        ask=("In what city are {n}'s headquarters?", "What city hosts the headquarters of {n}?"),
    ),
}

LEXICON = Lexicon(
    first_names=tuple(FIRST_NAMES.split()),
    surnames=tuple(SURNAMES.split()),
    pools={**{name: tuple(words.split()) for name, words in POOLS.items()}, "org": ORGS},
    phrases=PHRASES,
    greetings=(
        "Good evening! I hoped you would call.",
        "Oh hello, I was just thinking of you.",
        "Nice to see you, take a seat.",
        "Welcome back, did you have a pleasant day?",
        "There you are! I saved you some cake.",
    ),
    chatter=(
        "I am glad you told me.",
        "It is so windy outside, my hat flew off.",
        "Goodness, that is quite a change.",
        "Let me put the kettle on first.",
        "My sofa is far too soft to leave.",
        "You always make me laugh.",
        "I have to water the plants soon.",
        "Well, life is never dull.",
    ),
    leads=("Brace yourself.", "A small update.", "By the way.", "I have something to tell you.", "Well, well."),
    tails=("And yourself?", "What do you think?", "But enough of that.", "Life moves on."),
    passing=(
        ("{S} spilled tea on the carpet.", "{n} spilled tea on the carpet."),
        ("{S} waited ages at the post office.", "{n} waited ages at the post office."),
        ("{S} {am} rather hungry at the moment.", "{n} is rather hungry at the moment."),
        ("{S} forgot to buy bread this afternoon.", "{n} forgot to buy bread."),
        ("{S} {have} a sore knee after the stairs.", "{n} has a sore knee today."),
    ),
)
