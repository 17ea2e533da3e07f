"""Tables of ../study.md from rows.jsonl, quick.jsonl, texture.jsonl, searches.jsonl, rank.jsonl and rank_random.jsonl: python3 docs/study/study.py

Intervals of 95 % from 10,000 draws: folds and cases of a fold, the same for all arms and seeds, which share them; seeds; for each seed, random arms where both are compared.
"""

import itertools
import json
import pathlib
import random
import statistics

HERE = pathlib.Path(__file__).resolve().parent
rows = [json.loads(line) for line in (HERE / "rows.jsonl").read_text().splitlines()]
searches = [json.loads(line) for line in (HERE / "searches.jsonl").read_text().splitlines()]
ranks = [json.loads(line) for line in (HERE / "rank.jsonl").read_text().splitlines()]
randoms = [json.loads(line) for line in (HERE / "rank_random.jsonl").read_text().splitlines()]
textures = [json.loads(line) for line in (HERE / "texture.jsonl").read_text().splitlines()]
# Folds 0 to 3 of the preset: networks from the weights of their searches, the plain one of 7 channels for as many steps as search and training
# together and for their time, that of 8 channels for their time, nnU-Net's own, networks found with a budget in bytes; with Muon the preset and 8 channels for its time,
# the same for the later preset, and its networks after half of the steps; five networks of a cross-validation that has not seen the fold, averaged and each.
MEMBERS = [f"ensemble-member-{n}" for n in range(5)]
QUICK = ["found", "plain-preset", "plain-time", "plain-8", "nnunet", "found-bytes", "muon-found", "muon-plain-8", "decided-found", "decided-plain-8", "decided-found-1600", "ensemble", *MEMBERS]
quick = [json.loads(line) for line in (HERE / "quick.jsonl").read_text().splitlines()]
quick = [{"size": "quick", **row} for row in quick if row["fold"] in range(4)]
by_key = {(row["size"], row["arm"], row["seed"], row["fold"]): row for row in rows + textures + quick}
FOLDS = range(4)
RANDOM = ["random-1", "random-2"]
SIZES = {"0.3G": [1, 2], "0.9G": [1, 2], "3.7G": [1]}
AGAIN = {"0.3G-muon": [1, 2, 3]}  # with the preset of 29 November
ARMS = ["found", "plain", *RANDOM, "random-search", "found-warm", "plain-long"]


def dice(row):
    return {case: sum(labels) / len(labels) for case, labels in row["dice"].items()}


def mean(row):
    return statistics.fmean(dice(row).values())


def with_interval(value, draws):
    """A value with the interval of 95 % of its 10,000 draws."""
    draws = sorted(draws)
    return f"{value:+.2f} ({draws[249]:+.2f} to {draws[9749]:+.2f})"


def difference(one, others, units, of_folds=FOLDS):
    """Mean over units (size, seed) of Dice of arm `one` less the mean of `others`, in points, and its interval."""
    data = {}
    for size, seed in units:
        found = [dice(by_key[size, one, seed, fold]) for fold in of_folds]
        for other in others:
            theirs = [dice(by_key[size, other, seed, fold]) for fold in of_folds]
            data[size, seed, other] = [[100 * (a[case] - b[case]) for case in a] for a, b in zip(found, theirs)]
    value = statistics.fmean(statistics.fmean(fold) for folds in data.values() for fold in folds)
    draw, values = random.Random(1), []
    for _ in range(10_000):
        num_cases = [len(fold) for fold in data[*units[0], others[0]]]
        folds = [(fold, draw.choices(range(num_cases[fold]), k=num_cases[fold])) for fold in draw.choices(of_folds, k=len(of_folds))]
        means = []
        for unit in draw.choices(units, k=len(units)):
            for arm in draw.choices(others, k=len(others)):
                means += [sum(data[*unit, arm][fold][case] for case in drawn) / len(drawn) for fold, drawn in folds]
        values.append(sum(means) / len(means))
    return with_interval(value, values)


def complete(size, arms, seeds):
    """Units (size, seed) of which all folds of all arms have run."""
    return [(size, seed) for seed in seeds if all((size, arm, seed, fold) in by_key for arm in arms for fold in FOLDS)]


def agreement(networks, is_pair=lambda a, b: True):
    """Mean number of blocks of equal depth, and of equal first width, over all pairs of (seed, blocks) that `is_pair` takes."""
    pairs = [(a[1], b[1]) for a, b in itertools.combinations(networks, 2) if is_pair(a, b)]
    depth = statistics.fmean(sum(len(a) == len(b) for a, b in zip(*pair)) for pair in pairs)
    width = statistics.fmean(sum(a[0] == b[0] for a, b in zip(*pair)) for pair in pairs)
    return f"depth in {depth:.1f}, first width in {width:.1f} of {len(networks[0][1])} blocks ({len(pairs)} pairs)"


def certainty(row):
    """Means of the largest probability of a kept layer's width, and of a block's depth."""
    blocks = list(zip(row["probabilities"], row["blocks"]))
    width = statistics.fmean(max(p) for found, block in blocks for p in found["width"][: len(block)])
    return width, statistics.fmean(max(found["depth"]) for found, _ in blocks)


