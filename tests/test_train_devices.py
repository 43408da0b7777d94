"""A model that is shared out over devices learns what a whole one does, and leaves the same checkpoint."""

import json
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from decoders import build_toy
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from trainer.errors import RunError
from trainer.model import Reranker
from trainer.model_files.decoders import Prompting
from trainer.pipeline import run
from trainer.recipe import Train, load_recipe
from trainer.runtime.run_folder import write_json
from trainer.training import parallel
from trainer.training.checkpoints import resume
from trainer.training.optimizer import configure_model, make_optimizer

# Accelerate shares models out over GPUs only; torch does over CPU processes too, so here the state that Accelerate
# would have come to on GPUs is set by hand. Everything behind it is as it would be there, but for NCCL.
# What a successful program ends with: gloo's threads can abort an interpreter that shuts down. `train` ends so too.
AT_ONCE = """
import os, sys
sys.stdout.flush()
os._exit(0)
"""
SHARDED = """
import os
import sys
from pathlib import Path
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import PartialState
from trainer.pipeline import open_run, run_stage
from trainer.recipe import load_recipe
from trainer.runtime import processes
from trainer.training import loop
recipe = load_recipe(sys.argv[1], sys.argv[3:])
opened = open_run(recipe, sys.argv[2])
save_checkpoint = loop.save_checkpoint
def save_and_die(progress, *rest):
    save_checkpoint(progress, *rest)
    if str(progress.step) == os.environ.get("DIE_AT"):
        os._exit(9)
loop.save_checkpoint = save_and_die
state = opened.accelerator.state
state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
state.fsdp_plugin = FullyShardedDataParallelPlugin(
    fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="FULL_STATE_DICT"
)
for stage in opened.stages[:4]:
    run_stage(opened, stage, force=True)
processes.end(0)
"""


needs_cpus = pytest.mark.skipif(torch.cuda.is_available(), reason="torch would share the model out over the GPUs")
# Groups of one pass and of many, so that the processes make different numbers of them.
WORDS = ["mine.negatives_per_positive=30", "mine.random_share=0.8", "train.tokens_per_pass=1024"]
WORDS += ["train.evaluations_per_epoch=1", "train.checkpoint_steps=5"]


@pytest.fixture
def on_two_processes(started, tmp_path):
    """`on_two_processes(program, word, ..., NAME=value)` runs a program on two processes and returns how it ended."""

    def run(program, *words, **environment):
        script = tmp_path / "program.py"
        script.write_text(program + AT_ONCE)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
        with started([*launch, *words], **environment) as launched:
            return launched.finish()[0]

    return run


@pytest.fixture
def train_sharded(on_two_processes, recipe_file):
    """Train into a folder of runs on two processes."""
    return lambda runs, **environment: on_two_processes(SHARDED, recipe_file, runs, *WORDS, **environment)


@pytest.mark.slow
@needs_cpus
def test_a_sharded_model_has_the_losses_of_an_unsharded_one(command, train_sharded, recipe_file, tmp_path):
    whole = command(recipe_file, *WORDS, "--force", "--runs", tmp_path / "whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    sharded = train_sharded(tmp_path / "sharded")
    assert sharded.returncode == 0, sharded.stdout + sharded.stderr
    rows = [read(tmp_path / runs / "tiny" / "train" / "metrics.jsonl") for runs in ("whole", "sharded")]
    losses, scores = ([[row[name] for row in run if name in row] for run in rows] for name in ("loss", "dev_score"))
    assert len(losses[0]) == 12
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-9)
    ours, theirs = (tmp_path / runs / "tiny" / "train" / "best" for runs in ("whole", "sharded"))
    pair = ("why does liveness probe", "liveness probe restarts the container")
    found = [Reranker.load(folder).score([(pair[0], pair[1])])[0] for folder in (ours, theirs)]
    assert found[1] == pytest.approx(found[0], rel=3e-3)  # twelve steps at a high rate have made more of rounding
    assert load_file(ours / "model.safetensors").keys() == load_file(theirs / "model.safetensors").keys()


@pytest.mark.slow
@needs_cpus
def test_a_killed_run_of_a_sharded_model_resumes_with_the_same_results(train_sharded, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert train_sharded(undisturbed).returncode == 0
    assert train_sharded(killed, DIE_AT="5").returncode != 0
    again = train_sharded(killed)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumed at step 5" in again.stdout
    runs = [read(folder / "tiny" / "train" / "metrics.jsonl") for folder in (undisturbed, killed)]
    learned = [[{name: row.get(name) for name in ("step", "loss", "dev_score")} for row in run] for run in runs]
    assert learned[1] == learned[0]


@pytest.fixture
def sharding():
    """An accelerator as the first of two processes has it under FSDP2; collectives do nothing."""
    AcceleratorState._reset_state(reset_partial_state=True)
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    accelerator = Accelerator(cpu=True)
    state = accelerator.state
    state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", state_dict_type="FULL_STATE_DICT"
    )
    yield accelerator
    distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"frozen_layers": 1}])
