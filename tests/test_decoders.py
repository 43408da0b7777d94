"""Decoders as rerankers: the one-row head, the prompt, padding, export, and what other libraries score."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DETAILS, TOPICS
from decoders import CHAT, FAMILIES, PLAIN, build_decoder
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from trainer.errors import ModelError, RecipeError
from trainer.export.readers import GRAPH, score_onnx
from trainer.inference.graph import write_graph
from trainer.model import Reranker
from trainer.model_files.decoders import Prompting, token_ids
from trainer.model_files.prompt import read_prompt, with_instruction
from trainer.recipe import load_recipe

TEXTS = [*TOPICS.values(), *DETAILS]
PAIRS = [
    ("why does the probe fail?", "liveness probe restarts the container. Really?"),
    ("disk", "inodes run out\n\nalthough the disk shows free space"),
    ("", ""),
    ("  what?\n", '"quoted" <|im_end|> text: 日本 🙂 '),
    ("a (b)", ": starts with a colon"),
    ("lag", "consumer lag grows while one partition holds all messages " * 3),
    ("lock?", "update waits"),
]
TOKENS = {"qwen3": ("no", "yes"), "qwen2": ("0", "1"), "gemma": ("Yes",), "llama": ("no", "yes"), "mistral": ("0", "1")}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """`decoder(family)` is a folder of a tiny causal model, built once, and the settings that it needs."""
    built: dict[str, tuple[Path, Prompting]] = {}

    def decoder(family: str) -> tuple[Path, Prompting]:
        if family not in built:
            folder = tmp_path_factory.mktemp(family)
            given = family in ("llama", "mistral")
            build_decoder(family, folder, TEXTS, PLAIN if given else CHAT if family == "qwen3" else None)
            built[family] = folder, Prompting(tokens=TOKENS[family] if given else ())
        return built[family]

    return decoder


def causal_scores(folder: Path, reranker: Reranker, pairs: list, tokens: tuple[str, ...]) -> list[float]:
    """The scores by definition: each prompt tokenised as one string, and the logits after its last token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.get_vocab()[token] for token in tokens]
    scores = []
    for query, document in pairs:
        messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
        prompt = tokenizer.apply_chat_template(messages, chat_template=reranker.tokenizer.chat_template, tokenize=False)
        inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        scores.append(float(logits[ids[-1]] - (logits[ids[0]] if len(ids) > 1 else 0.0)))
    return scores


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_is_that_of_the_language_model_after_the_whole_prompt(decoder, family):
    folder, prompting = decoder(family)
    reranker = Reranker.load(folder, prompting=prompting)
    expected = causal_scores(folder, reranker, PAIRS, TOKENS[family])
    np.testing.assert_allclose(reranker.score(PAIRS), expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 0.1
    assert reranker.model.score.weight.dtype == torch.float32
    assert reranker.model.config.num_labels == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_either_side_and_batches_of_any_size_give_equal_scores(decoder, family):
    folder, prompting = decoder(family)
    reranker = Reranker.load(folder, prompting=prompting)
    alone = np.concatenate([reranker.score([pair]) for pair in PAIRS])
    np.testing.assert_allclose(reranker.score(PAIRS), alone, rtol=0, atol=1e-5)
    batch = reranker.pairs.pad(reranker.pairs.tokenize_pairs(PAIRS))
    for name, fill in (("input_ids", reranker.tokenizer.pad_token_id), ("attention_mask", 0)):
        rows = [row[kept] for row, kept in zip(batch[name], batch["attention_mask"].bool(), strict=True)]
        width = batch[name].shape[1] + 3
        batch[name + " left"] = torch.stack([torch.cat([torch.full((width - len(row),), fill), row]) for row in rows])
    left = {name.removesuffix(" left"): ids for name, ids in batch.items() if name.endswith("left")}
    with torch.no_grad():
        scores = reranker.model(**left).logits.squeeze(1).numpy()
    np.testing.assert_allclose(scores, alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3", "gemma"])
def test_a_long_document_is_cut_and_the_prompt_is_not(decoder, family):
    folder, prompting = decoder(family)
    reranker = Reranker.load(folder, prompting=prompting, max_length=400)
    document = " ".join(["consumer lag grows"] * 10000)
    whole = reranker.pairs.pad(reranker.pairs.tokenize_pairs([("why?", "lag")]))["input_ids"][0].tolist()
    cut = reranker.pairs.pad(reranker.pairs.tokenize_pairs([("why?", document)]))["input_ids"][0].tolist()
    suffix = reranker.pairs.after.ids
    assert len(cut) == 400
    assert cut[-len(suffix) :] == whole[-len(suffix) :] == suffix
    begin = len(whole) - len(suffix) - 6
    assert cut[:begin] == whole[:begin]
    long_query = reranker.pairs.pad(reranker.pairs.tokenize_pairs([(document, document)]))["input_ids"][0].tolist()
    assert len(long_query) == 400
    assert long_query[-len(suffix) :] == suffix
    assert long_query[: len(reranker.pairs.before.ids)] == reranker.pairs.before.ids


def test_a_saved_reranker_keeps_prompt_instruction_and_scores(decoder, tmp_path):
    folder, _ = decoder("qwen3")
    reranker = Reranker.load(folder, prompting=Prompting(instruction='Find "code"\nthat does {{ this }}'))
    plain = Reranker.load(folder)
    scores = reranker.score(PAIRS)
    assert np.abs(scores - plain.score(PAIRS)).max() > 1e-3
    reranker.save(tmp_path / "saved")
    assert 'Find \\"code\\"' in (tmp_path / "saved" / "chat_template.jinja").read_text()
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    np.testing.assert_array_equal(Reranker.load(tmp_path / "saved", head="trained").score(PAIRS), scores)


def test_the_tokens_of_a_logit_score_module_come_first(decoder, tmp_path):
    folder = build_decoder("qwen3", tmp_path, TEXTS)
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    (folder / "1_LogitScore").mkdir()
    settings = {"true_token_id": vocabulary["1"], "false_token_id": vocabulary["0"]}
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(settings))
    module = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ]
    modules.append({"idx": 1, "name": "1", "path": "1_LogitScore", "type": module})
    (folder / "modules.json").write_text(json.dumps(modules))
    reranker = Reranker.load(folder, head="trained")
    expected = causal_scores(folder, reranker, PAIRS, ("0", "1"))
    np.testing.assert_allclose(reranker.score(PAIRS), expected, rtol=0, atol=1e-4)


