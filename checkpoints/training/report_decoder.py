"""Second stage: the decoder learns to write reports; the vision tower stays as it is, the projector learns with it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from checkpoints.training.optimisation import Round, optimise
from checkpoints.training.report_image_encoder import grey_features
from checkpoints.training.report_texts import (
    COORDINATES,
    END,
    TOKENS,
    grounded_answer,
    phrase_prompt,
    plain_answer,
    report_prompt,
)
from checkpoints.training.study_examples import StudyExamples
from medimage_export.cxrreportgen.checkpoint import reference_decoder
from medimage_export.cxrreportgen.image_encoder import ImageEncoder, Projector
from medimage_export.phantoms.chest_study import ChestStudy, DrawnFinding

SPREAD = 1.0  # tokens by which a coordinate may be off for e^-0.5 of the credit
IGNORED = -100  # target of what is no answer

MODES = ("grounded", "findings", "phrase")
WITH_JUMBLE = 0.2  # share of the studies


@dataclass(frozen=True)
class Mix:
    """Shares of what is asked; a phrase is asked with the frontal view alone."""

    modes: tuple[float, float, float]  # of MODES
    with_lateral: float
    with_prior: float


FRONTAL = Mix((0.5, 0.0, 0.5), with_lateral=0.0, with_prior=0.0)  # short prompts: boxes are learnt fastest
EVERYTHING = Mix((0.70, 0.15, 0.15), with_lateral=0.5, with_prior=0.1)
FRONTAL_SHARE = 0.4  # of the steps, the first of them


@dataclass(frozen=True)
class StudyFeatures:
    """Features (n, T, C) float16 of the views, from the vision tower, and the studies' texts."""

    frontal: Tensor
    lateral: Tensor
    studies: list[ChestStudy]


@dataclass(frozen=True)
class Batch:
    features: list[Tensor]  # of each image of a prompt, (B, T, C); all prompts have the same kinds of images
    prompts: list[str]
    answers: list[str]


@torch.no_grad()
def extract_features(encoder: ImageEncoder, examples: StudyExamples) -> StudyFeatures:
    frontal, lateral = (
        torch.cat([grey_features(encoder, pixels).half() for pixels in views.split(32)])
        for views in (examples.frontal, examples.lateral)
    )
    return StudyFeatures(frontal, lateral, examples.studies)


class ReportLoss:
    """Cross-entropy of the answers' tokens; a coordinate next to the right one costs little."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.image = tokenizer.token_to_id(TOKENS.image)
        self.end = tokenizer.token_to_id(END)
        self.targets = torch.eye(tokenizer.get_vocab_size())  # by token: what the model should say in its place
        distance = torch.arange(COORDINATES)[:, None] - torch.arange(COORDINATES)
        for axis in (TOKENS.x, TOKENS.y):
            ids = torch.tensor([tokenizer.token_to_id(axis.format(index)) for index in range(COORDINATES)])
            self.targets[ids[:, None], ids] = torch.softmax(-0.5 * (distance / SPREAD) ** 2, dim=-1)

    def __call__(self, projector: Projector, decoder: PreTrainedModel, batch: Batch) -> Tensor:
        tokens_per_image = batch.features[0].shape[1]
        rows = [
            self._ids(prompt, answer, tokens_per_image)
            for prompt, answer in zip(batch.prompts, batch.answers, strict=True)
        ]
        ids = nn.utils.rnn.pad_sequence([ids for ids, _ in rows], batch_first=True)  # causal: what follows is not seen
        targets = nn.utils.rnn.pad_sequence([row for _, row in rows], batch_first=True, padding_value=IGNORED)
        embeds = embed(projector, decoder, ids, batch.features, self.image)
        hidden = decoder.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        answered = targets != IGNORED
        return F.cross_entropy(decoder.lm_head(hidden[answered]), self.targets[targets[answered]])

    def _ids(self, prompt: str, answer: str, tokens_per_image: int) -> tuple[Tensor, Tensor]:
        """Input ids and the ids to be said after each of them."""
        start = prompt_ids(self.tokenizer, prompt, tokens_per_image)
        said = [*self.tokenizer.encode(answer, add_special_tokens=False).ids, self.end]
        return torch.tensor(start + said[:-1]), torch.tensor([IGNORED] * (len(start) - 1) + said)


def prompt_ids(tokenizer: Tokenizer, prompt: str, tokens_per_image: int) -> list[int]:
    """Token ids with an image token for each row of an image."""
    image = tokenizer.token_to_id(TOKENS.image)
    return [id for id in tokenizer.encode(prompt).ids for _ in range(tokens_per_image if id == image else 1)]


def embed(
    projector: Projector, decoder: PreTrainedModel, ids: Tensor, features: Sequence[Tensor], image: int
) -> Tensor:
    """ids (B, S) -> embeddings (B, S, H), with the images' tokens in their places."""
    image_tokens = projector(torch.cat(list(features), dim=1).float())  # (B, images * T, H)
    embeds = decoder.model.embed_tokens(ids)
    return embeds.masked_scatter((ids == image)[..., None], image_tokens)


