"""DICOM series for tests/tests/dicom.rs, made by pydicom, and segmentations of them, read by highdicom.

    python dicom_series.py make VOLUME FOLDER      series of a NIfTI volume, and the same as SimpleITK reads them
    python dicom_series.py spoil SERIES FOLDER     copies of a series, each with a fault of its own
    python dicom_series.py check SERIES SEG NIFTI  compares a segmentation with the label map beside it
"""

import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from pydicom import Dataset, FileMetaDataset, dcmread, dcmwrite
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    generate_uid,
)

OBLIQUE = np.array([[0.8, 0.6, 0.0], [-0.48, 0.64, 0.6], [0.36, -0.48, 0.8]])
SPACING = (1.5, 1.0, 1.25)  # of planes, rows, columns


def uid(*parts):
    return generate_uid(entropy_srcs=[str(part) for part in parts])


def patient(name, modality):
    """Attributes of patient, study and series, private ones among them."""
    d = Dataset()
    d.SpecificCharacterSet = "ISO_IR 100"
    d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = "Müller^Jörg", "P-17", "19600102", "M"
    d.PatientAddress = "a street"
    d.StudyInstanceUID, d.SeriesInstanceUID = uid("study"), uid("series", name)
    d.FrameOfReferenceUID = uid("frame", name)
    d.StudyDate, d.StudyTime, d.StudyID, d.AccessionNumber = "20260102", "101112", "S1", "A1"
    d.ReferringPhysicianName, d.SeriesNumber, d.SeriesDescription = "Dr^Who", 7, f"{name} of a phantom"
    d.PositionReferenceIndicator, d.Manufacturer, d.Modality = "", "scanner", modality
    d.add_new(0x00091001, "LO", "private")
    d.add_new(0x00090010, "LO", "SOMEONE")
    return d


def pixels(d, stored, bits, signed):
    """Pixels of one or several planes, in the lower bits of 16; in the others, which are an overlay's, there are ones."""
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.Rows, d.Columns = stored.shape[-2:]
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, bits, bits - 1, int(signed)
    words = (stored.astype(np.int64) & (2**bits - 1)) | (0xFFFF & ~(2**bits - 1))
    d.PixelData = words.astype("<u2").tobytes()


def write(d, path, sop_class, syntax):
    d.SOPClassUID = sop_class
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, d.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax == RLELossless else syntax
    d.file_meta = meta
    if syntax == RLELossless:
        d.compress(RLELossless, encoding_plugin="pydicom")
    dcmwrite(path, d, enforce_file_format=True)


def place(axes):
    """Directions of rows and columns, and the position of a plane: the axes are columns, rows, planes."""
    origin = np.array([-31.7, 12.3, -104.2])
    orientation = [float(f"{v:.8f}") for v in (*axes[0], *axes[1])]
    return orientation, lambda k: [float(f"{v:.8f}") for v in origin + axes[2] * SPACING[0] * k]


def single_frames(folder, voxels, modality, axes, syntax, signed, bits=12):
    """A file per plane. Names and instance numbers say nothing, and every plane has a slope and an intercept of its own."""
    folder.mkdir(parents=True)
    orientation, position = place(axes)
    order = np.random.default_rng(3).permutation(len(voxels))
    for k, plane in enumerate(voxels):
        d = patient(folder.name, modality)
        d.SOPInstanceUID, d.InstanceNumber = uid(folder.name, k), int(order[k]) + 1
        d.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        d.ImageOrientationPatient, d.ImagePositionPatient = orientation, position(k)
        d.PixelSpacing, d.SliceThickness = [SPACING[1], SPACING[2]], 1.25
        slope, intercept = (1 + k % 3, -1000 - k) if modality == "CT" else (1, 0)
        if modality == "CT":
            d.RescaleSlope, d.RescaleIntercept = slope, intercept
        pixels(d, np.round((plane - intercept) / slope), bits, signed)
        sop_class = CTImageStorage if modality == "CT" else MRImageStorage
        write(d, folder / f"IM{order[k]:03}", sop_class, syntax)
    (folder / "LICENSE").write_text("no image\n")


