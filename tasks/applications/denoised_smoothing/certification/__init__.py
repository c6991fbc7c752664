"""Randomized smoothing after Cohen, Rosenfeld and Kolter (2019) of a classifier that answers queries.

bound.py            Clopper-Pearson's bound, the radius, the cap that N puts on it, and the settings
algorithm.py        noise, votes, CERTIFY and PREDICT for one image; what a failed query counts
checks.py           a box as a classifier, and what can be found wrong before the first query
smoothed.py         `SmoothedClassifier`: box o clamp o denoiser; many images, resumable
certificate_file.py the file of certificates
accuracy.py         what the certificates say together: shares, tables, curves
export.py           the denoiser as an ONNX file
"""

from tasks.applications.denoised_smoothing.certification.accuracy import (
    accuracy_band,
    accuracy_table,
    average_certified_radius,
    certified_accuracy,
    plot_certified_accuracy,
)
from tasks.applications.denoised_smoothing.certification.algorithm import (
    ABSTAIN,
    FAILED,
    BaseClassifier,
    Certificate,
    Phase,
    certify_image,
    count_votes,
    noise_block,
    predict_image,
)
from tasks.applications.denoised_smoothing.certification.bound import (
    Settings,
    lower_bound,
    radius,
    radius_cap,
    vote_is_clear,
)
from tasks.applications.denoised_smoothing.certification.certificate_file import (
    CertificateFile,
    read_certificates,
)
from tasks.applications.denoised_smoothing.certification.export import export_denoiser

__all__ = [
    "ABSTAIN",
    "FAILED",
    "BaseClassifier",
    "Certificate",
    "CertificateFile",
    "Phase",
    "Settings",
    "accuracy_band",
    "accuracy_table",
    "average_certified_radius",
    "certified_accuracy",
    "certify_image",
    "count_votes",
    "export_denoiser",
    "lower_bound",
    "noise_block",
    "plot_certified_accuracy",
    "predict_image",
    "radius",
    "radius_cap",
    "read_certificates",
    "vote_is_clear",
]
