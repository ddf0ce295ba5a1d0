"""Real architectures that measure `kt.suggest_rename`: files of other libraries, Keras models.

Run `python -m tests.real.architectures` for a table. Needs `transformers`, `timm`, `torchvision`,
`keras-hub` and `flax`.
"""

from tests.real.architectures import (
    flax_cases,
    rnn_cases,
    transformers_decoders,
    transformers_encoders,
    transformers_images,
    transformers_pairs,
    transformers_seq2seq,
    vision_applications,
    vision_hub,
)
from tests.real.architectures.case import Case

CASES: tuple[Case, ...] = (
    *transformers_encoders.CASES,
    *transformers_decoders.CASES,
    *transformers_seq2seq.CASES,
    *transformers_images.CASES,
    *transformers_pairs.CASES,
    *vision_hub.CASES,
    *vision_applications.CASES,
    *flax_cases.CASES,
    *rnn_cases.CASES,
)
