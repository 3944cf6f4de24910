"""A task of one's own with a module of one's own: an RNN encoder-decoder that writes summaries.

    annotations: [{name: short, task: jobs/configs/own_task.py, text: description, model: out/rnn, max_new_tokens: 12}]
    -> short_summary: "library for sparse matrices", short_tokens: 84, short_truncated: false

The model's folder holds what any other's does: config.json (here the sizes of the layers), model.safetensors with the
module's own names, and a tokenizer. `python jobs/configs/own_task.py out/rnn` writes an untrained one, to try the road.

The method is that of Bahdanau, Cho and Bengio, 2015 (arXiv:1409.0473): a bidirectional GRU reads, another writes and
attends to what was read.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from pydantic import Field
from torch import nn

from pipeline.models.engine import Padded, run_pieces
from pipeline.tasks.base import OWN_MODULE, Annotation, Texts
from pipeline.tasks.window import WindowSettings, WindowTask


class RnnSummarizer(nn.Module):
    """Reads input_ids_BL, writes ids_BT. H hidden numbers for each token."""

    def __init__(self, vocabulary: int, hidden: int, start_id: int, end_id: int) -> None:
        """Layers of the sizes that config.json tells."""
        super().__init__()
        self.start_id, self.end_id = start_id, end_id
        self.embeddings = nn.Embedding(vocabulary, hidden)
        self.reader = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * hidden, hidden)
        self.keys = nn.Linear(2 * hidden, hidden)
        self.writer = nn.GRUCell(3 * hidden, hidden)
        self.head = nn.Linear(3 * hidden, vocabulary)

    def read(self, input_ids_BL: torch.Tensor, lengths_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What was read at each place, and the writer's first state; padding is not read."""
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embeddings(input_ids_BL), lengths_B.cpu(), batch_first=True, enforce_sorted=False
        )
        states, last = self.reader(packed)
        read_BLH, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=input_ids_BL.shape[1])
        return read_BLH, torch.tanh(self.bridge(torch.cat([last[0], last[1]], 1)))

    def write(
        self, ids_B: torch.Tensor, state_BH: torch.Tensor, read_BLH: torch.Tensor, mask_BL: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The logits of the next token, and the next state."""
        scores_BL = torch.einsum("bh,blh->bl", state_BH, self.keys(read_BLH)).masked_fill(mask_BL == 0, -torch.inf)
        seen_BH = torch.einsum("bl,blh->bh", scores_BL.softmax(1), read_BLH)
        state_BH = self.writer(torch.cat([self.embeddings(ids_B), seen_BH], 1), state_BH)
        return self.head(torch.cat([state_BH, seen_BH], 1)), state_BH

    def forward(self, input_ids_BL: torch.Tensor, attention_mask_BL: torch.Tensor, most: int) -> list[list[int]]:
        """Greedy: at most so many tokens for each row, up to its end; a row that has ended leaves the batch."""
        read_BLH, state_BH = self.read(input_ids_BL, attention_mask_BL.sum(1))
        written: list[list[int]] = [[] for _ in input_ids_BL]
        rows, mask_BL = list(range(len(input_ids_BL))), attention_mask_BL
        ids_B = torch.full((len(rows),), self.start_id, device=input_ids_BL.device)
        for _ in range(most):
            logits_BV, state_BH = self.write(ids_B, state_BH, read_BLH, mask_BL)
            ids_B = logits_BV.argmax(1)
            going = [place for place, token in enumerate(ids_B.tolist()) if token != self.end_id]
            for place in going:
                written[rows[place]].append(int(ids_B[place]))
            if not going:
                break
            rows = [rows[place] for place in going]
            ids_B, state_BH, read_BLH, mask_BL = (each[going] for each in (ids_B, state_BH, read_BLH, mask_BL))
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

    def annotate(self, texts: Texts) -> Annotation:
        """Read, write, decode."""
        pieces = self.pieces(texts)
        ran = run_pieces(
            pieces.ids_P,
            self._written,
            token_budget=self.loaded.token_budget,
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
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
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
    write_untrained(Path(sys.argv[1]), [text for text in sample["description"].to_pylist() if text])
