"""A step in which every request decodes, replayed: the loops of the whole model in one call.

Its inputs are copied to where the recorded loops read them. Steps with prompts go through `DecoderModel` as ever, and
so do all steps of a model with an operation that is not a loop.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.replay import Recorder, Replay, record
from octavo.services.executor.batch import Batch, PagedAttention
from octavo.services.executor.cache import KvCache
from octavo.services.executor.models.decoder import Angles, DecoderModel

MOST_ROWS = 64  # memory is kept for two layers of so many rows and for their logits


@dataclass(frozen=True)
class DecodeReplay:
    """A model's decode step for up to `max_rows` requests."""

    max_rows: int
    _model: DecoderModel
    _hidden: Tensor  # [max_rows, hidden]: the embedded tokens
    _angles: Angles
    _batch: Batch  # of max_rows decoding requests
    _replay: Replay
    _logits: Tensor  # [max_rows, vocab]

    def can_run(self, batch: Batch) -> bool:
        return not batch.chunk_lengths and batch.num_decoding <= self.max_rows

    def run(self, batch: Batch) -> Tensor:
        """Compute a batch that this `can_run`. Returns the logits, [rows, vocab], until the next run changes them."""
        rows = batch.num_decoding
        self._hidden[:rows] = self._model.embedded(batch.token_ids, batch.positions)
        self._angles.move_to(batch.positions)
        self._batch.places[:rows] = batch.places
        self._batch.decode_tables[:rows] = batch.decode_tables
        self._batch.decode_lengths[:rows] = batch.decode_lengths
        self._replay.run(rows)
        return self._logits[:rows]


def record_decode(model: DecoderModel, cache: KvCache, max_rows: int, max_blocks: int) -> DecodeReplay | None:
    """The replay of up to max_rows requests, of one if products of more rows are not loops, or None."""
    return _record(model, cache, min(max_rows, MOST_ROWS), max_blocks) or _record(model, cache, 1, max_blocks)


@torch.inference_mode()
def _record(model: DecoderModel, cache: KvCache, rows: int, max_blocks: int) -> DecodeReplay | None:
    zeros = torch.zeros(rows, dtype=torch.int64)
    hidden, angles, batch = model.embedded(zeros, zeros), model.angles(zeros), _decoding(rows, max_blocks)
    angles.move_to(zeros)
    attend = PagedAttention(batch, cache)

    def compute(recorder: Recorder) -> Tensor:
        x = hidden
        for layer in model.layers:
            recorder.begin_part()
            x = layer(x, angles, attend)
        recorder.begin_part()
        return model.logits(x)

    recorded = record(compute, rows)
    return None if recorded is None else DecodeReplay(rows, model, hidden, angles, batch, *recorded)


def _decoding(rows: int, max_blocks: int) -> Batch:
    """A batch of so many decoding requests, of whom nothing is known."""
    zeros = torch.zeros(rows, dtype=torch.int64)
    return Batch(
        token_ids=zeros,
        positions=zeros,
        places=zeros.clone(),
        sampled_rows=torch.arange(rows),
        sampled_slots=list(range(rows)),
        num_decoding=rows,
        decode_tables=torch.zeros(rows, max_blocks, dtype=torch.int32),
        decode_lengths=torch.zeros(rows, dtype=torch.int32),
        max_decode_length=0,
        chunk_lengths=[],
        chunk_totals=[],
        chunk_tables=torch.zeros(0, max_blocks, dtype=torch.int32),
    )