def test_the_default_prompt_of_sentence_transformers_is_the_instruction(decoder, tmp_path):
    """Saved by sentence-transformers itself, with its LogitScore module, whose scores are compared."""
    plain, _ = decoder("qwen3")
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.chat_template, tokenizer.pad_token = Reranker.load(plain).tokenizer.chat_template, "<|endoftext|>"
    causal = shutil.copytree(plain, tmp_path / "causal", ignore=shutil.ignore_patterns("chat_template.jinja"))
    tokenizer.save_pretrained(causal)
    ids = tokenizer.get_vocab()
    modules = [Transformer(str(causal), transformer_task="text-generation"), LogitScore(ids["yes"], ids["no"])]
    options = {"prompts": {"code": "Find code"}, "default_prompt_name": "code", "activation_fn": torch.nn.Identity()}
    model = CrossEncoder(modules=modules, device="cpu", **options)
    model.save_pretrained(str(tmp_path / "saved"))
    scores = Reranker.load(tmp_path / "saved", head="trained").score(PAIRS)
    expected = model.predict(PAIRS, batch_size=1, show_progress_bar=False)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    assert np.abs(scores - Reranker.load(causal).score(PAIRS)).max() > 1e-3
    other = Reranker.load(tmp_path / "saved", prompting=Prompting(instruction="Find text"))
    assert np.abs(scores - other.score(PAIRS)).max() > 1e-3


