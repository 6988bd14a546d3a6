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
SAME_SEQUENCES = {f"{ADULT}-1F384": "1F385", f"{ADULT}-1F91D-{ADULT}": "1F46B"}
PEOPLE = frozenset((ADULT, CHILD, *SAME.values()))


def concept(key: str) -> str:
    """The key without skin tone, gender and joiners; the same for every variant of one thing."""
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
