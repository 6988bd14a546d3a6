"""Bad schedules and configurations are each refused in one clear sentence; good ones are all accepted."""

import json
from pathlib import Path

import pytest
from tokendial.contracts import RunConfig
from tokendial.resolve import MAX_CONFIG_BYTES, ConfigError, resolve

PHASES = 'schedule.phases=[{"until":%s,"weights":[1,1,1]},{"until":%s,"weights":[1,1,1]}]'

# id: (overrides of `digits`, words the sentence must hold).
BAD = {
    # counts
    "negative count": (["schedule.counts=[-4,16,144]"], ["schedule.counts", "-4"]),
    "zero count": (["schedule.counts=[0,16,144]"], ["schedule.counts", "0"]),
    "fractional count": (["schedule.counts=[4.5,16,144]"], ["schedule.counts", "4.5"]),
    "count as a float": (["schedule.counts=[4.0,16,144]"], ["schedule.counts", "4.0"]),
    "count as text": (['schedule.counts=["4",16,144]'], ["schedule.counts", "4"]),
    "count as a truth value": (["schedule.counts=[true,16,144]"], ["schedule.counts", "True"]),
    "enormous count": (["schedule.counts=[4,16,1000000]"], ["schedule.counts", "1000000", "65536"]),
    "no counts": (["schedule.counts=[]"], ["schedule.counts", "empty"]),
    "counts are no list": (["schedule.counts=64"], ["schedule.counts", "64"]),
    "counts are null": (["schedule.counts=null"], ["schedule.counts"]),
    "repeated count": (["schedule.counts=[4,4,144]"], ["schedule.counts", "strictly increasing", "[4, 4, 144]"]),
    "falling counts": (["schedule.counts=[144,16,4]"], ["schedule.counts", "strictly increasing"]),
    "count above the patches": (["schedule.counts=[4,16,169]"], ["169", "144"]),
    "count that is no square": (["schedule.counts=[4,15,144]"], ["15", "16"]),
    "nested lists": (["schedule.counts=[[4,16,144]]"], ["schedule.counts"]),
    # weights and laws
    "too few weights": (["schedule.weights=[1,2]"], ["schedule.weights", "2 entries", "3 counts"]),
    "too many weights": (["schedule.weights=[1,2,3,4]"], ["schedule.weights", "4 entries"]),
    "no weights": (["schedule.weights=[]"], ["schedule.weights", "0 entries"]),
    "weights sum to zero": (["schedule.weights=[0,0,0]"], ["schedule.weights", "sums to zero"]),
    "negative weight": (["schedule.weights=[2,-3,5]"], ["schedule.weights", "-3"]),
    "weight NaN": (["schedule.weights=[2,NaN,5]"], ["NaN", "finite"]),
    "weight infinite": (["schedule.weights=[2,Infinity,5]"], ["Infinity", "finite"]),
    "weight overflows": (["schedule.weights=[2,1e999,5]"], ["schedule.weights", "inf"]),
    "weight as text": (['schedule.weights=[2,"many",5]'], ["schedule.weights", "many"]),
    "temperature zero": (["schedule.temperature=0"], ["schedule.temperature", "0", "greater than 0"]),
    "temperature negative": (["schedule.temperature=-1"], ["schedule.temperature", "-1"]),
    "temperature NaN": (["schedule.temperature=NaN"], ["NaN", "finite"]),
    "temperature text": (["schedule.temperature=warm"], ["schedule.temperature", "warm"]),
    "end temperature zero": (["schedule.temperature_end=0"], ["schedule.temperature_end", "0"]),
    "mix unknown": (["schedule.mix=both"], ["schedule.mix", "both", "sandwich"]),
    "preset unknown": (["schedule=tokenflx"], ["tokenflx", "tokenflex"]),
    "preset unknown through the field": (["schedule.preset=tokenflx"], ["tokenflx"]),
    "loss weights of another length": (["schedule.loss_weights=[1,1]"], ["schedule.loss_weights", "2 entries"]),
    "loss weights sum to zero": (["schedule.loss_weights=[0,0,0]"], ["schedule.loss_weights", "sums to zero"]),
    "importance with a count never drawn": (
        ["schedule.weights=[0,1,1]", "schedule.importance=true"],
        ["schedule.importance", "0"],
    ),
    "teacher outside the counts": (["schedule.distil.teacher=64"], ["schedule.distil.teacher", "64", "[4, 16, 144]"]),
    "distillation weight zero": (["schedule.distil.weight=0"], ["schedule.distil.weight", "0"]),
    "distillation temperature negative": (["schedule.distil.temperature=-2"], ["schedule.distil.temperature", "-2"]),
    "distillation key unknown": (["schedule.distil.teachers=16"], ["schedule.distil.teachers"]),
    "sandwich of too many random counts": (
        ["schedule=sandwich", "schedule.random_counts=2"],
        ["schedule.random_counts", "2", "1"],
    ),
    "random counts negative": (["schedule.random_counts=-1"], ["schedule.random_counts", "-1"]),
    "stratum zero": (["schedule.stratum=0"], ["schedule.stratum", "0"]),
    "stratum that splits a pass": (
        ["schedule.mix=stratified", "schedule.stratum=3"],
        ["schedule.stratum", "3", "micro_batch"],
    ),
    "stratum that does not fill the batch": (
        ["schedule.mix=stratified", "schedule.stratum=24", "micro_batch=4"],
        ["schedule.stratum", "24", "global_batch", "32"],
    ),
    "stratum that starves a count": (
        ["schedule=tokenflex", "schedule.mix=stratified", "schedule.stratum=16", "micro_batch=8"],
        ["schedule.stratum", "16", "[4]", "global_batch", "32"],
    ),
    # phases
    "phases overlap": ([PHASES % (0.7, 0.5)], ["schedule.phases", "overlap", "0.7", "0.5"]),
    "phases repeat an end": ([PHASES % (1, 1)], ["schedule.phases", "overlap"]),
    "phases leave a gap": ([PHASES % (0.2, 0.5)], ["schedule.phases", "gap", "0.5"]),
    "phase past the end": ([PHASES % (0.5, 1.5)], ["schedule.phases", "1.5"]),
    "phase of no length": ([PHASES % (0, 1)], ["schedule.phases", "0"]),
    "phase weights of another length": (
        ['schedule.phases=[{"until":1,"weights":[1,1]}]'],
        ["schedule.phases[0].weights", "2 entries"],
    ),
    "phase weights sum to zero": (
        ['schedule.phases=[{"until":1,"weights":[0,0,0]}]'],
        ["schedule.phases[0].weights", "sums to zero"],
    ),
    "phase ease unknown": (
        ['schedule.phases=[{"until":1,"weights":[1,1,1],"ease":"smooth"}]'],
        ["schedule.phases", "ease", "smooth", "cosine"],
    ),
    "phase without weights": (['schedule.phases=[{"until":1}]'], ["schedule.phases", "weights"]),
    "phase with an unknown key": (
        ['schedule.phases=[{"until":1,"weights":[1,1,1],"speed":2}]'],
        ["schedule.phases", "speed"],
    ),
    "phase is a number": (["schedule.phases=[0.5]"], ["schedule.phases", "0.5"]),
    # laws and projectors that do not fit
    "prefix law on the pooling projector": (["schedule=mqt"], ["2", "pool", "4"]),
    "power-of-two law on the pooling projector": (["schedule=flextok"], ["2", "pool"]),
    "one count per example without prefixes": (["schedule.mix=sample"], ["sample", "pool"]),
    "several counts on the fixed projector": (["model.projector=mlp"], ["mlp", "4", "144"]),
    "counts that do not nest in pool_after": (
        ["model.projector=pool_after", "schedule.counts=[4,25,144]"],
        ["25", "pool_after"],
    ),
    "more tokens than queries": (
        ["model.projector=query", "model.max_queries=64"],
        ["144", "query", "64"],
    ),
    "projector unknown": (["model.projector=perceiver"], ["model.projector", "perceiver", "query"]),
    "projector preset unknown": (["model=perceiver"], ["model", "perceiver", "pool"]),
    "no queries": (["model.max_queries=0"], ["model.max_queries", "0"]),
    "hidden factor zero": (["model.hidden_factor=0"], ["model.hidden_factor", "0"]),
    "adapters of rank zero": (["model.lora.rank=0"], ["model.lora.rank", "0"]),
    "adapters key unknown": (["model.lora.ranks=8"], ["model.lora.ranks"]),
    "tower settings are no object": (["model.vision.config=7"], ["model.vision.config", "7"]),
    # evaluation grid
    "no evaluation counts": (["evaluation.counts=[]"], ["evaluation.counts", "empty"]),
    "evaluation counts fall": (["evaluation.counts=[16,4]"], ["evaluation.counts", "strictly increasing"]),
    "evaluation count inadmissible": (["evaluation.counts=[4,7]"], ["7"]),
    "evaluation count zero": (["evaluation.counts=[0,4]"], ["evaluation.counts", "0"]),
    "more examples than there are": (["evaluation.test_examples=1000000"], ["1000000", "8192"]),
    # run
    "no workers": (["workers=0"], ["workers", "0"]),
    "negative workers": (["workers=-2"], ["workers", "-2"]),
    "half a worker": (["workers=1.5"], ["workers", "1.5"]),
    "more workers than CPUs": (["workers=4096", "global_batch=4096"], ["workers", "4096", "CPUs"]),
    "batch not divided by three workers": (["workers=3"], ["global_batch", "32", "workers 3"]),
    "accumulation not whole": (["micro_batch=5"], ["global_batch", "32", "5"]),
    "batch not divided by workers": (["workers=2", "global_batch=33"], ["global_batch", "33", "2"]),
    "micro-batch above the batch": (["micro_batch=64"], ["global_batch", "32", "64"]),
    "batch zero": (["global_batch=0"], ["global_batch", "0"]),
    "seed negative": (["seed=-1"], ["seed", "-1"]),
    "seed fractional": (["seed=0.5"], ["seed", "0.5"]),
    "seed text": (["seed=seven"], ["seed", "seven"]),
    "seed of more digits than Python reads": (["seed=" + "1" * 5000], ["seed"]),
    "precision unknown": (["precision=fp8"], ["precision", "fp8", "bf16"]),
    "workload unknown": (["workload=digit"], ["workload", "digit", "digits"]),
    "workload cannot be imported": (["workload=no_such_module:thing"], ["no_such_module"]),
    # budget
    "two bounds": (["budget.steps=10", "budget.flops=1e12"], ["steps", "flops", "exactly one"]),
    "no bound": (["budget.steps=null"], ["exactly one"]),
    "steps zero": (["budget.steps=0"], ["budget.steps", "0"]),
    "steps as a float": (["budget.steps=10.5"], ["budget.steps", "10.5"]),
    "flops negative": (["budget.flops=-1"], ["budget.flops", "-1"]),
    "seconds without a horizon": (["budget.seconds=60"], ["budget.horizon"]),
    # optimizer, stages, ZeRO, checkpoints
    "learning rate zero": (["optimizer.lr=0"], ["optimizer.lr", "0"]),
    "learning rate NaN": (["optimizer.lr=NaN"], ["NaN"]),
    "learning rate text": (["optimizer.lr=fast"], ["optimizer.lr", "fast"]),
    "warm-up above one": (["optimizer.warmup=1.5"], ["optimizer.warmup", "1.5"]),
    "one momentum": (["optimizer.betas=[0.9]"], ["optimizer.betas"]),
    "momentum above one": (["optimizer.betas=[0.9,1.5]"], ["optimizer.betas", "1.5"]),
    "clip negative": (["optimizer.clip=-1"], ["optimizer.clip", "-1"]),
    "learning-rate shape unknown": (["optimizer.shape=linear"], ["optimizer.shape", "linear", "cosine"]),
    "no stages": (["stages=[]"], ["stages", "at least one"]),
    "stages of one name": (
        ['stages=[{"name":"a","share":1},{"name":"a","share":1}]'],
        ["stages", "distinct"],
    ),
    "stage share zero": (['stages=[{"name":"a","share":0}]'], ["stages", "share", "0"]),
    "stage trains an unknown part": (['stages=[{"name":"a","share":1,"train":["head"]}]'], ["stages", "head"]),
    "stage trains nothing": (['stages=[{"name":"a","share":1,"train":[]}]'], ["stages", "train"]),
    "ZeRO stage four": (["zero.stage=4"], ["zero.stage", "4", "3"]),
    "ZeRO preset unknown": (["zero=7"], ["zero", "7"]),
    "offload without its stage": (["zero.offload_parameters=true"], ["offload_parameters", "stage"]),
    "offload at stage zero": (["zero.stage=0", "zero.offload_optimizer=true"], ["offload_optimizer", "stage 0"]),
    "checkpoints never": (["checkpoint.every=0"], ["checkpoint.every", "0"]),
    "no checkpoint kept": (["checkpoint.keep=0"], ["checkpoint.keep", "0"]),
    "price negative": (["tracking.price_per_hour=-1"], ["tracking.price_per_hour", "-1"]),
    # data
    "data path missing": (["data.path=/no/such/folder"], ["data.path", "/no/such/folder"]),
    "text too short for its turns": (["data.text_tokens=8"], ["data.text_tokens", "8"]),
    "tokenizer of another model": (
        ["model.language.tokenizer=Qwen/Qwen2.5-0.5B"],
        ["model.language.tokenizer", "Qwen/Qwen2.5-0.5B", "single words"],
    ),
    "text tokens negative": (["data.text_tokens=-8"], ["data.text_tokens", "-8"]),
    "turns zero": (["data.turns=0"], ["data.turns", "0"]),
    "data workers negative": (["data.num_workers=-1"], ["data.num_workers", "-1"]),
    # keys and forms
    "unknown key": (["shedule.counts=[4,16]"], ["shedule", "schedule"]),
    "unknown nested key": (["schedule.wieghts=[1,2,3]"], ["schedule.wieghts", "schedule.weights"]),
    "unknown top-level key": (["sed=7"], ["sed", "seed"]),
    "key into a text": (["model.init_from.x=1"], ["model.init_from", "no fields"]),
    "unknown key near none": (["zero.kwyjibo=1"], ["zero.kwyjibo", "the keys of zero are stage"]),
    "unknown top-level key near none": (["kwyjibo=1"], ["kwyjibo", "--help"]),
    "experiment as an override": (["experiment=foo"], ["experiment", "foo", "tokendial train foo"]),
    "key into a number": (["seed.value=7"], ["seed.value", "seed"]),
    "key into a list": (["schedule.counts.0=4"], ["schedule.counts"]),
    "no value": (["seed"], ["seed", "key=value"]),
    "no key": (["=7"], ["=7", "key=value"]),
    "empty override": ([""], ["key=value"]),
    "duplicate key": (["seed=1", "seed=2"], ["duplicate", "seed"]),
    "duplicate preset": (["schedule=mqt", "schedule=m3"], ["duplicate", "schedule"]),
    "duplicate key in a value": (
        ['schedule.phases=[{"until":1,"until":1,"weights":[1,1,1]}]'],
        ["duplicate", "until"],
    ),
    "section with an unknown key": (['optimizer={"lr":1e-3,"speed":2}'], ["optimizer.speed"]),
    "experiment cannot be overridden away": (["description=[1]"], ["description"]),
    "value nested too deeply": (["schedule.counts=" + "[" * 5000 + "]" * 5000], ["schedule.counts"]),
}


