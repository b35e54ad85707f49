"""Write the sample data set: short instruction-response pairs in the eight categories of Dolly.

In:  nothing (word lists and templates below; one seeded ``random.Random``, so every run writes the same bytes).
Out: ``train.jsonl``, ``dev.jsonl`` and ``valid.jsonl`` in the given folder, one JSON object per line with the fields
     ``instruction``, ``input`` (may be empty) and ``output``. No (instruction, input) pair occurs twice.
Run: ``python scripts/tiny/make_sample.py [OUT=data/sample]``
"""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

SEED = 20
SIZES = {"train": 5000, "dev": 200, "valid": 300}
Row = tuple[str, str, str]  # instruction, input, output
Phrasings = tuple[list[str], list[str]]  # ways to ask, ways to answer


def table(text: str) -> list[list[str]]:
    """Parse one record per line, fields separated by ``|``."""
    return [[field.strip() for field in line.split("|")] for line in text.strip().splitlines()]


# animal | kind | home | food | young | covering
ANIMALS = table("""
    cow | mammal | farm | grass | calf | hair
    horse | mammal | farm | hay | foal | hair
    sheep | mammal | farm | grass | lamb | wool
    goat | mammal | farm | leaves | kid | hair
    pig | mammal | farm | roots | piglet | hair
    dog | mammal | house | meat | puppy | fur
    cat | mammal | house | fish | kitten | fur
    rabbit | mammal | burrow | carrots | bunny | fur
    fox | mammal | forest | mice | cub | fur
    bear | mammal | forest | honey | cub | fur
    wolf | mammal | forest | deer | pup | fur
    deer | mammal | forest | leaves | fawn | hair
    squirrel | mammal | tree | nuts | kit | fur
    monkey | mammal | jungle | fruit | infant | hair
    tiger | mammal | jungle | deer | cub | fur
    lion | mammal | grassland | zebras | cub | fur
    zebra | mammal | grassland | grass | foal | hair
    elephant | mammal | grassland | leaves | calf | skin
    kangaroo | mammal | grassland | grass | joey | fur
    camel | mammal | desert | plants | calf | hair
    whale | mammal | ocean | krill | calf | skin
    dolphin | mammal | ocean | fish | calf | skin
    seal | mammal | ocean | fish | pup | fur
    hen | bird | farm | seeds | chick | feathers
    duck | bird | pond | plants | duckling | feathers
    goose | bird | pond | grass | gosling | feathers
    swan | bird | lake | plants | cygnet | feathers
    owl | bird | forest | mice | owlet | feathers
    eagle | bird | mountain | fish | eaglet | feathers
    parrot | bird | jungle | fruit | chick | feathers
    penguin | bird | snow | fish | chick | feathers
    snake | reptile | desert | mice | snakelet | scales
    lizard | reptile | desert | insects | hatchling | scales
    turtle | reptile | ocean | plants | hatchling | a hard shell
    frog | amphibian | pond | insects | tadpole | skin
    salmon | fish | river | insects | fry | scales
    shark | fish | ocean | fish | pup | scales
    bee | insect | hive | nectar | larva | hair
    ant | insect | nest | seeds | larva | a hard shell
    butterfly | insect | garden | nectar | caterpillar | scales
""")
# country | capital | continent
COUNTRIES = table("""
    France | Paris | Europe
    Spain | Madrid | Europe
    Italy | Rome | Europe
    Germany | Berlin | Europe
    Austria | Vienna | Europe
    Greece | Athens | Europe
    Portugal | Lisbon | Europe
    Ireland | Dublin | Europe
    Norway | Oslo | Europe
    Sweden | Stockholm | Europe
    Poland | Warsaw | Europe
    Hungary | Budapest | Europe
    Japan | Tokyo | Asia
    China | Beijing | Asia
    India | Delhi | Asia
    Thailand | Bangkok | Asia
    Vietnam | Hanoi | Asia
    Nepal | Kathmandu | Asia
    Mongolia | Ulaanbaatar | Asia
    Egypt | Cairo | Africa
    Kenya | Nairobi | Africa
    Ghana | Accra | Africa
    Morocco | Rabat | Africa
    Senegal | Dakar | Africa
    Uganda | Kampala | Africa
    Canada | Ottawa | North America
    Cuba | Havana | North America
    Mexico | Mexico City | North America
    Peru | Lima | South America
    Chile | Santiago | South America
    Ecuador | Quito | South America
    Uruguay | Montevideo | South America
""")
# job | place | tool | task
JOBS = table("""
    baker | bakery | oven | bakes bread
    farmer | farm | tractor | grows crops
    teacher | school | board | teaches children
    doctor | clinic | stethoscope | treats patients
    nurse | hospital | thermometer | cares for patients
    chef | kitchen | knife | cooks meals
    painter | studio | brush | makes pictures
    carpenter | workshop | saw | builds furniture
    tailor | shop | needle | sews clothes
    gardener | garden | spade | looks after plants
    pilot | airport | map | flies planes
    sailor | port | rope | steers boats
    judge | court | gavel | decides cases
    librarian | library | catalogue | lends books
    mechanic | garage | wrench | repairs cars
    firefighter | station | hose | puts out fires
    plumber | house | pipe wrench | fixes pipes
    dentist | clinic | mirror | looks after teeth
    barber | shop | scissors | cuts hair
    writer | office | pen | tells stories
    scientist | laboratory | microscope | studies nature
    astronomer | observatory | telescope | watches stars
    fisherman | harbour | net | catches fish
    miner | mine | pick | digs for coal
    drummer | concert hall | drum | keeps the beat
    reporter | newsroom | notebook | writes the news
""")
OPPOSITES = table("""
    hot | cold
    big | small
    fast | slow
    light | dark
    happy | sad
    early | late
    hard | soft
    high | low
    old | new
    open | closed
    rich | poor
    strong | weak
    wet | dry
    loud | quiet
    full | empty
    clean | dirty
    near | far
    thick | thin
    sweet | sour
    brave | afraid
    simple | complex
    wide | narrow
    true | false
    smooth | rough
""")
GROUPS = {
    "fruit": "apple banana cherry grape lemon mango orange peach pear plum melon fig",
    "vegetable": "carrot onion potato cabbage spinach pea leek turnip radish celery bean pumpkin",
    "metal": "iron gold silver copper tin zinc lead steel bronze nickel",
    "instrument": "violin piano flute drum guitar harp trumpet cello clarinet banjo",
    "vehicle": "car bus train truck bicycle tram van ship ferry plane",
    "colour": "red blue green yellow purple pink brown white black grey",
    "shape": "circle square triangle oval cube cone sphere star",
    "sport": "tennis football hockey rowing golf boxing judo rugby cricket",
    "garment": "shirt coat hat scarf sock glove shoe belt skirt jacket",
    "flower": "rose lily tulip daisy violet poppy orchid iris",
}
GROUPS = {group: words.split() for group, words in GROUPS.items()}
NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Iris James Kate Leo Maria Noah Olga Peter Rosa Sam Tina Victor "
    "Alice Bruno Carla Daniel Ella Frank Hanna Ivan Julia Karl Laura Marco Nina Oscar Paul Ruth Simon Tom Vera Will"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
