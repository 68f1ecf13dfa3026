"""DICOM segmentations (SEG) and the reports beside them, through highdicom."""
