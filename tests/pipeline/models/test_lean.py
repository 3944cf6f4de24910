"""Transformers imported for reading alone, in a process of its own: this one has imported it whole."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipeline.models.int8 import can_quantize, watched
from pipeline.models.lean import _MARKS, _names_of_models, _no_symbols, _read_once, _StandIn, _unmarked, import_lean
from pipeline.models.loading import load
from pipeline.models.ranges import to_bytes
from pipeline.models.reference import ModelSettings, pin

HEAD = "AutoModelForSequenceClassification"

_IN_A_PROCESS = f"""
import json, sys
from pipeline.models.lean import import_lean
import_lean()
left_out = {"accelerate", "scipy", "torch.distributed.tensor", "torch._inductor"} & sys.modules.keys()
from tests.pipeline.models.test_lean import scores
found = [scores(folder, kind, dtype) for folder, kind, dtype in json.loads(sys.argv[1])]
import pipeline.annotator
left_out |= {{"sqlglot", "sympy"}} & sys.modules.keys()
asks_for_the_compiler = type(sys.modules["torch._dynamo"]).__name__
import torch
print(json.dumps([sorted(left_out), found, asks_for_the_compiler, torch._dynamo.config.__name__]))
"""


def scores(folder: str, kind: str, dtype: str) -> list[float]:
    """What a model says of two texts of other lengths; in int8, calibrated by themselves."""
    import torch

    how = (pin(ModelSettings(ref=folder)), kind)
    loaded = load(*how, "float32", "cpu", 1, 2048)
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]), "attention_mask": torch.ones(2, 4).long()}
    inputs["attention_mask"][1, 3] = 0
    with torch.inference_mode():
        with watched(loaded.module) as ranges:
            output = loaded.module(**inputs)
        if dtype == "int8":
            output = load(*how, "int8", "cpu", 1, 2048, calibration=to_bytes(ranges)).module(**inputs)
    values: list[float] = (output.logits if kind == HEAD else output.last_hidden_state[:, 0]).flatten().tolist()
    return values


@pytest.fixture(scope="module")
def models(tiny):
    """A model of each family that actors import so, and in each number format."""
    kinds = [(str(tiny(family, head)), kind) for family in ("bert", "roberta", "distilbert") for head, kind in HEADS]
    quantized = ["int8"] if can_quantize() else []
    return [(*each, dtype) for each in kinds for dtype in ("float32", *quantized)]


HEADS = (("Model", "AutoModel"), ("SequenceClassification", HEAD))


def test_models_say_the_same_without_what_training_and_compiling_ask_for(models, repository: Path):
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_PROCESS, json.dumps(models)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    left_out, found, compiler, config = json.loads(done.stdout.splitlines()[-1])
    assert left_out == []
    assert compiler == "_StandIn"
    assert config == "torch._dynamo.config"  # who asks for more than decorators gets the real one
    for model, values in zip(models, found, strict=True):
        np.testing.assert_array_equal(values, scores(*model))


def test_a_process_that_has_it_already_is_left_as_it_is():
    before = dict(sys.modules)
    import_lean()
    assert dict(sys.modules) == before


def test_what_cannot_be_imported_so_is_imported_whole(repository: Path):
    code = """
import sys
from pipeline.models import lean
lean._IMPORTED = (*lean._IMPORTED, "no_such_module")
lean.import_lean()
assert "transformers.modeling_utils" not in sys.modules
import pipeline.models.loading
assert "torch.distributed.tensor" in sys.modules
assert sys.modules["torch._dynamo"].__file__
"""
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True)


def test_decorators_of_no_compiler_give_back_the_function(tmp_path: Path):
    compiler = _StandIn("no_compiler", dict.fromkeys(_MARKS, _unmarked), tmp_path)
    assert compiler.disable(scores) is scores
    assert compiler.disable(scores, True, reason="none") is scores
    assert compiler.disable(recursive=False)(scores) is scores
    assert not hasattr(compiler, "__wrapped__")


def test_lengths_that_are_known_are_answered_as_torch_answers():
    from torch.fx.experimental import symbolic_shapes

    ours = _no_symbols()
    for name in ("expect_true", "guard_or_false", "guard_or_true"):
        for value in (True, False):
            assert getattr(ours, name)(value) is getattr(symbolic_shapes, name)(value)
    shapes = [(), (2,), (2, 3), (3, 2), 2, 3]
    for one in shapes:
        for other in shapes:
            if type(one) is type(other):
                assert ours.sym_eq(one, other) == symbolic_shapes.sym_eq(one, other)
    assert ours.is_nested_int(3) is symbolic_shapes.is_nested_int(3)
    assert ours.ShapeEnv is symbolic_shapes.ShapeEnv  # the rest is torch's own


def test_transformers_need_not_read_its_models_twice():
    from transformers.utils import import_utils

    models = Path(import_utils.__file__).parents[1] / "models"
    packages = [str(models / "__init__.py"), str(models / "bert" / "__init__.py")]
    read = import_utils.define_import_structure
    with _read_once():
        assert import_utils.define_import_structure is not read
        once = [_told(import_utils.define_import_structure(each)) for each in packages]
    assert import_utils.define_import_structure is read
    assert once == [_told(read(each)) for each in packages]


def _told(structure):
    """What transformers makes of the names that it found."""
    from transformers.utils.import_utils import _LazyModule

    module = _LazyModule("transformers.models", "models/__init__.py", structure)
    modules = {name: set(names) for name, names in module._import_structure.items()}
    missing = {name: set(packages) for name, packages in module._object_missing_backend.items()}
    return module._modules, module._class_to_module, missing, modules, set(module.__all__)


def test_a_transformers_that_does_not_tell_its_names_is_left_to_read_them():
    assert _names_of_models(ModuleType("transformers")) is None