def tau(searches):
    """Kendall's tau over the pairs of points within each search."""
    pairs = [(a[0] - b[0]) * (a[1] - b[1]) for points in searches for a, b in itertools.combinations(points, 2)]
    signs = [(pair > 0) - (pair < 0) for pair in pairs if pair]
    return sum(signs) / len(signs)


def kendall_of_random(search):
    """Kendall's tau of a search's pseudo-Dice of random networks and their Dice after training, and its interval: networks are drawn."""
    points, draw = [(row["pseudo_dice"][search], row["mean_dice"]) for row in randoms], random.Random(1)
    values = [tau([draw.choices(points, k=len(points))]) for _ in range(10_000)]
    return f"{with_interval(tau([points]), values)}, {len(points)} networks"


def kendall(size, arms, with_own=True):
    """Kendall's tau of shared weights and training, within folds, and its interval: folds, the searches of each and networks are drawn.

    The two trainings of a plain network count as one, by their mean. Without the own ones, the found network of the search's seed is left out.
    """
    folds = [[] for _ in FOLDS]
    for ranked in (row for row in ranks if row["size"] == size):
        points = {}
        for network in (network for network in ranked["networks"] if network["arm"] in arms):
            if not with_own and (network["arm"], network["seed"]) == ("found", ranked["search_seed"]):
                continue
            row = by_key[size, network["arm"], network["seed"], ranked["fold"]]
            points.setdefault(str(row["blocks"]), []).append((network["pseudo_dice"], mean(row)))
        folds[ranked["fold"]].append([tuple(map(statistics.fmean, zip(*of_one))) for of_one in points.values()])

    draw, values = random.Random(1), []
    for _ in range(10_000):
        drawn = []
        for of_fold in draw.choices(folds, k=len(folds)):
            networks = draw.choices(range(len(of_fold[0])), k=len(of_fold[0]))
            drawn += [[search[network] for network in networks] for search in draw.choices(of_fold, k=len(of_fold))]
        values.append(tau(drawn))
    every = [search for of_fold in folds for search in of_fold]
    return f"{with_interval(tau(every), values)}, {len(every)} searches, {len(every[0])} networks in a fold"


for size, seeds in (SIZES | AGAIN).items():
    of_size = [row for row in rows if row["size"] == size]
    costs = [row["macs_per_patch"] / 1e9 for row in of_size]
    print(f"\n# {size}: {min(costs):.3f} to {max(costs):.3f} G\n")
    for arm, seed in sorted({(row["arm"], row["seed"]) for row in of_size}, key=lambda key: (ARMS.index(key[0]), key[1])):
        folds = [f"{mean(by_key[size, arm, seed, fold]):.4f}" if (size, arm, seed, fold) in by_key else "-" for fold in FOLDS]
        total = f"{statistics.fmean(mean(by_key[size, arm, seed, fold]) for fold in FOLDS):.4f}" if complete(size, [arm], [seed]) else ""
        print(f"{arm:10} seed {seed}  {' '.join(folds)}  {total}")
    for one, others in [("found", ["plain"]), ("found", RANDOM[:1]), ("found", RANDOM[1:]), ("found", RANDOM), ("plain", RANDOM)]:
        units = complete(size, [one, *others], seeds)
        by_seed = [difference(one, others, [unit]) for unit in units]
        both = f"; together {difference(one, others, units)}" if len(units) > 1 else ""
        print(f"{one} - {' and '.join(others)}: {', '.join(by_seed)}{both}")
    for one, others in [("found", ["random-search"]), ("random-search", ["plain"]), ("found-warm", ["plain-long"]), ("found-warm", ["found"]), ("plain-long", ["plain"])]:
        units = complete(size, [one, *others], seeds)
        if units:
            print(f"{one} - {others[0]}, seeds {[seed for _, seed in units]}: {difference(one, others, units)}")
    found = [row for row in of_size + [row for row in searches if row["size"] == size] if row["arm"] == "found"]
    networks = [(row["seed"], row["blocks"]) for row in found]
    drawn = {str(row["blocks"]): (row["seed"], row["blocks"]) for row in of_size if row["arm"] in RANDOM}
    print(f"{len(found)} searches agree, seeds alike, on {agreement(networks, lambda a, b: a[0] == b[0])}")
    print(f"another seed: {agreement(networks, lambda a, b: a[0] != b[0])}; {len(drawn)} random networks: {agreement(list(drawn.values()))}")
    widths, depths = zip(*map(certainty, found))
    print(f"certainty: widths {min(widths):.2f} to {max(widths):.2f}, depths {min(depths):.2f} to {max(depths):.2f}")
    gaps = sorted(100 * (row["pseudo_dice_mixture"] - row["pseudo_dice_found"]) for row in found)
    print(f"mixture - cut out: {' '.join(f'{gap:.1f}' for gap in gaps)}; mean {statistics.fmean(gaps):.1f}")
    pairs = [(by_key[size, RANDOM[0], seed, fold], by_key[size, RANDOM[1], seed, fold]) for _, seed in complete(size, RANDOM, seeds) for fold in FOLDS]
    squares = [(100 * (mean(a) - mean(b))) ** 2 for a, b in pairs if a["blocks"] != b["blocks"]]
    print(f"random networks of one fold differ by {statistics.fmean(squares) ** 0.5:.2f} points (root mean square of {len(squares)} pairs)")

