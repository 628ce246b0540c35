"""The dataset doctor: looks at every image and mask of a set and names each file that will not do, with the fix."""

from batchseg.doctor.diagnosis import MAX_TRAINING_CHECK, Diagnosis, check_dataset, check_samples
from batchseg.doctor.draft import write_draft
from batchseg.doctor.finding import Finding
from batchseg.doctor.report import name_report, show_diagnosis, write_report

__all__ = [
    "MAX_TRAINING_CHECK", "Diagnosis", "Finding", "check_dataset", "check_samples", "name_report", "show_diagnosis",
    "write_draft", "write_report",
]  # fmt: skip
