"""The forecast: what is measured, what a stage costs, what is shown and kept, and what does not fit."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from decoders import build_toy

from trainer import forecast, pipeline
from trainer.check import check
from trainer.errors import MachineError
from trainer.forecast import Cost, Speeds, Work, memory
from trainer.forecast.measure import FIRST, MOST, SECONDS, seconds_per_item
from trainer.forecast.plan import keep, predict, read_predicted, show
from trainer.forecast.records import PairSpeed, TextSpeed
from trainer.model import Reranker
from trainer.model_files.decoders import Prompting
from trainer.recipe import load_recipe
from trainer.runtime import console
from trainer.runtime.verify import sha256
from trainer.training.optimizer import configure_model

PAIR = PairSpeed(
    load=1.0,
    exact=0.02,
    score=0.01,
    learn=0.04,
    step=0.5,
    precision="bf16",
    parameters=1000,
    trained=800,
    activations=100.0,
    tokens=50.0,
)


class Clock:
    """A clock that the work of a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Known(Speeds):
    """Speeds that a test knows."""

    def of_reranker(self, *_, **__):
        return PAIR

    def of_bi_encoder(self, _):
        return TextSpeed(2.0, 0.03, 0.005, 384)

    @property
    def pace(self):
        return 1.0


@pytest.fixture
def work(recipe_file, tmp_path):
    """`work(override, ...)` is the work of the tiny recipe with known speeds."""

    def work(*overrides):
        recipe = load_recipe(recipe_file, overrides)
        summary = check(recipe, tmp_path / "runs")
        return Work(recipe, summary, Known(recipe, summary, tmp_path / "runs"))

    return work


def stages(work):
    return {stage.folder: stage for stage in pipeline.STAGES if stage.is_wanted(work.recipe)}


def seconds(work, stage):
    return stages(work)[stage].forecast(work).seconds


# The measurement


@pytest.mark.parametrize("rate", [1e-4, 0.01, 1.0, 40.0])
def test_the_seconds_of_an_item_are_found_whatever_the_speed(rate):
    clock, counts = Clock(), []

    def compute(count):
        counts.append(count)
        clock.now += rate * count

    assert seconds_per_item(compute, clock) == pytest.approx(rate)
    assert counts[0] == FIRST  # warms up
    assert counts[-1] >= MOST or counts[-1] * rate >= SECONDS
    assert sum(counts) * rate < max(5 * SECONDS, 3 * FIRST * rate)


def test_the_first_round_does_not_count():
    clock, rounds = Clock(), []

    def compute(count):
        rounds.append(count)
        clock.now += 100.0 if len(rounds) == 1 else count

    assert seconds_per_item(compute, clock) == 1.0


def test_a_round_for_which_memory_runs_out_ends_the_measurement():
    clock = Clock()

    def compute(count):
        if count > 16:
            raise torch.OutOfMemoryError
        clock.now += 0.001 * count

    assert seconds_per_item(compute, clock) == pytest.approx(0.001)


def test_too_little_memory_for_the_first_round_is_an_error():
    def compute(_):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        seconds_per_item(compute, Clock())


def test_a_model_is_measured_once_and_its_measurement_is_kept(recipe_file, tmp_path, monkeypatch):
    recipe = load_recipe(recipe_file)
    runs = tmp_path / "runs"
    summary = check(recipe, runs)
    first = Work(recipe, summary, Speeds(recipe, summary, runs)).reranker
    assert first.exact > 0
    assert first.learn > 0
    assert 0 < first.trained <= first.parameters
    monkeypatch.setattr(Reranker, "load", lambda *_, **__: pytest.fail("measured again"))
    assert Work(recipe, summary, Speeds(recipe, summary, runs)).reranker == first
    longer = load_recipe(recipe_file, ["reranker.max_length=40"])
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        _ = Work(longer, summary, Speeds(longer, summary, runs)).reranker


def test_a_damaged_file_of_measurements_is_made_again(recipe_file, tmp_path):
    recipe, runs = load_recipe(recipe_file), tmp_path / "runs"
    runs.mkdir()
    (runs / ".speeds.json").write_text("{")
    summary = check(recipe, runs)
    assert Work(recipe, summary, Speeds(recipe, summary, runs)).reranker.exact > 0
    assert len(json.loads((runs / ".speeds.json").read_text())) == 1