def multi_frame(path, voxels, axes):
    """One file of an enhanced CT, its frames from the top to the bottom."""
    path.parent.mkdir(parents=True)
    orientation, position = place(axes)
    d = patient("enhanced", "CT")
    d.SOPInstanceUID, d.InstanceNumber, d.NumberOfFrames = uid("enhanced"), 1, len(voxels)

    def item(**values):
        inner = Dataset()
        for name, value in values.items():
            setattr(inner, name, value)
        return [inner]

    shared = Dataset()
    shared.PlaneOrientationSequence = item(ImageOrientationPatient=orientation)
    shared.PixelMeasuresSequence = item(PixelSpacing=list(SPACING[1:]), SliceThickness=SPACING[0])
    shared.PixelValueTransformationSequence = item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")
    d.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in reversed(range(len(voxels))):
        frame = Dataset()
        frame.PlanePositionSequence = item(ImagePositionPatient=position(k))
        frames.append(frame)
    d.PerFrameFunctionalGroupsSequence = frames
    pixels(d, voxels[::-1] + 1024, 12, False)
    write(d, path, EnhancedCTImageStorage, ExplicitVRLittleEndian)


def make(volume, folder):
    import SimpleITK as sitk

    # Whole numbers within 12 bits, [plane, row, column].
    voxels = np.asarray(nibabel.load(volume).dataobj).T.astype(float)
    voxels = np.round((voxels - voxels.min()) / np.ptp(voxels) * 900) - 100
    axial, series = np.eye(3), folder / "series"
    single_frames(series / "ct", 6 * np.round(voxels / 6), "CT", axial, ExplicitVRLittleEndian, True)
    single_frames(series / "mr", voxels + 100, "MR", OBLIQUE, ImplicitVRLittleEndian, False)
    single_frames(series / "rle", voxels + 100, "MR", axial, RLELossless, False, bits=16)
    multi_frame(series / "enhanced" / "image.dcm", voxels, OBLIQUE)

    # Five images of a scanner, which come with pydicom.
    shutil.copytree(Path(pydicom.__file__).parent / "data/test_files/dicomdirtests/98892001/CT5N", series / "scanner")

    nifti = folder / "nifti"
    nifti.mkdir()
    for name in ("ct", "mr", "rle", "scanner"):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(series / name)))
        sitk.WriteImage(reader.Execute(), str(nifti / f"{name}.nii.gz"))
    orientation, position = place(OBLIQUE)
    affine = np.eye(4)
    affine[:3, :3] = (OBLIQUE * np.array([SPACING[2], SPACING[1], SPACING[0]])[:, None]).T
    affine[:3, 3] = position(0)
    affine[:2] *= -1
    nibabel.save(nibabel.Nifti1Image(voxels.T.astype(np.float32), affine), nifti / "enhanced.nii.gz")
    # Lossless JPEG by GDCM, of the same pixels.
    lossless = series / "jpeg"
    lossless.mkdir()
    for path in sorted((series / "rle").glob("IM*")):
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.SetFileName(str(lossless / f"{path.name}.dcm"))
        writer.Execute(sitk.ReadImage(str(path)))


