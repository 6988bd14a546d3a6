"""Reports of finished runs: terminal tables, figures as PNG and HTML, one-file comparisons. Without torch or MLflow."""

from tokendial.report.comparison import compare_report
from tokendial.report.curves import curve_html, curve_png
from tokendial.report.examples import examples_html
from tokendial.report.exposure import exposure_png
from tokendial.report.matrices import matrix_html, matrix_png
from tokendial.report.terminal import print_comparison, print_result

__all__ = [
    "compare_report",
    "curve_html",
    "curve_png",
    "examples_html",
    "exposure_png",
    "matrix_html",
    "matrix_png",
    "print_comparison",
    "print_result",
]