@pytest.mark.slow
def test_the_measured_model_is_not_the_trained_one(recipe_file, tmp_path):
    """A run with its forecast leaves the same weights as one whose measurements were kept."""
    recipe = load_recipe(recipe_file)
    dev = []
    for _ in range(2):
        pipeline.run(recipe, tmp_path / "runs", until="train")
        notes = json.loads((tmp_path / "runs" / "tiny" / "train" / "done.json").read_text())
        dev.append((notes["best_dev"], sha256(tmp_path / "runs" / "tiny" / "train" / "best" / "model.safetensors")))
        (tmp_path / "runs" / "tiny" / "train" / "done.json").unlink()
    assert dev[0] == dev[1]


# What a stage costs


def test_training_is_counted_in_pairs_steps_and_evaluations(work):
    known = work("train.epochs=2", "train.evaluations_per_epoch=3", "reranker.depth=10")
    lists, dev = round(0.9 * 24), 8
    assert known.lists == lists
    scored = (lists + (1 + 2 * 3 + 3) * dev) * 10  # the head's lists; before, in and after training
    steps = 2 * -(-lists // 4)
    least = scored * PAIR.score + 2 * lists * 10 * PAIR.learn + steps * PAIR.step
    assert seconds(known, "train") == pytest.approx(least + 4 * PAIR.load, rel=0.01)


def test_without_epochs_nothing_is_trained_and_one_system_is_evaluated(work):
    trained, untrained = work(), work("train.epochs=0")
    assert seconds(untrained, "train") < seconds(trained, "train") / 2
    difference = seconds(trained, "evaluate") - seconds(untrained, "evaluate")
    assert difference == pytest.approx(16 * 12 * PAIR.exact + 2 * PAIR.load)


def test_a_teacher_scores_the_window_of_every_train_query(work, tiny):
    teacher = f"mine.teacher={tiny['reranker']}"
    drawn = work(teacher, "mine.groups=draws", "mine.last_rank=7")
    assert seconds(drawn, "mine") - seconds(work(), "mine") == pytest.approx(24 * 7 * PAIR.score + PAIR.load)


def test_a_search_that_is_left_finds_its_embeddings(recipe_file, tiny, tmp_path, monkeypatch):
    words = ["retriever.kind=dense", f"retriever.model={tiny['bert']}"]
    pipeline.run(load_recipe(recipe_file, words), tmp_path, until="retrieve")
    monkeypatch.setattr(pipeline, "predict", lambda stages, work: ([stage.folder for stage in stages], work.embedded))
    for override, expected in (("retriever.depth=7", 1.0), ("retriever.max_length=9", 0.0)):
        recipe = load_recipe(recipe_file, [*words, override])
        opened = pipeline.open_run(recipe, tmp_path)
        left, embedded = pipeline.forecast(opened, opened.stages, check(recipe, tmp_path))
        assert left[0] == "retrieve"
        assert embedded == expected


def test_embeddings_that_are_there_cost_nothing(work):
    known = work("retriever.kind=dense", f"retriever.model={work().recipe.reranker.model}")
    saved = seconds(known, "retrieve") - seconds(replace(known, embedded=1.0), "retrieve")
    assert saved == pytest.approx(40 * 0.03)


def test_a_distillation_scores_and_trains_its_queries(work):
    known = work("distil.queries=100", "distil.depth=8")
    assert seconds(known, "distil") > 800 * (PAIR.score + PAIR.learn)
    assert "distil" not in stages(work())


def test_every_stage_has_a_cost_that_grows_with_the_depth(work):
    shallow, deep = work("reranker.depth=5"), work("reranker.depth=12")
    for stage in ("train", "evaluate"):
        assert seconds(shallow, stage) < seconds(deep, stage)
    assert all(stage.forecast(deep).seconds >= 0 for stage in stages(deep).values())


# The run


def test_a_run_keeps_its_forecast_beside_the_real_minutes(exported):
    folder = exported[1] / "exported"
    predicted = read_predicted(folder)
    assert list(predicted) == ["data", "retrieve", "mine", "train", "evaluate", "export"]
    assert all(seconds > 0 for seconds in predicted.values())
    report = (folder / "report.html").read_text()
    assert "predicted" in report


def test_a_finished_run_costs_nothing(exported):
    recipe = load_recipe(exported[0])
    opened = pipeline.open_run(recipe, exported[1])
    assert pipeline.forecast(opened, opened.stages, check(recipe, exported[1])) is None


def test_finished_stages_cost_nothing_and_keep_what_was_predicted(recipe_file, tmp_path):
    recipe, folder = load_recipe(recipe_file), tmp_path / "runs" / "tiny"
    pipeline.run(recipe, tmp_path / "runs", until="mine")
    assert list(read_predicted(folder)) == ["data", "retrieve", "mine"]
    data = read_predicted(folder)["data"]
    opened = pipeline.open_run(recipe, tmp_path / "runs")
    made = pipeline.forecast(opened, opened.stages, check(recipe, tmp_path / "runs"))
    assert list(made.costs) == ["train", "evaluate", "export"]
    keep(folder, made)
    assert read_predicted(folder)["data"] == data
    assert set(read_predicted(folder)) == {"data", "retrieve", "mine", "train", "evaluate", "export"}


@pytest.mark.parametrize("content", [None, "{", "[]", '{"stages": 3}', '{"stages": {"train": {"seconds": "x"}}}'])
def test_a_run_without_a_readable_forecast_has_none(tmp_path, content):
    if content is not None:
        (tmp_path / forecast.FILE).write_text(content)
    assert read_predicted(tmp_path) == {}


def test_the_table_names_finished_stages_and_the_sum(capsys, monkeypatch):
    monkeypatch.setattr(console.console, "width", 200)
    made = forecast.Forecast({"train": Cost(120.0, 2e6), "evaluate": Cost(60.0, 1e6)})
    show(made, ["data"], table=True)
    rows = [line.replace("\u2502", " ").split() for line in capsys.readouterr().out.splitlines()]
    for row in (["data", "0.0", "finished"], ["train", "2.0", "2.0", "MB"], ["all", "3.0", "3.0", "MB"]):
        assert row in rows


def test_the_line_of_a_run_names_the_long_stages(capsys):
    costs = {"data": Cost(1.0), "train": Cost(600.0, 2e6), "evaluate": Cost(120.0)}
    show(forecast.Forecast(costs), table=False)
    assert capsys.readouterr().out == "forecast  about 12.0 minutes (train 10.0, evaluate 2.0); 2.0 MB on the disk\n"


# Memory


def test_the_memory_of_training_is_the_sum_of_its_parts(work, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: ("cuda", 10e9))
    known = work("train.tokens_per_pass=512", "train.queries_per_step=2", "reranker.depth=5")
    needed = memory.memory_of_training(known)
    assert (needed.weights, needed.gradients, needed.optimizer) == (4000, 3200, 6400)
    assert needed.activations == 100 * 500  # a step: two groups of five documents with 50 tokens each
    assert needed.total == 4000 + 3200 + 6400 + 50_000 + 0.6e9
    larger = work("train.tokens_per_pass=512", "train.queries_per_step=8", "reranker.depth=5")
    assert memory.memory_of_training(larger).activations == 100 * 512


def test_a_training_that_does_not_fit_names_the_keys_that_would_make_it_fit(work, monkeypatch, capsys):
    monkeypatch.setattr(memory, "device_memory", lambda: ("cuda", 0.6681e9))
    known = work("train.tokens_per_pass=8192", "train.queries_per_step=64")
    known.__dict__["reranker"] = PAIR._replace(activations=1e5)  # 10 kB for each token
    made = predict([stages(known)["train"]], known)
    assert not made.memory.fits
    show(made, table=False)
    printed = capsys.readouterr().out
    assert "training needs about 1.4 GB of memory" in printed
    assert "cuda has 0.7 GB; to make it fit: " in printed


def test_the_advised_tokens_fit(work, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: ("cuda", 1e9))
    known = work("train.tokens_per_pass=16384", "train.queries_per_step=64")
    known.__dict__["reranker"] = PAIR._replace(activations=1e5)
    needed = memory.memory_of_training(known)
    assert not needed.fits
    first, *others = memory.remedies(needed, known)
    tokens = int(first.removeprefix("train.tokens_per_pass="))
    changed = work(f"train.tokens_per_pass={tokens}", "train.queries_per_step=64")
    changed.__dict__["reranker"] = PAIR._replace(activations=1e5)
    assert memory.memory_of_training(changed).fits
    assert others == [
        "train.gradient_checkpointing=true",
        "a lower reranker.max_length",
        "train.frozen_layers (two thirds of the layers)",
        "a smaller reranker.model",
    ]


def test_a_base_whose_weights_do_not_fit_is_not_loaded_for_training(work, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: ("cuda", 0.5e9))
    known = work()
    with pytest.raises(MachineError, match="too large for this machine: .* to make it fit: a smaller reranker.model"):
        predict([stages(known)["train"]], known)
    assert predict([stages(known)["evaluate"]], known).memory is None  # a training that is finished
    untrained = work("train.epochs=0")
    assert predict([stages(untrained)["train"]], untrained).memory is None


def test_under_fsdp_the_optimizer_is_divided_among_the_devices(work, monkeypatch):
    whole = memory.memory_before_loading(work().recipe)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert memory.memory_before_loading(work().recipe) == whole  # DDP
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    divided = memory.memory_before_loading(work().recipe)
    assert divided == replace(whole, optimizer=whole.optimizer / 4)


@pytest.fixture
def toy(tmp_path):
    """`toy(family, override, ...)` is the recipe of a toy task with a tiny decoder, built once."""
    build = cache(lambda family: build_toy(tmp_path / family, family, queries=8))
    return lambda family, *overrides: load_recipe(build(family), overrides)


@pytest.mark.parametrize(
    "family", ["llama", "qwen3"]
)  # with a language model head of its own, and with tied embeddings
def test_the_memory_of_lora_is_known_before_loading(toy, family):
    recipe = toy(family, "train.adapter=lora", "train.adapter_rank=5")
    needed = memory.memory_before_loading(recipe)
    section = recipe.reranker
    reranker = Reranker.load(section.model, prompting=Prompting.of(section))
    row = reranker.model.score.weight.numel()
    assert needed.weights == 4 * (sum(weight.numel() for weight in reranker.model.parameters()) - row)
    configure_model(recipe.train, reranker, ranks=True)
    trained = sum(weight.numel() for weight in reranker.model.parameters() if weight.requires_grad)
    assert (needed.adapter, needed.gradients, needed.optimizer) == (4 * trained, 4 * trained, 8 * trained)


def test_a_decoder_that_fits_with_lora_alone_is_told_so_before_it_is_loaded(toy, monkeypatch):
    recipe = toy("llama", "train.adapter_rank=1")  # of a model so small that a rank of 16 would have as many weights
    size = memory.memory_before_loading(recipe).weights
    monkeypatch.setitem(memory.LIBRARIES, "cuda", 0.0)
    for times, advice in (
        (4.1, None),
        (3, "train.adapter=lora, or train.frozen_layers"),
        (0.9, "a smaller reranker.model"),
    ):
        monkeypatch.setattr(memory, "device_memory", lambda times=times: ("cuda", times * size / memory.MARGIN))
        needed = memory.memory_before_loading(recipe)
        assert needed.fits == (advice is None)
        assert advice is None or ", or ".join(memory.remedies_before_loading(recipe)).startswith(advice)


def test_on_a_cpu_both_ends_of_the_training_are_in_memory_at_once(work, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: ("cpu", 10e9))
    known = work("train.tokens_per_pass=512", "train.queries_per_step=2", "reranker.depth=5")
    known.__dict__["reranker"] = PAIR._replace(parameters=10**9, trained=10**6)
    needed = memory.memory_of_training(known)
    assert needed.total == memory.LIBRARIES["cpu"] + 3 * 4e9
    assert "(weights 4.0 GB, copies 8.0 GB, libraries" in needed.sentence
    assert list(memory.remedies(needed, known)) == ["a smaller reranker.model"]


def test_another_adapter_or_prompt_is_measured_again(toy, tmp_path, monkeypatch):
    summary = check(toy("qwen3"), tmp_path)

    def keys(*overrides):
        changed, asked = toy("qwen3", *overrides), []
        monkeypatch.setattr(Speeds, "_kept", lambda self, kind, settings, measure: asked.append(settings) or PAIR)
        _ = Work(changed, summary, Speeds(changed, summary, tmp_path)).reranker
        return json.dumps(asked)

    kept = {
        keys(),
        keys("train.adapter=lora"),
        keys("train.adapter=lora", "train.adapter_rank=3"),
        keys("reranker.instruction=Find it"),
    }
    assert len(kept) == 4


@pytest.mark.slow
def test_activations_are_measured_and_grow_without_checkpointing(recipe_file, tmp_path):
    kept = {}
    for checkpointing in ("true", "false"):
        recipe = load_recipe(recipe_file, [f"train.gradient_checkpointing={checkpointing}"])
        summary = check(recipe, tmp_path)
        kept[checkpointing] = Work(recipe, summary, Speeds(recipe, summary, tmp_path)).reranker.activations
    assert 0 < kept["true"] < kept["false"]


def test_frozen_layers_need_no_gradients(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file, ["train.frozen_layers=2"])
    summary = check(recipe, tmp_path)
    speed = Work(recipe, summary, Speeds(recipe, summary, tmp_path)).reranker
    assert 0 < speed.trained < speed.parameters / 2


def test_the_memory_of_this_machine_is_bounded_by_its_control_group(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "CGROUP", limit)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    whole = memory.device_memory()
    assert whole[1] > 1e8
    limit.write_text("max\n")
    assert memory.device_memory() == whole
    limit.write_text("100000000\n")
    assert memory.device_memory() == ("cpu", 1e8)