PLACES = "park market museum school library beach station office cinema harbour".split()
CITIES = [capital for _, capital, _ in COUNTRIES]
THINGS = "book lamp chair cake kite map clock vase basket camera drum coat ring cup painting radio".split()
# what someone did | the same as a noun phrase
EVENTS = table("""
    met an old friend | a meeting with an old friend
    lost a blue umbrella | a lost umbrella
    found a silver coin | a silver coin
    saw a street parade | a street parade
    heard a jazz band | a jazz band
    missed the last bus | a missed bus
    won first prize | a first prize
    took many photos | a set of photos
    fed the hungry birds | some hungry birds
    drew a map of the town | a map of the town
    bought a warm coat | a warm coat
    read a long letter | a long letter
""")
FEELINGS = {
    "positive": "wonderful excellent lovely tasty friendly helpful great charming fresh perfect".split(),
    "negative": "terrible awful boring cold rude broken slow dirty noisy stale".split(),
}
REVIEWED = "meal hotel film service room concert soup tour shop garden play waiter".split()
# activity (base form) | gerund | reason | reason | reason
REASONS = table("""
    walk every day | walking | it keeps the heart strong | it clears the mind | it costs nothing
    read books | reading | it teaches new words | it opens new worlds | it rests the mind
    sleep well | sleep | it repairs the body | it helps memory | it lifts the mood
    drink water | drinking water | it cools the body | it helps the skin | it carries food through the body
    plant trees | planting trees | they clean the air | they give shade | they feed the birds
    save money | saving money | it helps in hard times | it pays for big plans | it brings peace of mind
    learn languages | learning languages | it helps on trips | it trains the brain | it brings new friends
    wash their hands | washing hands | it removes germs | it stops colds | it keeps food safe
    play music | playing music | it brings joy | it trains the fingers | it joins people together
    keep pets | keeping pets | they are good company | they make people laugh | they teach care
    recycle glass | recycling | it saves energy | it cuts waste | it protects nature
    eat fruit | eating fruit | it is full of vitamins | it tastes sweet | it gives quick energy
    travel abroad | travel | it shows new places | it teaches history | it makes good memories
    ride bicycles | cycling | it trains the legs | it saves fuel | it is quick in traffic
    cook at home | home cooking | it is cheap | it is healthy | it brings the family together
    write letters | writing letters | it shows care | it keeps memories | it trains clear thinking
    go swimming | swimming | it uses every muscle | it cools the body | it is gentle on the knees
    grow vegetables | growing vegetables | they taste fresh | it saves money | it is good exercise
    help neighbours | helping neighbours | it builds trust | it makes streets safer | it feels good
    take breaks | taking breaks | it rests the eyes | it brings fresh ideas | it lowers stress
    draw pictures | drawing | it trains the eye | it calms the mind | it shows feelings
    visit museums | visiting museums | it teaches history | it shows great art | it is fun on rainy days
    sing in choirs | singing | it trains the lungs | it brings joy | it joins people together
    play chess | playing chess | it trains the brain | it teaches patience | it is fun with friends
""")
# purpose | six ideas
IDEAS = table("""
    a birthday party | bake a cake | hang balloons | play music | invite friends | wrap gifts | light candles
    a rainy day | read a book | watch a film | bake bread | play cards | paint a picture | write a letter
    a picnic | pack sandwiches | bring a blanket | find a shady tree | slice fruit | carry water | bring a ball
    saving water | take short showers | fix leaks | collect rain | close the tap | water plants at night | reuse water
    a healthy breakfast | boil eggs | slice fruit | stir oats | toast bread | pour milk | add nuts
    a school project | build a model | grow beans | draw a chart | ask experts | take photos | test magnets
    a family trip | visit the sea | hike a hill | see a castle | ride a train | camp in a forest | rent bicycles
    a tidy room | make the bed | fold clothes | sort books | sweep the floor | empty the bin | dust the shelves
    a small garden | plant herbs | grow tomatoes | hang baskets | feed the birds | dig a pond | sow flowers
    a quiet evening | drink tea | light candles | listen to jazz | take a bath | call a friend | read poems
    making new friends | join a club | say hello | share lunch | help a neighbour | learn to dance | play a sport
    learning to cook | start with soup | watch a chef | taste often | read recipes | cook with family | buy a good knife
    a good night of sleep | dim the lights | turn off screens | open a window | read poems | take a bath | avoid coffee
    a handmade gift | knit a scarf | paint a cup | bake cookies | frame a photo | sew a bag | carve wood
    a winter weekend | build a snowman | drink hot cocoa | skate on ice | knit a scarf | cook soup | play cards
    staying fit | climb stairs | ride a bicycle | go swimming | stretch daily | play a sport | walk to work
""")
# topic | what it does | where or when | what it brings
SCENES = table("""
    sea | sings | along the shore | dreams of ships
    moon | shines | above the hill | silver light
    rain | falls | on the roof | a gentle song
    wind | whispers | through the trees | distant tales
    snow | drifts | across the field | a silent world
    sun | rises | over the bay | a golden day
    river | runs | past the mill | cool and clear songs
    forest | sleeps | under the stars | deep green peace
    garden | blooms | beside the wall | sweet perfume
    star | glows | in the night | a quiet wish
    bird | calls | at break of day | a song of spring
    mountain | stands | beyond the clouds | a brave heart
    autumn leaf | turns | in the breeze | red and gold
    candle | burns | by the window | warm thoughts
    train | rolls | into the dark | far away towns
    kitten | plays | on the rug | happy laughter
""")
MOODS = "calm happy sad brave lonely proud gentle funny".split()
HEROES = "fox mouse robot baker sailor dragon king girl boy owl bear wizard".split()
# quest | how it ends
QUESTS = table("""
    wanted to see the sea | stood on the sand and smiled
    was afraid of the dark | learned to love the stars
    lost a red hat | found it in a tall tree
    could not sleep | fell asleep to a soft song
    looked for a friend | met a kind stranger
    planted a magic seed | picked a golden apple
    built a small boat | sailed to a green island
    told only jokes | made the whole town laugh
    never shared food | gave away the last cake
    found an old map | dug up a box of letters
    wished to fly | rode on the back of an eagle
    broke a window | worked hard and fixed it
""")


