"""A part of a dataset: python3 docs/study/subset.py data/Task04_Hippocampus OUTPUT [RUN/splits.json FOLD]

OUTPUT has the labelled volumes of cases.txt, which makes the study's dataset of the decathlon's, or the training cases of a run's fold; the other
labelled volumes become its test images, whose labels are kept in OUTPUT/labelsTs.
"""

import json
import pathlib
import shutil
import sys


def main(source, output, splits=None, fold=None):
    source, output = pathlib.Path(source), pathlib.Path(output)
    if splits:
        kept = json.loads(pathlib.Path(splits).read_text())["folds"][int(fold)]["train"]
    else:
        kept = pathlib.Path(__file__).with_name("cases.txt").read_text().split()
    labelled = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").glob("[!.]*.nii.gz"))
    if missing := sorted(set(kept) - set(labelled)):
        sys.exit(f"{source} lacks {len(missing)} of the volumes, such as {missing[0]}: is it the decathlon's Task04_Hippocampus?")
    tests = sorted(set(labelled) - set(kept))
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (output / folder).mkdir(parents=True)  # fails rather than mix two datasets
    for cases, images, labels in ((kept, "imagesTr", "labelsTr"), (tests, "imagesTs", "labelsTs")):
        for case in cases:
            shutil.copy(source / "imagesTr" / f"{case}.nii.gz", output / images)
            shutil.copy(source / "labelsTr" / f"{case}.nii.gz", output / labels)
    described = json.loads((source / "dataset.json").read_text())
    training = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in kept]
    test = [f"./imagesTs/{case}.nii.gz" for case in tests]
    described |= {"numTraining": len(training), "numTest": len(test), "training": training, "test": test}
    (output / "dataset.json").write_text(json.dumps(described, indent=1))
    print(f"{output}: {len(training)} labelled volumes, {len(test)} test images")


if len(sys.argv) not in (3, 5):
    sys.exit(__doc__)
main(*sys.argv[1:])
