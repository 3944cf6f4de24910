"""What tasks share that read texts through a window: tokens above all."""

import pytest

from pipeline.errors import ModelError
from pipeline.tasks.base import Texts
from pipeline.tasks.classify import Classify
from pipeline.tasks.embed import Embed
from pipeline.tasks.tag import Tag
from pipeline.text.tokens import TextTokenizer


@pytest.fixture
def tokenised(monkeypatch):
    """The texts that go through any tokenizer."""
    seen: list[str] = []
    real = TextTokenizer.tokens

    def tokens(self, texts, most, offsets=False):
        seen.extend(texts)
        return real(self, texts, most, offsets)

    monkeypatch.setattr(TextTokenizer, "tokens", tokens)
    return seen


def test_models_with_one_tokenizer_have_each_text_tokenised_once(tiny, start, tokenised, sentences):
    tasks = [
        start(Embed, tiny("bert", "Model"), name="vector"),
        start(Classify, tiny("bert", "SequenceClassification"), name="label"),
        start(Tag, tiny("bert", "TokenClassification", labels=["O", "B-PER", "I-PER"]), name="tag"),
    ]
    assert len({task.pinned.digest for task in tasks}) == 3
    assert len({task.pinned.tokenizer_digest for task in tasks}) == 1
    tokenised.clear()
    together = Texts(sentences, offsets=True)  # as the annotator asks, where one of the tasks wants to know
    found = [task.annotate(together) for task in tasks]
    assert tokenised == sentences
    for task, annotation in zip(tasks, found, strict=True):
        alone = task.annotate(Texts(sentences))
        assert alone.columns == annotation.columns
        assert alone.tokens_R.tolist() == annotation.tokens_R.tolist()


def test_windows_of_other_lengths_are_cut_from_the_same_tokens(tiny, start, tokenised, sentences):
    folder = tiny("bert", "Model")
    tasks = [
        start(Embed, folder, name="short", max_tokens=12),
        start(Embed, folder, name="windows", max_tokens=12, long_text="windows", stride=2),
        start(Embed, folder, name="long", max_tokens=100),
    ]
    tokenised.clear()
    together = Texts(sentences)
    for task in tasks:
        task.annotate(together)
    assert tokenised == sentences


def test_other_tokenizers_tokenise_for_themselves(tiny, start, tokenised, sentences):
    tasks = [start(Embed, tiny(family, "Model"), name=family) for family in ("bert", "roberta")]
    tokenised.clear()
    together = Texts(sentences)
    for task in tasks:
        task.annotate(together)
    assert tokenised == sentences * 2


def test_a_task_that_asks_where_tokens_stand_refuses_a_slow_tokenizer(tiny, start, tmp_path):
    folder = tmp_path / "slow"
    folder.mkdir()
    for file in tiny("bert", "TokenClassification", labels=["O", "B-PER", "I-PER"]).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    (folder / "vocab.txt").write_text("")
    with pytest.raises(ModelError, match=r"annotation 'found': the tokenizer of .* is a slow one \(ByT5Tokenizer\)"):
        start(Tag, folder)
