"""What a method does where nothing is said: the values of the papers, or of their code, as the documentation says."""

import pytest

from evaluate.explainers.registry import EXPLAINERS
from evaluate.metrics.registry import MEASURES

EXPECTED = {
    "grad_cam": {"relu": True},
    "threshold_grad_cam": {"threshold": 0.3, "order": "relu_first", "normalisation": "min_max"},  # the study's code
    "grad_cam_pp": {"form": "official", "eps": 1e-6, "relu": True},  # adityac94/Grad_CAM_plus_plus
    "xgrad_cam": {"eps": 1e-6, "relu": True},  # Fu0511/XGrad-CAM
    "layer_cam": {"relu": True},
    "hires_cam": {"relu": True},
    "eigen_cam": {"centre": True, "relu": True},
    "conceptor_cam": {"aperture": 1.0, "base": "grad_cam", "relu": True},
    "score_cam": {"weighting": "probability", "substrate": "mean", "align_corners": False, "relu": True},  # haofanwang
    "ablation_cam": {"relu": True},
    "opti_cam": {
        "objective": "mask", "normalisation": "range", "iterations": 100, "learning_rate": 0.1, "tolerance": 1e-10,
        "substrate": "black",
    },
    "full_grad": {"align_corners": True},
    "input_gradient": {"reduce": "max_abs"},
    "guided_backprop": {"reduce": "max_abs"},
    "guided_grad_cam": {"reduce": "max_abs"},
    "smooth_grad": {"samples": 25, "noise": 0.15, "reduce": "max_abs", "magnitude": True},  # PAIR-code/saliency
    "rise": {"masks": 4000, "cells": 8, "keep": 0.5, "substrate": "mean"},  # the paper, for VGG16
    "occlusion": {"window": None, "stride": None, "substrate": "mean"},
    "centre": {"sigma": 0.25},
    "dice": {"percent": 10},
    "iou": {"percent": 10},
    "average_drop": {"substrate": "black"},
    "average_increase": {"substrate": "black"},
    "average_gain": {"substrate": "black"},
    "insertion": {"step": 224, "blur_size": 11, "blur_sigma": 5, "of": "predicted"},  # RISE's code at 224 px
    "deletion": {"step": 224, "substrate": "mean", "of": "predicted"},
    "pointing_game": {"tolerance": 15},
    "box_accuracy": {"thresholds": 100, "overlaps": (0.3, 0.5, 0.7)},  # MaxBoxAccV2
    "localisation_error": {"neighbours": 4},  # casme's get_largest_connected
    "official_metric": {"neighbours": 4},
    "saliency_metric": {"of": "crop", "neighbours": 4},
    "road": {"percentages": (10, 20, 30, 40, 50, 60, 70, 80, 90), "noise": 0.01},
    "coherency": {"substrate": "mean"},  # ADCC
    "max_sensitivity": {"radius": 0.2, "samples": 10},
    "cascading_randomisation": {"similarity": "spearman", "stages": None, "seed": 0, "reset": "values"},
}  # fmt: skip


@pytest.mark.parametrize("name", [*EXPLAINERS, *MEASURES])
def test_defaults(name):
    assert {**EXPLAINERS, **MEASURES}[name].parameters == EXPECTED.get(name, {})


def test_no_two_bear_one_name():
    assert not EXPLAINERS.keys() & MEASURES.keys()
