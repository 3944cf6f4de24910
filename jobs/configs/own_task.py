"""A task of one's own with a module of one's own: an RNN encoder-decoder that writes summaries.

    annotations: [{name: short, task: jobs/configs/own_task.py, text: description, model: out/rnn, max_new_tokens: 12}]
    -> short_summary: "library for sparse matrices", short_tokens: 84, short_truncated: false

The model's folder holds what any other's does: config.json (here the sizes of the layers), model.safetensors with the
module's own names, and a tokenizer. `python jobs/configs/own_task.py out/rnn` writes an untrained one, to try the road;
with `out/rnn 256` it has 256 hidden numbers for each token instead of 64.

A bidirectional GRU reads, another writes and attends to what was read (Bahdanau, Cho and Bengio, 2015,
arXiv:1409.0473) and to where it looked before (Chorowski et al., 2015, arXiv:1506.07503); each word is one that it
knows or one that it copies (See, Liu and Manning, 2017, arXiv:1704.04368).
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from pydantic import Field
from torch import nn

from pipeline.models.engine import Padded, run_pieces
from pipeline.tasks.base import OWN_MODULE, Annotation, Comparison, Texts
from pipeline.tasks.window import WindowSettings, WindowTask


class Reading(NamedTuple):
    """B texts of L tokens, as they were read."""

    ids_BL: torch.Tensor
    mask_BL: torch.Tensor
    states_BLX: torch.Tensor  # X = 2 x H: from both sides
    keys_BLH: torch.Tensor


class Writing(NamedTuple):
    """Where the writer of B summaries stands."""

    ids_B: torch.Tensor  # the last token
    state_BH: torch.Tensor
    looked_BL: torch.Tensor  # how much at each token of the text; 1 in all, 0 before the first token


class RnnSummarizer(nn.Module):
    """Reads input_ids_BL, writes ids_BT. H hidden numbers for each token, V tokens known."""

    def __init__(self, vocabulary: int, hidden: int, start_id: int, end_id: int) -> None:
        """Layers of the sizes that config.json tells."""
        super().__init__()
        self.start_id, self.end_id = start_id, end_id
        self.embeddings = nn.Embedding(vocabulary, hidden)
        nn.init.normal_(self.embeddings.weight, std=0.1)
        self.reader = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * hidden, hidden)
        self.keys = nn.Linear(2 * hidden, hidden)
        self.query = nn.Linear(2 * hidden, hidden)
        self.near = nn.Linear(3, 1, bias=False)  # from where it looked last: the same token, the next, the one after
        self.writer = nn.GRUCell(3 * hidden, hidden)
        self.head = nn.Linear(4 * hidden, hidden)
        self.gate = nn.Linear(4 * hidden, 1)  # a token that it knows, or one of the text

    def read(self, input_ids_BL: torch.Tensor, mask_BL: torch.Tensor) -> tuple[Reading, Writing]:
        """The texts, and the beginning of their summaries; padding is not read."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embeddings(input_ids_BL), mask_BL.sum(1).cpu(), batch_first=True, enforce_sorted=False
        )
        states, last = self.reader(packed)
        states_BLX, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=input_ids_BL.shape[1])
        start_B = torch.full((len(input_ids_BL),), self.start_id, device=input_ids_BL.device)
        begun = torch.tanh(self.bridge(torch.cat([last[0], last[1]], 1)))
        reading = Reading(input_ids_BL, mask_BL, states_BLX, self.keys(states_BLX))
        return reading, Writing(start_B, begun, torch.zeros_like(states_BLX[..., 0]))

    def step(self, at: Writing, reading: Reading) -> tuple[torch.Tensor, Writing]:
        """What the next token is chosen by, and where the writer then stands but for that token."""
        word_BH = self.embeddings(at.ids_B)
        query_BH1 = self.query(torch.cat([at.state_BH, word_BH], 1)).unsqueeze(2)
        before_BL = nn.functional.pad(at.looked_BL, (2, 0))
        near_BL = self.near(torch.stack([at.looked_BL, before_BL[:, 1:-1], before_BL[:, :-2]], 2)).squeeze(2)
        scores_BL = torch.bmm(reading.keys_BLH, query_BH1).squeeze(2) / query_BH1.shape[1] ** 0.5 + near_BL
        looked_BL = scores_BL.masked_fill(reading.mask_BL == 0, -torch.inf).softmax(1)
        seen_BX = torch.bmm(looked_BL.unsqueeze(1), reading.states_BLX).squeeze(1)
        state_BH = self.writer(torch.cat([word_BH, seen_BX], 1), at.state_BH)
        return torch.cat([state_BH, seen_BX, word_BH], 1), Writing(at.ids_B, state_BH, looked_BL)

    def shares(self, chosen_by_BTX: torch.Tensor, looked_BTL: torch.Tensor, ids_BL: torch.Tensor) -> torch.Tensor:
        """shares_BTV of each token as the next, 1 in all, for T steps of B summaries of texts of these ids."""
        # The tokens that it reads and writes are the same ones (Press and Wolf, 2017, arXiv:1608.05859).
        logits_BTV = nn.functional.linear(self.head(chosen_by_BTX), self.embeddings.weight)
        known_BT1 = self.gate(chosen_by_BTX).sigmoid()
        known_BTV = logits_BTV.softmax(2) * known_BT1
        ids_BTL = ids_BL.unsqueeze(1).expand_as(looked_BTL)
        shares_BTV: torch.Tensor = known_BTV.scatter_add(2, ids_BTL, looked_BTL * (1 - known_BT1))
        return shares_BTV

    def forward(self, input_ids_BL: torch.Tensor, attention_mask_BL: torch.Tensor, most: int) -> list[list[int]]:
        """Greedy: at most so many tokens for each row, up to its end; a row that has ended leaves the batch."""
        reading, at = self.read(input_ids_BL, attention_mask_BL)
        written: list[list[int]] = [[] for _ in input_ids_BL]
        rows = list(range(len(input_ids_BL)))
        for _ in range(most):
            chosen_by_BX, at = self.step(at, reading)
            shares_B1V = self.shares(chosen_by_BX.unsqueeze(1), at.looked_BL.unsqueeze(1), reading.ids_BL)
            ids_B = shares_B1V.squeeze(1).argmax(1)
            going = [place for place, token in enumerate(ids_B.tolist()) if token != self.end_id]
            for place in going:
                written[rows[place]].append(int(ids_B[place]))
            if not going:
                break
            rows = [rows[place] for place in going]
            reading = Reading(*(each[going] for each in reading))
            at = Writing(ids_B[going], at.state_BH[going], at.looked_BL[going])
        return written