def a(noun: str) -> str:
    """Put the indefinite article before a noun."""
    return f"an {noun}" if noun[0] in "aeiouAEIOU" else f"a {noun}"


def cap(text: str) -> str:
    """Upper-case the first letter."""
    return text[0].upper() + text[1:]


def series(items: list[str]) -> str:
    """Join two or three items into an English list."""
    return f"{', '.join(items[:-1])} and {items[-1]}"


def lean(rng: random.Random, options: list[str]) -> str:
    """Choose one option, the earlier ones more often (60 %, 24 %, ...): of several good answers one is the usual."""
    index = 0
    while index < len(options) - 1 and rng.random() < 0.4:
        index += 1
    return options[index]


def lean_sample(rng: random.Random, options: list[str], count: int) -> list[str]:
    """Choose several different options in the same way."""
    left, chosen = list(options), []
    for _ in range(count):
        chosen.append(lean(rng, left))
        left.remove(chosen[-1])
    return chosen


def country_facts(rng: random.Random) -> Phrasings:
    """Its capital or its continent."""
    pick = rng.choice
    country, capital, continent = pick(COUNTRIES)
    if rng.random() < 0.6:
        asks = [
            f"What is the capital of {country}?",
            f"Name the capital city of {country}.",
            f"Which city is the capital of {country}?",
            f"Tell me the capital of {country}.",
        ]
        says = [
            f"The capital of {country} is {capital}.",
            f"{capital} is the capital of {country}.",
            f"It is {capital}.",
        ]
    else:
        asks = [
            f"Where is {country}?",
            f"On which continent is {country}?",
            f"Which continent is {country} part of?",
        ]
        says = [
            f"{country} is in {continent}.",
            f"{country} is a country in {continent}.",
            f"It is in {continent}.",
        ]
    return asks, says