@pytest.mark.parametrize(
    ("family", "template", "prompting", "words"),
    [
        ("llama", None, Prompting(tokens=("no", "yes")), "without a chat template; name a Jinja file"),
        ("llama", CHAT, Prompting(tokens=("no", "yes")), "renders the query 0 times"),
        ("llama", PLAIN.partition("\nD:")[0], Prompting(tokens=("no", "yes")), "renders the document 0 times"),
        ("llama", PLAIN, Prompting(), "no tokens are known that make a score"),
        ("llama", PLAIN, Prompting(tokens=("never", "yes")), "has no token 'never'"),
        ("qwen3", None, Prompting(template=Path("/nowhere.jinja")), "/nowhere.jinja cannot be read"),
        ("qwen3", "{{ raise_exception('only user') }}", Prompting(template=None), None),
    ],
)
def test_one_sentence_for_each_fault_of_a_prompt(tmp_path, family, template, prompting, words):
    folder = build_decoder(family, tmp_path, TEXTS, template)
    if words is None:
        Reranker.load(folder, prompting=prompting)
        return
    with pytest.raises(ModelError, match=words) as caught:
        Reranker.load(folder, prompting=prompting)
    assert len(caught.value.faults) == 1
    assert str(caught.value).startswith(f"model {folder}: " if prompting.template is None else "reranker.template: ")


@pytest.mark.parametrize("family", ["qwen3", "llama"])  # with tied embeddings, and with a head of its own
def test_a_decoder_in_shards_of_half_precision_is_read_whole_and_in_float32(decoder, tmp_path, family):
    folder, prompting = decoder(family)
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path, max_shard_size="30KB")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    reranker = Reranker.load(tmp_path, prompting=prompting)
    assert {weight.dtype for weight in reranker.model.parameters()} == {torch.float32}
    expected = causal_scores(tmp_path, reranker, PAIRS, TOKENS[family])
    np.testing.assert_allclose(reranker.score(PAIRS), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("labels", "column"),
    [(["LABEL_0", "LABEL_1"], 1), (["relevant", "irrelevant"], 0), (["contradiction", "entailment", "neutral"], 1)],
)
def test_a_decoder_with_several_labels_is_read_by_its_relevant_column(decoder, tmp_path, labels, column):
    folder, _ = decoder("mistral")
    names = {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "pad_token_id": 0}
    model = AutoModelForSequenceClassification.from_pretrained(folder, **names).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    for saved in (model, tokenizer):
        saved.save_pretrained(tmp_path / "several")
    reranker = Reranker.load(tmp_path / "several", head="trained")
    logits = []
    for query, document in PAIRS:
        messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False)
        with torch.no_grad():
            logits.append(model(**tokenizer(prompt, add_special_tokens=False, return_tensors="pt")).logits[0].numpy())
    others = np.delete(logits, column, axis=1).mean(axis=1)
    np.testing.assert_allclose(reranker.score(PAIRS), np.array(logits)[:, column] - others, rtol=0, atol=1e-4)
    reranker.save(tmp_path / "one")
    np.testing.assert_array_equal(Reranker.load(tmp_path / "one", head="trained").score(PAIRS), reranker.score(PAIRS))


def test_padding_differs_from_the_token_that_ends_the_prompt(tmp_path):
    folder = build_decoder("llama", tmp_path, TEXTS, PLAIN + "{{ eos_token }}")
    reranker = Reranker.load(folder, prompting=Prompting(tokens=("no", "yes")))
    assert reranker.tokenizer.pad_token == "<unk>"
    expected = causal_scores(folder, reranker, PAIRS, ("no", "yes"))
    np.testing.assert_allclose(reranker.score(PAIRS), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["bloom", "opt", "gpt_neox", "olmo2"])
