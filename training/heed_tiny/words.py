"""The closed world of the tasks: names, words, aspects, topics, and the text around them."""

NAMES = (
    "Ada Alan Amy Anna Ben Bella Carl Clara Dan Dora Emil Ella Finn Flora Gus Greta Hal Hanna "
    "Ian Ida Jack Jane Karl Kate Leo Lena Max Mara Nick Nora Otto Olga Paul Petra Ralf Rosa Sam "
    "Sara Tom Tina Ugo Ursa Vic Vera Will Wanda Yan Yara Zeno Zoe"
).split()

WORDS = (
    "apple bird book bread bridge candle chair cloud coat corn cup desk dog door drum egg field "
    "fire fish flag flower forest garden glass gold grass hat horse house iron island key king "
    "lake lamp leaf lion milk mirror moon mountain paper pear pen queen rain ring river road "
    "rose salt sand ship silver snow spoon star stone sugar table tiger tower tree wall wheel "
    "window"
).split()

ASPECTS = (
    "plot music sound picture story cast ending style pace food room service price view seat "
    "screen battery cover print colour"
).split()

POSITIVE = "good great lovely superb perfect charming bright clever pleasant splendid".split()
NEGATIVE = "bad awful dull poor broken boring ugly weak dreadful horrid".split()

# Class: words that point to it. Shares of the classes in training are in `tasks.TOPIC_SHARES`.
TOPICS = {
    "sport": "ball goal team match player race coach score stadium medal".split(),
    "food": "soup cheese oven recipe butter pepper dinner cake cook plate".split(),
    "travel": "train ticket hotel airport map luggage journey harbour passport tour".split(),
    "music": "song piano concert choir violin melody band tune singer rhythm".split(),
    "weather": "storm wind thunder fog frost sunshine cloudburst breeze hail drizzle".split(),
}

TOPIC_FRAMES = (
    "They spoke about the {}.",
    "Everybody liked the {}.",
    "We heard of the {}.",
    "The {} was mentioned first.",
    "I remember the {}.",
    "Nobody forgot the {}.",
)

FILLER = (
    "The evening was quiet.",
    "Nobody came to the gate.",
    "It was late in the year.",
    "The letters were on the shelf.",
    "We walked home in the dark.",
    "They waited for an hour.",
    "The old clock struck seven.",
    "All the shops were closed.",
    "A cart went by slowly.",
    "The children were asleep.",
)

SYSTEM = (
    "You are a helpful assistant.",
    "You are a careful assistant.",
    "Answer briefly.",
    "You are heed-tiny, a very small test model.",
    "Read the text and answer the question.",
)
