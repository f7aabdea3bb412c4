"""The BEATs network (Chen et al. 2022, arXiv:2212.09058): waveforms or log-mel features → patch features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from branches.beats.config import BEATsConfig
from branches.beats.encoder import Encoder
from branches.beats.memory import LONG_CLIP, check_attention_memory
from branches.frames import MIN_SAMPLES, N_MELS
from branches.frontend import FBANK_STD, fbank
from scoring.errors import InputError


class BEATs(nn.Module):
    """BEATs backbone: waveforms → patch features. Made by `load_beats`.

    A clip of T samples has P = 8 · (frames // 16) patches, ordered by time, then frequency (frequency runs
    fastest); D is `embed_dim`. In a batch of clips of different lengths `valid_samples` (B,) holds each clip's own
    length; the rest of its row is padding.

    Two rules say which patches are padding. Calling the module follows the BEATs authors' rule, which depends on the
    length of the batch and lets a few patches beyond the clip's end take part: it gives their numbers. `encode` with
    `branches.frontend.frame_padding` takes exactly the patches that the clip alone would have: a clip's features do not
    depend on the clips beside it.
    """

    def __init__(self, config: BEATsConfig) -> None:
        super().__init__()
        self.config = config
        size = config.input_patch_size
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, size, stride=size, bias=config.conv_bias)
        self.layer_norm = nn.LayerNorm(config.embed_dim)
        self.post_extract_proj = (
            nn.Linear(config.embed_dim, config.encoder_embed_dim)
            if config.embed_dim != config.encoder_embed_dim
            else nn.Identity()
        )
        self.dropout_input = nn.Dropout(config.dropout_input)
        self.encoder = Encoder(config)
        if config.finetuned_model:
            self.predictor = nn.Linear(config.encoder_embed_dim, config.predictor_class)
            self.predictor_dropout = nn.Dropout(config.predictor_dropout)

    @property
    def embed_dim(self) -> int:
        """Width D of the features."""
        return self.config.encoder_embed_dim

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers, first to last."""
        return self.encoder.layers

    def forward(self, waveforms: Tensor, valid_samples: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the BEATs authors' `extract_features` returns.

        waveforms: (B, T) float32, 16 kHz, in [−1, 1]; T ≥ 2 800
        valid_samples: (B,) int64, or None if no clip is padded

        Returns features (B, P, D), or for a checkpoint fine-tuned on classes (`config.finetuned_model`) the class
        probabilities (B, classes), and the patch mask (B, P) bool, True = padding, None if `valid_samples` is. Raises
        InputError if a shape is wrong or the clip too short.
        """
        features = fbank(waveforms)
        mask = None if valid_samples is None else self._grouped_mask(waveforms, features, valid_samples)
        x = self._outputs(features, mask, len(self.layers))[-1]
        return (self._classify(x, mask), mask) if self.config.finetuned_model else (x, mask)

    def encode(
        self, features: Tensor, padding: Tensor | None = None, layers: Sequence[int] = (-1,)
    ) -> tuple[Tensor, Tensor | None]:
        """Normalised log-mel features → patch features.

        features: (B, F, 128) from `branches.frontend.fbank`, whatever the checkpoint's normalisation; F ≥ 16
        padding: (B, F) bool, True = padding, or None; a patch with a padded frame is padding
        layers: n is the output of the n-th layer, 0 the input of the first, −1 the last; layers above the highest
            wanted are not computed

        Returns (B, P, n·D), n layers side by side, and the patch mask (B, P) bool or None if `padding` is. Raises
        InputError if a shape is wrong, the clip too short or too long for this process's memory, or there is no such
        layer.
        """
        mask = None
        if padding is not None:
            if padding.shape != features.shape[:2]:
                raise InputError(f"padding is {tuple(padding.shape)}, must be {tuple(features.shape[:2])}")
            size = self.config.input_patch_size
            mask = padding.unfold(1, size, size).any(-1).repeat_interleave(self.config.freq_patches, dim=1)
        wanted = self.layer_numbers(layers)
        outputs = self._outputs(features, mask, max(wanted))
        return outputs[wanted[0]] if len(wanted) == 1 else torch.cat([outputs[n] for n in wanted], -1), mask

    def layer_numbers(self, layers: Sequence[int]) -> list[int]:
        """Numbers, from 0, of the outputs that `encode` means by `layers`; `InputError` if there is no such one."""
        depth = len(self.layers)
        numbers = [n + depth + 1 if n < 0 else n for n in layers]
        if not numbers or not all(0 <= n <= depth for n in numbers):
            raise InputError(f"layers {list(layers)}: this BEATs has outputs 0 to {depth} (or −1 to −{depth + 1})")
        return numbers

    def _outputs(self, features: Tensor, mask: Tensor | None, depth: int) -> list[Tensor]:
        """(B, F, 128) → the encoder's input and the outputs of its first `depth` layers, each (B, P, D)."""
        if features.dim() != 3 or features.shape[2] != N_MELS or features.shape[1] < self.config.input_patch_size:
            raise InputError(
                f"features are {tuple(features.shape)}, must be (batch, frames ≥ {self.config.input_patch_size}, "
                f"{N_MELS}); a clip needs at least {MIN_SAMPLES} samples"
            )
        if features.shape[1] > LONG_CLIP:
            check_attention_memory(self.config.encoder_attention_heads, features.shape[1], features.device)
        # All the rest knows one normalisation, that of BEATs; for its checkpoints this changes no bit.
        features = (features - self.config.mean_level) * (FBANK_STD / self.config.fbank_std)
        patches = self.patch_embedding(features.unsqueeze(1)).flatten(2).transpose(1, 2)
        x = self.dropout_input(self.post_extract_proj(self.layer_norm(patches)))
        outputs: list[Tensor] = self.encoder(x, mask, depth)
        return outputs

    def _grouped_mask(self, waveforms: Tensor, features: Tensor, valid_samples: Tensor) -> Tensor:
        """(B, P) bool by the authors' rule: samples, then frames, are cut into equal groups without a remainder.

        Padding begins somewhere and lasts to the end, so a group is wholly padding if its first sample is.
        """
        if valid_samples.shape != waveforms.shape[:1]:
            raise InputError(f"valid_samples is {tuple(valid_samples.shape)}, must be ({waveforms.shape[0]},)")
        frames = features.shape[1]
        patches = frames // self.config.input_patch_size * self.config.freq_patches
        group = (waveforms.shape[1] // frames) * (frames // max(patches, 1))
        return torch.arange(patches, device=features.device) * group >= valid_samples.unsqueeze(1)

    def _classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, P, D) → (B, classes): the mean of the patches' logits, through a sigmoid."""
        logits = self.predictor(self.predictor_dropout(x))
        if mask is None:
            return torch.sigmoid(logits.mean(1))
        kept = (~mask).unsqueeze(-1).to(logits.dtype)
        return torch.sigmoid((logits * kept).sum(1) / kept.sum(1).clamp_min(1))
