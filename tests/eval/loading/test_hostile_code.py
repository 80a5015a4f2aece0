"""Laws of a model that brings code: none of it runs, and no pickle is opened, unless the flag for it is given."""

import contextlib
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from eval_helpers import save_tiny_model, tiny_model, tiny_tokenizer
from hostile_helpers import WEIGHTS, edit_json, edit_tensors, files_under, loaded, refuses
from lm_eval.tasks import TaskManager
from lm_eval.tasks.ruler import common_utils
from safetensors.torch import load_file

from sa_eval.cli import main
from sa_eval.documents import harness, ruler
from sa_eval.loading import model_files
from sa_eval.settings.config import SettingsError, settings_from

# RULER's documents are made in a forked child; newer Pythons warn about forking a process that has threads.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.usefixtures("few_words"),
]

MARKER = "the-code-ran"
CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
Path({marker!r}).touch()
class TrapConfig(Qwen3Config):
    model_type = "trap"
class TrapModel(Qwen3ForCausalLM):
    config_class = TrapConfig
class TrapTokenizer(PreTrainedTokenizerFast):
    pass
"""
MODEL_CODE = {"AutoConfig": "trap.TrapConfig", "AutoModelForCausalLM": "trap.TrapModel"}
TOKENIZER_CODE = {"AutoTokenizer": [None, "trap.TrapTokenizer"]}
TASK = """
task: trap
dataset_path: json
custom_dataset: !function documents.make
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{text}}"
"""
DOCUMENTS = """
from lm_eval.tasks.ruler.common_utils import get_tokenizer
def make(**arguments):
    get_tokenizer(tokenizer={folder!r})
    return {{"test": [{{"text": "one"}}]}}
"""


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path(MARKER),)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder `trap` that is in order, and transformers' copies of foreign code inside tmp_path too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    save_tiny_model(tmp_path / "trap")
    common_utils.get_tokenizer.cache_clear()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture
def opened(monkeypatch):
    """Every file that torch.load is asked for."""
    asked, honest = [], torch.load
    monkeypatch.setattr(torch, "load", lambda file, *rest, **more: asked.append(file) or honest(file, *rest, **more))
    return asked


def ran() -> bool:
    return Path(MARKER).exists()


def add_code(folder="trap", **changes):
    Path(folder, "trap.py").write_text(CODE.format(marker=str(Path(MARKER).absolute())))
    edit_json(Path(folder), **changes)


def custom_model():
    add_code(model_type="trap", auto_map=MODEL_CODE)


def code_beside_a_known_model():
    add_code(auto_map={"AutoModelForCausalLM": "trap.TrapModel"})


def code_inside_a_nested_config():
    add_code(text_config={"model_type": "trap", "auto_map": MODEL_CODE})


def custom_tokenizer(folder="trap"):
    add_code(folder)
    edit_json(Path(folder), "tokenizer_config.json", auto_map=TOKENIZER_CODE, tokenizer_class="TrapTokenizer")


def attention_from_the_hub():
    add_code(attn_implementation="someone/attention")


def rows(name, *makers):
    return [
        pytest.param(make, marks=pytest.mark.cell("Input", f"sa-eval, {name}"), id=make.__name__) for make in makers
    ]


CODES = [
    *rows("code beside the model (auto_map)", custom_model, code_beside_a_known_model),
    *rows("code beside the model (auto_map)", code_inside_a_nested_config, custom_tokenizer),
    *rows("an attention kernel from the hub in config.json", attention_from_the_hub),
]


@pytest.mark.parametrize("add", CODES)
@pytest.mark.parametrize("flags", [(), ("--tasks", "niah_single_1", "--lengths", "600"), ("--dry-run",)], ids=str)
def test_code_beside_a_model_is_refused(capsys, refused, add, flags):
    add()
    with refused(SettingsError, match="brings its own code .*--trust-remote-code"):
        loaded("trap")
    assert "brings its own code" in refuses("trap", capsys, *flags)
    assert not ran()


@pytest.fixture
def hub(place, monkeypatch):
    """The folder as a model of the hub, in a cache, with no network; called after the folder is as it should be."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(place / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def publish():
        repository, commit = place / "cache" / "models--someone--trap", "0" * 40
        (repository / "snapshots").mkdir(parents=True)
        Path("trap").rename(repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)

    return publish


@pytest.mark.parametrize("add", [custom_model, code_beside_a_known_model, custom_tokenizer])
def test_code_of_a_hub_model_is_refused_too(hub, add):
    add()
    hub()
    with pytest.raises(SettingsError, match="the model trap brings its own code"):
        loaded("someone/trap")
    assert not ran()


@pytest.mark.cell("Input", "sa-eval, code beside the model (auto_map), with --trust-remote-code")
@pytest.mark.parametrize("add", [custom_model, custom_tokenizer], ids=lambda add: add.__name__)
def test_trusted_code_runs(add):
    add()
    found = loaded("trap", trust_remote_code=True)
    names = {type(found.model).__name__, type(found.tokenizer).__name__}
    assert ran() and names & {"TrapModel", "TrapTokenizer"}


def test_ruler_never_loads_a_tokenizer_by_itself(monkeypatch):
    """The folder turns hostile after loading; lm-eval alone would run its code, so the trap is a real one."""
    custom_tokenizer()
    tokenizer = tiny_tokenizer()
    monkeypatch.setattr(tokenizer, "name_or_path", "trap")
    settings = settings_from({"lengths": 600, "num_samples": 2, "tasks": "niah_single_1"})
    task = ruler.load("niah_single_1", 600, settings, tokenizer)
    assert len(task.dataset["test"]) == 2 and not ran()
    with model_files.code_kept_out(settings), pytest.raises(SettingsError, match="that takes --trust-remote-code"):
        common_utils.get_tokenizer(tokenizer="trap")
    assert not ran()
    common_utils.get_tokenizer(tokenizer="trap")
    assert ran()


