"""Parts of the tests of exported networks that need Python. `variants IN OUT` writes an image in other orientations, voxel sizes
and extents; `segment SCRIPT MODEL IN OUT` segments the images of a folder with the example script; `logits MODEL X Y CLASSES SHAPE` compares runtimes with the logits Y of the input X (raw f32)."""

import pathlib
import runpy
import sys
import warnings

import nibabel
import numpy as np
import onnx
import onnxruntime


def variants(source, folder):
    image = nibabel.load(source)
    data, affine = np.asarray(image.dataobj, np.float32), image.affine
    folder = pathlib.Path(folder)
    folder.mkdir()

    def save(name, data, affine):
        nibabel.save(nibabel.Nifti1Image(data, affine), folder / f"{name}.nii.gz")

    save("as_is", data, affine)
    turned = nibabel.as_closest_canonical(image).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    save("turned", np.asarray(turned.dataobj, np.float32), turned.affine)
    save("finer", data, affine @ np.diag([0.7, 0.8, 0.9, 1]))
    save("thick_slices", data[:, :, ::4], affine @ np.diag([1, 1, 4, 1]))
    save("thin_slices", data, affine @ np.diag([1.1, 1.2, 0.2, 1]))
    save("small", data[3:9, 2:10, 1:12], affine)
    masked = np.pad(data, 5)
    masked[12:15, 12:15, 12:15] = 0
    save("masked", masked, affine)
    save("empty", 0 * data, affine)
    scaled = nibabel.Nifti1Image((data * 100).astype(np.int16), affine)
    scaled.header.set_slope_inter(0.01, 3)
    nibabel.save(scaled, folder / "scaled.nii.gz")
    bare = nibabel.Nifti1Image(data, None)
    bare.header.set_zooms((1.5, 1, 1))
    nibabel.save(bare, folder / "without_affine.nii.gz")


def logits(model, x, y, classes, *shape):
    shape = [int(n) for n in shape]
    x = np.fromfile(x, np.float32).reshape(shape)
    y = np.fromfile(y, np.float32).reshape(shape[0], int(classes), *shape[2:])
    proto = onnx.load(model)
    onnx.checker.check_model(proto, full_check=True)
    assert (proto.ir_version, proto.opset_import[0].version) == (8, 18)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    worst = {"onnxruntime": np.abs(session.run(["logits"], {"image": x})[0] - y).max()}
    try:
        import openvino
    except ImportError:
        print("SKIPPED: no OpenVINO", file=sys.stderr)
    else:
        compiled = openvino.compile_model(openvino.Core().read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        worst["openvino"] = np.abs(compiled([x])[0] - y).max()
    print(worst)
    assert max(worst.values()) < 1e-4, worst
    assert np.abs(y).max() > 0.1, "logits of a network with weights"


def segment(script, model, images, output):
    for image in sorted(pathlib.Path(images).iterdir()):
        sys.argv = [script, "--model", model, "--output", f"{output}/{image.name}", str(image)]
        runpy.run_path(script, run_name="__main__")


{"variants": variants, "logits": logits, "segment": segment}[sys.argv[1]](*sys.argv[2:])
