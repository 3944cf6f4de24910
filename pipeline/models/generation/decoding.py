"""How a model's next tokens are chosen: what the caller asks, and else what the model's own generation_config says.

    Decoding(max_new_tokens=24) on bart-large-cnn ->
        Rules(num_beams=4, eos_ids={2}, …)                  # the model's config: beams, no repeated trigrams
        rules.limit(prompt_tokens=1) -> 25                  # tokens of prompt and answer together
        rules.processors(prompt_ids) -> [NoRepeatNGram…, MinLength…, ForcedBOS…]

All that leans on transformers' inner functions for `generate` stands in this file: the options, their defaults and
their order are those of `module.generate(...)` for one row alone.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers.generation.configuration_utils import GenerationMode

from pipeline.errors import JobError, ModelError
from pipeline.text.tokens import Ids

Processors = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""ids_BL so far and scores_BV to scores_BV; transformers' LogitsProcessorList."""

_DEFAULT_NEW_TOKENS = 20  # what transformers takes where nobody sets a length
_KNOWN_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.BEAM_SEARCH)
# Warpers that sampling here has no counterpart for; the value is what leaves them out.
_FOREIGN_WARPERS = {"typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None}


@dataclass(frozen=True, slots=True)
class Decoding:
    """What the caller asks; None leaves it to the model's generation_config.json, and then to transformers."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | None = None
    no_repeat_ngram_size: int | None = None
    repetition_penalty: float | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    forced_bos_token_id: int | None = None  # M2M100 and NLLB: the language to write in
    seed: int = 0  # of sampling
    stop: tuple[str, ...] = ()  # an answer ends where its text holds one of these

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `generate` for what is asked."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("seed", "stop")}
        return {name: value for name, value in named.items() if value is not None}


class Rules:
    """`Decoding` over one model: every option has its value."""

    def __init__(self, module: Any, decoding: Decoding) -> None:
        """Resolve the options.

        Raises JobError for a way of decoding that is not one of greedy, beams and sampling; ModelError for a model
        without a decoder's first token.
        """
        self.decoding = decoding
        self._module = module
        config, _ = module._prepare_generation_config(None, num_return_sequences=1, **decoding.options())
        try:
            module._prepare_special_tokens(config, True, device=module.device, batch_size=1)
        except ValueError as fault:
            raise ModelError(f"{type(module).__name__} cannot generate: {fault}") from fault
        self.config = config
        self.is_seq2seq = bool(module.config.is_encoder_decoder)
        self.num_beams = int(config.num_beams or 1)
        self.samples = bool(config.do_sample)
        self._refuse_what_is_foreign()
        eos = config._eos_token_tensor
        self.eos_ids = frozenset() if eos is None else frozenset(eos.tolist())
        pad = config._pad_token_tensor
        self.pad_id = 0 if pad is None else int(pad)
        self.forces_eos = config.forced_eos_token_id is not None  # an answer at its limit ends like a whole one
        start = config._decoder_start_token_tensor
        self.start_id = int(start) if self.is_seq2seq else None
        self._has_own_max_length = module.generation_config.max_length is not None
        # Of a causal model too, whose prompt stands in for an encoder's.
        self._has_encoder_rules = (config.encoder_no_repeat_ngram_size or 0) > 0 or (
            config.encoder_repetition_penalty or 1.0
        ) != 1.0
        # A causal model's rules count the padding before a prompt, and an encoder's would see its padding.
        self.pads_beams = self.is_seq2seq and not self._has_encoder_rules
        self._by_prompt: dict[tuple[int, bytes], Processors | None] = {}

    def limit(self, prompt_tokens: int) -> int:
        """Tokens at which a row ends, its prompt (seq2seq: the decoder's first token) counted.

        Raises ValueError where the prompt alone reaches the model's own `max_length`.
        """
        config = self.config
        if config.max_new_tokens is not None:
            return prompt_tokens + int(config.max_new_tokens)
        if self._has_own_max_length:
            if prompt_tokens >= config.max_length:
                raise ValueError(
                    f"the prompt has {prompt_tokens} tokens, and the model's generation_config ends at max_length "
                    f"{config.max_length}; set max_new_tokens"
                )
            return int(config.max_length)
        positions = getattr(self._module.config, "max_position_embeddings", None)
        longest = prompt_tokens + _DEFAULT_NEW_TOKENS
        return longest if positions is None else min(longest, int(positions))

    def processors(self, prompt_ids: Ids) -> Processors | None:
        """What changes the scores of a row with this prompt, as for this row alone; None where nothing does.

        Rows that share the returned object may be processed together.
        """
        prompt_tokens = 1 if self.is_seq2seq else len(prompt_ids)
        key = (prompt_tokens, prompt_ids.tobytes() if self._has_encoder_rules else b"")
        if key not in self._by_prompt:
            self._by_prompt[key] = self._processors(prompt_ids, prompt_tokens)
        return self._by_prompt[key]

    def _processors(self, prompt_ids: Ids, prompt_tokens: int) -> Processors | None:
        config = copy.deepcopy(self.config)
        config.max_length = self.limit(prompt_tokens)
        if config.min_new_tokens is not None:
            config.min_length = prompt_tokens + config.min_new_tokens
        config.do_sample = False  # temperature, top-k and top-p are applied where the token is drawn
        made = self._module._get_logits_processor(
            generation_config=config,
            input_ids_seq_length=prompt_tokens,
            encoder_input_ids=torch.tensor(prompt_ids, dtype=torch.long, device=self._module.device)[None],
            device=self._module.device,
        )
        return made if len(made) else None

    def _refuse_what_is_foreign(self) -> None:
        config = self.config
        mode = config.get_generation_mode()
        if mode not in _KNOWN_MODES:
            raise JobError(f"decoding by {mode.value} is not supported; allowed: greedy, beams (num_beams), sampling")
        if config.guidance_scale not in (None, 1, 1.0):
            raise JobError(f"guidance_scale {config.guidance_scale} of the model's generation_config is not supported")
        for name, without in _FOREIGN_WARPERS.items():
            value = getattr(config, name, None)
            if self.samples and value is not None and value != without:
                raise JobError(
                    f"sampling with {name} {value} (the model's generation_config) is not supported; supported: "
                    "temperature, top_k, top_p, min_p"
                )


def ids_so_far(prompts: Sequence[Ids], answers: Sequence[Sequence[int]], start_id: int | None) -> torch.Tensor:
    """ids_BL of rows of one length, as logits processors see them: prompt (or the decoder's first token), answer."""
    if start_id is not None:
        return torch.tensor([[start_id, *answer] for answer in answers], dtype=torch.long)
    return torch.tensor([[*ids.tolist(), *answer] for ids, answer in zip(prompts, answers, strict=True)])