def job_facts(rng: random.Random) -> Phrasings:
    """What someone does, where, and with which tool."""
    pick = rng.choice
    job, place, tool, task = pick(JOBS)
    asks, says = pick(
        [
            (
                [f"What does {a(job)} do?", f"Describe the work of {a(job)}.", f"What is the job of {a(job)}?"],
                [f"{cap(a(job))} {task}.", f"{cap(a(job))} is a person who {task}.", f"This person {task}."],
            ),
            (
                [
                    f"Where does {a(job)} work?",
                    f"Name the place where {a(job)} works.",
                    f"Where would I find {a(job)}?",
                ],
                [f"{cap(a(job))} works in {a(place)}.", f"You can find {a(job)} in {a(place)}.", f"In {a(place)}."],
            ),
            (
                [f"What tool does {a(job)} use?", f"Name a tool of {a(job)}.", f"Which tool helps {a(job)}?"],
                [
                    f"{cap(a(job))} uses {a(tool)}.",
                    f"{cap(a(tool))} is a tool of {a(job)}.",
                    f"The tool is {a(tool)}.",
                ],
            ),
        ]
    )
    return asks, says


def opposites(rng: random.Random) -> Phrasings:
    """A word and its opposite, either way round."""
    pick = rng.choice
    word, other = pick(OPPOSITES)
    if rng.random() < 0.5:
        word, other = other, word
    asks = [
        f"What is the opposite of {word}?",
        f"Give me the opposite of the word {word}.",
        f"Which word means the opposite of {word}?",
    ]
    says = [f"The opposite of {word} is {other}.", f"{cap(other)} is the opposite of {word}.", f"It is {other}."]
    return asks, says


