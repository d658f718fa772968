"""A simulated shop whose best possible score is known: a demo, and a yardstick for models.

Every user u holds K distinct interests (categories) with weights w, one of them current, and
remembers the last item taken in each category. An event is drawn in four steps:

1. drift: with probability `drift` one held interest, any with equal chance, is replaced by a
   category not held, any with equal chance (the weight stays with the place, not the category);
2. switch: with probability `switch` the current interest is drawn anew from w;
3. follow: with probability `follow` the item is the successor of the last item the user took in
   the current category, however long ago (an espresso machine leads to a coffee grinder);
4. else, or when there is no such last item, it is drawn by popularity, 1/rank in the category.

Items of a category stand in one order which is both their rank and their succession; the first
succeeds the last. Items repeat: score with the items already seen left in.

Axes: U users, C categories, I items of a category, V = C * I items of the catalogue, K interests,
T steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recblr.data.log import Interactions
from recblr.errors import InputError
from recblr.progress import progress

CATALOGUE = {
    "coffee": "espresso machine, coffee grinder, descaler, coffee beans, milk frother, tamper, "
    "knock box, espresso cups, coffee scale, bottomless portafilter, puck screen, "
    "gooseneck kettle, pour-over dripper, paper filters, cold brew jug, coffee roaster",
    "hiking": "trail map, hiking boots, wool socks, daypack, water bladder, trekking poles, "
    "rain jacket, headlamp, gaiters, tent, sleeping bag, sleeping mat, camp stove, gas canister, "
    "cook set, bear canister",
    "cycling": "road bike, bike helmet, bike lock, floor pump, bike lights, bottle cage, "
    "cycling shorts, clipless pedals, cycling shoes, bike computer, inner tubes, tyre levers, "
    "chain lube, repair stand, indoor trainer, power meter",
    "baking": "stand mixer, mixing bowls, kitchen scale, bread flour, sourdough starter, "
    "proofing basket, bench scraper, bread lame, dutch oven, baking stone, pizza peel, "
    "rolling pin, cake tin, piping bags, sugar thermometer, cooling rack",
    "photography": "mirrorless camera, memory card, camera strap, camera bag, camera battery, "
    "prime lens, lens filter, tripod, remote shutter, zoom lens, external flash, light stand, "
    "softbox, colour calibrator, photo printer, photo album",
    "gardening": "seed tray, potting soil, tomato seeds, grow lamp, watering can, plant labels, "
    "hand trowel, raised bed, compost, trellis, garden hose, pruning shears, wheelbarrow, "
    "compost bin, rain barrel, greenhouse",
    "music": "acoustic guitar, guitar tuner, guitar picks, capo, guitar strap, guitar strings, "
    "chord book, guitar stand, guitar case, metronome, electric guitar, guitar cable, "
    "practice amp, overdrive pedal, looper pedal, audio interface",
    "painting": "sketchbook, drawing pencils, kneaded eraser, watercolour set, watercolour paper, "
    "brush set, masking tape, palette, acrylic paints, stretched canvas, easel, gesso, "
    "palette knife, oil paints, varnish, picture frame",
    "running": "running shoes, running socks, running belt, heart rate monitor, running watch, "
    "reflective vest, energy gels, foam roller, hydration vest, trail shoes, compression sleeves, "
    "blister plasters, race belt, recovery sandals, massage gun, treadmill",
    "aquarium": "fish tank, aquarium gravel, aquarium heater, tank filter, water conditioner, "
    "water test kit, live plants, driftwood, neon tetras, fish flakes, algae scraper, "
    "gravel vacuum, cherry shrimp, CO2 kit, tank light, quarantine tank",
    "home office": "laptop, laptop stand, wireless keyboard, mouse, desk mat, monitor, "
    "monitor arm, usb hub, webcam, ring light, headset, standing desk, office chair, cable tray, "
    "desk lamp, document scanner",
    "sewing": "sewing machine, thread set, fabric scissors, cotton fabric, pin cushion, "
    "tape measure, rotary cutter, cutting mat, sewing patterns, seam ripper, steam iron, "
    "pressing ham, zips, overlocker, dress form, quilting ruler",
}
FIRST_NAMES = (
    "ada aiko amara amir ana anders aylin bilal bruno chen dalia diego elif emeka farah femi freya "
    "hana hugo ines ivan jamal kai keiko lars leila lin mateo mei mina nadia niko noor olga omar "
    "priya ravi sana tomas zuri"
)

SHORTEST = 5  # events: below this, leave-one-out and 5-core filters would drop the user
SPREAD = 0.6  # standard deviation of the logarithm of a history's length
OPENING = 1_704_067_200  # 2024-01-01 UTC, in seconds
DAY = 86_400
USERS_AT_ONCE = 4096


@dataclass(frozen=True)
class Shop:
    """The dials. `follow`, `switch`, `drift` are probabilities at each event; lengths in events."""

    users: int = 2000
    categories: int = 12
    items_per_category: int = 16
    interests: int = 3
    follow: float = 0.7
    switch: float = 0.5
    drift: float = 0.02
    mean_length: float = 40.0
    max_length: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.interests < self.categories:
            raise InputError(
                f"{self.interests} interests of {self.categories} categories: an interest drifts "
                "to a category not held, so choose at least 1 and fewer than the categories"
            )


@dataclass(frozen=True, eq=False)
class SimulatedLog:
    """What was bought, and how likely each user's last purchase was before it was made.

    `oracle` (users, items) follows the order of `user_ids` and `item_ids`: the probability that
    the last event of the user is this item, given all earlier events and the hidden interests.
    Ranking by it has the best expected hit rate and NDCG of all scorers, for every single user.
    A row sums to 1, less what falls to items that nobody ever bought: those have no column.
    """

    interactions: Interactions
    oracle: np.ndarray


class _Crowd:
    """Users who live through the process side by side and make their last step together.

    They stand in order of falling length, so that those who have begun are always the first n,
    and a step works on views of the arrays.
    """

    def __init__(self, shop: Shop, users: int, rng: np.random.Generator) -> None:
        self.shop, self.rng = shop, rng
        lengths = rng.lognormal(np.log(shop.mean_length) - SPREAD**2 / 2, SPREAD, users)
        lengths = np.clip(np.rint(lengths).astype(np.int64), SHORTEST, shop.max_length)
        self.lengths = np.sort(lengths)[::-1]  # (U,)

        lottery = rng.random((users, shop.categories))
        self.interests = np.argpartition(lottery, shop.interests)[:, : shop.interests]  # (U, K)
        self.weights = rng.dirichlet(np.full(shop.interests, 2.0), users)  # (U, K)
        self.current = self._draw_interest(np.arange(users))  # (U,) place in 0..K-1
        self.last = np.full((users, shop.categories), -1)  # (U, C) place in 0..I-1, -1: none yet
        self.popularity = 1 / np.arange(1, shop.items_per_category + 1)  # (I,)
        self.popularity /= self.popularity.sum()

        self.now, self.end = 0, int(self.lengths[0])
        self.items = np.full((users, self.end), -1)  # (U, T) in 0..V-1, -1: not begun yet

    def _draw_interest(self, users: np.ndarray) -> np.ndarray:
        inner_edges = self.weights[users].cumsum(axis=1)[:, :-1]
        place: np.ndarray = (self.rng.random((len(users), 1)) > inner_edges).sum(axis=1)
        return place

    def step(self) -> None:
        """Draw the next event of everyone who has begun."""
        shop, rng = self.shop, self.rng
        n = int(np.searchsorted(-self.lengths, self.now - self.end, side="right"))
        rows = np.arange(n)

        drifting = np.flatnonzero(rng.random(n) < shop.drift)
        place = rng.integers(shop.interests, size=len(drifting))
        new = rng.integers(shop.categories - shop.interests, size=len(drifting))
        for held in np.sort(self.interests[drifting], axis=1).T:
            new += new >= held  # counts only the categories not held
        self.interests[drifting, place] = new

        switching = np.flatnonzero(rng.random(n) < shop.switch)
        self.current[switching] = self._draw_interest(switching)

        category = self.interests[rows, self.current[:n]]
        last = self.last[rows, category]
        follows = (last >= 0) & (rng.random(n) < shop.follow)
        drawn = np.searchsorted(self.popularity.cumsum()[:-1], rng.random(n), side="right")
        item = np.where(follows, (last + 1) % shop.items_per_category, drawn)

        self.last[rows, category] = item
        self.items[:n, self.now] = category * shop.items_per_category + item
        self.now += 1

    def next_item(self) -> np.ndarray:
        """Probability of each item to be the next event, before any of its draws, (U, V)."""
        shop, k = self.shop, self.shop.interests
        rows = np.arange(len(self.lengths))[:, None]

        # Drift changes what stands in a place, not which place is current: the two multiply.
        place = shop.switch * self.weights
        place[rows, self.current[:, None]] += 1 - shop.switch
        category = np.full(self.last.shape, shop.drift / k / (shop.categories - k))  # not held
        category[rows, self.interests] = (1 - shop.drift / k) * place

        follow = np.where(self.last >= 0, shop.follow, 0.0)  # no last item, nothing to follow
        item: np.ndarray = (category * (1 - follow))[:, :, None] * self.popularity  # (U, C, I)
        successor = (self.last + 1) % shop.items_per_category
        item[rows, np.arange(shop.categories), successor] += category * follow
        return item.reshape(len(rows), -1)

    def events(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows of users, items, seconds), each (N,), user by user, seconds rising in each."""
        begun = self.items >= 0
        start = OPENING + DAY * self.rng.integers(365, size=(len(begun), 1))
        seconds = start + np.cumsum(begun * self.rng.geometric(2 / DAY, begun.shape), axis=1)
        return np.nonzero(begun)[0], self.items[begun], seconds[begun]


