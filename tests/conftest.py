"""Tiny models of the real architectures and a tiny collection: everything is built here, nothing is downloaded."""

import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # before torch: tiny models gain nothing by more, and the same bits need the same

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from trainer.runtime import console

TOPICS = {
    "probe": "liveness probe restarts the container when its endpoint fails",
    "memory": "kernel kills the process when memory of the node runs out",
    "disk": "inodes run out although the disk shows free space",
    "cert": "certificate expired because renewal ran without reload",
    "queue": "consumer lag grows while one partition holds all messages",
    "lock": "update waits behind another transaction that holds the row",
    "route": "packets are dropped since the path drops large segments",
    "deploy": "rollback keeps the old image because the tag was reused",
}
DETAILS = [
    "check the log first",
    "raise the limit slowly",
    "restart only one replica",
    "ask the owner before",
    "look at the graph",
]


@pytest.fixture(scope="session")
def words() -> list[str]:
    """The vocabulary of the tiny collection."""
    return vocabulary()


def vocabulary() -> list[str]:
    texts = [*TOPICS, *TOPICS.values(), *DETAILS, "why does happen how do i fix at night a b c d e f g h"]
    return sorted({word for text in texts for word in text.split()})


def _tokenizer(words: list[str], cls: str, sep: str, pair: str, segments: bool) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", cls, sep]
    backend = Tokenizer(models.WordLevel({word: row for row, word in enumerate([*special, *words])}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = [(token, backend.token_to_id(token)) for token in (cls, sep)]
    backend.post_processor = TemplateProcessing(single=f"{cls} $A {sep}", pair=pair, special_tokens=ids)
    names = ["input_ids", "token_type_ids", "attention_mask"] if segments else ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token=cls,
        sep_token=sep,
        model_max_length=64,
        model_input_names=names,
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> dict[str, Path]:
    """Folders of tiny random models: bert, roberta, modernbert (encoders) and reranker (a one-label BERT)."""
    return build_models(tmp_path_factory.mktemp("tiny"), words)


@pytest.fixture(scope="session")
def models_of() -> Callable[[Path, list[str]], dict[str, Path]]:
    """`models_of(folder, words)` builds the same tiny models over another vocabulary."""
    return build_models


def build_models(root: Path, words: list[str]) -> dict[str, Path]:
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    bert = _tokenizer(words, "[CLS]", "[SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", segments=True)
    roberta = _tokenizer(words, "<s>", "</s>", "<s> $A </s> </s> $B </s>", segments=False)
    modern = _tokenizer(words, "[CLS]", "[SEP]", "[CLS] $A [SEP] $B [SEP]", segments=False)
    common = {"vocab_size": len(bert), "max_position_embeddings": 66, "pad_token_id": 0}
    torch.manual_seed(3)
    made = {
        "bert": (BertModel(BertConfig(**size, **still, **common)), bert),
        "roberta": (RobertaModel(RobertaConfig(**size, **still, **common)), roberta),
        "modernbert": (ModernBertModel(ModernBertConfig(**size, **common, local_attention=8)), modern),
        "reranker": (BertForSequenceClassification(BertConfig(**size, **still, **common, num_labels=1)), bert),
    }
    for name, (model, tokenizer) in made.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in made}


def pytest_configure(config: pytest.Config) -> None:
    """Tests compare with what a CPU computes; GPUs are only for those that ask for one (`-m gpu`)."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def no_native_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `precision: auto` choose fp32 on every CPU, so that results do not depend on the machine."""
    monkeypatch.setattr("trainer.runtime.precision.has_native_bf16", lambda: False)


@pytest.fixture(autouse=True)
def console_that_speaks() -> Iterator[None]:
    """Undo what a bench or a process of several does: a quiet console would leave later tests nothing to read."""
    yield
    console.console.quiet = False


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts find each other in their own folder, as they do when one of them is run."""
    folder = Path(__file__).parents[1] / "scripts"
    monkeypatch.syspath_prepend(str(folder))
    yield
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """A BEIR folder: 40 documents on 8 topics, 24 train, 8 dev and 8 test queries, grades 0 to 2."""
    return build_collection_folder(tmp_path / "tiny-set")


@pytest.fixture(scope="session")
def shared_beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for tests that do not change it."""
    return build_collection_folder(tmp_path_factory.mktemp("shared") / "tiny-set")


def build_collection_folder(folder: Path) -> Path:
    (folder / "qrels").mkdir(parents=True)
    documents, queries, qrels = [], [], {"train": [], "dev": [], "test": []}
    for topic, (name, text) in enumerate(TOPICS.items()):
        for number, detail in enumerate(DETAILS):
            documents.append({"_id": f"{name}-{number}", "title": name, "text": f"{text} {detail}"})
        for number, (start, split) in enumerate(
            [("why does", "train"), ("how do i fix", "train"), ("a", "train"), ("b", "dev"), ("c", "test")]
        ):
            query = f"q-{name}-{number}"
            queries.append(
                {"_id": query, "text": f"{start} {' '.join(text.split()[number : number + 3])} {DETAILS[number]}"}
            )
            qrels[split].append((query, f"{name}-{number}", 2))
            qrels[split].append((query, f"{name}-{(number + 1) % 5}", 1))
            qrels[split].append((query, f"{list(TOPICS)[topic - 1]}-{number}", 0))
    write_jsonl(folder / "corpus.jsonl", documents)
    write_jsonl(folder / "queries.jsonl", queries)
    for split, rows in qrels.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"{query}\t{document}\t{grade}" for query, document, grade in rows)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def recipe_file(tmp_path: Path, beir: Path, tiny: dict[str, Path]) -> Path:
    """A whole recipe over the tiny set and models; it runs in seconds."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""name: tiny
data:
  path: {beir}
retriever:
  kind: bm25
  depth: 12
mine:
  negatives_per_positive: 2
reranker:
  model: {tiny["bert"]}
  max_length: 32
train:
  epochs: 2
  queries_per_step: 4
  learning_rate: 1.0e-3
  checkpoint_steps: 3
  precision: fp32
evaluate:
  metrics: [nDCG@10, RR@10]
export:
  formats: []
"""
    )
    return path