def test_other_families_are_read_by_the_names_of_their_weights(tmp_path, family):
    folder = build_decoder(family, tmp_path, TEXTS, PLAIN)
    reranker = Reranker.load(folder, prompting=Prompting(tokens=("no", "yes")))
    expected = causal_scores(folder, reranker, PAIRS, ("no", "yes"))
    np.testing.assert_allclose(reranker.score(PAIRS), expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 0.1


def test_a_family_without_a_classifier_is_refused_in_one_sentence(tmp_path):
    folder = build_decoder("granite", tmp_path, TEXTS, PLAIN)
    with pytest.raises(ModelError, match="is a granite model, for which transformers has no ForSequenceC") as caught:
        Reranker.load(folder, prompting=Prompting(tokens=("no", "yes")))
    assert len(caught.value.faults) == 1


BIDIRECTIONAL = """
from torch import nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class BidirectionalConfig(LlamaConfig):
    model_type = "llama_bidirec"
    is_causal = False


class BidirectionalForSequenceClassification(LlamaPreTrainedModel):
    config_class = BidirectionalConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **kwargs):
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        mask = attention_mask[..., None].to(states.dtype)
        return SequenceClassifierOutput(logits=self.score((states * mask).sum(1) / mask.sum(1)))
"""
NEMOTRON = (
    'question:{{ (messages | selectattr("role", "eq", "query") | first).content }} \n \n '
    'passage:{{ (messages | selectattr("role", "eq", "document") | first).content }}'
)


def test_a_bidirectional_decoder_with_a_head_and_code_of_its_own_is_read_as_it_is(tmp_path):
    folder = build_decoder("llama", tmp_path, TEXTS, NEMOTRON)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=0)
    model.save_pretrained(folder)
    (folder / "modeling_own.py").write_text(BIDIRECTIONAL)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "BidirectionalConfig"}
    names["AutoModelForSequenceClassification"] = "BidirectionalForSequenceClassification"
    config |= {"model_type": "llama_bidirec", "architectures": ["BidirectionalForSequenceClassification"]}
    config["auto_map"] = {name: f"modeling_own.{own}" for name, own in names.items()}
    (folder / "config.json").write_text(json.dumps(config))
    reranker = Reranker.load(folder, head="trained", trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    expected = []
    for query, document in PAIRS:
        inputs = tokenizer(f"question:{query} \n \n passage:{document}", add_special_tokens=False, return_tensors="pt")
        with torch.no_grad():
            expected.append(reranker.model(**inputs).logits.item())
    np.testing.assert_allclose(reranker.score(PAIRS), expected, rtol=0, atol=1e-5)
    assert type(reranker.model).__name__ == "BidirectionalForSequenceClassification"
    assert np.ptp(expected) > 1e-3


def test_templates_with_the_document_first_or_stripped_texts_are_read():
    template = "D {{ messages[1].content | trim }} Q {{ messages[0].content }}!"
    prompt = read_prompt(template, {})
    assert prompt == ("D ", " Q ", "!", False, (False, True))
    with pytest.raises(ModelError, match="changes or shortens"):
        read_prompt("{{ messages[0].content | upper }} {{ messages[1].content }}", {})
    with pytest.raises(ModelError, match="renders the query 2 times"):
        read_prompt("{{ messages[0].content }} {{ messages[0].content }} {{ messages[1].content }}", {})
    with pytest.raises(ModelError, match="renders no instruction"):
        with_instruction("{{ messages[-2].content }} {{ messages[-1].content }}", "Find code", {})


QUERY, DOCUMENT = "{{ messages[0].content }}", "{{ messages[1].content }}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if %}" + QUERY + DOCUMENT, "cannot be rendered with a query and a document .Expected an expression"),
        (QUERY + DOCUMENT + "{% endfor %}", "cannot be rendered"),
        (f"{QUERY} {DOCUMENT} {DOCUMENT}", "renders the document 2 times"),
        ("{{ messages[0].content[:10] }} " + DOCUMENT, "changes or shortens"),
        (QUERY + " {{ messages[1].content | truncate(2000) }}", "changes or shortens"),
        (QUERY + " {{ messages[1].content | e }}", "changes or shortens"),
        (QUERY + " {{ messages[1].content | replace('\n', ' ') }}", "changes or shortens"),
        (QUERY + " {{ messages[1].content or 'nothing' }}", "changes or shortens"),
        (QUERY + " {{ messages[1].content }}{% if messages[1].content | length > 99 %}long{% endif %}", "changes or"),
        ("Q: " + QUERY + DOCUMENT + " A:", "renders no text between query and document"),
        (QUERY + DOCUMENT + "{{ 1 / 0 }}", "cannot be rendered .* .division by zero"),
        (QUERY + DOCUMENT + "{% for _ in range(10 ** 9) %}{% endfor %}", "cannot be rendered .* .Range too big"),
        (QUERY + DOCUMENT + "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "cannot be rendered .*recursion"),
        (QUERY + DOCUMENT + "{{ ''.__class__.__mro__ }}", "cannot be rendered .*unsafe"),
        ("{% include 'other' %}" + QUERY + DOCUMENT, "cannot be rendered"),
        ("", "renders the query 0 times"),
    ],
)
def test_a_template_with_a_fault_is_refused_with_its_name(template, words):
    with pytest.raises(ModelError, match=words):
        read_prompt(template, {})


