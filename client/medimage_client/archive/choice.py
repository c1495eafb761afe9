"""Which images of a patient's studies a chest X-ray report takes, and why."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from medimage_client.archive.studies import Instance, Studies, Study
from medimage_client.errors import InvalidInput

View = Literal["PA", "AP", "frontal", "lateral", "other"]

RADIOGRAPHS = ("CR", "DX", "DR", "RG")  # Modality; the latter two of older devices
FRONTAL: tuple[View, ...] = ("PA", "AP", "frontal")  # the better first: a PA image shows the heart in its size
CHEST = re.compile(r"CHEST|THORAX|LUNG|RIB|PULMO|^$", re.IGNORECASE)  # Body Part Examined, which may be absent
FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.1.1"  # Digital X-Ray Image Storage - For Processing: not to be looked at

# View Position, defined terms of PS3.3 C.8.1.1.1.1 (CR) and C.8.11.5 (DX); decubitus and oblique ones are neither
POSITIONS: dict[str, View] = {"PA": "PA", "AP": "AP", "LL": "lateral", "RL": "lateral"}
POSITIONS |= dict.fromkeys(("RLD", "LLD", "RLO", "LLO"), "other")
# View Code, CID 4010 of PS3.16, as SNOMED CT and as SNOMED RT, which older objects have; each other code is neither
CODES: dict[str, View] = {
    "272479007": "PA",
    "R-40888": "PA",
    "R-10214": "PA",
    "399348003": "AP",
    "R-10206": "AP",
    "399033003": "frontal",
    "R-10202": "frontal",
    "399067008": "lateral",
    "R-102CD": "lateral",
    "399173006": "lateral",
    "R-10236": "lateral",
    "399198007": "lateral",
    "R-10232": "lateral",
}
WORDS: dict[str, View] = {"PA": "PA", "AP": "AP", "FRONTAL": "frontal"}
WORDS |= dict.fromkeys(("LAT", "LATERAL", "LL", "SEITLICH", "PROFIL", "PROFILE"), "lateral")
WORDS |= dict.fromkeys(("DECUB", "DECUBITUS", "OBLIQUE", "LORDOTIC"), "other")


@dataclass(frozen=True, slots=True)
class Choice:
    """The images of a report. An image that comes from elsewhere is None."""

    frontal: Instance
    lateral: Instance | None
    prior: Instance | None  # frontal, of the earlier study
    why: tuple[str, ...]  # a line an image, and one for what is missing

    @property
    def images(self) -> tuple[Instance, ...]:
        return tuple(one for one in (self.frontal, self.lateral, self.prior) if one is not None)


def choose(
    studies: Studies, *, frontal: str | None = None, lateral: str | None = None, prior: str | None = None
) -> Choice:
    """The images of the latest study, and the frontal one of the study before it.

    The view is told by View Position, else by the view code, else by the descriptions of series, protocol and
    processing; a study's only radiograph is taken as frontal. Of several frontal images a PA one comes first, then the
    one acquired last; the others are named.

    Args:
        frontal, lateral, prior: an image by its SOP Instance UID or its name, instead of the one that would be chosen;
            `none` for no lateral and no prior.

    Raises:
        InvalidInput: there is no radiograph of a chest, several patients, no way to tell which image is frontal, no
            image of that UID, or one that is asked for twice.
    """
    if len({one.patient_id for one in studies.instances if one.patient_id}) > 1:
        raise InvalidInput("there are studies of several patients; expected those of one")
    if frontal == "none":
        raise InvalidInput("frontal is none; a report needs a frontal image, so expected its SOP Instance UID")
    taken = {name: named(studies, value) for name, value in (("frontal", frontal), ("lateral", lateral)) if value}
    current = study_of(studies, taken.get("frontal")) or latest_of(studies)
    chosen, why = taken.get("frontal"), []
    if chosen is None:
        chosen, reason = choose_frontal(current)
        why.append(f"frontal: {reason}")
    else:
        why.append(f"frontal: {described(chosen)}, as asked")
    if lateral:
        side = taken["lateral"]
        why.append(f"lateral: {described(side)}, as asked" if side else "lateral: none, as asked")
    else:
        side, reason = choose_lateral(current, chosen)
        why.append(f"lateral: {reason}")
    if prior:
        before = named(studies, prior)
        why.append(f"prior: {described(before)}, as asked" if before else "prior: none, as asked")
    else:
        before, reason = choose_prior(studies, current)
        why.append(f"prior: {reason}")
    return distinct(Choice(chosen, side, before, tuple(why)))


def distinct(choice: Choice) -> Choice:
    """
    Raises:
        InvalidInput: an image is taken twice.
    """
    uids = [one.sop_uid for one in choice.images]
    twice = next((one for one in choice.images if uids.count(one.sop_uid) > 1), None)
    if twice is not None:
        raise InvalidInput(
            f"{described(twice)} is taken for two of frontal, lateral and prior; name another, or `none`"
        )
    return choice


def choose_frontal(study: Study) -> tuple[Instance, str]:
    """The frontal image of a study, and which and why.

    Raises:
        InvalidInput: no radiograph of a chest, or no way to tell.
    """
    candidates = radiographs(study)
    if not candidates:
        held = sorted({one.modality or "no modality" for one in study.instances})
        raise InvalidInput(
            f"the study has no radiograph of a chest (CR or DX), but {', '.join(held)}; say which image is frontal, "
            "by its SOP Instance UID"
        )
    views = {one.sop_uid: view_of(one) for one in candidates}
    frontal = [one for one in candidates if views[one.sop_uid][0] in FRONTAL]
    unknown = [one for one in candidates if views[one.sop_uid][0] is None]
    if not frontal and len(unknown) == 1:
        return unknown[0], f"{described(unknown[0])}, the only one whose view is not told"
    if not frontal:
        names = "; ".join(described(one) for one in unknown or candidates)
        raise InvalidInput(f"no image is told to be frontal; say which is, by its SOP Instance UID: {names}")
    ranked = best_first(frontal, [FRONTAL.index(views[one.sop_uid][0]) for one in frontal])
    return ranked[0], with_others(ranked, views[ranked[0].sop_uid][1])


def choose_lateral(study: Study, frontal: Instance) -> tuple[Instance | None, str]:
    candidates = [one for one in radiographs(study) if one.sop_uid != frontal.sop_uid]
    views = {one.sop_uid: view_of(one) for one in candidates}
    lateral = [one for one in candidates if views[one.sop_uid][0] == "lateral"]
    if not lateral:
        return None, "none in the study"
    ranked = best_first(lateral, [0] * len(lateral))
    return ranked[0], with_others(ranked, views[ranked[0].sop_uid][1])


def choose_prior(studies: Studies, current: Study) -> tuple[Instance | None, str]:
    """The frontal image of the latest study before, by date and time, that has one."""
    if not current.date:
        return None, "none, for the study has no date"
    earlier = [
        one for one in studies.studies if one.uid != current.uid and one.date and time_of(one) < time_of(current)
    ]
    for study in sorted(earlier, key=time_of, reverse=True):
        try:
            image, reason = choose_frontal(study)
        except InvalidInput:
            continue
        return image, f"{reason}; of the study of {study.date}"
    return None, "no earlier study" if not earlier else "no frontal image in the earlier studies"


def view_of(instance: Instance) -> tuple[View | None, str]:
    """The view and what tells it; None if nothing does."""
    position = instance.view.upper()
    if view := POSITIONS.get(position) or of_words(position):
        return view, f"View Position {position}"
    if instance.view_code:
        return CODES.get(instance.view_code, "other"), f"view code {instance.view_code}"
    for description in instance.descriptions:
        if view := of_words(description):
            return view, f"description {description!r}"
    return None, "view not told"


def of_words(description: str) -> View | None:
    """The view that a free text names; None if it names none, or a frontal and a lateral one."""
    words = re.findall(r"[A-Z]+", description.upper().replace(".", ""))
    views = {WORDS[word] for word in words if word in WORDS}
    if "other" in views:
        return "other"
    if views in ({"PA", "AP"}, {"PA", "AP", "frontal"}):
        return "frontal"
    views -= {"frontal"} if len(views) > 1 else set()
    return views.pop() if len(views) == 1 else None


def radiographs(study: Study) -> list[Instance]:
    """Single images of a chest, as far as the headers say so."""
    return [
        one
        for one in study.instances
        if one.modality in RADIOGRAPHS and CHEST.search(one.body_part) and one.n_frames == 1
    ]


def best_first(instances: Sequence[Instance], ranks: Sequence[int]) -> list[Instance]:
    """What is meant to be looked at, then by rank, then the one acquired last: a picture taken again was better."""
    latest = sorted(
        zip(instances, ranks, strict=True), key=lambda pair: (pair[0].acquired, pair[0].number or 0), reverse=True
    )
    latest.sort(key=lambda pair: (pair[0].sop_class_uid == FOR_PROCESSING, "SECONDARY" in pair[0].image_type, pair[1]))
    return [instance for instance, _ in latest]


def with_others(ranked: Sequence[Instance], reason: str) -> str:
    others = "; ".join(described(one) for one in ranked[1:])
    return f"{described(ranked[0])}, {reason}" + (f"; not taken: {others}" if others else "")


def described(instance: Instance) -> str:
    number, series = ("?" if n is None else n for n in (instance.number, instance.series_number))
    return f"image {number} of series {series} ({instance.sop_uid})"


def named(studies: Studies, name: str) -> Instance | None:
    if name == "none":
        return None
    found = [one for one in studies.instances if name in (one.sop_uid, one.name)]
    if not found:
        raise InvalidInput(f"there is no image {name}; expected a SOP Instance UID, as `medimage studies` shows it")
    return found[0]


def study_of(studies: Studies, instance: Instance | None) -> Study | None:
    return next((one for one in studies.studies if instance is not None and one.uid == instance.study_uid), None)


def latest_of(studies: Studies) -> Study:
    """The study of the latest time.

    Raises:
        InvalidInput: there is no image, or several studies are of that time.
    """
    if not studies.studies:
        raise InvalidInput("there is no DICOM image; `medimage studies` shows what there is")
    latest = max(map(time_of, studies.studies))
    found = [study for study in studies.studies if time_of(study) == latest]
    if len(found) > 1:
        uids = ", ".join(study.uid for study in found)
        raise InvalidInput(f"which study is the latest cannot be told, for their times are the same: {uids}; give one")
    return found[0]


def time_of(study: Study) -> tuple[str, str]:
    """Date and time; empty texts where they are not told."""
    return study.date, max(one.acquired for one in study.instances)
