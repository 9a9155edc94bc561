"""Titles and attributes of planted items and users, correlated with their clusters.

    cluster c -> genre c % G, three moods of its own; a user's country follows its first taste,
    its interests are the genres of its tastes.
Row 0 of every attribute stands for missing. A share of values is missing or random.

Shapes: n = items or users asked for.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.feature_types import Attribute
from trainer.data.jagged import Jagged
from trainer.synth.planted import NUM_TASTES

GENRES = (
    "Jazz", "Rock", "Folk", "Classical", "Electronic", "Soul", "Blues", "Country", "Hip-Hop",
    "Reggae", "Metal", "Ambient", "Funk", "Latin", "Opera", "Punk",
)  # fmt: skip
MOODS = (
    "calm", "dark", "bright", "slow", "fast", "warm", "cold", "raw", "smooth", "loud", "quiet",
    "dreamy", "angry", "happy", "sad", "late-night", "morning", "rainy", "sunny", "road-trip",
    "dance", "focus", "party", "sleep", "study", "workout", "live", "acoustic", "vintage", "new",
)  # fmt: skip
COUNTRIES = (
    "Argentina", "Brazil", "Canada", "Denmark", "Egypt", "France", "Ghana", "Hungary", "India",
    "Japan", "Kenya", "Mexico",
)  # fmt: skip
ADJECTIVES = (
    "Quiet", "Golden", "Broken", "Silver", "Hidden", "Crimson", "Wandering", "Electric", "Hollow",
    "Velvet", "Distant", "Burning", "Frozen", "Lonely", "Restless", "Sunken", "Paper", "Midnight",
    "Early", "Emerald", "Gentle", "Wild", "Faded", "Northern", "Southern", "Secret", "Little",
    "Endless", "Open", "Second", "Copper", "Amber", "Painted", "Rolling", "Humble", "Lucky",
    "Stray", "Tender", "Twin", "Winter",
)  # fmt: skip
NOUNS = (
    "Harbour", "River", "Garden", "Mirror", "Lantern", "Mountain", "Street", "Window", "Ocean",
    "Station", "Letter", "Forest", "Bridge", "Island", "Engine", "Shadow", "Signal", "Valley",
    "Carousel", "Orchard", "Kingdom", "Balcony", "Compass", "Meadow", "Tower", "Parade", "Canyon",
    "Lighthouse", "Market", "Desert", "Rooftop", "Comet", "Highway", "Cathedral", "Anchor",
    "Fountain", "Sparrow", "Theatre", "Voyage", "Waltz",
)  # fmt: skip
NUM_TITLES = len(ADJECTIVES) * len(NOUNS)
TITLE_STEP = 1013
"""Prime to NUM_TITLES: numbers next to each other get unlike words."""

ITEM_ATTRIBUTES = (
    Attribute("genre", "single", len(GENRES) + 1),
    Attribute("moods", "multi", len(MOODS) + 1),
)
USER_ATTRIBUTES = (
    Attribute("country", "single", len(COUNTRIES) + 1),
    Attribute("interests", "multi", len(GENRES) + 1),
)
VOCABULARIES = {"genre": GENRES, "moods": MOODS, "country": COUNTRIES, "interests": GENRES}

MISSING, WRONG = 0.05, 0.05
MOODS_OF_CLUSTER, MOOD_CHANCE, RANDOM_MOOD_CHANCE = 3, 0.6, 0.3
COUNTRY_FOLLOWS_TASTE, INTEREST_CHANCE = 0.6, 0.6


def genre_of_cluster(cluster_n: np.ndarray) -> np.ndarray:
    """Row of the genre, 1..G."""
    return cluster_n % len(GENRES) + 1


def item_attributes(
    slot_n: np.ndarray, clusters: int, random: np.random.Generator
) -> tuple[np.ndarray, Jagged]:
    """Genre (int64 [n]) and moods of items in slots."""
    cluster_n = slot_n % clusters
    genre_n = _blur(genre_of_cluster(cluster_n), len(GENRES), random)
    number = np.arange(MOODS_OF_CLUSTER)
    own = (cluster_n[:, None] * 7 + number * (cluster_n[:, None] % 9 + 1)) % len(MOODS) + 1
    other = random.integers(1, len(MOODS) + 1, (len(slot_n), 1))
    chance = np.array([MOOD_CHANCE] * MOODS_OF_CLUSTER + [RANDOM_MOOD_CHANCE])
    return genre_n, _some_of(np.concatenate([own, other], axis=1), chance, random)


def user_attributes(taste_nT: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, Jagged]:
    """Country (int64 [n]) and interests of users."""
    country_n = taste_nT[:, 0] % len(COUNTRIES) + 1
    anywhere = random.integers(1, len(COUNTRIES) + 1, len(country_n))
    follows = random.random(len(country_n)) < COUNTRY_FOLLOWS_TASTE
    country_n = _blur(np.where(follows, country_n, anywhere), len(COUNTRIES), random)
    chance = np.full(NUM_TASTES, INTEREST_CHANCE)
    return country_n, _some_of(genre_of_cluster(taste_nT), chance, random)


def titles(slot_n: np.ndarray, clusters: int) -> pa.StringArray:
    """Titles such as "Quiet Harbour (Jazz)"; different for all items of a genre."""
    cluster_n, number_n = slot_n % clusters, slot_n // clusters
    genre_n = genre_of_cluster(cluster_n) - 1
    clusters_of_genre = -(-clusters // len(GENRES))
    serial_n = number_n * clusters_of_genre + cluster_n // len(GENRES)
    word_n = (serial_n * TITLE_STEP) % NUM_TITLES
    volume_n = serial_n // NUM_TITLES
    parts = [
        pa.array(ADJECTIVES).take(pa.array(word_n // len(NOUNS))),
        pa.array([f" {noun}" for noun in NOUNS]).take(pa.array(word_n % len(NOUNS))),
    ]
    if volume_n.max(initial=0) > 0:
        numeral = pc.binary_join_element_wise("", pa.array(volume_n + 1).cast(pa.string()), " ")
        parts.append(pc.if_else(pa.array(volume_n > 0), numeral, ""))
    parts.append(pa.array([f" ({genre})" for genre in GENRES]).take(pa.array(genre_n)))
    return pc.binary_join_element_wise(*parts, "")


def _blur(value_n: np.ndarray, values: int, random: np.random.Generator) -> np.ndarray:
    """Some values missing (0), some random."""
    chance_n = random.random(len(value_n))
    other_n = random.integers(1, values + 1, len(value_n))
    wrong = np.where(chance_n < MISSING + WRONG, other_n, value_n)
    return np.where(chance_n < MISSING, 0, wrong)


def _some_of(options: np.ndarray, chance: np.ndarray, random: np.random.Generator) -> Jagged:
    """Of each row's options (n x k) those that fall to their chance, without repetition."""
    chosen = random.random(options.shape) < chance
    for column in range(1, options.shape[1]):
        earlier = options[:, :column] == options[:, column : column + 1]
        chosen[:, column] &= ~(earlier & chosen[:, :column]).any(axis=1)
    lengths = chosen.sum(axis=1)
    return Jagged(options[chosen], np.concatenate([[0], np.cumsum(lengths)]))