def animal_facts(rng: random.Random) -> Phrasings:
    """Class, home, food, young or cover of an animal."""
    pick = rng.choice
    animal, kind, home, food, young, cover = pick(ANIMALS)
    asks, says = pick(
        [
            (
                [f"What kind of animal is {a(animal)}?", f"Which class of animals does the {animal} belong to?"],
                [f"{cap(a(animal))} is {a(kind)}.", f"The {animal} is {a(kind)}.", f"It is {a(kind)}."],
            ),
            (
                [
                    f"Where does {a(animal)} live?",
                    f"What is the home of {a(animal)}?",
                    f"Name the home of the {animal}.",
                ],
                [
                    f"{cap(a(animal))} lives in the {home}.",
                    f"The home of {a(animal)} is the {home}.",
                    f"In the {home}.",
                ],
            ),
            (
                [
                    f"What does {a(animal)} eat?",
                    f"Name the food of {a(animal)}.",
                    f"What is the diet of the {animal}?",
                ],
                [f"{cap(a(animal))} eats {food}.", f"The {animal} mostly eats {food}.", f"Mostly {food}."],
            ),
            (
                [
                    f"What is a young {animal} called?",
                    f"What do we call a baby {animal}?",
                    f"Name the young of {a(animal)}.",
                ],
                [f"A young {animal} is called {a(young)}.", f"We call it {a(young)}.", f"It is {a(young)}."],
            ),
            (
                [f"What covers the body of {a(animal)}?", f"What is on the outside of {a(animal)}?"],
                [
                    f"{cap(a(animal))} has {cover}.",
                    f"The body of {a(animal)} is covered by {cover}.",
                    f"It has {cover}.",
                ],
            ),
        ]
    )
    return asks, says


def open_qa(rng: random.Random) -> Row:
    """A question about a fact of the tables."""
    facts = {"animal": animal_facts, "country": country_facts, "job": job_facts, "opposite": opposites}
    asks, says = facts[rng.choice("animal animal animal country country job job opposite".split())](rng)
    return rng.choice(asks), "", lean(rng, says)


def trip(rng: random.Random) -> tuple[dict[str, str], str]:
    """A made-up event and the sentences that tell it."""
    place = {
        "name": rng.choice(NAMES),
        "day": rng.choice(DAYS),
        "place": rng.choice(PLACES),
        "city": rng.choice(CITIES),
    }
    place["event"], place["noun"] = rng.choice(EVENTS)
    text = rng.choice(
        [
            "On {day}, {name} went to the {place} in {city}. There {name} {event}.",
            "{name} {event} at the {place} in {city}. It was {day}.",
            "{name} spent {day} in {city}. At the {place}, {name} {event}.",
        ]
    )
    return place, text.format(**place)


def closed_qa(rng: random.Random) -> Row:
    """A question whose answer is in the input."""
    fact, text = trip(rng)
    ask, says = rng.choice(
        [
            ("Who {event}?", ["{name} {event}.", "It was {name}."]),
            ("When did this happen?", ["It happened on {day}.", "This happened on {day}."]),
            ("On which day was {name} in {city}?", ["{name} was in {city} on {day}.", "It was on {day}."]),
            ("Which city did {name} visit?", ["{name} visited {city}.", "The city was {city}."]),
            ("Where in {city} was {name}?", ["{name} was at the {place}.", "{name} was at the {place} in {city}."]),
            ("What did {name} do at the {place}?", ["{name} {event}.", "At the {place}, {name} {event}."]),
        ]
    )
    return ask.format(**fact), text, lean(rng, says).format(**fact)


