"""A simulated shop for which the best possible score is known.

Every user has K distinct interests (categories) with weights w, one of them current, and a last item
in each category. An event is drawn in four steps:

1. drift: with probability `drift` a random interest is replaced by a random category that the user
   is not interested in; the weight of the interest stays;
2. switch: with probability `switch` the current interest is drawn again from w;
3. follow: with probability `follow` the item is the successor of the user's last item in the current
   category, however long ago that was (a coffee grinder follows an espresso machine);
4. otherwise, or without a last item, the item is drawn by popularity, 1/rank in the category.

The items of a category have one order, which is both their popularity and their succession; the
first item follows the last. Items repeat, so score with seen items as candidates.

Axes: U users, C categories, I items of a category, V = C * I items in total, K interests, T steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recblr.config import changed_settings, check, expect_sizes
from recblr.data.log import Interactions
from recblr.errors import InputError

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

MIN_LENGTH = 5  # events; a 5-core filter removes shorter histories
LENGTH_SIGMA = 0.6  # standard deviation of the logarithm of the length of a history
START_TIME = 1_704_067_200  # 2024-01-01 UTC, in seconds
DAY = 86_400


@dataclass(frozen=True)
class Shop:
    """Settings of the simulation.

    `follow`, `switch` and `drift` are probabilities of each event; lengths are in events.

    Raises:
        InputError: there are no interests, or as many as categories.
    """

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

    __repr__ = changed_settings

    def __post_init__(self) -> None:
        check(self, "shop")
        expect_sizes(self, "shop", "users", "categories", "items_per_category", "max_length")
        if not 0 < self.interests < self.categories:
            raise InputError(
                f"{self.interests} interests of {self.categories} categories: choose at least 1 "
                "interest and fewer interests than categories"
            )


@dataclass(frozen=True, eq=False)
class SimulatedLog:
    """A simulated log, and the true probabilities of each user's last event.

    Attributes:
        interactions: the log.
        oracle: (users, items) in the order of `user_ids` and `item_ids`, the probability that the
            user's last event is this item, given all earlier events and the hidden interests. No
            scorer has a better expected hit rate or NDCG. A row sums to 1 minus the probability of
            items that nobody bought, as they have no column.
    """

    interactions: Interactions
    oracle: np.ndarray

    def __repr__(self) -> str:
        return f"SimulatedLog({len(self.interactions):,} events, oracle {self.oracle.shape})"


class _Simulation:
    """The state of all users. A step draws one event for each; their last events are drawn together.

    Users are in descending order of history length, so that those who have begun are the first n and
    a step works on views of the arrays.
    """

    def __init__(self, shop: Shop, users: int, rng: np.random.Generator) -> None:
        self.shop, self.rng = shop, rng
        lengths = rng.lognormal(np.log(shop.mean_length) - LENGTH_SIGMA**2 / 2, LENGTH_SIGMA, users)
        lengths = np.clip(np.rint(lengths).astype(np.int64), MIN_LENGTH, shop.max_length)
        self.lengths = np.sort(lengths)[::-1]  # (U,)

        keys = rng.random((users, shop.categories))
        self.interests = np.argpartition(keys, shop.interests)[:, : shop.interests]  # (U, K)
        self.weights = rng.dirichlet(np.full(shop.interests, 2.0), users)  # (U, K)
        self.current = self._draw_interest(np.arange(users))  # (U,) in 0..K-1
        self.last = np.full((users, shop.categories), -1)  # (U, C) in 0..I-1, -1: none yet
        self.popularity = 1 / np.arange(1, shop.items_per_category + 1)  # (I,)
        self.popularity /= self.popularity.sum()

        self.now, self.end = 0, int(self.lengths[0])
        self.items = np.full((users, self.end), -1)  # (U, T) in 0..V-1, -1: not begun yet

    def _draw_interest(self, users: np.ndarray) -> np.ndarray:
        inner_edges = self.weights[users].cumsum(axis=1)[:, :-1]
        interest: np.ndarray = (self.rng.random((len(users), 1)) > inner_edges).sum(axis=1)
        return interest

    def step(self) -> None:
        """Draw the next event of every user who has begun."""
        shop, rng = self.shop, self.rng
        n = int(np.searchsorted(-self.lengths, self.now - self.end, side="right"))
        rows = np.arange(n)

        drifting = np.flatnonzero(rng.random(n) < shop.drift)
        replaced = rng.integers(shop.interests, size=len(drifting))
        new = rng.integers(shop.categories - shop.interests, size=len(drifting))
        for held in np.sort(self.interests[drifting], axis=1).T:
            new += new >= held  # skips the categories of the user's interests
        self.interests[drifting, replaced] = new

        switching = np.flatnonzero(rng.random(n) < shop.switch)
        self.current[switching] = self._draw_interest(switching)

        category = self.interests[rows, self.current[:n]]
        last = self.last[rows, category]
        follows = (last >= 0) & (rng.random(n) < shop.follow)
        popular = np.searchsorted(self.popularity.cumsum()[:-1], rng.random(n), side="right")
        item = np.where(follows, (last + 1) % shop.items_per_category, popular)

        self.last[rows, category] = item
        self.items[:n, self.now] = category * shop.items_per_category + item
        self.now += 1

    def next_item(self) -> np.ndarray:
        """(U, V) the probability of each item as the next event of each user."""
        shop, k = self.shop, self.shop.interests
        rows = np.arange(len(self.lengths))[:, None]

        # Drift changes the category of an interest, not which interest is current: they multiply.
        interest = shop.switch * self.weights
        interest[rows, self.current[:, None]] += 1 - shop.switch
        category = np.full(self.last.shape, shop.drift / k / (shop.categories - k))
        category[rows, self.interests] = (1 - shop.drift / k) * interest

        follow = np.where(self.last >= 0, shop.follow, 0.0)  # without a last item none follows
        item: np.ndarray = (category * (1 - follow))[:, :, None] * self.popularity  # (U, C, I)
        successor = (self.last + 1) % shop.items_per_category
        item[rows, np.arange(shop.categories), successor] += category * follow
        return item.reshape(len(rows), -1)

    def events(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Users, items and times in seconds, each (N,), user by user in order of time."""
        begun = self.items >= 0
        start = START_TIME + DAY * self.rng.integers(365, size=(len(begun), 1))
        seconds = start + np.cumsum(begun * self.rng.geometric(2 / DAY, begun.shape), axis=1)
        return np.nonzero(begun)[0], self.items[begun], seconds[begun]


