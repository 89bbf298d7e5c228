"""The numbers of a run in words: what each is called, what is best, what knowing nothing gives, how to read it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Numbers = Mapping[str, Any]

# Columns of the table of images, and what the images can be sorted by.
COLUMNS = {"image_id": "image", "f1": "F1", "iou": "IoU", "single_f1": "F1 of single draws", "mean_std": "mean std",
           "aji": "AJI", "pq": "PQ", "objects": "objects found", "true_objects": "true objects"}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One number of the report. value: as text, None where there is none. hint: how to read it. best: the best value;
    guess: what knowing nothing gives; empty where that says nothing. why: the reason if there is no value."""

    name: str
    value: str | None
    hint: str
    best: str = ""
    guess: str = ""
    why: str = "not measured"


def number(value: float | None, form: str = ".4f") -> str | None:
    """As text; None for None and what is not finite."""
    return None if value is None or not math.isfinite(value) else format(value, form)


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def headline(summary: Numbers) -> list[Line]:
    """What a reader looks for first. Scores only where there was a truth to compare with."""
    lines = []
    if "mmse" in summary:
        mmse, single = summary["mmse"], summary["single"]
        spread = f"± {mmse['f1_std']:.3f} between images; all pixels together {mmse['f1_pooled']:.4f}"
        gain = mmse["f1"] - single["f1"]
        lines = [
            Line("F1 of the mean", number(mmse["f1"]),
                 f"Overlap of the MMSE mask with the truth, 1 is best. {spread}."),
            Line("IoU of the mean", number(mmse["iou"]), "The same as intersection over union, 1 is best. "
                 f"All pixels together {mmse['iou_pooled']:.4f}."),
            Line("F1 of single draws", number(single["f1"]), f"The mean of the draws is {abs(gain):.4f} "
                 f"{'better' if gain >= 0 else 'worse'}. IoU {single['iou']:.4f}."),
        ]  # fmt: skip
    draws, nfe = summary["draws"], summary["nfe_per_draw"]
    return [
        *lines,
        Line("NFE", f"{draws:.4g} × {nfe:g}", f"Network evaluations (NFE): {nfe:g} for a draw, {draws:.4g} "
             f"draw{'' if draws == 1 else 's'} of each image."),
        Line("seconds per image", number(summary.get("seconds_per_image"), ".2f"),
             f"All draws of an image on {summary.get('device', 'this device')}; at most "
             f"{summary.get('peak_memory_mib', 0):.0f} MiB."),
    ]  # fmt: skip


def class_scores(summary: Numbers) -> list[tuple[str, str | None, str | None, str | None]]:
    """Name, F1 and IoU of the mean and F1 of single draws of every class; empty for one class."""
    mmse, single = (summary.get(name, {}).get("classes", {}) for name in ("mmse", "single"))
    return [(k, number(own["f1"]), number(own["iou"]), number(single[k]["f1"])) for k, own in mmse.items()]


