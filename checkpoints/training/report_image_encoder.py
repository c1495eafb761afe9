"""First stage: the image encoder alone learns what the drawings show, and where.

A linear probe on each image token tells whether the image is a lateral view, which findings the study has, which of
them the token's patch shows, and that finding's box. So what the decoder needs lies open in the tokens: it has to find
the patch of a finding and to copy the box.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checkpoints.training.optimisation import Round, optimise
from checkpoints.training.report_texts import COORDINATES
from checkpoints.training.study_examples import LABEL_STEP, StudyExamples
from medimage_export.cxrreportgen.config import CXRReportGenConfig
from medimage_export.cxrreportgen.image_encoder import ImageEncoder
from medimage_export.phantoms.chest_study import SENTENCES

LATERAL_SHARE = 4  # one of so many images is a lateral view
SHIFT = 3  # labels by which an image is moved at most, in x and in y
SAMPLES = 4  # labels along a patch's side that are looked at
COVERED = 3  # of SAMPLES² labels, from which on a patch shows a finding
SPREAD = 1.5  # hundredths by which a coordinate may be off for e^-0.5 of the credit

FINDINGS = len(SENTENCES)


class Probe(nn.Module):
    """image_tokens (B, T, H) -> logits (B, T, .) of the token's finding (0: none), the study's findings, the view."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.finding = nn.Linear(hidden_size, 1 + FINDINGS)
        self.study = nn.Linear(hidden_size, FINDINGS)
        self.view = nn.Linear(hidden_size, 1)
        self.box = nn.Linear(hidden_size, 4 * COORDINATES)  # of the token's own finding


def train_image_encoder(config: CXRReportGenConfig, examples: StudyExamples, rounds: Sequence[Round]) -> ImageEncoder:
    torch.manual_seed(0)
    encoder, probe = ImageEncoder(config), Probe(config.decoder.hidden_size)
    for plan in rounds:
        train_round(encoder, probe, examples, plan)
    return encoder.eval()


def train_round(encoder: ImageEncoder, probe: Probe, examples: StudyExamples, plan: Round) -> None:
    """Train both in place."""

    def loss_of(step: int) -> Tensor:
        return probe_loss(probe, encoder, *augmented(examples, torch.randint(len(examples), (plan.batch,))))

    optimise("image encoder", [*encoder.parameters(), *probe.parameters()], plan, loss_of, beta2=0.999)


def n_frontals(n_images: int) -> int:
    """The first images of a batch are frontal views, the others lateral ones."""
    return n_images - n_images // LATERAL_SHARE


def probe_loss(probe: Probe, encoder: ImageEncoder, pixels: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
    """Loss of a batch whose last images are lateral views, which show no token's finding.

    Args:
        pixels: (B, S, S) in 0 .. 255.
        labels: (B, L, L), see StudyExamples.
        boxes: (B, FINDINGS, 4), see StudyExamples.
    """
    frontals, config = n_frontals(len(pixels)), encoder.config
    shown = patch_findings(labels, config.vision.image_size, config.vision.patch_size)  # (B, T)
    shown[frontals:] = 0
    tokens = encoder.multi_modal_projector(grey_features(encoder, pixels))
    weight = torch.tensor([1.0] + [3.0] * FINDINGS)  # most patches show nothing
    finding = F.cross_entropy(probe.finding(tokens).flatten(0, 1), shown.flatten(), weight)
    is_lateral = (torch.arange(len(pixels)) >= frontals).float()[:, None, None].expand(-1, tokens.shape[1], 1)
    view = F.binary_cross_entropy_with_logits(probe.view(tokens), is_lateral)
    present = (~boxes[:frontals, :, 0].isnan()).float()[:, None].expand(-1, tokens.shape[1], -1)
    study = F.binary_cross_entropy_with_logits(probe.study(tokens[:frontals]), present)

    image, patch = shown.nonzero(as_tuple=True)
    target = boxes[image, shown[image, patch] - 1]
    whole = target.isnan().any(dim=1).logical_not()
    image, patch, target = image[whole], patch[whole], target[whole]
    logits = probe.box(tokens[image, patch]).unflatten(1, (4, COORDINATES))
    box = -(soft_coordinates(target) * logits.log_softmax(-1)).sum(-1).mean(-1)
    # A finding counts once, however many patches show it.
    key = image * (FINDINGS + 1) + shown[image, patch]
    share = 1 / torch.bincount(key)[key]
    return 2 * finding + view + study + (box * share).sum() / share.sum().clamp(min=1)


def grey_features(encoder: ImageEncoder, pixels: Tensor) -> Tensor:
    """The vision tower's features of pixels (B, S, S), in a third of the time: the three channels are equal.

    Their weights are added up, scaling and normalisation are put into them, and the convolution becomes a product.
    """
    tower, patch = encoder.vision_tower, encoder.config.vision.patch_size
    projection = tower.embeddings.patch_embeddings.projection
    weight = (projection.weight / (255 * encoder.std)).sum(dim=1).flatten(1)  # (C, patch²)
    bias = projection.bias - (projection.weight * (encoder.mean / encoder.std)).sum(dim=(1, 2, 3))
    # (B, grid, grid, patch, patch)
    squares = pixels.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).transpose(2, 3)
    patches = F.linear(squares.flatten(3).flatten(1, 2).to(weight.dtype), weight, bias)
    x = torch.cat([tower.embeddings.cls_token.expand(len(patches), -1, -1), patches], 1)
    x = x + tower.embeddings.position_embeddings
    for block in tower.encoder.layer:
        x = block(x)
    return tower.layernorm(x)[:, 1:]


