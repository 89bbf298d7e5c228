"""Names of results and of prepared files: unique, readable, and the old ones where they were unique."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.names import safe_name, unique_names

NAMES = st.text(st.sampled_from("aAbé图ÉÜüx _./()[]\0\n-1") | st.characters(), max_size=12)


@pytest.mark.parametrize("name", ["図", "é", "Привет_7", "ภาพที่", "a.b-c_d", "TCGA-A7-A13E-01Z-00-DX1", "x.."])
def test_letters_of_any_script_stay(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("name", "safe"),
    [("a b/c", "a_b_c"), ("..", "_"), (".hidden", "hidden"), ("x\0\ny", "x_y"), ("con", "_con"),
     ("Aux.png", "_Aux.png"), ("e\u0301", "é"), ("", "_")],
)  # fmt: skip
def test_what_a_file_cannot_be_called(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_long_names_are_cut_and_differ() -> None:
    names = ["図" * 200 + end for end in "ab"]
    one, two = unique_names(names)
    assert one != two
    assert max(len(one.encode()), len(two.encode())) < 200
    assert one.startswith("図" * 50)


@pytest.mark.parametrize(
    "names",
    [["図", "像"], ["a b", "a_b"], ["..", "."], ["é", "ü"], ["é", "e\u0301"], ["x(1)", "x[1]"], ["Case", "case"],
     ["a", "a"]],
)  # fmt: skip
def test_names_that_used_to_collide(names: list[str]) -> None:
    found = unique_names(names)
    assert len({unicodedata.normalize("NFC", name.casefold()) for name in found}) == 2
    assert not any(re.search(r"[/\0]|^\.", name) for name in found)


def test_who_keeps_a_name() -> None:
    assert unique_names(["a b", "a_b", "c"])[1:] == ["a_b", "c"]
    both = unique_names(["x(1)", "x[1]"])
    assert all(re.fullmatch(r"x_1_-[0-9a-f]{8}", name) for name in both)
    assert unique_names(["report.html"], taken=["Report.html"])[0].startswith("report.html-")


@given(st.lists(NAMES, max_size=6), st.randoms())
def test_unique_for_any_file_system_and_in_any_order(names: list[str], random) -> None:  # type: ignore[no-untyped-def]
    found = unique_names(names)
    folded = {unicodedata.normalize("NFC", name.casefold()) for name in found}
    assert len(folded) == len(names)
    assert unique_names(found) == found  # nothing to mend in what was made
    if len(set(names)) == len(names):
        order = random.sample(range(len(names)), len(names))
        assert unique_names([names[i] for i in order]) == [found[i] for i in order]


@given(st.lists(st.text("abz059._- (", min_size=1, max_size=5), unique=True))
def test_old_names_stay_where_they_were_unique(names: list[str]) -> None:
    old = [re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".") or "_" for name in names]
    if len(set(old)) == len(old):
        assert unique_names(names) == old
