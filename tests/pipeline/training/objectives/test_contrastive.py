"""Pairs: what is encoded, what the loss is of, and a model folder that sentence-transformers reads as we do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import JobError, ModelError
from pipeline.metrics.base import measure
from pipeline.metrics.retrieval import Retrieval
from pipeline.models.loading import load
from pipeline.models.pretrained import prepared_tokenizer
from pipeline.models.reference import ModelSettings, pin
from pipeline.tasks.base import Texts
from pipeline.tasks.embed import Embed
from pipeline.training.job import DataSettings, TrainingSettings
from pipeline.training.objectives.contrastive import Contrastive

WINDOW = 24
TEXTS = ["red cars drive fast", "small cats sleep", "old books", "a long walk by the sea and the hills", "tea"]
LABELS = ["vehicles on roads", "animals at rest", "things to read", "moving slowly outside", "hot drinks"]


def objective_of(folder: Path, window: int = WINDOW, **options: Any) -> Contrastive:
    data = DataSettings(path="rows", text="text", label="label")
    made = Contrastive(Contrastive.Config(name="contrastive", **options), data)
    pinned = pin(ModelSettings(ref=str(folder)))
    made.start(prepared_tokenizer(pinned, 1), pinned, window)
    return made


def batch_of(objective: Contrastive, texts: list[str], labels: list[str]) -> dict[str, torch.Tensor]:
    examples = objective.encode({"text": texts, "label": labels}).examples
    return objective.batch(examples, {}, np.random.default_rng(0))


def embedded(folder: Path, texts: list[str], window: int | None = None) -> np.ndarray[Any, Any]:
    """As an annotate job with this folder embeds them."""
    config = {"name": "x", "task": "embed", "text": "t", "model": {"ref": str(folder)}, "max_tokens": window}
    pinned = pin(ModelSettings(ref=str(folder)))
    task = Embed(Embed.Config.model_validate(config), pinned)
    task.start(load(pinned, "AutoModel", dtype="float32", device="cpu", threads=1, token_budget=256))
    return np.array(task.annotate(Texts(texts)).columns["embedding"].to_pylist(), np.float32)


FAMILIES = ["bert", "roberta", "distilbert", "mpnet", "modernbert", "electra", "xlm-roberta", "deberta-v3"]


def test_an_example_is_as_long_as_its_two_texts_and_they_come_apart_again(tiny: Callable[..., Path]) -> None:
    objective = objective_of(tiny("bert"))
    found = objective.encode({"text": TEXTS, "label": LABELS})
    apart = [objective.pieces({"text": each}).ids_P for each in (TEXTS, LABELS)]
    assert found.examples["input_ids"].to_pylist() == [
        [*text.tolist(), *label.tolist()] for text, label in zip(*apart, strict=True)
    ]
    assert found.tokens == sum(len(ids) for side in apart for ids in side)
    batch = objective.batch(found.examples, {}, np.random.default_rng(0))
    for side, ids_B in zip(("text", "label"), apart, strict=True):
        kept = [
            ids[mask.bool()].tolist()
            for ids, mask in zip(batch[f"{side}.input_ids"], batch[f"{side}.attention_mask"], strict=True)
        ]
        assert kept == [ids.tolist() for ids in ids_B]


def test_a_text_without_tokens_leaves_its_pair_out_and_a_cut_one_is_told(tiny: Callable[..., Path]) -> None:
    objective = objective_of(tiny("bert"), window=6)
    found = objective.encode(
        {"text": ["tea", "\u200b", "red cars drive fast on roads", "tea"], "label": ["a", "b"] * 2}
    )
    assert set(found.failures) == {1}
    assert len(found.examples) == 3
    assert found.truncated_rows == 1


@given(
    pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8),
    temperature=st.sampled_from([0.05, 0.2, 1.0]),
)
@settings(deadline=None, max_examples=60)
def test_the_loss_is_that_of_choosing_among_what_is_no_copy_of_ones_own(
    pairs: list[tuple[int, int]], temperature: float
) -> None:
    objective = Contrastive(
        Contrastive.Config(name="contrastive", temperature=temperature), DataSettings(path="r", text="t", label="l")
    )
    texts_BD, labels_BD = (
        torch.nn.functional.normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)), dim=1)[
            [pair[side] for pair in pairs]
        ]
        for side, seed in enumerate((1, 2))
    )
    own_BB = torch.tensor([[a[0] == b[0] or a[1] == b[1] for b in pairs] for a in pairs])
    wanted = 0.0
    for at, pair in enumerate(pairs):
        for ours, theirs in ((texts_BD, labels_BD), (labels_BD, texts_BD)):
            negatives = [i for i, other in enumerate(pairs) if other[0] != pair[0] and other[1] != pair[1]]
            scores = [float(ours[at] @ theirs[i]) / temperature for i in (at, *negatives)]
            wanted += (np.log(np.exp(scores).sum()) - scores[0]) / 2
    assert float(objective._loss(texts_BD, labels_BD, own_BB)) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_without_copies_the_loss_is_that_of_sentence_transformers(tiny: Callable[..., Path]) -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    objective = objective_of(tiny("bert"), temperature=0.05)
    model = objective.build({}, TrainingSettings()).eval()
    batch = batch_of(objective, TEXTS, LABELS)
    ways: Any = ("query_to_doc", "doc_to_query")
    theirs = MultipleNegativesRankingLoss(None, scale=20.0, directions=ways, partition_mode="per_direction")  # type: ignore[arg-type]
    with torch.no_grad():
        ours = objective.loss(model, batch, {})
        found = theirs.compute_loss_from_embeddings(list(objective._embedded(model, batch)), torch.zeros(0))
    assert float(ours) / len(TEXTS) == pytest.approx(float(found), rel=1e-5)


def test_equal_texts_or_equal_labels_are_no_negatives(tiny: Callable[..., Path]) -> None:
    objective = objective_of(tiny("bert"))
    batch = batch_of(objective, ["tea", "tea", "cats", "dogs"], ["a", "b", "b", "c"])
    assert batch["own_BB"].tolist() == [
        [True, True, False, False],
        [True, True, True, False],
        [False, True, True, False],
        [False, False, False, True],
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_some_steps_bring_pairs_together_and_every_parameter_gets_its_gradient(
    tiny: Callable[..., Path], family: str
) -> None:
    objective = objective_of(tiny(family))
    model = objective.build({}, TrainingSettings(dropout=0.0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    batch = batch_of(objective, TEXTS, LABELS)
    losses = []
    for _ in range(12):
        loss = objective.loss(model, batch, {}) / len(TEXTS)
        loss.backward()
        assert [name for name, each in model.named_parameters() if each.requires_grad and each.grad is None] == []
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_folder_embeds_as_it_was_trained_here_and_in_sentence_transformers(
    tiny: Callable[..., Path], tmp_path: Path, family: str, pooling: str
) -> None:
    from sentence_transformers import SentenceTransformer

    objective = objective_of(tiny(family), pooling=pooling)
    model = objective.build({}, TrainingSettings()).eval()
    batch = batch_of(objective, TEXTS, LABELS)
    with torch.no_grad():
        loss, judged = objective.judge(model, batch, {})
        texts_BD, labels_BD = objective._embedded(model, batch)
    assert float(loss) == pytest.approx(float(objective._loss(texts_BD, labels_BD, batch["own_BB"])))
    objective.save(model, str(tmp_path))
    for texts, wanted in ((TEXTS, texts_BD), (LABELS, labels_BD)):
        assert embedded(tmp_path, texts) == pytest.approx(wanted.numpy(), abs=2e-5)
        theirs = SentenceTransformer(str(tmp_path), device="cpu")
        assert theirs.max_seq_length == WINDOW
        assert theirs.encode(texts) == pytest.approx(wanted.numpy(), abs=2e-5)
    scores = objective.score(judged, {})
    table = pa.table({"q": texts_BD.tolist(), "d": labels_BD.tolist()})
    assert scores == {
        name: pytest.approx(figure.value, abs=1e-3)
        for name, figure in measure(Retrieval("q", "d"), table, resamples=0).figures.items()
        if name in Contrastive.figures
    }


def test_workers_share_the_gradients_of_both_texts(tiny: Callable[..., Path]) -> None:
    objective = objective_of(tiny("bert"))
    model = objective.build({}, TrainingSettings()).eval()
    batch = batch_of(objective, TEXTS, LABELS)
    objective.loss(model, batch, {}).backward()
    alone = [each.grad.clone() for each in model.parameters() if each.grad is not None]
    model.zero_grad()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        objective.loss(torch.nn.parallel.DistributedDataParallel(model), batch, {}).backward()
    finally:
        dist.destroy_process_group()
    shared = [each.grad for each in model.parameters() if each.grad is not None]
    assert len(alone) > 10
    torch.testing.assert_close(shared, alone)


def test_a_model_in_bfloat16_gives_its_loss_in_float32(tiny: Callable[..., Path]) -> None:
    objective = objective_of(tiny("bert"))
    model = objective.build({}, TrainingSettings()).to(torch.bfloat16)
    assert objective.loss(model, batch_of(objective, TEXTS, LABELS), {}).dtype == torch.float32


def test_the_prediction_is_two_embeddings_and_whether_one_finds_the_other(tiny: Callable[..., Path]) -> None:
    found = objective_of(tiny("bert")).prediction("said")
    assert [dict(each) for each in found.annotations] == [
        {"name": "said_text", "task": "embed", "text": "text"},
        {"name": "said_label", "task": "embed", "text": "label"},
    ]
    assert (found.kind, dict(found.columns)) == (
        "retrieval",
        {"query": "said_text_embedding", "document": "said_label_embedding"},
    )


def test_what_cannot_be_trained_is_told(tiny: Callable[..., Path], tmp_path: Path) -> None:
    config = Contrastive.Config(name="contrastive")
    with pytest.raises(
        JobError, match=r"data\.label is missing: contrastive needs the column of the texts that belong"
    ):
        Contrastive(config, DataSettings(path="rows", text="text"))
    with pytest.raises(JobError, match=r"data\.text_pair: the pairs of contrastive are `text` and `label`"):
        Contrastive(config, DataSettings(path="rows", text="text", label="label", text_pair="other"))
    data = DataSettings(path="rows", text="text", label="label")
    with pytest.raises(ModelError, match="is an encoder with a decoder; contrastive trains encoders"):
        Contrastive(config, data).check_model(pin(ModelSettings(ref=str(tiny("t5", "Seq2SeqLM")))))
    for path in tiny("bert").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "modules.json").write_text(
        '[{"path": "", "type": "a.Transformer"}, {"path": "2_Dense", "type": "a.Dense"}]'
    )
    with pytest.raises(ModelError, match="has modules that are not trained here: Dense; supported: Dropout, Normalize"):
        Contrastive(config, data).check_model(pin(ModelSettings(ref=str(tmp_path))))
