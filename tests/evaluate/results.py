"""Scores and results as a run makes them, of which a test names only what it is about."""

from collections.abc import Sequence
from typing import Any

from evaluate.rows import Comparison, DataFacts, MeasuredFacts, MetricScore, RunFacts, Score
from evaluate.scores.scores import Results


def make_facts(**given: Any) -> MeasuredFacts:
    data = DataFacts(name="scenes", root=None, n_images=1000, fingerprint="f")
    known: dict[str, Any] = {
        "model": "net", "source": "net.pth", "weights_sha256": "0" * 64, "num_params": 7,
        "transform": {"resize": 64, "crop": 64}, "data": data, "seconds": 2.0, "images_per_second": 1.5,
        "explainer_seconds": {}, "explainer_notes": {}, "batch_size": 8, "threads": 1,
    }  # fmt: skip
    return MeasuredFacts(**known | given)


def make_score(checkpoint: str = "net", explainer: str | None = "grad_cam", model: str = "net", **given: Any) -> Score:
    known: dict[str, Any] = {
        "n_images": 3, "top1": 50.0, "measures": {}, "protocol": "paper", "facts": make_facts(model=model),
        "seconds_per_image": None, "seconds_per_image_shared": None,
    }  # fmt: skip
    return Score(checkpoint=checkpoint, explainer=explainer, **known | given)


def make_metric(value: float | None, better: str = "higher", curve: list[float | None] | None = None) -> MetricScore:
    return MetricScore(value=value, better=better, settings={}, defined=3, curve=curve)


def make_results(scores: Sequence[Score], comparisons: Sequence[Comparison] = ()) -> Results:
    run = RunFacts(
        partial="", lacking=[], precision="fp32", compile=False, device="cpu", processes=1, seed=0, command="typed",
        versions={"python": "3"}, layer="last", target="label",
    )  # fmt: skip
    return Results(
        run=run, data=scores[0].facts.data, ceiling=None, has_human_maps=scores[0].protocol is not None,
        metrics=list(scores[0].measures), scores=scores, comparisons=comparisons,
    )  # fmt: skip
