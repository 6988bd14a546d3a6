"""Where the pictures and their names come from and under what terms."""

LICENCE = "CC BY-SA 4.0"
ATTRIBUTION = (
    "All emojis designed by OpenMoji, the open-source emoji and icon project (openmoji.org). "
    "License: CC BY-SA 4.0 (creativecommons.org/licenses/by-sa/4.0). Names: Unicode CLDR short names through `emoji`."
)
