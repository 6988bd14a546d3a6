"""Pictures, concepts, captions and their tokenizer."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from tokendial import runs
from tokendial.experiments import workload
from tokendial_workloads.captions.concepts import SPLITS, concept, group, split_of
from tokendial_workloads.captions.config import CaptionsData
from tokendial_workloads.captions.data import Captions, Pictures
from tokendial_workloads.captions.experiments import openmoji, tiny
from tokendial_workloads.captions.source import cache_folder, caption_splits, names
from tokendial_workloads.captions.task import token_f1
from tokendial_workloads.captions.tokenizer import captions_tokenizer, train_tokenizer, training_names
from tokendial_workloads.captions.vocabulary import SPECIALS, VOCABULARY
from tokendial_workloads.digits.experiments import tiny as digits_tiny
from tokendial_workloads.vlm.card import OWN_DATA, card_text
from tokendial_workloads.vlm.export import load_processor
from tokendial_workloads.vlm.serving import VlmServing


def pictures(split: str, seed: int, data: CaptionsData) -> Pictures:
    return Pictures(split, seed, data, captions_tokenizer())


def test_the_embedded_set_has_thousands_of_named_pictures() -> None:
    rows = caption_splits(None, 48)
    sizes = {split: len(rows[split]) for split in SPLITS}
    assert sum(sizes.values()) == len(names()) == 3953
    assert sizes["train"] > 2500
    assert min(sizes.values()) > 256


def test_what_is_rendered_is_kept_beside_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == runs.home() / "cache"
    # Ray's copy of the working folder goes with the job.
    copy = tmp_path / "runtime_resources" / "copy"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.delenv("TOKENDIAL_HOME")
    assert cache_folder() == runs.home() / "cache" == Path.home() / "runs" / "cache"


def test_no_concept_and_no_picture_is_in_two_splits() -> None:
    rows = caption_splits(None, 48)
    for column in ("concept", "png"):
        held = [set(rows[split][column]) for split in SPLITS]
        assert len(set.union(*held)) == sum(map(len, held))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1F44B", "1F44B-1F3FF"),
        ("1F469-200D-1F52C", "1F468-1F3FD-200D-1F52C"),
        ("1F3C3-200D-2640-FE0F", "1F3C3-1F3FB-200D-2642-FE0F"),
        ("1F466", "1F467-1F3FC"),
        ("1F934", "1F478"),
        ("1F936", "1F9D1-200D-1F384"),
        ("1F46C", "1F9D1-1F3FB-200D-1F91D-200D-1F9D1-1F3FF"),
        ("1F48F", "1F469-1F3FB-200D-2764-FE0F-200D-1F48B-200D-1F468-1F3FB"),
        ("1F1F3-1F1F4", "1F1F8-1F1EF"),
    ],
)
def test_variants_in_skin_tone_and_gender_and_what_is_drawn_alike_are_one_concept(one: str, other: str) -> None:
    assert concept(one) == concept(other)
    assert split_of(concept(one)) == split_of(concept(other))


def test_people_and_things_are_told_apart() -> None:
    assert group("1F469-200D-1F52C") == group("1F44B-1F3FF") == group("1F48F") == "people"
    assert group("1F34E") == "things"


def test_a_picture_is_drawn_once_and_then_read_from_the_cache(home: Path) -> None:
    caption_splits.cache_clear()
    first = caption_splits(None, 16)
    [kept] = (home / "cache").iterdir()
    written = kept.stat().st_mtime_ns
    caption_splits.cache_clear()
    again = caption_splits(None, 16)
    caption_splits.cache_clear()
    assert [*(home / "cache").iterdir()] == [kept]
    assert kept.stat().st_mtime_ns == written
    assert first["test"][0] == again["test"][0]


def test_an_item_is_a_function_of_seed_split_and_index_alone() -> None:
    one, again, other = (pictures("train", seed, CaptionsData()) for seed in (3, 3, 4))
    places = range(0, 400, 10)
    assert all((one[i]["pixel_values"] == again[i]["pixel_values"]).all() for i in places)
    assert any((one[i]["pixel_values"] != other[i]["pixel_values"]).any() for i in places)
    assert (
        pictures("test", 3, CaptionsData())[5]["pixel_values"] == pictures("test", 4, CaptionsData())[5]["pixel_values"]
    ).all()


def test_an_example_holds_the_caption_as_targets() -> None:
    example = pictures("test", 0, CaptionsData())[0]
    tokenizer = captions_tokenizer()
    targets = example["labels"][example["labels"] != -100]
    assert str(tokenizer.decode(targets, skip_special_tokens=True)).strip() == example["text"]
    assert targets[-1] == tokenizer.eos_token_id
    assert example["pixel_values"].shape == (3, 48, 48)
    assert example["pixel_values"].min() >= -1
    assert example["pixel_values"].max() <= 1
    assert example["input_ids"].shape == (33,)


def test_the_tokenizer_is_the_same_in_every_process() -> None:
    code = (
        "from tokendial_workloads.captions.tokenizer import train_tokenizer, training_names;"
        "print(train_tokenizer(training_names()).to_str(), end='')"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert train_tokenizer(training_names()).to_str() == other


def test_the_tokenizer_writes_any_text() -> None:
    tokenizer = captions_tokenizer()
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.convert_ids_to_tokens(list(range(len(SPECIALS)))) == list(SPECIALS)
    for text in ("woman scientist", "zürich 123", "日本"):
        assert str(tokenizer.decode(tokenizer.encode(text))).strip() == text


def test_the_chat_template_renders_what_training_reads() -> None:
    tokenizer = captions_tokenizer()
    messages = [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": "red apple"},
    ]
    rendered = tokenizer.encode(str(tokenizer.apply_chat_template(messages, tokenize=False)))
    opening = [tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids("<image>")]
    assert rendered == [*opening, *tokenizer.encode("red apple"), tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("answer", "text", "f1"),
    [
        ("red apple", "red apple", 1.0),
        ("Red, apple!", "red apple", 1.0),
        ("red cat", "cat", 2 / 3),
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("ein caf\N{LATIN SMALL LETTER E WITH ACUTE}", "ein cafe\N{COMBINING ACUTE ACCENT}", 1.0),
        ("\N{DEVANAGARI LETTER KA}\N{DEVANAGARI VOWEL SIGN AA}", "\N{DEVANAGARI LETTER KA}", 0.0),
        ("red \N{HEAVY BLACK HEART}\N{VARIATION SELECTOR-16}", "red", 1.0),
    ],
)
def test_token_f1(answer: str, text: str, f1: float) -> None:
    assert token_f1(answer, text) == pytest.approx(f1)


def test_collate_and_digests() -> None:
    data, config = Captions(captions_tokenizer()), tiny()
    test = data.datasets(config)["test"]
    batch = data.collate([test[0], test[1]])
    assert batch["pixel_values"].shape == (2, 3, 48, 48)
    assert isinstance(batch["text"], list)
    one, two = data.digests(config), data.digests(openmoji().model_copy(update={"seed": 1}))
    assert one["test"] == two["test"]
    assert one["train"] != two["train"]


def write_folder(root: Path, num_pictures: int, header: str = "file_name,text") -> None:
    random = np.random.default_rng(0)
    lines = [header]
    for number in range(num_pictures):
        Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(root / f"{number}.png")
        lines.append(f"{number}.png,thing number {number}")
    (root / "metadata.csv").write_text("\n".join(lines))


def test_a_folder_with_a_table_replaces_the_embedded_pictures(tmp_path: Path) -> None:
    write_folder(tmp_path, 60)
    rows = caption_splits(str(tmp_path), 32)
    assert sum(len(rows[split]) for split in SPLITS) == 60
    assert pictures("train", 0, CaptionsData(path=str(tmp_path), image_size=32))[0]["pixel_values"].shape == (3, 32, 32)


def test_a_picture_with_several_captions_and_a_copy_of_it_are_in_one_split(tmp_path: Path) -> None:
    write_folder(tmp_path, 60)
    with (tmp_path / "metadata.csv").open("a") as table:
        for number in range(60):
            (tmp_path / f"copy {number}.png").write_bytes((tmp_path / f"{number}.png").read_bytes())
            table.write(f"\n{number}.png,object {number}\ncopy {number}.png,copied {number}")
    rows = caption_splits(str(tmp_path), 32)
    shown = [set(rows[split]["png"]) for split in SPLITS]
    assert [len(rows[split]) for split in SPLITS] == [3 * len(pictures) for pictures in shown]
    assert len(set.union(*shown)) == sum(map(len, shown)) == 60


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


# Type and shape [rows, columns, colours] of a picture's numbers, and how it is saved.
SHOWN: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "wide": (np.uint8, (100, 200, 3), {"format": "PNG"}),
    "tall": (np.uint8, (200, 100, 3), {"format": "PNG"}),
    "square": (np.uint8, (90, 90, 3), {"format": "PNG"}),
    "photograph on its side": (np.uint8, (100, 200, 3), {"format": "JPEG", "exif": turned()}),
    "16-bit grey": (np.uint16, (90, 90), {"format": "PNG"}),
}


@pytest.mark.parametrize("shown", SHOWN)
def test_training_the_processor_and_the_endpoint_see_the_same_pixels(shown: str, tmp_path: Path) -> None:
    write_folder(tmp_path, 60)
    kind, shape, how = SHOWN[shown]
    for number in range(60):
        pixels = np.random.default_rng(number).integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png", **how)
    config = tiny().model_copy(update={"data": CaptionsData(path=str(tmp_path))})
    data, task = workload(config.workload).load(config)
    example = data.datasets(config)["test"][0]
    file = tmp_path / f"{example['text'].rpartition(' ')[2]}.png"
    task.export(task.build_model(config), config, str(tmp_path / "model"))
    processor = load_processor(tmp_path / "model")
    processed = processor.image_processor(Image.open(file), return_tensors="np")["pixel_values"][0]
    served = VlmServing(tmp_path / "model", torch.device("cpu"), torch.float32, 1).image(file.read_bytes())
    assert np.abs(processed - example["pixel_values"]).max() < 1e-6
    assert (served.numpy() == processed).all()


def test_a_caption_is_the_same_composed_or_not(tmp_path: Path) -> None:
    write_folder(tmp_path, 60)
    accents = (" caf\N{LATIN SMALL LETTER E WITH ACUTE}", " cafe\N{COMBINING ACUTE ACCENT}")
    with (tmp_path / "metadata.csv").open("a", encoding="utf-8") as table:
        table.write("".join(f"\n{number}.png,{text}" for number, text in enumerate(accents)))
    rows = caption_splits(str(tmp_path), 32)
    texts = [text for split in SPLITS for text in rows[split]["text"] if "caf" in text]
    assert texts == ["caf\N{LATIN SMALL LETTER E WITH ACUTE}"] * 2


def test_a_table_as_spreadsheets_write_it_is_read(tmp_path: Path) -> None:
    write_folder(tmp_path, 60)
    table = tmp_path / "metadata.csv"
    table.write_text(table.read_text(), "utf-8-sig")
    assert sum(len(rows) for rows in caption_splits(str(tmp_path), 32).values()) == 60


@pytest.mark.parametrize("token", ["<image>", "<s>", "</s>", "<pad>"])
def test_a_caption_that_holds_a_special_token_is_refused(token: str, tmp_path: Path) -> None:
    write_folder(tmp_path, 60)
    with (tmp_path / "metadata.csv").open("a") as table:
        table.write(f"\n0.png,a {token} here")
    with pytest.raises(ValueError, match=f"the caption 'a {token} here' holds {token}"):
        Captions(captions_tokenizer()).digests(tiny().model_copy(update={"data": CaptionsData(path=str(tmp_path))}))


@pytest.mark.parametrize("experiment", [tiny, digits_tiny], ids=["captions", "digits"])
@pytest.mark.parametrize("path", [None, "/mine"])
def test_the_card_of_a_model_names_the_terms_of_the_data_that_it_saw(path: str | None, experiment: Any) -> None:
    config = experiment()
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": path})})
    chosen = workload(config.workload)
    task: Any = chosen.load(config)[1]
    text = card_text(task.card(task.build_model(config).config, config))
    assert (chosen.licence in text) is (chosen.attribution in text) is (path is None)
    assert (OWN_DATA["licence"] in text) is (path is not None)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("no table", "has no metadata.csv"),
        ("columns", "needs the columns file_name and text"),
        ("few", "no picture falls into the"),
        ("outside", "outside of the folder"),
        ("absent", "cannot be read"),
        ("unreadable", "not one of PNG"),
        ("short", "has a row without file_name or text: .'file_name': '0.png', 'text': None"),
        ("blank", "has a row without file_name or text: .'file_name': '0.png', 'text': ' '"),
        ("wordless", "has a text without any word: .'file_name': '0.png', 'text': '!!!'"),
        ("empty", "names no pictures"),
        ("latin", "is not a table in UTF-8"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, damage: str, reason: str) -> None:
    if damage != "no table":
        write_folder(
            tmp_path, 0 if damage == "empty" else 2, "picture,caption" if damage == "columns" else "file_name,text"
        )
    extra = {
        "outside": "../secret.png,secret",
        "absent": "none.png,nothing",
        "unreadable": "note.png,a note",
        "short": "0.png",
        "blank": "0.png, ",
        "wordless": "0.png,!!!",
        "latin": "0.png,café",
    }
    if damage in extra:
        (tmp_path / "note.png").write_text("no picture")
        with (tmp_path / "metadata.csv").open("a", encoding="latin-1") as table:
            table.write("\n" + extra[damage])
    with pytest.raises(ValueError, match=reason):
        caption_splits(str(tmp_path), 16)