def spread(summary: Numbers) -> list[Line]:
    """Is the truth like one more draw? Empty where that was not measured."""
    own: Numbers = summary.get("spread") or {}
    if not own:
        return []
    image, objects = own["image_area"], own["object_area"]
    usual = number(own["ged"])
    chosen = "on the validation images" if own["jitter_of"] == "validation" else "as the best one on these images"

    def inside(area: Numbers, name: str, what: str) -> Line:
        return Line(f"true {name} areas inside the draws' range", number(area["coverage"], ".3f"),
                    f"How often the draws' areas hold the true one, of {area['cases']} {what}. Less: the draws are too "
                    "alike; more: they differ too much.", number(area["expected"], ".3f") or "", "",
                    "needs several draws")  # fmt: skip

    def even(area: Numbers, name: str, more: str = "") -> Line:
        p = "< 0.0001" if area["p"] < 1e-4 else number(area["p"])
        test = f"chi-square {area['chi_square']:.3g} with {area['degrees_of_freedom']} degrees of freedom"
        return Line(f"evenness of the {name} areas' ranks (p)", p,
                    f"Chance that true draws have ranks as uneven as in the chart ({test}). Below 0.05 they are hardly "
                    f"true.{more}")  # fmt: skip

    return [
        Line("spread-skill ratio (SSR)", number(own["ssr"], ".3f"),
             "How far the draws differ, over how far their mean is off. Below 1 they are too alike and the std map "
             "promises too much; above 1 they differ too much.", "1", "", "one draw has no spread"),
        inside(image, "image", "images" if image["cases"] == own["images"] else "masks of raters"),
        inside(objects, "object", "objects"),
        Line("lost matches", number(objects["lost"], ".3f"),
             "Share of draws in which a true object has no match: missing, or one with its neighbour. Its area "
             "counts as 0 there, so where many are lost the line above says little.", "0", "", "no true objects"),
        *([even(image, "image")] if image["ranks"] else []),
        *([even(objects, "object", " Objects of one image go together, which makes this too small.")]
          if objects["ranks"] else []),
        Line("fair CRPS", number(own["fair_crps"]),
             "Error of a draw less half of how far two draws differ, per pixel, in SDF units; less is better, and on "
             f"average nothing beats true draws. Near the border {number(own['fair_crps_band']) or '–'}.", "0"),
        Line("energy score", number(own["energy"]),
             "The same of whole draws: it also sees whether pixels go together as they should.", "0", "",
             "needs draws"),
        Line("fair CRPS of the masks", number(own.get("mask_crps")),
             "The same of each draw's mask, made an SDF again: for systems whose draws are no SDFs, or blurred ones. "
             f"Energy score {number(own.get('mask_energy')) or '–'}.", "0", "", "needs draws"),
        Line("fair GED", number(own["fair_ged"]),
             "The same of masks, distance 1 − IoU; compares at any number of draws."
             + (f" The usual GED, which likes alike draws: {usual}." if usual else ""), "0", "", "needs draws"),
        Line("skill over a constant std", number(own["skill"], ".3f"),
             f"Share of the CRPS that is saved against the same mean with a std of {own['jitter']:.2f} at every pixel, "
             f"chosen {chosen}. Below 0 the draws know less than that.", "1", "0", "no error at all"),
    ]  # fmt: skip


def uncertainty(summary: Numbers) -> list[Line]:
    """Does the standard deviation say where the error is, and the probability how often?"""
    own: Numbers = summary.get("uncertainty") or {}
    if not own:
        return []
    flat = summary["draws"] <= 1 and not own.get("pearson")
    why = "one draw has no spread" if flat else "std or error is the same everywhere"
    no_error = "the MMSE has no error at all"
    low, high = (number(own.get(f"image_rank_correlation_{end}"), ".2f") for end in ("low", "high"))
    interval = f" 95 % interval {low} to {high}: other images like these." if low and high else ""
    draws = summary["draws"]
    know = "One draw knows" if draws <= 1 else f"{draws:.4g} draws know"
    return [
        Line("rank correlation of std and error (Spearman)", number(own.get("spearman"), ".3f"),
             "Are pixels with a larger std also more wrong? Only the order counts.", "1", "0", why),
        Line("correlation of std and error (Pearson)", number(own.get("pearson"), ".3f"),
             "The same for the values themselves, as on a straight line.", "1", "0", why),
        Line("AUSE", number(own.get("ause")),
             "Area between the two curves of the sparsification chart: how much error stays because std does not know "
             "the worst pixels. In units of the mean error.", "0", number(own.get("ause_random")) or "", no_error),
        Line("AURC", number(own.get("aurc")),
             "Share of wrong pixels if only the surest are kept, on average over how many are kept.",
             number(own.get("aurc_best")) or "", number(own.get("aurc_random")) or "", "no pixels"),
        Line("ECE (expected calibration error)", number(own.get("ece")),
             "Mean gap between the share of draws that say foreground and how often it is. Certain background counts "
             f"most. {know} only {draws + 1:.4g} shares, which alone adds to it.", "0", "", "no pixels"),
        Line("ECE, bins of equal size", number(own.get("ece_adaptive")),
             "The same with about as many pixels in every bin.", "0", "", "no pixels"),
        Line("Brier score", number(own.get("brier")),
             "Mean squared gap between that share and the truth (0 or 1). Knowing nothing: always say the overall "
             "share of foreground.", "0", number(own.get("brier_uncertainty")) or "", "no pixels"),
        Line("image rank correlation", number(own.get("image_rank_correlation"), ".3f"),
             "Does a large mean std point to images with a low F1, the ones a person should check?" + interval, "1",
             "0", "too few images, or all have the same std or F1"),
        Line("image AURC", number(own.get("image_aurc")),
             "Mean 1 − F1 if only the images with the least std are kept.", number(own.get("image_aurc_best")) or "",
             number(own.get("image_aurc_random")) or "", "no images"),
    ]  # fmt: skip