DEMO = Shop()


def simulate_shop(shop: Shop = DEMO) -> SimulatedLog:
    """Simulate a shop's log, in order of time, with the best possible ranking of each last event.

    The catalogue and the customers of the default size have names; items of other sizes are
    called `c012-i0345` after category and place.
    """
    crowd = _Crowd(shop, shop.users, np.random.default_rng(shop.seed))
    while crowd.now < crowd.end - 1:
        crowd.step()
    oracle = crowd.next_item()
    crowd.step()

    users, items, seconds = crowd.events()
    in_time = np.argsort(seconds, kind="stable")
    users, user_rows = _by_first_appearance(users[in_time])
    items, item_rows = _by_first_appearance(items[in_time])
    # Numbers are dealt at random: they would otherwise tell how long a history is.
    numbers = crowd.rng.permutation(shop.users)[user_rows]
    item_names, first_names = _item_names(shop), FIRST_NAMES.split()
    log = Interactions(
        users=users,
        items=items,
        timestamps=seconds[in_time],
        user_ids=pa.array([f"{first_names[i % len(first_names)]}-{i:04d}" for i in numbers]),
        item_ids=pa.array([item_names[row] for row in item_rows]),
        source=f"simulated shop, seed {shop.seed}",
    )
    return SimulatedLog(log, oracle[np.ix_(user_rows, item_rows)])