def classification(rng: random.Random) -> Row:
    """Sort words into groups, or name the tone of a review."""
    pick = rng.choice
    if rng.random() < 0.35:
        tone = pick(list(FEELINGS))
        thing, (first, second) = pick(REVIEWED), rng.sample(FEELINGS[tone], 2)
        text = pick(
            [
                f"The {thing} was {first} and {second}.",
                f"What {a(first)} {thing}! It was so {second}.",
                f"We found the {thing} {first}. It was also {second}.",
            ]
        )
        ask = pick(
            [
                "Is this review positive or negative?",
                "Classify the tone of the review.",
                "Say whether the writer is pleased or not.",
            ]
        )
        return (
            ask,
            text,
            lean(rng, [f"The review is {tone}, because the {thing} was {first}.", f"This is {a(tone)} review."]),
        )
    left, right = rng.sample(list(GROUPS), 2)
    words = [(word, left) for word in rng.sample(GROUPS[left], 2)] + [(pick(GROUPS[right]), right)]
    rng.shuffle(words)
    listing = ", ".join(word for word, _ in words)
    odd = next(word for word, group in words if group == right)
    kept = [word for word, group in words if group == left]
    ask, says = pick(
        [
            (f"Which of these is {a(right)}: {listing}?", [f"{cap(odd)} is {a(right)}.", f"The {right} is {odd}."]),
            (
                f"Find the odd one out: {listing}.",
                [
                    f"{cap(odd)} is {a(right)}, but the others are not.",
                    f"The odd one out is {odd}, which is {a(right)}.",
                ],
            ),
            (
                f"Label each word as {left} or {right}: {listing}.",
                [
                    "\n".join(f"{cap(word)}: {group}" for word, group in words),
                    f"{cap(left)}: {', '.join(kept)}\n{cap(right)}: {odd}",
                ],
            ),
        ]
    )
    return ask, "", lean(rng, says)


def information_extraction(rng: random.Random) -> Row:
    """Pull names, numbers or things out of a short note."""
    pick = rng.choice
    one, two = rng.sample(NAMES, 2)
    thing, other = rng.sample(THINGS, 2)
    count, price, day = rng.randint(2, 9), 5 * rng.randint(1, 12), pick(DAYS)
    text, ask, says = pick(
        [
            (
                f"{one} sold {a(thing)} to {two} for {price} dollars on {day}.",
                pick(["Extract the names.", "List the people in the text.", "Who is named in this note?"]),
                [f"{one} and {two}", f"The names are {one} and {two}."],
            ),
            (
                f"{one} sold {a(thing)} to {two} for {price} dollars on {day}.",
                pick(["Extract the price.", "How much was paid?", "Find the amount of money."]),
                [f"{price} dollars", f"The price was {price} dollars."],
            ),
            (
                f"On {day}, {one} gave {two} {a(thing)} and {a(other)}.",
                pick(["List the things that were given.", "Extract the objects.", "Which objects are in the text?"]),
                [f"{cap(thing)}, {other}", f"{cap(a(thing))} and {a(other)}."],
            ),
            (
                f"Order from {one}: {count} {thing}s, to be sent to {two} by {day}.",
                pick(["Extract the item and its number.", "What was ordered and how many?", "Find the order."]),
                [f"Item: {thing}, number: {count}", f"{one} ordered {count} {thing}s."],
            ),
            (
                f"Order from {one}: {count} {thing}s, to be sent to {two} by {day}.",
                pick(["Extract the day.", "Find the date of delivery.", "By when is it due?"]),
                [f"{day}", f"It is due on {day}."],
            ),
        ]
    )
    return ask, text, lean(rng, says)


def summarization(rng: random.Random) -> Row:
    """One sentence for two or three."""
    fact, text = trip(rng)
    extra = rng.choice(["", " The weather was fine.", " Many people were there.", " Later it rained."])
    ask = rng.choice(
        [
            "Summarize the text.",
            "Give a short summary.",
            "Sum this up in one sentence.",
            "What is the text about?",
            "Write a title for this text.",
        ]
    )
    if ask.startswith("Write"):
        says = ["{name} in {city}: {noun}", "{cap_noun} at the {place}"]
    else:
        says = ["{name} {event} in {city} on {day}.", "The text is about {name} and {noun} in {city}."]
    fact["cap_noun"] = cap(fact["noun"])
    return ask, text + extra, lean(rng, says).format(**fact)


