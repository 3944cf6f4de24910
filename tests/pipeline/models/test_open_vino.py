"""A tiny encoder in OpenVINO says what it says in torch, whatever the shapes, and is refused where it does not."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ModelError, RunError
from pipeline.models import open_vino
from pipeline.models.engine import forward_pieces, pad
from pipeline.models.loading import LoadedModel, load
from pipeline.models.pooling import pool
from pipeline.models.reference import ModelSettings, pin

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'corpusmill[openvino]'")

Make = Callable[..., Path]


def _loaded(folder: Path, needs: str, engine: str, dtype: str = "float32") -> LoadedModel:
    return load(pin(ModelSettings(ref=str(folder))), needs, dtype, "cpu", 1, 256, engine)


@pytest.mark.parametrize(
    ("kind", "head", "needs", "outputs"),
    [
        ("bert", "Model", "AutoModel", ["last_hidden_state"]),
        ("bert", "ForSequenceClassification", "AutoModelForSequenceClassification", ["logits"]),
        ("roberta", "ForTokenClassification", "AutoModelForTokenClassification", ["logits"]),
        ("bert", "ForQuestionAnswering", "AutoModelForQuestionAnswering", ["start_logits", "end_logits"]),
    ],
)
def test_it_says_what_torch_says_of_micro_batches_of_any_shape(
    make_encoder: Make, kind: str, head: str, needs: str, outputs: list[str]
) -> None:
    folder = make_encoder(kind, head)
    in_torch, in_openvino = (_loaded(folder, needs, engine) for engine in ("torch", "openvino"))
    assert (in_openvino.engine, in_openvino.pad_id) == ("openvino", in_torch.pad_id)
    draw = np.random.default_rng(7)
    for lengths in ([3], [9, 4, 1], [40] * 5, [64, 2]):
        ids_P = [draw.integers(4, 100, length).astype(np.int32) for length in lengths]
        padded = pad(ids_P, np.arange(len(lengths)), in_torch.pad_id, "cpu")
        with torch.inference_mode():
            wanted, found = in_torch.module(**padded.inputs), in_openvino.module(**padded.inputs)
        for name in outputs:
            of_tokens = wanted[name].shape[:2] == padded.input_ids_BL.shape
            real = padded.attention_mask_BL.bool() if of_tokens else slice(None)
            torch.testing.assert_close(getattr(found, name)[real], wanted[name][real], rtol=1e-3, atol=1e-3)


def test_token_types_count(make_encoder: Make) -> None:
    folder = make_encoder()
    in_torch, in_openvino = (_loaded(folder, "AutoModel", engine) for engine in ("torch", "openvino"))
    ids_P, types_P = [np.array([2, 9, 3, 8, 3], np.int32)], [np.array([0, 0, 0, 1, 1], np.int32)]
    padded = pad(ids_P, np.array([0]), 0, "cpu", types_P)
    with torch.inference_mode():
        wanted = in_torch.module(**padded.inputs).last_hidden_state
    found = in_openvino.module(**padded.inputs).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    untyped = pad(ids_P, np.array([0]), 0, "cpu")
    assert not torch.allclose(in_openvino.module(**untyped.inputs).last_hidden_state, found)


def test_a_text_whose_numbers_are_none_spoils_no_other(
    make_encoder: Make, copy_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["embeddings.word_embeddings.weight"][9] = torch.nan

    monkeypatch.setattr(open_vino, "_MOST_OFF", dict.fromkeys(open_vino._MOST_OFF, np.inf))
    loaded = _loaded(copy_of(make_encoder(), edit=spoil), "AutoModel", "openvino")
    ids_P = [np.array(ids, np.int32) for ids in ([2, 9, 8, 3], [2, 8, 3], [2, 8, 7, 7, 9, 3], [2, 3])]
    ran = forward_pieces(
        ids_P,
        lambda padded: pool(loaded.module(**padded.inputs).last_hidden_state, padded.attention_mask_BL, "mean"),
        width=loaded.module.config.hidden_size,
        token_budget=64,
        pad_id=0,
        device="cpu",
        packed=loaded.packed,
    )
    assert loaded.packed
    assert sorted(ran.failures) == [0, 2]


def test_what_it_said_of_one_micro_batch_is_not_written_over_by_the_next(make_encoder: Make) -> None:
    module = _loaded(make_encoder(), "AutoModel", "openvino", "bfloat16").module
    shape = {"attention_mask": torch.ones(1, 4, dtype=torch.long)}
    first = module(input_ids=torch.tensor([[2, 9, 8, 3]]), **shape).last_hidden_state
    kept = first.clone()
    module(input_ids=torch.tensor([[2, 30, 31, 3]]), **shape)
    assert first.dtype == torch.float32
    assert torch.equal(first, kept)


class _Full:
    """A graph that runs out of memory as OpenVINO does: it says nothing, and leaves what was there."""

    def __init__(self, most: int) -> None:
        self.inputs = [self]
        self.most = most
        self.held = np.zeros((1, 1, 2), np.float32)
        self.broken = False

    def get_any_name(self) -> str:
        return "input_ids"

    def create_infer_request(self) -> "_Full":
        return self

    def infer(self, given: dict[str, np.ndarray], **_: bool) -> list[np.ndarray]:
        ids_BL = given["input_ids"]
        self.broken = self.broken or ids_BL.size > self.most
        if self.broken:
            return [self.held]
        if self.held.shape[:2] != ids_BL.shape:
            self.held = np.empty((*ids_BL.shape, 2), np.float32)
        self.held[:] = ids_BL[..., None]
        return [self.held]


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=12))
def test_numbers_of_the_texts_before_are_never_taken_for_those_of_the_next(shapes: list[tuple[int, int]]) -> None:
    made: list[_Full] = []

    def compile_graph() -> _Full:
        made.append(_Full(9))
        return made[-1]

    module, failed = open_vino.OpenVinoModule(compile_graph, ["last_hidden_state"], None), 0
    for number, shape in enumerate(shapes):
        ids_BL = torch.full(shape, number)
        if ids_BL.numel() > 9:
            failed += 1
            with pytest.raises(MemoryError, match="OpenVINO gave no numbers"):
                module(input_ids=ids_BL)
        else:
            assert torch.equal(module(input_ids=ids_BL).last_hidden_state, ids_BL[..., None].expand(*shape, 2).float())
    assert len(made) <= 1 + failed


def test_a_text_that_gives_no_numbers_is_no_lack_of_memory() -> None:
    class NoNumber(_Full):
        """Its model gives no number for any text."""

        def infer(self, given: dict[str, np.ndarray], **options: bool) -> list[np.ndarray]:
            found = super().infer(given, **options)
            found[0][:] = np.nan
            return found

    left = [NoNumber(9)]
    module = open_vino.OpenVinoModule(left.pop, ["last_hidden_state"], None)
    for _ in range(2):  # its graph is not compiled anew
        assert module(input_ids=torch.zeros(2, 2, dtype=torch.long)).last_hidden_state.isnan().all()


def test_a_graph_that_cannot_be_compiled_anew_ends_the_run_in_words() -> None:
    left = [_Full(3)]
    module = open_vino.OpenVinoModule(left.pop, ["last_hidden_state"], None)
    with pytest.raises(MemoryError):
        module(input_ids=torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(RunError, match=r"OpenVINO gave up after it failed.*the same command goes on"):
        module(input_ids=torch.zeros(1, 1, dtype=torch.long))


def test_a_graph_that_says_otherwise_is_refused(make_encoder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_graph = open_vino._compiled

    def of_another_text(*given: Any) -> object:
        return _Shifted(compile_graph(*given))

    monkeypatch.setattr(open_vino, "_compiled", of_another_text)
    with pytest.raises(ModelError, match=r"BertModel converted to OpenVINO gives other numbers .*`engine: torch`"):
        _loaded(make_encoder(), "AutoModel", "openvino")


def test_a_graph_that_gives_no_numbers_is_refused(make_encoder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_vino.OpenVinoModule, "__call__", _no_numbers)
    with pytest.raises(ModelError, match=r"gives other numbers than in torch: nan of their length off"):
        _loaded(make_encoder(), "AutoModel", "openvino")


def _no_numbers(_: object, **inputs: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(last_hidden_state=torch.full((*inputs["input_ids"].shape, 32), torch.nan))


class _Shifted:
    """A compiled graph that reads another token than it was given."""

    def __init__(self, compiled: object) -> None:
        self._compiled = compiled
        self.inputs = compiled.inputs  # type: ignore[attr-defined]

    def create_infer_request(self) -> "_Shifted":
        self._request = self._compiled.create_infer_request()  # type: ignore[attr-defined]
        return self

    def infer(self, given: dict[str, np.ndarray], **options: bool) -> object:
        return self._request.infer({**given, "input_ids": given["input_ids"] + 1}, **options)


def test_a_graph_that_cannot_be_compiled_is_refused_in_words(
    make_encoder: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> object:
        raise RuntimeError("no kernel for Odd\nand more")

    monkeypatch.setattr(open_vino, "_compiled", refuse)
    with pytest.raises(ModelError, match=r"BertModel .* cannot be compiled: RuntimeError: no kernel for Odd; set `eng"):
        _loaded(make_encoder(), "AutoModel", "openvino")