def test_a_template_may_use_macros_and_loops():
    loop = "{% for m in messages if m.role in ('query', 'document') %}{{ show(m) }}{% endfor %}"
    prompt = read_prompt("{% macro show(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}" + loop + "!", {})
    assert prompt[:3] == ("<query>", "<document>", "!")


def test_a_prompt_longer_than_the_model_reads_is_refused(decoder, tmp_path):
    long = PLAIN + " Think about it." * 4000
    (tmp_path / "long.jinja").write_text(long)
    folder, prompting = decoder("llama")
    with pytest.raises(ModelError, match=r"but the prompt alone has \d{4,}; raise it") as caught:
        Reranker.load(folder, max_length=1024, prompting=Prompting(tmp_path / "long.jinja", tokens=prompting.tokens))
    assert len(caught.value.faults) == 1


def test_a_word_that_the_vocabulary_has_with_a_space_is_named_so():
    with pytest.raises(ModelError, match="no token 'yes', but '▁yes', with a space before it,"):
        token_ids(Path("/model"), "llama", Prompting(tokens=("no", "yes")), {"no": 3, "▁yes": 4})


def test_a_score_of_equal_tokens_is_refused(recipe_file):
    with pytest.raises(RecipeError, match="'yes' twice, so that every score would be 0"):
        load_recipe(recipe_file, ["reranker.tokens=[yes, yes]"])


def test_packed_scoring_gives_the_scores_of_padded_batches(decoder):
    for family in ("llama", "gemma"):
        folder, prompting = decoder(family)
        reranker = Reranker.load(folder, prompting=prompting)
        scores = reranker.score(PAIRS)
        reranker.packed = True  # as on a GPU in half precision; here attention is computed pair by pair
        np.testing.assert_allclose(reranker.score(PAIRS), scores, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_gives_the_scores_of_the_model(decoder, tmp_path, family):
    folder, prompting = decoder(family)
    reranker = Reranker.load(folder, prompting=prompting, max_length=1024)
    reranker.save(tmp_path)
    pairs = PAIRS[:2] + PAIRS[4:]
    write_graph(reranker.model, reranker.pairs.pad(reranker.pairs.tokenize_pairs(pairs[-2:])), tmp_path / GRAPH)
    np.testing.assert_allclose(score_onnx(tmp_path, pairs), reranker.score(pairs), rtol=0, atol=1e-3)


def test_a_length_below_the_prompt_is_refused(decoder):
    with pytest.raises(ModelError, match="but the prompt alone has"):
        Reranker.load(decoder("qwen3")[0], max_length=32)