DEMO = Shop()


def simulate_shop(shop: Shop = DEMO) -> SimulatedLog:
    """Simulate the log of a shop, in order of time, with the true probabilities of the last events.

    With the default number of categories and items the items have names; otherwise they are called
    `c012-i0345`, by category and position in it.
    """
    simulation = _Simulation(shop, shop.users, np.random.default_rng(shop.seed))
    while simulation.now < simulation.end - 1:
        simulation.step()
    oracle = simulation.next_item()
    simulation.step()

    users, items, seconds = simulation.events()
    in_time = np.argsort(seconds, kind="stable")
    users, user_rows = _by_first_appearance(users[in_time])
    items, item_rows = _by_first_appearance(items[in_time])
    # Users get random numbers, as they are in order of history length.
    numbers = simulation.rng.permutation(shop.users)[user_rows]
    item_names, first_names = _item_names(shop), FIRST_NAMES.split()
    log = Interactions(
        users=users,
        items=items,
        timestamps=seconds[in_time],
        user_ids=pa.array([f"{first_names[i % len(first_names)]}-{i:04d}" for i in numbers]),
        item_ids=pa.array([item_names[row] for row in item_rows]),
        source=f"simulated shop, seed {shop.seed}",
        unit="seconds",
    )
    return SimulatedLog(log, oracle[np.ix_(user_rows, item_rows)])


def _by_first_appearance(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes (N,) int32 in order of first appearance, and the value of each code."""
    distinct, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return np.argsort(order)[inverse].astype(np.int32), distinct[order]


def _item_names(shop: Shop) -> Sequence[str]:
    table = [names.split(", ") for names in CATALOGUE.values()]
    if (shop.categories, shop.items_per_category) == (len(table), len(table[0])):
        return [name for names in table for name in names]
    positions = range(shop.items_per_category)
    return [f"c{c:03d}-i{i:04d}" for c in range(shop.categories) for i in positions]