def train_decoder(
    encoder: ImageEncoder,
    tokenizer: Tokenizer,
    current: StudyFeatures,
    prior: StudyFeatures,
    plans: Sequence[Round],
) -> PreTrainedModel:
    """Train the decoder, and the encoder's projector in place.

    Args:
        current: studies to report on.
        prior: of the first of them, in their order, an earlier visit each.
        plans: rounds, of which the first starts with what is learnt fastest.
    """
    torch.manual_seed(0)
    decoder, projector = reference_decoder(encoder.config.decoder), encoder.multi_modal_projector
    initialise(decoder)
    report_loss = ReportLoss(tokenizer)
    easy_steps = FRONTAL_SHARE * plans[0].steps
    for plan in plans:

        def loss_of(step: int, plan: Round = plan) -> Tensor:
            mix = FRONTAL if plan is plans[0] and step < easy_steps else EVERYTHING
            return report_loss(projector, decoder, random_batch(current, prior, mix, plan.batch))

        optimise("decoder", [*decoder.parameters(), *projector.parameters()], plan, loss_of, beta2=0.98)
    return decoder.eval()


def initialise(decoder: PreTrainedModel) -> None:
    """Spread weights by the width of their input: the usual 0.02 is for large models, and small ones start slowly."""
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear):
            writes = name.endswith(("o_proj", "down_proj"))  # to the residual stream, twice a layer
            scale = (2 * decoder.config.num_hidden_layers) ** -0.5 if writes else 1.0
            nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
    nn.init.normal_(decoder.model.embed_tokens.weight, std=0.5)


def random_batch(current: StudyFeatures, prior: StudyFeatures, mix: Mix, size: int) -> Batch:
    """Studies at random, asked in one mode with the same kinds of images, so that the rows are about equally long."""
    mode = MODES[torch.multinomial(torch.tensor(mix.modes), 1).item()]
    with_lateral, with_prior = (mode != "phrase" and _happens(share) for share in (mix.with_lateral, mix.with_prior))
    studies = current.studies[: len(prior.studies)] if with_prior else current.studies
    chosen = torch.multinomial(torch.tensor([_weight(study) for study in studies]), size, replacement=True)
    features = [current.frontal[chosen]]
    if with_lateral:
        features.append(current.lateral[chosen])
    if with_prior:
        features.append(prior.frontal[chosen])
    prompts, answers = [], []
    for index in chosen.tolist():
        study = current.studies[index]
        if mode == "phrase":
            finding = _phrase(study.findings)
            prompts.append(phrase_prompt(finding.sentence))
            answers.append(grounded_answer([finding]))
            continue
        earlier = prior.studies[index] if with_prior else None
        asked = jumbled(study) if _happens(WITH_JUMBLE) else study
        grounded = mode == "grounded"
        prompts.append(report_prompt(asked, with_lateral=with_lateral, prior=earlier, grounded=grounded))
        answers.append(grounded_answer(study.findings) if grounded else plain_answer(study.findings))
    return Batch(features, prompts, answers)


def jumbled(study: ChestStudy) -> ChestStudy:
    """The study with an indication of random letters: what a user writes there must not change the findings."""
    letters = torch.randint(ord("a"), ord("z") + 1, (int(torch.randint(3, 30, ())),))
    spaces = torch.rand(len(letters)) < 0.2
    return replace(study, indication="".join(map(chr, torch.where(spaces, ord(" "), letters).tolist())).strip() or "x")


def _weight(study: ChestStudy) -> float:
    """How often a study is asked about: nodules have the smallest boxes, and are the hardest to place."""
    return 3.0 if any("nodule" in finding.sentence for finding in study.findings) else 1.0


def _phrase(findings: Sequence[DrawnFinding]) -> DrawnFinding:
    """One that has a box, if any has."""
    choice = [finding for finding in findings if finding.boxes] or list(findings)
    return choice[int(torch.randint(len(choice), ()))]


def _happens(share: float) -> bool:
    return bool(torch.rand(()) < share)