def brainstorming(rng: random.Random) -> Row:
    """Two or three ideas for a purpose."""
    purpose, *ideas = rng.choice(IDEAS)
    count, word = rng.choice([(2, "two"), (3, "three")])
    ask = rng.choice(
        [
            "Give me {n} ideas for {p}.",
            "List {n} ideas for {p}.",
            "Brainstorm {n} ideas for {p}.",
            "Suggest {n} things to do for {p}.",
            "I need {n} ideas for {p}.",
            "What are {n} good ideas for {p}?",
            "Think of {n} tips for {p}.",
            "Share {n} tips for {p}.",
            "Name {n} ways to start with {p}.",
            "Please list {n} tips for {p}.",
            "Help me with {n} plans for {p}.",
            "Can you find {n} ideas for {p}?",
        ]
    )
    chosen = lean_sample(rng, ideas, count)
    say = lean(
        rng, ["\n".join(f"{i}. {cap(idea)}" for i, idea in enumerate(chosen, 1)), f"You could {series(chosen)}."]
    )
    return ask.format(n=word, p=purpose), "", say


def general_qa(rng: random.Random) -> Row:
    """Reasons for everyday habits."""
    habit, gerund, *reasons = rng.choice(REASONS)
    who = rng.choice(["people", "many people", "families", "students", "adults"])
    first, second = lean_sample(rng, reasons, 2)
    ask = rng.choice(
        [
            f"Why do {who} {habit}?",
            f"Why should {who} {habit}?",
            f"Is it good for {who} to {habit}?",
            f"What is good about {gerund}?",
            f"Explain why {who} {habit}.",
            f"What do {who} gain from {gerund}?",
        ]
    )
    if ask.startswith("Is"):
        say = lean(rng, [f"Yes, because {first}.", f"Yes, {first} and {second}."])
    else:
        say = lean(
            rng,
            [
                f"{cap(who)} {habit} because {first}.",
                f"{cap(first)} and {second}.",
                f"One reason is that {first}. Another is that {second}.",
            ],
        )
    return ask, "", say


def creative_writing(rng: random.Random) -> Row:
    """A two-line poem or a two-sentence story."""
    pick = rng.choice
    mood = pick(MOODS)
    if rng.random() < 0.5:
        topic, verb, where, gift = pick(SCENES)
        ask = pick(
            [
                f"Write a {mood} poem about the {topic}.",
                f"Write two {mood} lines about the {topic}.",
                f"Make up a {mood} verse about the {topic}.",
                f"Compose a {mood} poem on the {topic}.",
            ]
        )
        return (
            ask,
            "",
            lean(
                rng,
                [
                    f"The {topic} {verb} {where},\nand brings my {mood} heart {gift}.",
                    f"O {mood} {topic}, {where},\nyou bring us {gift}.",
                ],
            ),
        )
    hero, (quest, ending) = pick(HEROES), pick(QUESTS)
    ask = pick(
        [
            f"Write a story about a {mood} {hero} who {quest}.",
            f"Tell a tale of a {mood} {hero} who {quest}.",
            f"Make up a story in which a {mood} {hero} {quest}.",
        ]
    )
    return (
        ask,
        "",
        lean(
            rng,
            [
                f"Once a {mood} {hero} {quest}. In the end the {hero} {ending}.",
                f"There was a {mood} {hero} who {quest}. One day the {hero} {ending}.",
            ],
        ),
    )


CATEGORIES: list[Callable[[random.Random], Row]] = [
    open_qa,
    closed_qa,
    classification,
    information_extraction,
    summarization,
    brainstorming,
    general_qa,
    creative_writing,
]


def make_rows(count: int, seed: int = SEED) -> list[dict[str, str]]:
    """Draw ``count`` rows with pairwise different prompts, the categories in turn, then shuffle them."""
    rng = random.Random(seed)
    rows: dict[tuple[str, str], str] = {}
    while len(rows) < count:
        for category in CATEGORIES:
            for _ in range(200):  # a category whose prompts are used up gives way to the others
                instruction, text, output = category(rng)
                if (instruction, text) not in rows:
                    rows[instruction, text] = output
                    break
    ordered = [{"instruction": i, "input": t, "output": o} for (i, t), o in rows.items()][:count]
    rng.shuffle(ordered)
    return ordered


def main(out: str = "data/sample") -> None:
    """Write the three splits."""
    rows = make_rows(sum(SIZES.values()))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        part, rows = rows[:size], rows[size:]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8", newline="\n")
        print(f"{folder / split}.jsonl: {size} rows")


if __name__ == "__main__":
    main(*sys.argv[1:])