@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma"])
def test_the_layers_of_the_base_are_sharded_with_their_adapters(sharding, tmp_path, family, settings):
    pytest.importorskip("peft")
    folder = build_toy(tmp_path, family, queries=1).parent
    prompting = Prompting(folder / "template.jinja", tokens=("no", "yes"))
    reranker = Reranker.load(folder / "model", prompting=prompting)
    section = Train(adapter="lora", adapter_score_row="trained", **settings)
    configure_model(section, reranker)
    before = {name: (weight.shape, weight.requires_grad) for name, weight in reranker.model.named_parameters()}
    optimizer = make_optimizer(section, reranker, fresh_head=False, fused=False)
    model, prepared = parallel.prepare_model(sharding, reranker, optimizer)
    units = {name for name, module in model.named_modules() if isinstance(module, FSDPModule)}
    assert units >= {"", *(f"model.model.layers.{layer}" for layer in range(3))}
    assert not any("lora_" in name or "base_layer" in name for name in units)
    weights = dict(reranker.model.named_parameters())
    assert {name: (weight.shape, weight.requires_grad) for name, weight in weights.items()} == before
    for name, weight in weights.items():
        assert isinstance(weight, DTensor), name
        assert weight.to_local().shape[0] == -(-weight.shape[0] // 2)  # the first process has the larger half
    trained = {name for name, weight in weights.items() if weight.requires_grad}
    frozen = settings.get("frozen_layers", 0)
    assert len(trained) == (3 - frozen) * 7 * 2 + 1  # linear layers, two matrices of each; the score row
    optimized = {id(weight) for group in prepared.param_groups for weight in group["params"]}
    assert optimized == {id(weights[name]) for name in trained}


@pytest.fixture
def decoder(tmp_path):
    """The recipe of a small task with a tiny Llama, trained with LoRA."""
    pytest.importorskip("peft")
    return build_toy(tmp_path, "llama", queries=33)


LORA = ["train.adapter=lora", "train.adapter_score_row=trained", "train.epochs=2", "train.learning_rate=1e-3"]
LORA += ["train.tokens_per_pass=512", "train.dropout=0.1"]


@pytest.mark.slow
@needs_cpus
def test_a_sharded_decoder_with_an_adapter_has_the_losses_of_an_unsharded_one(on_two_processes, decoder, tmp_path):
    words = [word for word in LORA if "dropout" not in word]
    run(load_recipe(decoder, words), tmp_path / "whole", until="train")
    sharded = on_two_processes(SHARDED, decoder, tmp_path / "sharded", *words)
    assert sharded.returncode == 0, sharded.stdout + sharded.stderr
    rows = [read(tmp_path / runs / "tiny" / "train" / "metrics.jsonl") for runs in ("whole", "sharded")]
    losses = [[row["loss"] for row in run if "loss" in row] for run in rows]
    assert len(losses[0]) == 10
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    ours, theirs = (tmp_path / runs / "tiny" / "train" / "best" for runs in ("whole", "sharded"))
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, other = (load_file(folder / name) for folder in (ours, theirs))
        assert one.keys() == other.keys()
        assert all(torch.allclose(one[key], other[key], atol=1e-5) for key in one)
    assert all(".lora_" in key or key.endswith(".score.weight") for key in one)


@pytest.mark.slow
@needs_cpus
def test_a_killed_run_of_a_sharded_adapter_resumes_with_the_same_results(on_two_processes, decoder, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert on_two_processes(SHARDED, decoder, undisturbed, *LORA).returncode == 0
    assert on_two_processes(SHARDED, decoder, killed, *LORA, DIE_AT="5").returncode != 0
    again = on_two_processes(SHARDED, decoder, killed, *LORA)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumed at step 5" in again.stdout
    runs = [read(folder / "tiny" / "train" / "metrics.jsonl") for folder in (undisturbed, killed)]
    learned = [[{name: row.get(name) for name in ("step", "loss", "dev_score")} for row in run] for run in runs]
    assert learned[1] == learned[0]


# One process of two has no room for the first pass of a step that the other has room for.
CRAMPED = """
import sys
from pathlib import Path
import torch
from trainer.pipeline import open_run, run_stage
from trainer.recipe import load_recipe
from trainer.model import ScoringModel
recipe = load_recipe(sys.argv[1], sys.argv[3:])
opened = open_run(recipe, sys.argv[2])
forward, calls = ScoringModel.forward, []
def cramped(self, batches):
    if opened.accelerator.process_index == 1 and self.training and len(batches.parts) > 1:
        calls.append(batches)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("out of memory")
    return forward(self, batches)
ScoringModel.forward = cramped
for stage in opened.stages[:4]:
    run_stage(opened, stage, force=True)
assert opened.accelerator.process_index == 0 or len(calls) > 3
"""


@pytest.mark.slow
@needs_cpus
def test_a_process_repeats_its_part_of_a_step_while_the_other_waits(command, on_two_processes, recipe_file, tmp_path):
    words = [
        "mine.groups=draws",
        "mine.negatives_per_positive=30",
        "mine.random_share=0.8",
        "train.tokens_per_pass=16384",
    ]
    whole = command(recipe_file, *words, "--force", "--runs", tmp_path / "whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    cramped = on_two_processes(CRAMPED, recipe_file, tmp_path / "cramped", *words)
    assert cramped.returncode == 0, cramped.stdout + cramped.stderr
    rows = [read(tmp_path / runs / "tiny" / "train" / "metrics.jsonl") for runs in ("whole", "cramped")]
    losses = [[row["loss"] for row in run if "loss" in row] for run in rows]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)


@pytest.fixture
def on_two_machines(started, free_port):
    """`on_two_machines([word, ...], [word, ...])` is `train` as it is started on each of two machines."""
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", free_port]
    launch = [sys.executable, "-m", "torch.distributed.run", *meeting, "--node-rank"]

    def run(*machines):
        lines = [[*launch, rank, "-m", "trainer", *words] for rank, words in enumerate(machines)]
        with started(*lines) as launched:
            return launched.finish()

    return run


@pytest.mark.slow
def test_two_machines_give_the_losses_of_one_process(command, on_two_machines, recipe_file, tmp_path):
    one = command(recipe_file, "--force", "--runs", tmp_path / "one")
    assert one.returncode == 0, one.stdout + one.stderr
    machines = on_two_machines(*[[recipe_file, "--force", "--runs", tmp_path / "two"]] * 2)
    assert [machine.returncode for machine in machines] == [0, 0], machines
    rows = [read(tmp_path / runs / "tiny" / "train" / "metrics.jsonl") for runs in ("one", "two")]
    losses = [[row["loss"] for row in run if "loss" in row] for run in rows]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-5)
    assert "best dev" in machines[0].stdout
    assert "best dev" not in machines[1].stdout  # one machine speaks


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_what_one_machine_cannot_do_ends_the_run_on_both(on_two_machines, recipe_file, tmp_path, number):
    words = [[recipe_file, "--runs", tmp_path / "runs"] for _ in range(2)]
    words[number].append(f"data.path={tmp_path / 'not-mounted'}")
    machines = on_two_machines(*words)
    assert all(machine.returncode for machine in machines)
    said = "".join(machine.stdout + machine.stderr for machine in machines)
    assert "not-mounted" in said
    assert "/trainer/" not in said, "no traceback of ours"


# Two processes of different machines: what the second finds out by itself is not what the first does.
DIFFERENT = """
import sys
from pathlib import Path
from trainer.runtime import launch, precision
from trainer.evaluation import fusion, two_stage
from trainer.pipeline import run
from trainer.recipe import load_recipe
from trainer.model import Reranker
from trainer.training import FITTED
recipe = load_recipe(sys.argv[1], sys.argv[3:])
accelerator = launch.start_accelerator(recipe.train.precision)
first = accelerator.is_main_process
precision.has_native_bf16 = lambda: first
Reranker.bf16_speedup = lambda *_, **__: 1.0
is_file, scores = Path.is_file, two_stage.query_scores
Path.is_file = lambda path: is_file(path) and (first or path.name != FITTED)
calls = []
def rounded_otherwise(*arguments):
    calls.append(arguments)
    return {query: value - (0 if first else 0.01 * len(calls)) for query, value in scores(*arguments).items()}
two_stage.query_scores = fusion.query_scores = rounded_otherwise
run(recipe, Path(sys.argv[2]), until="evaluate", force=True)
"""


@pytest.mark.slow
@needs_cpus
def test_processes_agree_where_their_machines_do_not(on_two_processes, recipe_file, tmp_path):
    words = ["train.precision=auto", "train.patience=3", "train.epochs=4"]
    ended = on_two_processes(DIFFERENT, recipe_file, tmp_path / "runs", *words)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "training in fp32: bf16 is 1.0 times as fast" in " ".join(ended.stdout.split())


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_checkpoint_of_a_sharded_model_is_refused_without_fsdp(tmp_path):
    checkpoint = tmp_path / "train" / "checkpoint-0000005"
    write_json(checkpoint / "progress.json", {"step": 5, "processes": 2, "sharded": True})
    with pytest.raises(RunError, match=r"was made with FSDP, this is without, .* or delete .*/train to train anew"):
        resume(checkpoint, Accelerator(cpu=True))


def test_a_checkpoint_of_the_second_round_holds_the_second_model(tiny, tmp_path):
    accelerator = Accelerator(cpu=True)
    for number in (1, 2):
        reranker = Reranker.load(tiny["reranker"])
        torch.nn.init.constant_(reranker.model.classifier.bias, number)
        parallel.prepare_model(accelerator, reranker, make_optimizer(Train(), reranker, fresh_head=False))
    accelerator.save_state(str(tmp_path))
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors")["model.classifier.bias"] == 2