def patch_findings(labels: Tensor, image_size: int, patch_size: int) -> Tensor:
    """The finding that each patch shows most of, 0 for none; (B, L, L) -> (B, patches) int64."""
    grid = image_size // patch_size
    inside = (torch.arange(SAMPLES) + 0.5) / SAMPLES * patch_size
    at = ((torch.arange(grid) * patch_size)[:, None] + inside).flatten().div(LABEL_STEP).long()
    sampled = labels[:, at][:, :, at].unflatten(2, (grid, SAMPLES)).unflatten(1, (grid, SAMPLES))
    counts = F.one_hot(sampled.long(), 1 + FINDINGS).sum(dim=(2, 4)).flatten(1, 2)  # (B, patches, 1 + FINDINGS)
    most, finding = counts[..., 1:].max(dim=-1)
    return torch.where(most >= COVERED, finding + 1, 0)


def soft_coordinates(edges: Tensor) -> Tensor:
    """Edges as fractions (...) -> probabilities (..., COORDINATES) about their own hundredth."""
    distance = torch.arange(COORDINATES) + 0.5 - edges[..., None] * COORDINATES
    return torch.softmax(-0.5 * (distance / SPREAD) ** 2, dim=-1)


def augmented(examples: StudyExamples, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Frontal views of the chosen studies, lateral ones at the end; each moved and exposed anew.

    Nothing is mirrored: left and right are part of a finding.
    """
    size = examples.frontal.shape[1]
    frontals = n_frontals(len(chosen))
    shifts = torch.randint(-SHIFT, SHIFT + 1, (len(chosen), 2))
    views = torch.cat([examples.frontal[chosen[:frontals]], examples.lateral[chosen[frontals:]]])
    labels = examples.labels[chosen]
    for image, label, (down, right) in zip(views, labels, shifts.tolist(), strict=True):
        _move(image, down * LABEL_STEP, right * LABEL_STEP)
        _move(label, down, right)
    move = shifts.flip(1).repeat(1, 2)[:, None] * (LABEL_STEP / size)  # x, y, x, y
    return re_exposed(views), labels, (examples.boxes[chosen] + move).clamp(0, 1)


def _move(image: Tensor, down: int, right: int) -> None:
    """In place; the strip that comes free keeps what it had."""
    height, width = image.shape
    rows, columns = height - abs(down), width - abs(right)
    source = image[max(-down, 0) :, max(-right, 0) :][:rows, :columns]
    image[max(down, 0) :, max(right, 0) :][:rows, :columns] = source.clone()


def re_exposed(pixels: Tensor) -> Tensor:
    """Change contrast and brightness a little, image by image; pixels (B, S, S) in 0 .. 255, now float."""
    gain, offset = torch.empty(2, len(pixels), 1, 1).uniform_(-1, 1)
    return pixels.float().mul_(1 + 0.15 * gain).add_(10 * offset).clamp_(0, 255)