def refusal(*arguments: object, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(*arguments, **options)  # type: ignore[arg-type]
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert 10 < len(sentence) < 500, sentence
    return sentence


@pytest.mark.parametrize("name", BAD)
def test_bad_overrides_are_refused_in_one_sentence(name: str) -> None:
    overrides, words = BAD[name]
    sentence = refusal("digits", overrides, machine_cpus=8)
    assert [word for word in words if word not in sentence] == [], sentence


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 60


GOOD = [
    [],
    ["seed=7", "workers=2"],
    ["schedule.weights=[1,0,0.5]"],
    ["schedule.counts=[4,16,64]"],
    ["schedule.counts=[1,4,9,16,25,36,49,64,81,100,121,144]", "schedule=uniform"],
    ["schedule.counts=[1,4]", "schedule.weights=[1,2]"],
    ["schedule.counts=[144]", "schedule=fixed"],
    ["schedule=m3"],
    ["schedule=flexivit", "schedule.temperature=2"],
    ["schedule.temperature=2", "schedule=flexivit"],
    ["schedule=sandwich", "schedule.random_counts=0"],
    ["schedule=curriculum", "schedule.temperature_end=0.5"],
    ["schedule=uniform", "schedule.importance=true"],
    ["schedule=mqt", "model.projector=query"],
    ["schedule=flextok", "model.projector=query"],
    ["model=query", "schedule.mix=sample"],
    ["model=pool_after", "schedule.counts=[4,36,144]", "evaluation.counts=[4,36,144]"],
    ["model=mlp", "schedule=fixed", "evaluation.counts=[144]"],
    ["schedule.mix=stratified", "schedule.stratum=4", "micro_batch=2", "workers=2"],
    ["schedule.distil.teacher=16", "schedule.distil.weight=0.5"],
    ['schedule.distil={"teacher":"max"}'],
    [PHASES % (0.5, 1)],
    ['schedule.phases=[{"until":1,"weights":[0,0,1],"ease":"cosine"}]'],
    ["model.pooling=resize_then_avg"],
    ["model=query", "model.query_keys=features", "model.max_queries=200"],
    ["model.lora.rank=4"],
    ["micro_batch=4"],
    ["global_batch=48", "micro_batch=8"],
    ["precision=fp32", "activation_checkpointing=true"],
    ["budget.flops=1e13"],
    ["budget.tokens=1000000"],
    ["budget.seconds=60", "budget.horizon=400"],
    ["zero=3"],
    ["zero=offload"],
    ["zero.stage=2", "zero.offload_optimizer=true"],
    ["checkpoint=often"],
    ["evaluation=quick"],
    ["evaluation.counts=[1,4,9,16]"],
    ["optimizer=cosine", "optimizer.lr=3e-4"],
    ['optimizer={"lr":0.002}'],
    ["data.turns=3", "data.num_workers=1"],
    ["tracking.uri=http://127.0.0.1:5000", "tracking.price_per_hour=0"],
    ["description=a plain sentence, with = in it"],
]


@pytest.mark.parametrize("overrides", GOOD, ids=" ".join)
def test_good_overrides_are_accepted(overrides: list[str]) -> None:
    config = resolve("digits", overrides, machine_cpus=8)
    assert type(config).model_validate_json(config.model_dump_json()) == config


def test_presets_and_fields_apply_whatever_their_order() -> None:
    overrides = ["schedule=flexivit", "schedule.temperature=2", "model=query", "model.max_queries=200", "seed=3"]
    forward, backward = resolve("digits", overrides), resolve("digits", overrides[::-1])
    assert forward == backward
    assert forward.schedule.temperature == 2
    assert forward.model.max_queries == 200


@pytest.fixture
def config() -> RunConfig:
    return resolve("digits", ["seed=11", "schedule=uniform"], machine_cpus=8)


def test_a_resolved_configuration_is_accepted_back(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "resolved.json"
    path.write_text(config.model_dump_json())
    assert resolve(None, (), path, machine_cpus=8) == config
    assert resolve("digits", ["seed=12"], path, machine_cpus=8).seed == 12


def with_document(config: RunConfig, **changes: object) -> str:
    return json.dumps(config.model_dump(mode="json") | changes)


FILES = {
    "not JSON": ("seed: 7", ["not JSON"]),
    "empty": ("", ["not JSON"]),
    "a list": ("[]", ["list", "object"]),
    "no experiment": ("{}", ["experiment"]),
    "experiment of a wrong type": ('{"experiment": 7}', ["experiment"]),
    "unknown experiment": ('{"experiment": "digitz"}', ["digitz", "digits"]),
    "duplicate key": ('{"experiment": "digits", "seed": 1, "seed": 2}', ["duplicate", "seed"]),
    "NaN": ('{"experiment": "digits", "seed": NaN}', ["NaN", "finite"]),
    "a number too long to read": ('{"seed": ' + "1" * 5000 + "}", ["not JSON"]),
    "missing parts": ('{"experiment": "digits"}', ["workload"]),
    "huge": (json.dumps({"description": "x" * MAX_CONFIG_BYTES}), ["bytes", str(MAX_CONFIG_BYTES)]),
    "nested too deeply": ('{"experiment":' + "[" * 100_000 + "]" * 100_000 + "}", ["not JSON"]),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    text, words = FILES[name]
    path = tmp_path / "config.json"
    path.write_text(text)
    sentence = refusal(None, (), path)
    assert [word for word in words if word not in sentence] == [], sentence


def test_files_that_cannot_be_read_are_refused(config: RunConfig, tmp_path: Path) -> None:
    assert "No such file" in refusal(None, (), tmp_path / "absent.json")
    assert str(tmp_path) in refusal(None, (), tmp_path)
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not JSON" in refusal(None, (), binary)
    other = tmp_path / "other.json"
    other.write_text(with_document(config, sede=7))
    assert "sede" in refusal(None, (), other)
    other.write_text(with_document(config))
    assert "digits.tiny" in refusal("digits.tiny", (), other)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digitz", ["digitz", "digits"]),
        ("", ["experiment"]),
        (None, ["experiment", "--list"]),
        ("no_such_module:f", ["no_such_module"]),
        ("tokendial.resolve:absent", ["absent"]),
        ("os:getcwd", ["os:getcwd"]),
        ("os:sep", ["os:sep"]),
    ],
)
def test_experiments_that_do_not_exist_are_refused(name: str | None, words: list[str]) -> None:
    sentence = refusal(name)
    assert [word for word in words if word not in sentence] == [], sentence