class RnnSummary(WindowTask):
    """Summaries by an RNN encoder-decoder of one's own."""

    needs = OWN_MODULE

    class Config(WindowSettings):
        """How much is written."""

        max_new_tokens: int = Field(default=12, ge=1, le=10_000)
        """Tokens of a summary, at most 10,000."""

    def build(self) -> nn.Module:
        """The empty module; the sizes stand in config.json."""
        config = self.pinned.config
        return RnnSummarizer(config["vocab_size"], config["hidden_size"], config["start_id"], config["end_id"])

    def fields(self) -> list[pa.Field]:
        """`summary`."""
        return [pa.field("summary", pa.string())]

    def compared(self) -> Comparison:
        """With `gold: COLUMN`, a written text beside one that a person wrote."""
        return Comparison("texts", {"predicted": "summary"})

    def annotate(self, texts: Texts) -> Annotation:
        """Read, write, decode."""
        pieces = self.pieces(texts)
        ran = run_pieces(
            pieces.ids_P,
            self._written,
            token_budget=self.loaded.budget,
            pad_id=self.loaded.pad_id,
            device=self.loaded.device,
            about_to_run=self.journal(pieces, texts),
        )
        failures = pieces.failures_of(ran.failures)
        parts: list[list[str]] = [[] for _ in texts.values]  # several where the text was read in windows
        for row, ids in zip(pieces.row_P, ran.found_P, strict=True):
            parts[row].append(self.loaded.tokenizer.decode(ids or [], skip_special_tokens=True))
        summaries = [None if row in failures else " ".join(each) for row, each in enumerate(parts)]
        return Annotation(
            {"summary": pa.array(summaries, pa.string())},
            pieces.tokens_R,
            pieces.truncated_R,
            failures,
            ran.tokens,
            ran.padding_tokens,
            ran.seconds,
        )

    def check_model(self, padded: Padded) -> None:
        """It must write."""
        self._written(padded)

    def _written(self, padded: Padded) -> list[list[int]]:
        most: int = self.config.max_new_tokens
        written: list[list[int]] = self.loaded.module(padded.input_ids_BL, padded.attention_mask_BL, most)
        return written


def write_untrained(folder: Path, sentences: list[str], hidden: int = 64, seed: int = 0) -> None:
    """A model folder of random weights and a tokenizer that knows these sentences' words."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[START]", "[END]"]
    trainer = trainers.WordPieceTrainer(vocab_size=4000, special_tokens=special, show_progress=False)
    backend.train_from_iterator(sentences, trainer)
    backend.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 3)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", bos_token="[START]", eos_token="[END]"
    )
    config: dict[str, Any] = {
        "model_type": "rnn-summarizer",
        "vocab_size": backend.get_vocab_size(),
        "hidden_size": hidden,
        "start_id": 2,
        "end_id": 3,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    module = RnnSummarizer(config["vocab_size"], hidden, config["start_id"], config["end_id"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(module.state_dict(), folder / "model.safetensors")
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    import pyarrow.dataset

    files = [str(path) for path in sorted(Path(__file__).parent.glob("sample/**/*.parquet"))]
    sample = pyarrow.dataset.dataset(files).to_table(columns=["description"])
    size = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    write_untrained(Path(sys.argv[1]), [text for text in sample["description"].to_pylist() if text], size)
