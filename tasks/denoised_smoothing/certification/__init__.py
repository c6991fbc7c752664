"""Randomized smoothing after Cohen, Rosenfeld and Kolter (2019) of a classifier that answers queries.

bound.py       Clopper-Pearson's bound, the radius, the cap that N puts on it, and the settings
algorithm.py   noise, votes, CERTIFY and PREDICT for one image; what a failed query counts
checks.py      a box as a classifier, and what can be found wrong before the first query
smoothed.py    `SmoothedClassifier`: box o clamp o denoiser; many images, resumable
table.py       the file of certificates
accuracy.py    what the certificates say together: shares, tables, curves
export.py      the denoiser as an ONNX file
"""
