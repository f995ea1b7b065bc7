"""Pictures of a detector's results: detections on their images, and scores against IoUs.

``python -m corrdet.analysis.pictures --ground-truth gt.json --detections results.json --images DIR
--output DIR`` takes COCO-format files from any detector, in any framework.
"""

import argparse
import contextlib
import io
import json
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import numpy as np  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402
from PIL import Image  # noqa: E402
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402
from tqdm import tqdm  # noqa: E402

from corrdet.data.files import atomic_write  # noqa: E402
from corrdet.evaluation.correlation import rank_correlation, true_positives  # noqa: E402


def load_results(ground_truth: str, detections: str) -> COCOeval:
    """Match a results file with its annotations.

    Args:
        ground_truth: COCO annotation file.
        detections: COCO results file of boxes.

    Returns:
        COCOeval after ``evaluate()``.

    Raises:
        ValueError: the results file holds no detection.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(ground_truth)
        if not json.loads(Path(detections).read_text()):
            raise ValueError(f"{detections} holds no detection: nothing to draw")
        coco_eval = COCOeval(gt, gt.loadRes(detections), "bbox")
        coco_eval.evaluate()
    return coco_eval


def draw_scatter(coco_eval: COCOeval, path: str) -> None:
    """Score against IoU of the true positives (IoU >= 0.5), with both marginals, as a PNG.

    Args:
        coco_eval: see :func:`load_results`.
        path: where to write.
    """
    by_class = true_positives(coco_eval)
    scores = np.concatenate([scores for scores, _ in by_class.values()])
    ious = np.concatenate([ious for _, ious in by_class.values()])
    of_classes = [rho for pair in by_class.values() if (rho := rank_correlation(*pair)) is not None]

    figure, axes = plt.subplot_mosaic(
        [["above", "."], ["main", "right"]],
        figsize=(7, 7),
        width_ratios=(5, 1),
        height_ratios=(1, 5),
        layout="constrained",
    )
    main = axes["main"]
    main.scatter(ious, scores, s=9, alpha=0.35, linewidths=0)
    main.set(xlim=(0.5, 1), ylim=(0, 1), xlabel="IoU with the ground truth", ylabel="score")
    main.grid(alpha=0.3)
    axes["above"].hist(ious, bins=np.linspace(0.5, 1, 41))
    axes["above"].sharex(main)
    axes["right"].hist(scores, bins=np.linspace(0, 1, 41), orientation="horizontal")
    axes["right"].sharey(main)
    for name in ("above", "right"):
        axes[name].axis("off")
    beta_cls = f"{100 * np.mean(of_classes):.1f}" if of_classes else "not defined"
    figure.suptitle(f"{len(scores)} true positives, beta_cls {beta_cls}")
    _save(figure, path)


def draw_detections(
    coco_eval: COCOeval, image_root: str, output: str, *, count: int = 12, threshold: float = 0.5
) -> list[str]:
    """Detections on their images, with the ground truth, as one PNG an image.

    Args:
        coco_eval: see :func:`load_results`.
        image_root: folder of the images.
        output: folder to write to.
        count: how many images, spread evenly over the data set's.
        threshold: detections with lower scores are left out.

    Returns:
        the paths written.
    """
    gt, detections = coco_eval.cocoGt, coco_eval.cocoDt
    names = {category["id"]: category["name"] for category in gt.loadCats(gt.getCatIds())}
    image_ids = sorted(gt.getImgIds())
    chosen = [
        image_ids[i]
        for i in np.unique(np.linspace(0, len(image_ids) - 1, count).round().astype(int))
    ]
    paths = []
    for image_id in tqdm(chosen, desc="drawing detections", unit="image"):
        info = gt.loadImgs(image_id)[0]
        figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
        with Image.open(os.path.join(image_root, info["file_name"])) as image:
            axes.imshow(image.convert("RGB"))
        for annotation in gt.loadAnns(gt.getAnnIds(image_id)):
            # Black and white: to be seen on any image.
            _draw_box(axes, annotation["bbox"], "black")
            _draw_box(axes, annotation["bbox"], "white", linestyle="--")
        ious = _best_ious(coco_eval, image_id)
        # In this order the surest are drawn last, and not painted over.
        of_image = detections.loadAnns(detections.getAnnIds(image_id))
        for detection in sorted(of_image, key=lambda detection: detection["score"]):
            if detection["score"] < threshold:
                continue
            color = plt.cm.tab10(detection["category_id"] % 10)
            _draw_box(axes, detection["bbox"], color)
            label = (
                f"{names[detection['category_id']]}  {detection['score']:.2f}"
                f"  IoU {ious[detection['id']]:.2f}"
            )
            _draw_label(axes, detection["bbox"], label, color)
        axes.axis("off")
        axes.set_title(
            "dashed: ground truth\n"
            "labels: class, score, IoU with the nearest ground truth of the predicted class",
            fontsize=9,
        )
        path = os.path.join(output, Path(info["file_name"]).stem + ".png")
        _save(figure, path)
        paths.append(path)
    return paths


def _best_ious(coco_eval: COCOeval, image_id: int) -> dict[int, float]:
    """Detection id -> its largest IoU with a ground truth of its class, 0 without any."""
    best: dict[int, float] = {}
    for category in coco_eval.params.catIds:
        # Only the 100 best detections of an image and class have been compared, best first.
        of_class = sorted(coco_eval._dts[image_id, category], key=lambda d: -d["score"])
        ious = np.asarray(coco_eval.ious[image_id, category])
        for row, detection in enumerate(of_class):
            found = ious.ndim == 2 and row < len(ious) and ious.shape[1] > 0
            best[detection["id"]] = float(ious[row].max()) if found else 0.0
    return best


def _draw_box(axes, xywh: tuple[float, float, float, float], color, **style) -> None:
    x, y, width, height = xywh
    axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=color, lw=1.5, **style))


def _draw_label(axes, xywh: tuple[float, float, float, float], label: str, color) -> None:
    """Above the box, or at its upper edge where that would be outside of the image."""
    x, y, width, _ = xywh
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()  # rows count downwards
    is_on_the_left = x - left < (right - left) / 2
    fits_above = y - top > 0.05 * (bottom - top)
    axes.text(
        x if is_on_the_left else x + width,
        y - 1 if fits_above else y + 1,
        label,
        color="white",
        fontsize=9,
        horizontalalignment="left" if is_on_the_left else "right",
        verticalalignment="bottom" if fits_above else "top",
        bbox={"facecolor": color, "edgecolor": "none", "pad": 1, "alpha": 0.8},
    )


def _save(figure, path: str) -> None:
    with atomic_write(path, "wb") as file:
        figure.savefig(file, dpi=120, format="png")
    plt.close(figure)


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ground-truth", required=True, help="COCO annotation file")
    parser.add_argument("--detections", required=True, help="COCO results file")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument("--count", type=int, default=12, help="number of images to draw")
    args = parser.parse_args(arguments)
    coco_eval = load_results(args.ground_truth, args.detections)
    draw_scatter(coco_eval, os.path.join(args.output, "score_against_iou.png"))
    draw_detections(coco_eval, args.images, args.output, count=args.count)


if __name__ == "__main__":
    main()