def spoil(series, folder):
    paths = sorted(series.glob("IM*"), key=lambda path: dcmread(path).ImagePositionPatient[2])

    def copy(name, change=lambda k, d: d, cut=None):
        """A copy of the series: `change` returns what is written of plane k, `cut` changes the bytes of plane 5."""
        (folder / name).mkdir(parents=True)
        for k, path in enumerate(paths):
            d = change(k, dcmread(path))
            if d is not None:
                d.save_as(folder / name / path.name)
            if cut and k == 5:
                (folder / name / path.name).write_bytes(cut(path.read_bytes()))

    def set_fifth(**values):
        def change(k, d):
            for name, value in values.items() if k == 5 else ():
                setattr(d, name, value) if value is not None else delattr(d, name)
            return d
        return change

    def crop(k, d):
        if k == 5:
            d.Rows, d.PixelData = d.Rows - 2, d.PixelData[: -2 * 2 * d.Columns]
        return d

    def lean(k, d):
        d.ImagePositionPatient[1] += 0.2 * k
        return d

    def split(k, d):
        if k >= 10:
            d.SeriesInstanceUID, d.SeriesDescription = uid("other"), "the others"
        return d

    def syntax(k, d):
        d.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
        d["PixelData"].is_undefined_length = True
        d.PixelData = encapsulate([b"\xff\x4f"])
        return d

    from pydicom.encaps import encapsulate

    lut = Dataset()
    lut.LUTDescriptor, lut.ModalityLUTType = [2, 0, 16], "HU"
    first = dcmread(paths[0])
    # Group 0010 begins with a name; its length is that of a file of 3 GB.
    name = bytes([0x10, 0, 0x10, 0]) + b"PN"
    copy("gap", lambda k, d: None if k == 5 else d)
    copy("double", set_fifth(ImagePositionPatient=first.ImagePositionPatient))
    copy("lean", lean)
    copy("orientation", set_fifth(ImageOrientationPatient=[0, 1, 0, 0, 0, 1]))
    copy("spacing", set_fifth(PixelSpacing=[2, 2]))
    copy("size", crop)
    copy("mixed", split)
    copy("place", set_fifth(ImagePositionPatient=None))
    copy("unit", set_fifth(RescaleSlope=None, RescaleIntercept=None))
    copy("frame", set_fifth(FrameOfReferenceUID=uid("elsewhere")))
    copy("syntax", syntax)
    copy("colour", set_fifth(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0))
    copy("class", set_fifth(SOPClassUID="1.2.840.10008.5.1.4.1.1.128", Modality="PT"))
    copy("table", set_fifth(ModalityLUTSequence=[lut]))
    copy("single", lambda k, d: d if k == 5 else None)
    copy("short", cut=lambda data: data[: len(data) * 3 // 4])
    copy("shorter", cut=lambda data: data[:400])
    copy("claim", cut=lambda data: data.replace(name, bytes([0x10, 0, 0x10, 0]) + b"UT\0\0\xff\xff\xff\x7f", 1))
    items = bytes([0x08, 0, 0x15, 0x11]) + b"SQ\0\0\xff\xff\xff\xff" + bytes([0xFE, 0xFF, 0, 0xE0, 255, 255, 255, 255])
    copy("nested", cut=lambda data: data.replace(name, 100_000 * items + name, 1))


def check(folder, segmentation, labels):
    import highdicom as hd

    labels = np.asarray(nibabel.load(labels).dataobj).T
    seg = hd.seg.segread(segmentation)
    files = [dcmread(path, stop_before_pixels=True) for path in folder.iterdir() if path.name != "LICENSE"]
    source = files[0]
    assert list(seg.segment_numbers) == [1, 2] and labels.max() == 2
    assert [seg.get_segment_description(n).segment_label for n in (1, 2)] == ["organ 1", "organ 2"]
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
                 "StudyID", "AccessionNumber", "FrameOfReferenceUID", "ReferringPhysicianName"):
        assert (getattr(seg, name) or "") == (getattr(source, name, "") or ""), name
    assert seg.SeriesInstanceUID != source.SeriesInstanceUID
    copied = [element for element in seg.iterall() if element.tag.is_private or element.keyword == "PatientAddress"]
    assert not copied, copied

    # The planes in the order of the label map: along their normal.
    if "NumberOfFrames" in source:
        places = [item.PlanePositionSequence[0].ImagePositionPatient for item in source.PerFrameFunctionalGroupsSequence]
        orientation = source.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient
    else:
        places, orientation = [file.ImagePositionPatient for file in files], source.ImageOrientationPatient
    places = np.array(places, float)
    order = np.argsort(places @ np.cross(orientation[:3], orientation[3:]))
    options = {"combine_segments": True, "assert_missing_frames_are_empty": True}
    if "NumberOfFrames" in source:
        found = seg.get_pixels_by_source_frame(source.SOPInstanceUID, [int(i) + 1 for i in order], **options)
    else:
        found = seg.get_pixels_by_source_instance([files[i].SOPInstanceUID for i in order], **options)
    assert found.shape == labels.shape and (found == labels).all(), (found != labels).sum()
    # The same by the frames' places in the patient, planes without labels at the ends left out.
    volume = seg.get_volume(combine_segments=True)
    starts = volume.map_indices_to_reference(np.array([[k, 0, 0] for k in range(volume.spatial_shape[0])]))
    apart = np.linalg.norm(places[order][None] - starts[:, None], axis=2)
    assert apart.min(axis=1).max() < 1e-3
    assert (volume.array == labels[apart.argmin(axis=1)]).all() and (volume.array > 0).sum() == (labels > 0).sum()


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[2:]]
    {"make": make, "spoil": spoil, "check": check}[sys.argv[1]](*paths)
