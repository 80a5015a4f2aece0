"""What makes lm-eval quick in tests: few of its tasks, and few words. With --slow it is as it comes."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

FOLDERS = ("arc", "hellaswag", "humaneval", "lambada", "longbench", "mmlu/default", "super_glue/boolq")


@pytest.fixture(scope="session")
def few_tasks(request):
    """An index of the folders that tests name tasks of: that of all 14,000 files takes ten seconds and more."""
    if request.config.getoption("--slow"):
        yield
        return
    import lm_eval.tasks

    from sa_eval.documents import harness

    tasks = Path(lm_eval.tasks.__file__).parent
    folders = [str(tasks / folder) for folder in FOLDERS]
    manager = lm_eval.tasks.TaskManager(include_path=folders, include_defaults=False)
    with mock.patch.object(harness, "task_manager", lambda: manager):
        yield


@pytest.fixture(scope="session")
def few_words(request):
    """RULER's module makes millions of words and sorts them when it is imported: here thousands."""
    if request.config.getoption("--slow"):
        return
    import wonderwords

    lists = wonderwords.RandomWord()._categories
    few = SimpleNamespace(_categories={kind: words[:100] for kind, words in lists.items()})
    with mock.patch.object(wonderwords, "RandomWord", lambda: few), mock.patch("nltk.download"):
        importlib.import_module("lm_eval.tasks.ruler.prepare_niah")