@pytest.mark.cell("Input", "sa-eval, an lm-eval task that loads a tokenizer with code")
def test_no_task_of_lm_eval_may_run_the_code_of_a_model(place, refused, monkeypatch):
    monkeypatch.setattr(harness, "task_manager", lambda: TaskManager(include_defaults=False))  # the index is slow
    (place / "task").mkdir()
    Path("task/trap.yaml").write_text(TASK)
    Path("task/documents.py").write_text(DOCUMENTS.format(folder=str(place / "other")))
    save_tiny_model(place / "other")
    custom_tokenizer("other")
    flags = ["--model", "trap", "--tasks", "task/trap.yaml", "--modes", "swa", "--device", "cpu", "--no-speed"]
    assert main([*flags, "--num-samples", "1", "--out", "run"]) == 2
    failure = json.loads(Path("run/failures.jsonl").read_text())
    assert "that takes --trust-remote-code" in failure["error"] and not ran()
    with (
        refused(SettingsError, match="trap.py of other was about to run"),
        model_files.code_kept_out(settings_from({})),
    ):
        common_utils.get_tokenizer(tokenizer="other")


def pickled_weights(name="pytorch_model.bin", bomb=False):
    tensors = load_file(Path("trap", WEIGHTS))
    Path("trap", WEIGHTS).unlink()
    torch.save({**tensors, **({"model.norm.weight": Bomb()} if bomb else {})}, Path("trap", name))


def pickled_shards():
    pickled_weights("part.bin", bomb=True)
    weight_map = dict.fromkeys(tiny_model().state_dict(), "part.bin")
    edit_json(Path("trap"), "pytorch_model.bin.index.json", metadata={}, weight_map=weight_map)


def pickles_in_an_index_of_safetensors():
    pickled_shards()
    Path("trap/pytorch_model.bin.index.json").rename("trap/model.safetensors.index.json")


def pickles_named_in_the_config():
    pickled_weights("adapter_model.bin", bomb=True)
    edit_json(Path("trap"), transformers_weights="adapter_model.bin")


def pickle_of_an_adapter():
    torch.save({"lora": Bomb()}, "trap/adapter_model.bin")
    edit_json(Path("trap"), "adapter_config.json", peft_type="LORA", r=2, target_modules=["q_proj"])


def bare_pickle():
    Path("trap", WEIGHTS).unlink()
    Path("trap/pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": Bomb()}))


PICKLED = "pickled weights (pytorch_model.bin)"
PICKLES = [
    *rows(PICKLED, pickled_weights, pickled_shards, bare_pickle),
    *rows("pickles under another name", pickles_in_an_index_of_safetensors, pickles_named_in_the_config),
    *rows("pickles under another name", pickle_of_an_adapter),
]


@pytest.mark.parametrize("make", PICKLES)
def test_a_pickle_is_not_even_opened_unasked(capsys, refused, opened, make):
    make()
    with refused(SettingsError, match="--no-use-safetensors|only .safetensors files|only a safetensors file|adapter"):
        loaded("trap")
    refuses("trap", capsys)
    assert opened == [] and not ran()


@pytest.mark.cell("Input", "sa-eval, pickled weights (pytorch_model.bin), with --no-use-safetensors")
def test_pickled_tensors_load_when_asked_for(place, capsys):
    expected = loaded("trap").model.state_dict()
    pickled_weights()
    before = files_under(place)
    found = loaded("trap", use_safetensors=False).model.state_dict()
    assert found.keys() == expected.keys() and files_under(place) == before
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("make", [lambda: pickled_weights(bomb=True), pickled_shards, bare_pickle])
def test_code_in_a_pickle_never_runs(place, capsys, opened, make):
    """No row: the refusal quotes torch."""
    make()
    assert "cannot load the model 'trap'" in refuses("trap", capsys, "--no-use-safetensors")
    assert opened and not ran()
    with contextlib.suppress(RuntimeError):  # torch sees only afterwards that a bare pickle is no checkpoint
        torch.load(opened[0], weights_only=False)
    assert ran()  # so it was a real one


@pytest.mark.cell("Input", "sa-eval, --no-use-safetensors where there are only safetensors")
def test_the_flag_says_what_it_lacks(capsys, refused):
    with refused(SettingsError, match="no pytorch_model.bin .*leave out --no-use-safetensors"):
        loaded("trap", use_safetensors=False)
    assert "leave out" in refuses("trap", capsys, "--no-use-safetensors")


@pytest.mark.parametrize("make", [pickled_weights, pickles_in_an_index_of_safetensors, pickles_named_in_the_config])
def test_pickles_of_a_hub_model_stay_closed_too(hub, opened, make):
    make()
    hub()
    with pytest.raises(SettingsError, match="safetensors"):
        loaded("someone/trap")
    assert opened == [] and not ran()


def test_the_headers_of_a_hub_model_are_checked_too(hub):
    edit_tensors(Path("trap"), lambda tensors: tensors.update({"model.norm.weight": torch.ones(32, dtype=torch.int32)}))
    hub()
    with pytest.raises(SettingsError, match=r"'model\.norm\.weight' of the model trap holds I32"):
        loaded("someone/trap")


def test_a_sound_hub_model_loads(hub):
    expected = tiny_model().state_dict()
    hub()
    found = loaded("someone/trap")
    assert found.identity.hub_id == "someone/trap"
    assert all(torch.equal(value, expected[name]) for name, value in found.model.state_dict().items())
