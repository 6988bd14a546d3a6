"""Where the digits come from and under what terms."""

LICENCE = "BSD-3-Clause (scikit-learn); the images are from the UCI repository, CC BY 4.0"
ATTRIBUTION = (
    "Optical Recognition of Handwritten Digits, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository "
    "(doi.org/10.24432/C50P49), as shipped with scikit-learn."
)
