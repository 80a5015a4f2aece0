"""Flags are read from what is written down of the variants; it is what they declare."""

from sa_eval.settings import declared
from sa_patch import variants


def test_what_is_written_is_what_the_variants_declare(monkeypatch):
    monkeypatch.delitem(declared.sys.modules, "sa_patch.variants")
    assert declared.declared() == declared.of_variants(variants)
