import subprocess
import sys

import pytest

from pipeline.errors import JobError, PlacementError
from pipeline.models.device import (
    PACKED_TYPES,
    default_budget,
    lacks,
    may_pack,
    require_gpus,
    resolve_dtype,
    settle,
    training_budget,
)


def cpu_info(tmp_path, flags):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: a CPU\nflags\t\t: {flags}\nbogomips\t: 1\n")
    return path


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse avx512f avx512_bf16", "bfloat16"),
        ("fpu sse amx_bf16 amx_tile", "bfloat16"),
        ("fpu sse avx2 avx512f", "float32"),
    ],
)
def test_auto_is_bfloat16_where_the_cpu_multiplies_it(tmp_path, flags, expected):
    assert resolve_dtype("auto", "cpu", cpu_info(tmp_path, flags)) == expected


def test_auto_is_float32_where_the_system_does_not_tell(tmp_path):
    assert resolve_dtype("auto", "cpu", tmp_path / "nothing") == "float32"


def test_a_named_format_stays(tmp_path):
    assert resolve_dtype("float32", "cpu", cpu_info(tmp_path, "amx_bf16")) == "float32"
    assert resolve_dtype("float16", "cuda") == "float16"


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_a_format_that_the_cpu_does_not_have_is_refused_with_those_that_it_has(dtype):
    with pytest.raises(
        JobError, match=f"dtype: {dtype} is not available on cpu; allowed there: auto, float32, bfloat16, int8"
    ):
        resolve_dtype(dtype, "cpu")


@pytest.mark.parametrize("flags", ["avx512_vnni avx512_bf16", "amx_int8 amx_bf16"])
def test_int8_is_for_processors_that_have_it_and_bfloat16(tmp_path, flags):
    assert resolve_dtype("int8", "cpu", cpu_info(tmp_path, flags)) == "int8"


@pytest.mark.parametrize("flags", ["avx512f avx512_bf16", "avx512_vnni", "bf16 i8mm"])
def test_int8_on_another_processor_is_refused_with_what_is_needed(tmp_path, flags):
    with pytest.raises(
        JobError, match=r"dtype: int8 needs a processor with one of amx_int8, avx512_vnni, avx_vnni and one of amx_bf16"
    ):
        resolve_dtype("int8", "cpu", cpu_info(tmp_path, flags))


@pytest.mark.parametrize(
    ("dtype", "flags", "needed"),
    [
        ("float32", "fpu", None),
        ("bfloat16", "amx_bf16", None),
        ("bfloat16", "avx512f", "one of amx_bf16, avx512_bf16, bf16"),
        ("int8", "avx512_vnni avx512_bf16", None),
        ("int8", "avx512_bf16", "one of amx_int8, avx512_vnni, avx_vnni and one of amx_bf16, avx512_bf16, bf16"),
    ],
)
def test_what_a_format_needs_is_told_where_the_processor_lacks_it(tmp_path, dtype, flags, needed):
    assert lacks(dtype, "cpu", cpu_info(tmp_path, flags)) == needed
    assert lacks(dtype, "cuda", cpu_info(tmp_path, flags)) is None


def test_int8_is_not_for_gpus():
    with pytest.raises(JobError, match="dtype: int8 is not available on cuda; allowed there: auto, float32"):
        resolve_dtype("int8", "cuda")


def test_gpus_that_torch_does_not_see_are_refused():
    import torch

    there = torch.cuda.device_count()
    told = f"3 actors need {there + 2} GPUs, but torch sees {there} here; .*, or set gpus_per_actor to 0"
    with pytest.raises(PlacementError, match=told):
        require_gpus(there + 2, "3 actors", "gpus_per_actor")
    require_gpus(there, "3 actors", "gpus_per_actor")


def test_every_device_has_a_budget():
    assert default_budget("cpu") < default_budget("cuda")
    assert default_budget("cpu") < training_budget("cpu") < training_budget("cuda")
    alone, several = (default_budget("cpu", engine="openvino", threads=threads) for threads in (1, 64))
    assert alone < several == default_budget("cpu")


def test_the_driver_resolves_for_a_cpu_without_torch():
    code = (
        "import sys; from pipeline.models.device import resolve_dtype; resolve_dtype('auto', 'cpu'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_process_has_its_threads_and_on_a_gpu_no_attention_that_is_planned_for_each_shape():
    import torch

    threads, planned = torch.get_num_threads(), torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        settle("cpu", 1)
        assert (torch.get_num_threads(), torch.backends.cuda.cudnn_sdp_enabled()) == (1, True)
        settle("cuda", 2)
        assert (torch.get_num_threads(), torch.backends.cuda.cudnn_sdp_enabled()) == (2, False)
    finally:
        torch.set_num_threads(threads)
        torch.backends.cuda.enable_cudnn_sdp(planned)


def test_families_that_are_planned_as_packed_are_those_whose_layers_compute_so():
    import transformers

    from pipeline.models.rows import _LAYERS

    types = {getattr(transformers, name.replace("Model", "Config")).model_type for name in _LAYERS}
    assert types == PACKED_TYPES
    assert may_pack("AutoModelForSequenceClassification", {"model_type": "roberta"})
    assert not may_pack("AutoModelForCausalLM", {"model_type": "bert"})
    assert not may_pack("AutoModel", {"model_type": "modernbert"})
    assert not may_pack("AutoModel", {"model_type": "bert", "is_decoder": True})
    assert not may_pack("own module", {"model_type": "bert"})
    assert default_budget("cuda", packs=True) > default_budget("cuda") > default_budget("cpu", packs=True)
