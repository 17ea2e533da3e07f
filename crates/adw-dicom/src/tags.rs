//! Attributes that are read, copied or written: tags, value representations and names of part 6 of the standard.

use std::fmt;

/// Two letters that name the type of an element's value.
pub(crate) type Vr = [u8; 2];

/// An attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    /// Group and element.
    pub(crate) id: u32,
    pub(crate) vr: Vr,
    name: &'static str,
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", number(self.id), self.name)
    }
}

/// Group and element as the standard writes them: `(0028,0010)`.
pub(crate) fn number(id: u32) -> String {
    format!("({:04X},{:04X})", id >> 16, id & 0xffff)
}

/// Attribute of a tag; none for those that are neither read nor written.
pub(crate) fn find(id: u32) -> Option<Tag> {
    ALL.binary_search_by_key(&id, |tag| tag.id).ok().map(|at| ALL[at])
}

/// Constants, and a list of all of them by ascending tag.
macro_rules! tags {
    ($($constant:ident $id:literal $vr:literal $name:literal)*) => {
        $(pub(crate) const $constant: Tag = Tag { id: $id, vr: *$vr, name: $name };)*
        const ALL: &[Tag] = &[$($constant),*];
    };
}

tags! {
    META_LENGTH 0x0002_0000 b"UL" "FileMetaInformationGroupLength"
    META_VERSION 0x0002_0001 b"OB" "FileMetaInformationVersion"
    META_SOP_CLASS 0x0002_0002 b"UI" "MediaStorageSOPClassUID"
    META_SOP_INSTANCE 0x0002_0003 b"UI" "MediaStorageSOPInstanceUID"
    TRANSFER_SYNTAX 0x0002_0010 b"UI" "TransferSyntaxUID"
    IMPLEMENTATION_CLASS 0x0002_0012 b"UI" "ImplementationClassUID"
    IMPLEMENTATION_VERSION 0x0002_0013 b"SH" "ImplementationVersionName"
    CHARACTER_SET 0x0008_0005 b"CS" "SpecificCharacterSet"
    IMAGE_TYPE 0x0008_0008 b"CS" "ImageType"
    SOP_CLASS 0x0008_0016 b"UI" "SOPClassUID"
    SOP_INSTANCE 0x0008_0018 b"UI" "SOPInstanceUID"
    STUDY_DATE 0x0008_0020 b"DA" "StudyDate"
    SERIES_DATE 0x0008_0021 b"DA" "SeriesDate"
    CONTENT_DATE 0x0008_0023 b"DA" "ContentDate"
    STUDY_TIME 0x0008_0030 b"TM" "StudyTime"
    SERIES_TIME 0x0008_0031 b"TM" "SeriesTime"
    CONTENT_TIME 0x0008_0033 b"TM" "ContentTime"
    ACCESSION_NUMBER 0x0008_0050 b"SH" "AccessionNumber"
    MODALITY 0x0008_0060 b"CS" "Modality"
    MANUFACTURER 0x0008_0070 b"LO" "Manufacturer"
    REFERRING_PHYSICIAN 0x0008_0090 b"PN" "ReferringPhysicianName"
    CODE_VALUE 0x0008_0100 b"SH" "CodeValue"
    CODE_SCHEME 0x0008_0102 b"SH" "CodingSchemeDesignator"
    CODE_MEANING 0x0008_0104 b"LO" "CodeMeaning"
    TIMEZONE 0x0008_0201 b"SH" "TimezoneOffsetFromUTC"
    SERIES_DESCRIPTION 0x0008_103E b"LO" "SeriesDescription"
    MANUFACTURER_MODEL 0x0008_1090 b"LO" "ManufacturerModelName"
    REFERENCED_SERIES 0x0008_1115 b"SQ" "ReferencedSeriesSequence"
    REFERENCED_INSTANCES 0x0008_114A b"SQ" "ReferencedInstanceSequence"
    REFERENCED_SOP_CLASS 0x0008_1150 b"UI" "ReferencedSOPClassUID"
    REFERENCED_SOP_INSTANCE 0x0008_1155 b"UI" "ReferencedSOPInstanceUID"
    REFERENCED_FRAME 0x0008_1160 b"IS" "ReferencedFrameNumber"
    SOURCE_IMAGES 0x0008_2112 b"SQ" "SourceImageSequence"
    ANATOMIC_REGION 0x0008_2218 b"SQ" "AnatomicRegionSequence"
    DERIVATION_IMAGES 0x0008_9124 b"SQ" "DerivationImageSequence"
    DERIVATION_CODE 0x0008_9215 b"SQ" "DerivationCodeSequence"
    PATIENT_NAME 0x0010_0010 b"PN" "PatientName"
    PATIENT_ID 0x0010_0020 b"LO" "PatientID"
    BIRTH_DATE 0x0010_0030 b"DA" "PatientBirthDate"
    PATIENT_SEX 0x0010_0040 b"CS" "PatientSex"
    IDENTITY_REMOVED 0x0012_0062 b"CS" "PatientIdentityRemoved"
    DEIDENTIFICATION 0x0012_0063 b"LO" "DeidentificationMethod"
    SLICE_THICKNESS 0x0018_0050 b"DS" "SliceThickness"
    SLICE_SPACING 0x0018_0088 b"DS" "SpacingBetweenSlices"
    SERIAL_NUMBER 0x0018_1000 b"LO" "DeviceSerialNumber"
    SOFTWARE_VERSIONS 0x0018_1020 b"LO" "SoftwareVersions"
    STUDY_UID 0x0020_000D b"UI" "StudyInstanceUID"
    SERIES_UID 0x0020_000E b"UI" "SeriesInstanceUID"
    STUDY_ID 0x0020_0010 b"SH" "StudyID"
    SERIES_NUMBER 0x0020_0011 b"IS" "SeriesNumber"
    INSTANCE_NUMBER 0x0020_0013 b"IS" "InstanceNumber"
    POSITION 0x0020_0032 b"DS" "ImagePositionPatient"
    ORIENTATION 0x0020_0037 b"DS" "ImageOrientationPatient"
    FRAME_OF_REFERENCE 0x0020_0052 b"UI" "FrameOfReferenceUID"
    REFERENCE_INDICATOR 0x0020_1040 b"LO" "PositionReferenceIndicator"
    FRAME_CONTENT 0x0020_9111 b"SQ" "FrameContentSequence"
    PLANE_POSITION 0x0020_9113 b"SQ" "PlanePositionSequence"
    PLANE_ORIENTATION 0x0020_9116 b"SQ" "PlaneOrientationSequence"
    INDEX_VALUES 0x0020_9157 b"UL" "DimensionIndexValues"
    ORGANIZATION_UID 0x0020_9164 b"UI" "DimensionOrganizationUID"
    INDEX_POINTER 0x0020_9165 b"AT" "DimensionIndexPointer"
    GROUP_POINTER 0x0020_9167 b"AT" "FunctionalGroupPointer"
    ORGANIZATIONS 0x0020_9221 b"SQ" "DimensionOrganizationSequence"
    DIMENSION_INDICES 0x0020_9222 b"SQ" "DimensionIndexSequence"
    DIMENSION_LABEL 0x0020_9421 b"LO" "DimensionDescriptionLabel"
    SAMPLES 0x0028_0002 b"US" "SamplesPerPixel"
    PHOTOMETRIC 0x0028_0004 b"CS" "PhotometricInterpretation"
    NUM_FRAMES 0x0028_0008 b"IS" "NumberOfFrames"
    ROWS 0x0028_0010 b"US" "Rows"
    COLUMNS 0x0028_0011 b"US" "Columns"
    PIXEL_SPACING 0x0028_0030 b"DS" "PixelSpacing"
    BITS_ALLOCATED 0x0028_0100 b"US" "BitsAllocated"
    BITS_STORED 0x0028_0101 b"US" "BitsStored"
    HIGH_BIT 0x0028_0102 b"US" "HighBit"
    REPRESENTATION 0x0028_0103 b"US" "PixelRepresentation"
    INTERCEPT 0x0028_1052 b"DS" "RescaleIntercept"
    SLOPE 0x0028_1053 b"DS" "RescaleSlope"
    LOCATIONS_PRESERVED 0x0028_135A b"CS" "SpatialLocationsPreserved"
    LOSSY 0x0028_2110 b"CS" "LossyImageCompression"
    LOSSY_RATIO 0x0028_2112 b"DS" "LossyImageCompressionRatio"
    LOSSY_METHOD 0x0028_2114 b"CS" "LossyImageCompressionMethod"
    MODALITY_LUT 0x0028_3000 b"SQ" "ModalityLUTSequence"
    PIXEL_MEASURES 0x0028_9110 b"SQ" "PixelMeasuresSequence"
    VALUE_TRANSFORMATION 0x0028_9145 b"SQ" "PixelValueTransformationSequence"
    PURPOSE 0x0040_A170 b"SQ" "PurposeOfReferenceCodeSequence"
    SEGMENTATION_TYPE 0x0062_0001 b"CS" "SegmentationType"
    SEGMENTS 0x0062_0002 b"SQ" "SegmentSequence"
    CATEGORY 0x0062_0003 b"SQ" "SegmentedPropertyCategoryCodeSequence"
    SEGMENT_NUMBER 0x0062_0004 b"US" "SegmentNumber"
    SEGMENT_LABEL 0x0062_0005 b"LO" "SegmentLabel"
    ALGORITHM_IDENTIFICATION 0x0062_0007 b"SQ" "SegmentationAlgorithmIdentificationSequence"
    ALGORITHM_TYPE 0x0062_0008 b"CS" "SegmentAlgorithmType"
    SEGMENT_ALGORITHM 0x0062_0009 b"LO" "SegmentAlgorithmName"
    SEGMENT_IDENTIFICATION 0x0062_000A b"SQ" "SegmentIdentificationSequence"
    REFERENCED_SEGMENT 0x0062_000B b"US" "ReferencedSegmentNumber"
    DISPLAY_COLOUR 0x0062_000D b"US" "RecommendedDisplayCIELabValue"
    PROPERTY_TYPE 0x0062_000F b"SQ" "SegmentedPropertyTypeCodeSequence"
    TYPE_MODIFIER 0x0062_0011 b"SQ" "SegmentedPropertyTypeModifierCodeSequence"
    SEGMENTS_OVERLAP 0x0062_0013 b"CS" "SegmentsOverlap"
    ALGORITHM_FAMILY 0x0066_002F b"SQ" "AlgorithmFamilyCodeSequence"
    ALGORITHM_VERSION 0x0066_0031 b"LO" "AlgorithmVersion"
    ALGORITHM_NAME 0x0066_0036 b"LO" "AlgorithmName"
    CONTENT_LABEL 0x0070_0080 b"CS" "ContentLabel"
    CONTENT_DESCRIPTION 0x0070_0081 b"LO" "ContentDescription"
    CONTENT_CREATOR 0x0070_0084 b"PN" "ContentCreatorName"
    SHARED_GROUPS 0x5200_9229 b"SQ" "SharedFunctionalGroupsSequence"
    FRAME_GROUPS 0x5200_9230 b"SQ" "PerFrameFunctionalGroupsSequence"
    PIXEL_DATA 0x7FE0_0010 b"OB" "PixelData"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_found_by_their_number() {
        assert!(ALL.windows(2).all(|pair| pair[0].id < pair[1].id), "sorted");
        assert!(ALL.iter().all(|&tag| find(tag.id) == Some(tag)));
        assert_eq!(find(0x0009_0010), None);
        assert_eq!(ROWS.to_string(), "(0028,0010) Rows");
    }
}
