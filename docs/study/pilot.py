"""Tables of docs/study.md from docs/study/pilot.jsonl: means of the arms, paired differences, Kendall's tau. Standard library only."""
import itertools
import json
import os
import random
import statistics

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS = [json.loads(line) for line in open(os.path.join(HERE, "pilot.jsonl"))]
TRAININGS = [row for row in ROWS if row["kind"] == "training"]
RNG = random.Random(7)
DRAWS = 1500

arms = {}
for row in TRAININGS:
    arms.setdefault(row["arm"], []).append([statistics.fmean(labels) for labels in row["case_dice_per_label"]])


def interval(values):
    values.sort()
    return values[int(0.025 * len(values))], values[int(0.975 * len(values))]


def difference(a, b):
    """Mean difference in points, and its 95 % interval: networks of both arms and cases are drawn again, cases together."""
    cases = range(len(arms[a][0]))

    def mean(first, second, chosen):
        of = lambda nets, case: statistics.fmean(net[case] for net in nets)
        return 100 * statistics.fmean(of(first, case) - of(second, case) for case in chosen)

    draw = lambda things: [RNG.choice(things) for _ in things]
    drawn = [mean(draw(arms[a]), draw(arms[b]), draw(cases)) for _ in range(DRAWS)]
    return mean(arms[a], arms[b], cases), *interval(drawn)


def tau(scores, truth, seeds):
    signs = [(scores[i] - scores[j]) * (truth[i] - truth[j]) for i, j in itertools.combinations(seeds, 2) if i != j]
    return (sum(s > 0 for s in signs) - sum(s < 0 for s in signs)) / max(1, len(signs))


print("| arm | networks | Dice | standard deviation |\n|---|--:|--:|--:|")
for arm, nets in arms.items():
    dice = [statistics.fmean(net) for net in nets]
    print(f"| {arm} | {len(dice)} | {100 * statistics.fmean(dice):.2f} | {100 * statistics.stdev(dice):.2f} |")
print("\n| difference | points | 95 % interval |\n|---|--:|--:|")
for a, b in [("S0", "R"), ("H2", "R"), ("U", "R"), ("S0", "U"), ("H2", "U"), ("H2", "S0"), ("H2warm", "H2"), ("H2warm", "U"), ("H2warm", "R")]:
    print("| {} - {} | {:+.2f} | {:+.2f} to {:+.2f} |".format(a, b, *difference(a, b)))
truth = {row["random"]: row["dice"] for row in TRAININGS if row["random"] is not None}
print("\n| search | Kendall's tau | 95 % interval |\n|---|--:|--:|")
for row in ROWS:
    if row["kind"] == "ranking":
        scores, seeds = dict(row["random_seed_and_dice"]), list(truth)
        low, high = interval([tau(scores, truth, [RNG.choice(seeds) for _ in seeds]) for _ in range(DRAWS)])
        print(f"| {row['search']} | {tau(scores, truth, seeds):.2f} | {low:.2f} to {high:.2f} |")