def risk_sentence(summary: Numbers) -> str:
    """What threshold keeps the missed share of the foreground low, or how to get one."""
    if summary.get("split") == "val":
        return (
            "These are the validation images. Sample the test images with the same settings: a threshold that bounds "
            "the foreground missed there is chosen here."
        )
    control = (summary.get("uncertainty") or {}).get("risk_control")
    if not control:
        return (
            "No threshold with a bound on missed foreground yet: sample the validation images first (add --split val "
            "to the same sample.py command), then the test images again."
        )
    chosen, alpha = f"chosen on {control['validation_images']} validation images", percent(control["alpha"])
    if control["sdf_below"] is None:
        least = math.ceil(1 / control["alpha"] - 1 - 1e-9)
        reason = "only calling every pixel foreground does" if control["attainable"] else f"it takes at least {least}"
        return f"No threshold {chosen} promises to miss at most {alpha} of the foreground: {reason}."
    error = control["missed_error"]
    return (
        f"To miss at most {alpha} of the foreground on average, take the pixels whose MMSE is below "
        f"{control['sdf_below']:.2f} SDF units ({chosen}). On these images that misses {percent(control['missed'])}"
        f"{'' if error is None else f' (standard error {percent(error)})'} and calls {percent(control['size'])} of the "
        f"pixels foreground; {percent(control['images_over_alpha'])} of the images miss more than {alpha}."
    )


def objects(summary: Numbers) -> list[Line]:
    """Scores of single objects; empty where there are none."""
    own: Numbers = summary.get("objects") or {}
    if not own:
        return []
    return [
        Line("AJI (aggregated Jaccard index)", number(own["aji"]),
             "Overlap of the objects that belong together; missed and invented objects count against it.", "1"),
        Line("PQ (panoptic quality)", number(own["pq"]),
             f"Detection times outline: DQ {own['dq']:.4f}, the F1 of objects found with an IoU above one half, times "
             f"SQ {own['sq']:.4f}, the mean IoU of these.", "1"),
        Line("object F1", number(own["f1"]),
             "An object is found if half of it is covered (rule of the GlaS challenge).", "1"),
        Line("object Dice", number(own["dice"]), "Overlap object by object, large objects count more.", "1"),
        Line("object Hausdorff distance", number(own["hausdorff"], ".2f"),
             "Pixels: how far the two outlines of an object are apart at their worst place.", "0"),
    ]  # fmt: skip


_RATERS = {
    "ged": ("generalised energy distance", "Do draws differ from raters as raters do among themselves? Squared, "
            "distance 1 − IoU.", "0"),
    "hm_iou": ("matched IoU", "Each draw paired with one rater for the largest mean IoU.", "1"),
    "d_max": ("best Dice", "For every rater the draw that is closest.", "1"),
    "diversity": ("diversity, a draw with itself too", "Mean 1 − IoU of two draws, which may be the same one.", ""),
    "distance": ("distance of draws and raters", "Mean 1 − IoU of a draw and a rater.", ""),
    "rater_diversity": ("diversity of the raters, one with itself too", "Mean 1 − IoU of two raters, which may be the "
                        "same one.", ""),
    "fair_diversity": ("diversity of the draws", "Mean 1 − IoU of two different draws; right is that of the "
                       "raters.", ""),
    "fair_rater_diversity": ("diversity of the raters", "Mean 1 − IoU of two different raters.", ""),
    "diversity_ratio": ("diversity of draws / of raters", "Above 1 draws differ more than raters do, below 1 they are "
                        "too alike.", "1"),
    "ncc": ("NCC", "Correlation of where draws differ with where they differ from the raters.", "1"),
    "volume_crps": ("CRPS of the area", "Distance of the distributions of the area in draws and raters, pixels.", "0"),
    "consensus_dice": ("consensus Dice", "Dice where all raters agree.", "1"),
    "ece_raters": ("ECE against raters", "Expected calibration error against each rater, mean over them.", "0"),
}  # fmt: skip


def raters(summary: Numbers) -> list[Line]:
    """Scores against several raters; empty where there is a single annotation."""
    lines = []
    for key, value in (summary.get("raters") or {}).items():
        head, _, count = key.rpartition("_")
        name, counted = (head, f", {count} draws") if count.isdigit() else (key, "")
        if name in _RATERS:
            title, hint, best = _RATERS[name]
            if name == "fair_diversity":
                best = number(summary["raters"].get("fair_rater_diversity")) or ""
            lines.append(
                Line(
                    title + counted,
                    number(value),
                    hint,
                    best,
                    "",
                    "the draws are equal" if name == "ncc" else "it takes two",
                )
            )
    return lines
