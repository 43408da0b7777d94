"""Models that bring Python code of their own: it runs where the recipe allows it, for each reference by its own key."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from trainer.check import check
from trainer.errors import ModelError
from trainer.model import Reranker
from trainer.model.teacher import Teacher
from trainer.pipeline import run
from trainer.recipe import Recipe
from trainer.retriever import BiEncoder
from trainer.training.student import load_student

CODE = """
from pathlib import Path

from transformers import BertConfig, BertForSequenceClassification, BertModel

with Path({ran!r}).open("a") as file:
    file.write("x")


class OwnConfig(BertConfig):
    model_type = "own-encoder"


class OwnModel(BertModel):
    config_class = OwnConfig


class OwnForSequenceClassification(BertForSequenceClassification):
    config_class = OwnConfig
"""


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """The file that the models' code writes to when it runs."""
    return tmp_path / "ran"


@pytest.fixture
def own(tiny: dict[str, Path], tmp_path: Path, ran: Path) -> dict[str, Path]:
    """An encoder and a reranker whose class lies in a file beside the weights."""
    folders = {}
    for name, base in (("encoder", "bert"), ("reranker", "reranker")):
        folder = Path(shutil.copytree(tiny[base], tmp_path / f"own-{name}"))
        config = json.loads((folder / "config.json").read_text())
        kind = {"encoder": "OwnModel", "reranker": "OwnForSequenceClassification"}[name]
        config |= {"model_type": "own-encoder", "architectures": [kind]}
        names = ("Config", "Model", "ModelForSequenceClassification")
        config["auto_map"] = {f"Auto{n}": f"modeling_own.Own{n.replace('ModelFor', 'For')}" for n in names}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "modeling_own.py").write_text(CODE.format(ran=str(ran)))
        folders[name] = folder
    return folders


def keys(text: str) -> dict[str, dict[str, object]]:
    """`reranker.model=x` and so on as the sections of a recipe."""
    sections: dict[str, dict[str, object]] = {}
    for line in text.split():
        key, value = line.split("=")
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = {"true": True}.get(value, value)
    return sections


def recipe_of(beir: Path, text: str, **more: dict) -> Recipe:
    sections = {"data": {"path": beir}, "retriever": {"kind": "bm25"}, "reranker": {"max_length": 32}} | more
    for section, values in keys(text).items():
        sections[section] = sections.get(section, {}) | values
    return Recipe(name="own", **sections)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("retriever.kind=dense retriever.model={encoder} reranker.model={tiny}", "retriever.trust_remote_code"),
        ("mine.teacher={reranker} reranker.model={tiny}", "mine.teacher_trust_remote_code"),
        ("reranker.model={reranker}", "reranker.trust_remote_code"),
        ("reranker.model={encoder} reranker.head=classifier", "reranker.trust_remote_code"),
        ("reranker.model={tiny} distil.model={encoder}", "distil.trust_remote_code"),
    ],
)
def test_each_reference_has_its_own_key_and_check_names_it(own, tiny, beir, ran, text, key):
    text = text.format(tiny=tiny["bert"], **own)
    others = {"retriever.trust_remote_code", "mine.teacher_trust_remote_code", "reranker.trust_remote_code"} - {key}
    with pytest.raises(ModelError, match=f"read it, then set {key}: true") as error:
        check(recipe_of(beir, " ".join([text, *(f"{other}=true" for other in others)])))
    assert len(error.value.faults) == 1
    check(recipe_of(beir, f"{text} {key}=true"))
    assert not ran.exists()  # the code is looked for, not run


def test_under_the_interaction_head_check_names_the_other_one(own, beir):
    with pytest.raises(ModelError, match="cannot have the interaction head; use reranker.head: classifier") as error:
        check(recipe_of(beir, f"reranker.model={own['encoder']} reranker.trust_remote_code=true"))
    assert len(error.value.faults) == 1


@pytest.mark.slow
def test_a_run_of_own_models_hands_the_keys_on_to_every_load(own, beir, tmp_path, ran):
    text = (
        f"retriever.model={own['encoder']} retriever.trust_remote_code=true mine.teacher={own['reranker']} "
        f"mine.teacher_trust_remote_code=true reranker.model={own['encoder']} reranker.head=classifier "
        "reranker.trust_remote_code=true"
    )
    recipe = recipe_of(
        beir,
        text,
        retriever={"kind": "dense", "depth": 6},
        mine={"rounds": 2, "negatives_per_positive": 1},
        train={"queries_per_step": 8},
        export={"formats": []},
    )
    run(recipe, tmp_path / "runs", until="evaluate")
    best = tmp_path / "runs" / "own" / "train-2" / "best"
    assert ran.exists()
    assert (best / "modeling_own.py").is_file()  # what was trained can be loaded from its own folder
    Reranker.load(best, trust_remote_code=True)
    with pytest.raises(ModelError, match="has Python code of its own"):
        Reranker.load(best)


def test_the_base_and_the_teacher_are_trusted_apart(own, beir, tmp_path, ran):
    from accelerate import Accelerator

    from trainer.data import build_collection
    from trainer.recipe import Data

    collection = build_collection(Data(path=beir), tmp_path / "data")

    def ask(trust: bool) -> np.ndarray:
        teacher = Teacher(
            str(own["reranker"]),
            collection,
            tmp_path / "kept",
            Accelerator(cpu=True),
            max_length=32,
            trust_remote_code=trust,
        )
        return teacher([(0, 1)])

    with pytest.raises(ModelError, match="has Python code of its own"):
        ask(trust=False)
    assert not ran.exists()
    assert ask(trust=True).shape == (1,)


def test_a_student_of_own_code_is_loaded_by_its_key(own, tiny, beir, tmp_path, ran):
    text = f"reranker.model={tiny['bert']} distil.model={own['encoder']}"
    with pytest.raises(ModelError, match="has Python code of its own"):
        load_student(recipe_of(beir, f"{text} reranker.trust_remote_code=true"), tmp_path)
    assert not ran.exists()
    student = load_student(recipe_of(beir, f"{text} distil.trust_remote_code=true"), tmp_path)
    assert type(student.model).__name__ == "OwnForSequenceClassification"


def test_a_bi_encoder_of_own_code(own, ran):
    with pytest.raises(ModelError, match="has Python code of its own"):
        BiEncoder(own["encoder"]).load("cpu")
    assert not ran.exists()
    model = BiEncoder(own["encoder"], trust_remote_code=True).load("cpu")
    assert type(model[0].model).__name__ == "OwnModel"


def test_own_weights_have_to_fit_too(own):
    from safetensors.numpy import load_file, save_file

    path = own["reranker"] / "model.safetensors"
    held = load_file(path)
    held.pop("classifier.bias")
    save_file(held, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not in its files, such as classifier.bias"):
        Reranker.load(own["reranker"], trust_remote_code=True)


def test_code_that_fails_is_one_sentence(own):
    (own["reranker"] / "modeling_own.py").write_text("raise SystemError('no such GPU')\n")
    with pytest.raises(ModelError, match="cannot be loaded .SystemError: no such GPU") as error:
        Reranker.load(own["reranker"], trust_remote_code=True)
    assert "\n" not in str(error.value)
