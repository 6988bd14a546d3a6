"""Which emoji show the same thing: skin tone and gender taken away, so that variants never cross a split.

A key is a sequence of code points in hexadecimal, as OpenMoji names its files ("1F469-1F3FD-200D-1F4BB").
"""

import hashlib

SPLITS = ("train", "validation", "test")
SKIN_TONES = frozenset(f"1F3F{digit}" for digit in "BCDEF")
GENDER_SIGNS = frozenset(("2640", "2642"))
JOINER, VARIANT = "200D", "FE0F"
ADULT, CHILD = "1F9D1", "1F9D2"
SAME = {
    # man, woman; boy, girl; old man, old woman
    "1F468": ADULT,
    "1F469": ADULT,
    "1F466": CHILD,
    "1F467": CHILD,
    "1F474": "1F9D3",
    "1F475": "1F9D3",
    # prince, princess; man dancing, woman dancing; Mrs Claus, Santa Claus; hand in hand
    "1F934": "1FAC5",
    "1F478": "1FAC5",
    "1F57A": "1F483",
    "1F936": "1F385",
    "1F46C": "1F46B",
    "1F46D": "1F46B",
}
SAME_PEOPLE = {
    f"{ADULT}-1F384": "1F385",
    f"{ADULT}-1F91D-{ADULT}": "1F46B",
    # kiss; couple with heart; family; people with bunny ears; people wrestling
    f"{ADULT}-2764-1F48B-{ADULT}": "1F48F",
    f"{ADULT}-2764-{ADULT}": "1F491",
    f"{ADULT}-{ADULT}-{CHILD}": "1F46A",
    f"{ADULT}-1F430-{ADULT}": "1F46F",
    f"{ADULT}-1FAEF-{ADULT}": "1F93C",
}
# Flags that are drawn alike, by regional letters.
SAME_FLAGS = {
    # Heard & McDonald Islands, Australia; Clipperton Island and St. Martin, France; Ceuta & Melilla, Spain
    "1F1ED-1F1F2": "1F1E6-1F1FA",
    "1F1E8-1F1F5": "1F1EB-1F1F7",
    "1F1F2-1F1EB": "1F1EB-1F1F7",
    "1F1EA-1F1E6": "1F1EA-1F1F8",
    # Svalbard & Jan Mayen, Norway; Monaco, Indonesia; Chad, Romania
    "1F1F8-1F1EF": "1F1F3-1F1F4",
    "1F1F2-1F1E8": "1F1EE-1F1E9",
    "1F1F9-1F1E9": "1F1F7-1F1F4",
}
SAME_SEQUENCES = SAME_PEOPLE | SAME_FLAGS
PEOPLE = frozenset((ADULT, CHILD, *SAME.values(), *SAME_PEOPLE.values()))


def concept(key: str) -> str:
    """The key without skin tone, gender and joiners: the same for variants of one thing and for what looks alike."""
    dropped = SKIN_TONES | GENDER_SIGNS | {JOINER, VARIANT}
    kept = "-".join(SAME.get(part, part) for part in key.split("-") if part not in dropped)
    return SAME_SEQUENCES.get(kept, kept)


def group(key: str) -> str:
    """`people` where the picture has a person or a skin tone, else `things`."""
    parts = key.split("-")
    human = SKIN_TONES.intersection(parts) or PEOPLE.intersection(concept(key).split("-"))
    return "people" if human else "things"


def split_of(concept_key: str) -> str:
    """Four concepts in five are for training, one in ten each for validation and test; by hash, so it never moves."""
    bucket = int.from_bytes(hashlib.sha256(concept_key.encode()).digest()[:8], "big") % 10
    return SPLITS[max(0, bucket - 7)]