def _by_first_appearance(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes (N,) int32 counted up as values first appear, and the value of each code."""
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return np.argsort(order)[inverse].astype(np.int32), distinct[order]


def _item_names(shop: Shop) -> Sequence[str]:
    table = [names.split(", ") for names in CATALOGUE.values()]
    if (shop.categories, shop.items_per_category) == (len(table), len(table[0])):
        return [name for names in table for name in names]
    places = range(shop.items_per_category)
    return [f"c{c:03d}-i{i:04d}" for c in range(shop.categories) for i in places]


def write_large_log(path: Path, shop: Shop) -> int:
    """Stream the log of a shop of any size to Parquet and return its number of rows.

    Columns `user_id, item_id, timestamp`, all int64, user by user. A few thousand users are in
    memory at a time and make a row group, longest histories first. About 50 million events:
    ``Shop(users=500_000, categories=1000, items_per_category=100, mean_length=100,
    max_length=400)``.
    """
    rng = np.random.default_rng(shop.seed)
    ids = rng.permutation(shop.users)
    schema = pa.schema([(name, pa.int64()) for name in ("user_id", "item_id", "timestamp")])
    rows = 0
    with (
        progress(f"Writing {path.name}", total=shop.users) as advance,
        pq.ParquetWriter(path, schema) as writer,
    ):
        for start in range(0, shop.users, USERS_AT_ONCE):
            chunk = ids[start : start + USERS_AT_ONCE]
            crowd = _Crowd(shop, len(chunk), rng)
            while crowd.now < crowd.end:
                crowd.step()
            users, items, seconds = crowd.events()
            writer.write_table(pa.table([chunk[users], items, seconds], schema=schema))
            rows += len(users)
            advance(len(chunk))
    return rows
