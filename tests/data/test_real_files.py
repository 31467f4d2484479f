"""Every reader on published data sets, where they lie beside the repository; skipped elsewhere."""

from pathlib import Path

import pytest

from chatloom.data.formats import read_conversations
from chatloom.data.preference import read_comparisons, read_prompts, read_thumbs
from chatloom.data.sources import DataError, read_texts

FOLDER = Path(__file__).parents[2].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no data sets in {FOLDER}")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("instr__alpaca_5000__train_NC", 4998),  # two records have an empty answer
        ("instr__alpaca_gpt4_zh_demo__train", 1000),
        ("instr__self_instruct_seed__all", 175),
        ("instr__fastchat_identity__train", 500),
        ("instr__oasst_sft_zh__train", 766),
        ("instr__chatterbot_en__train", 2025),
    ],
)
def test_conversations(name, count):
    assert len(read_conversations(FOLDER / f"{name}.jsonl.gz")) == count


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("pref__hh_harmless_base__test", 2303),  # nine have an empty response
        ("pref__oasst_en_100_trees__ranked", 212),
        ("pref__dpo_en_demo__train", 300),
        ("pref__dpo_zh_demo__train", 300),
        ("pref__oasst_rm_zh__train", 772),  # three have identical responses
    ],
)
def test_comparisons_and_their_prompts(name, count):
    comparisons = read_comparisons(FOLDER / f"{name}.jsonl.gz")
    assert len(comparisons) == count
    assert all(comparison.num_pairs for comparison in comparisons)
    assert len(read_prompts(FOLDER / f"{name}.jsonl.gz")) >= count


def test_thumbs_are_not_comparisons():
    thumbs = read_thumbs(FOLDER / "pref__kto_en_demo__train.jsonl.gz")
    assert len(thumbs) == 300
    assert {thumb.good for thumb in thumbs} == {True, False}
    with pytest.raises(DataError, match="thumbs"):
        read_comparisons(FOLDER / "pref__kto_en_demo__train.jsonl.gz")


def test_tool_calls_are_refused_with_the_line():
    with pytest.raises(DataError, match=r"glaive_toolcall_en__train\.jsonl\.gz:1: .*function_call"):
        read_conversations(FOLDER / "instr__glaive_toolcall_en__train.jsonl.gz")


def test_texts():
    assert sum(1 for _ in read_texts(FOLDER / "pretrain__tinystories_sample__train.jsonl.gz")) == 2084
    with pytest.raises(DataError, match=r"README|refused|no field `text`|not read"):
        read_texts(FOLDER)