@pytest.fixture
def listening() -> Iterator[Callable[..., str]]:
    """`listening(app)` serves an ASGI application on loopback in another thread and returns its address."""
    import uvicorn

    with ExitStack() as servers:

        def listening(app: Any) -> str:
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
            bound = servers.enter_context(socket.create_server(("127.0.0.1", 0)))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
            thread.start()
            servers.callback(thread.join)
            servers.callback(setattr, server, "should_exit", True)
            return f"http://127.0.0.1:{bound.getsockname()[1]}"

        yield listening


class Answer(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch, capsys) -> Callable[..., Answer]:
    """`call("train", word, ...)` or `call("reranker", word, ...)` runs the command in this process."""

    def call(name: str, *words: str | Path) -> Answer:
        from trainer.commands.cli import reranker_command, train_command

        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            {"train": train_command, "reranker": reranker_command}[name]()
        out, err = capsys.readouterr()
        return Answer(ended.value.code or 0, out, err)

    return call


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command(recipe, override, ..., processes=1, apart=False)` is `train`.

    One process is this one, which spares the seconds in which another imports torch; an exception that the command
    lets through ends the test. `apart=True` starts one of its own, for what has to do with the process itself.
    """
    return _command


def _command(*words: str | Path, processes: int = 1, apart: bool = False) -> subprocess.CompletedProcess[str]:
    line = list(map(str, words))
    if processes == 1 and not apart:
        return _train_here(line)
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    with _started([*start, "trainer", *line]) as run:
        (ended,) = run.finish()
    return ended


LIMIT = 600  # seconds; what is started takes 30 with a core for itself, and many times that beside other work
GRACE = 60  # seconds in which the others have to end once one has failed
SHOWN = 8000  # characters of each output, from its end


class Started:
    """Command lines that run at once; each writes to files of its own in `folder`."""

    def __init__(self, lines: Sequence[Sequence[str | Path]], environment: dict[str, str], folder: Path) -> None:
        # A fault handler prints the stacks of all threads on SIGABRT, also of one that waits inside of a library.
        whole = os.environ | {"ACCELERATE_USE_CPU": "1", "PYTHONFAULTHANDLER": "1"} | environment
        self.begun = time.monotonic()
        self.outputs = [(folder / f"{number}.out", folder / f"{number}.err") for number in range(len(lines))]
        self.processes: list[psutil.Popen] = []
        for line, (out, err) in zip(lines, self.outputs, strict=True):
            with out.open("wb") as standard_output, err.open("wb") as standard_error:
                files = {"stdout": standard_output, "stderr": standard_error}
                self.processes.append(psutil.Popen(list(map(str, line)), env=whole, **files))

    def finish(self, limit: float = LIMIT, grace: float = GRACE) -> list[subprocess.CompletedProcess[str]]:
        """Return how each of them ended; where one does not, end all and fail with what they were doing and wrote."""
        deadline, failed = self.begun + limit, False
        while None in (codes := [process.poll() for process in self.processes]):
            if any(codes) and not failed:
                deadline, failed = min(deadline, time.monotonic() + grace), True
            if time.monotonic() > deadline:
                pytest.fail(f"exit codes {codes} after {time.monotonic() - self.begun:.0f} s\n{self.stop()}")
            time.sleep(0.05)
        return [
            subprocess.CompletedProcess(process.args, code, *map(_text, outputs))
            for process, code, outputs in zip(self.processes, codes, self.outputs, strict=True)
        ]

    def wait_for(self, sign: Callable[[], object]) -> None:
        """Return once there is a sign of something that the first of them does; fail where it ends without."""
        while not sign():
            if self.processes[0].poll() is not None or time.monotonic() > self.begun + LIMIT:
                pytest.fail(f"what was waited for did not come\n{self.stop()}")
            time.sleep(0.001)

    def stop(self) -> str:
        """Kill what still runs with all that it started; return what each of them was doing and wrote."""
        tree: list[psutil.Process] = []
        for process in self.processes:
            if process.poll() is None:
                tree.append(process)
                with suppress(psutil.NoSuchProcess):
                    tree += process.children(recursive=True)
        told = [_described(process) for process in tree]
        for number, patience in ((signal.SIGABRT, 5), (signal.SIGKILL, 60)):
            for process in reversed(tree):  # what was started before what started it, which would report a loss
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            tree = psutil.wait_procs(tree, timeout=patience)[1]
        for number, outputs in enumerate(self.outputs):
            texts = zip(("standard output", "standard error"), map(_text, outputs), strict=True)
            told += [f"--- {name} of command {number}:\n{text[-SHOWN:]}" for name, text in texts]
        return "\n".join(told)


def _text(output: Path) -> str:
    return output.read_text(errors="replace")


def _described(process: psutil.Process) -> str:
    """Return a process and the seconds that it computed: next to none of many where others took the processor."""
    try:
        with process.oneshot():
            seconds = sum(process.cpu_times()[:2])
            words = " ".join(process.cmdline())
            return f"process {process.pid} ({process.status()}, computed {seconds:.1f} s): {words}"
    except psutil.Error as error:
        return f"process {process.pid}: {error}"


@contextmanager
def _started(*lines: Sequence[str | Path], **environment: str) -> Iterator[Started]:
    with tempfile.TemporaryDirectory() as folder:
        run = Started(lines, environment, Path(folder))
        try:
            yield run
        finally:
            run.stop()


@pytest.fixture(scope="session")
def started() -> Callable[..., AbstractContextManager[Started]]:
    """`with started(line, line, ..., NAME=value) as run` runs command lines at once; none outlives the block."""
    return _started


@pytest.fixture
def free_port() -> int:
    """Return a port of loopback that stays free until it is used: the system hands out none of these by itself."""
    for port in random.SystemRandom().sample(range(20000, 32000), 100):
        with socket.socket() as trial, suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")


def _train_here(words: list[str]) -> subprocess.CompletedProcess[str]:
    from accelerate.state import AcceleratorState

    from trainer.commands.cli import train_command

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["train", *words])
        AcceleratorState._reset_state(reset_partial_state=True)  # the precision is each recipe's own
        with pytest.raises(SystemExit) as ended:
            train_command()
        AcceleratorState._reset_state(reset_partial_state=True)
    return subprocess.CompletedProcess(words, int(ended.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny: dict[str, Path]) -> tuple[Path, Path]:
    """Recipe and runs folder of one finished run; its model is no better than BM25, so it was exported by force."""
    from trainer.pipeline import run
    from trainer.recipe import load_recipe

    root = tmp_path_factory.mktemp("exported")
    (root / "set" / "qrels").mkdir(parents=True)
    names = list(TOPICS)
    documents = [
        {"_id": f"{name}-{place}", "text": f"{TOPICS[name]} {DETAILS[place]}"} for name in names for place in (0, 1)
    ]
    write_jsonl(root / "set" / "corpus.jsonl", documents)
    starts = {"train": "why does", "dev": "how do i fix", "test": "at night"}
    queries = [(f"{split}-{name}", f"{start} {TOPICS[name]}") for split, start in starts.items() for name in names]
    write_jsonl(root / "set" / "queries.jsonl", [{"_id": query, "text": text} for query, text in queries])
    for split in starts:
        lines = ["query-id\tcorpus-id\tscore", *(f"{split}-{name}\t{name}-0\t1" for name in names)]
        (root / "set" / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    recipe = root / "exported.yaml"
    recipe.write_text(
        f"{{name: exported, data: {{path: {root / 'set'}}}, retriever: {{kind: bm25, depth: 6}}, "
        f"reranker: {{model: {tiny['bert']}, max_length: 32}}, train: {{queries_per_step: 4, precision: fp32}}}}\n"
    )
    run(load_recipe(recipe), root / "runs", force=True)
    return recipe, root / "runs"