units = [(size, seed) for size, seeds in SIZES.items() for seed in seeds]
print(f"\n# All sizes\n\nfound - plain: {difference('found', ['plain'], units)}\nfound - random: {difference('found', RANDOM, units)}")
print(f"plain - random: {difference('plain', RANDOM, units)}")
print("\n# The preset quick\n")
for arm, seed in sorted({(row["arm"], row["seed"]) for row in quick}, key=lambda key: (key[1], QUICK.index(key[0]))):
    print(arm, f"seed {seed}", " ".join(f"{mean(row):.4f}" for row in quick if (row["arm"], row["seed"]) == (arm, seed)))
for plain in ["plain-preset", "plain-time", "plain-8"]:
    print(f"found - {plain}: {difference('found', [plain], [('quick', 1)])}")
shared = [fold for fold in FOLDS if all(("quick", arm, 2, fold) in by_key for arm in ["found", "plain-8"])]
for units in [[("quick", 1)], [("quick", 2)], [("quick", 1), ("quick", 2)]]:
    print(f"found - plain-8, seeds {[seed for _, seed in units]}, folds {shared}: {difference('found', ['plain-8'], units, shared)}")
shared = [fold for fold in FOLDS if ("quick", "found-bytes", 1, fold) in by_key]
for arm in ["found", "plain-8"]:
    print(f"found-bytes - {arm}, folds {shared}: {difference('found-bytes', [arm], [('quick', 1)], shared)}")
for arm, others in {"muon-found": ["muon-plain-8", "found"], "decided-found": ["decided-plain-8", "muon-found", "decided-found-1600"]}.items():
    for other in others:
        shared = [fold for fold in FOLDS if all(("quick", one, 1, fold) in by_key for one in [arm, other])]
        print(f"{arm} - {other}, folds {shared}: {difference(arm, [other], [('quick', 1)], shared)}")
shared = [fold for fold in FOLDS if ("quick", "ensemble", 1, fold) in by_key]
for others in [MEMBERS, ["decided-found-1600"]]:
    print(f"ensemble - {others[0]}, folds {shared}: {difference('ensemble', others, [('quick', 1)], shared)}")
for arm in ["found", "plain-preset"]:
    print(f"{arm} - nnunet, fold 0: {difference(arm, ['nnunet'], [('quick', 1)], [0])}")
print("\n# Ablation\n")
for arm in sorted({row["arm"] for row in searches}):
    of_arm = [row for row in searches if row["arm"] == arm]
    certain = f"{statistics.fmean(certainty(row)[0] for row in of_arm):.2f}" if arm in ("found", "pre-norm") else ""
    for key in ("pseudo_dice_mixture", "pseudo_dice_found"):
        print(f"{arm:10} {key:20} {' '.join(f'{row[key]:.3f}' for row in of_arm)} {certain}")
print("\n# Kendall's tau of shared weights\n")
for size in ("0.3G", "0.9G"):
    for arms in (["found", "plain", *RANDOM], RANDOM):
        print(f"{size}, {', '.join(arms)}: {kendall(size, arms)}")
    print(f"{size}, without the search's own network: {kendall(size, ['found', 'plain', *RANDOM], with_own=False)}")
for search in randoms[0]["pseudo_dice"]:
    print(f"random networks, fold 0, the search {search}: {kendall_of_random(search)}")


def share(row):
    """Part of a texture network's multiply-adds in the convolutions at full resolution, and in those of the last layer."""
    first, last = row["blocks"][0], row["blocks"][-1]
    layers = [*zip([1, *first], first), *zip([2 * first[-1], *last], last)]
    return 24 * 32 * 24 * (27 * sum(a * b for a, b in layers) + 3 * last[-1]) / row["macs_per_patch"]


print("\n# Texture phantom\n")
arms = {arm: [row for row in textures if row["arm"] == arm] for arm in dict.fromkeys(row["arm"] for row in textures)}
for arm, of_arm in arms.items():
    shares = [share(row) for row in of_arm]
    scores = " ".join(f"{100 * mean(row):.1f}" for row in of_arm)
    print(f"{arm:9} {min(shares):.2f} to {max(shares):.2f} at full resolution, Dice {100 * statistics.fmean(map(mean, of_arm)):.2f} ({scores})")
middle = statistics.median(share(row) for arm in RANDOM for row in arms[arm])
print(f"found: {sum(share(row) > middle for row in arms['found'])} of {len(arms['found'])} above the random networks' median of {middle:.2f}")
units = [("texture", row["seed"]) for row in arms["found"]]
for one, others in [("fine", ["coarse"]), ("fine", ["even"]), ("found", RANDOM), ("found", ["plain"]), ("found", ["fine"]), ("plain", RANDOM)]:
    print(f"{one} - {' and '.join(others)}: {difference(one, others, units, [0])}")
